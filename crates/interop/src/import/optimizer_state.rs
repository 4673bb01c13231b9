//! An optimiser's state as its source has it, whichever container held it: groups and entries by number or by name.
//!
//! Deliberately not here: which optimiser it is (`optimizer_kind`), which parameter a number stands for
//! (`optimizer_order`).

use std::path::PathBuf;

use crate::plain::PlainValue;
use crate::torch_pt::{PtFile, PtValue};
use ckptd_core::dtype::DType;
use ckptd_core::error::{Error, Result};
use ckptd_core::snapshot::{Role, Tensor};

/// `torch.optim.Optimizer.state_dict()`, or the same by names. A reader of another container fills one of these.
#[derive(Clone, Debug, Default)]
pub struct SourceOptimizer {
    /// The file, for messages.
    pub path: PathBuf,
    /// In their order.
    pub groups: Vec<SourceGroup>,
    /// What is kept for each parameter.
    pub entries: Vec<(ParameterKey, StateEntry)>,
}

/// What an optimiser keeps for one parameter: names such as `exp_avg`, and values.
pub type StateEntry = Vec<(String, StateValue)>;

/// A group of parameters with settings of their own.
#[derive(Clone, Debug)]
pub struct SourceGroup {
    /// Its parameters in their order.
    pub params: Vec<ParameterKey>,
    /// Their names in the same order, where the source has them beside the numbers (`param_names`).
    pub names: Option<Vec<String>>,
    /// All its other entries that are plain: `lr`, `betas`, `weight_decay` ...
    pub options: Vec<(String, PlainValue)>,
}

/// How a source refers to a parameter.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ParameterKey {
    /// By the place in which the optimiser was given it.
    Number(i64),
    /// By a name of the source's model, wrappers and all.
    Name(String),
}

/// One value of a [`StateEntry`].
#[derive(Clone, Debug)]
pub enum StateValue {
    /// A tensor in the source's layout.
    Tensor(Tensor),
    /// A number, `None` or another plain value.
    Plain(PlainValue),
    /// Something else, by its class.
    Other(String),
}

impl std::fmt::Display for ParameterKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ParameterKey::Number(number) => write!(f, "parameter {number}"),
            ParameterKey::Name(name) => write!(f, "parameter {name}"),
        }
    }
}

impl SourceGroup {
    /// An option by its name.
    pub fn option(&self, key: &str) -> Option<&PlainValue> {
        self.options.iter().find(|(name, _)| name == key).map(|(_, value)| value)
    }
}

/// Whether `value` has the form of an optimiser's state dict.
pub fn is_optimizer(value: &PtValue) -> bool {
    let groups = value.get("param_groups").and_then(PtValue::as_items);
    groups.is_some() && value.get("state").is_some()
        || value.as_dict().is_some_and(|items| items.iter().any(|(key, _)| is_flat_key(key)))
}

/// `param_groups.<name>.lr`: `get_optimizer_state_dict` with `flatten_optimizer_state_dict=True`.
fn is_flat_key(key: &PtValue) -> bool {
    key.as_str().is_some_and(|key| key.starts_with("param_groups."))
}

impl SourceOptimizer {
    /// Of a value of a `.pt` file.
    ///
    /// # Errors
    /// [`Error::Malformed`] that names the part that is no part of an optimiser's state.
    pub fn of_torch(file: &PtFile, value: &PtValue) -> Result<SourceOptimizer> {
        let refuse = |reason: String| Error::malformed(file.path(), format!("the optimiser's state: {reason}"));
        if value.as_dict().is_some_and(|items| items.iter().any(|(key, _)| is_flat_key(key))) {
            return flat(file, value);
        }
        let groups =
            value.get("param_groups").and_then(PtValue::as_items).ok_or_else(|| refuse("no param_groups".into()))?;
        let state = value.get("state").and_then(PtValue::as_dict).ok_or_else(|| refuse("no state".into()))?;
        let groups = groups.iter().map(|value| group(file, value)).collect::<Option<Vec<_>>>();
        let groups = groups.ok_or_else(|| refuse("a group without its list of parameters".into()))?;
        let numbered = groups.iter().flat_map(|group| &group.params).all(|key| matches!(key, ParameterKey::Number(_)));
        let mut entries = Vec::with_capacity(state.len());
        for (key, value) in state {
            let key =
                key_of(key, numbered).ok_or_else(|| refuse(format!("{} as the number of a parameter", key.kind())))?;
            if let Some(items) = value.as_dict() {
                entries.push((key, entry(file, items).map_err(&refuse)?));
            } else {
                return Err(refuse(format!("{key}: {} where its state should be", value.kind())));
            }
        }
        Ok(SourceOptimizer { path: file.path().to_path_buf(), groups, entries })
    }
}

/// A number, or a name; DCP writes numbers as text.
fn key_of(value: &PtValue, numbered: bool) -> Option<ParameterKey> {
    match value {
        PtValue::Int(number) => Some(ParameterKey::Number(*number)),
        PtValue::Str(text) => Some(match text.parse() {
            Ok(number) if numbered => ParameterKey::Number(number),
            _ => ParameterKey::Name(text.to_string()),
        }),
        _ => None,
    }
}

fn group(file: &PtFile, value: &PtValue) -> Option<SourceGroup> {
    let params = value.get("params")?.as_items()?.iter().map(|id| key_of(id, false)).collect::<Option<Vec<_>>>()?;
    let names = value.get("param_names").and_then(PtValue::as_items);
    let names = names.and_then(|names| names.iter().map(|name| Some(name.as_str()?.to_owned())).collect());
    let items = value.as_dict()?.iter().filter_map(|(key, value)| Some((key.as_str()?.to_owned(), value)));
    let others = items.filter(|(key, _)| key != "params" && key != "param_names");
    let options = others.filter_map(|(key, value)| Some((key, plain(file, value)?))).collect();
    Some(SourceGroup { params, names, options })
}

fn entry(file: &PtFile, items: &[(PtValue, PtValue)]) -> Result<StateEntry, String> {
    let mut entry = Vec::with_capacity(items.len());
    for (key, value) in items {
        let key = key.as_str().ok_or("its state has a key that is not text")?.to_owned();
        let value = match value {
            PtValue::Tensor(tensor) => {
                StateValue::Tensor(file.tensor(Role::Buffer, &key, tensor).map_err(|e| e.to_string())?)
            }
            value => plain(file, value).map_or_else(|| StateValue::Other(value.kind().to_owned()), StateValue::Plain),
        };
        entry.push((key, value));
    }
    Ok(entry)
}

/// `state.<name>.exp_avg` and `param_groups.<name>.lr` as groups of one parameter each.
fn flat(file: &PtFile, value: &PtValue) -> Result<SourceOptimizer> {
    let mut optimizer = SourceOptimizer { path: file.path().to_path_buf(), ..SourceOptimizer::default() };
    let refuse = |reason: String| Error::malformed(file.path(), format!("the optimiser's state: {reason}"));
    for (key, value) in value.as_dict().unwrap_or_default() {
        let Some(key) = key.as_str() else { continue };
        let split = |rest: &str| rest.rsplit_once('.').map(|(name, field)| (name.to_owned(), field.to_owned()));
        if let Some((name, field)) = key.strip_prefix("state.").and_then(split) {
            let items = [(PtValue::Str(field.into()), value.clone())];
            let value = entry(file, &items).map_err(&refuse)?;
            let name = ParameterKey::Name(name);
            match optimizer.entries.iter_mut().rev().find(|(known, _)| *known == name) {
                Some((_, known)) => known.extend(value),
                None => optimizer.entries.push((name, value)),
            }
        } else if let Some((name, field)) = key.strip_prefix("param_groups.").and_then(split) {
            let Some(value) = plain(file, value) else { continue };
            let name = ParameterKey::Name(name);
            match optimizer.groups.iter_mut().rev().find(|group| group.params[..] == [name.clone()]) {
                Some(group) => group.options.push((field, value)),
                None => optimizer.groups.push(SourceGroup {
                    params: vec![name],
                    names: None,
                    options: vec![(field, value)],
                }),
            }
        }
    }
    optimizer.groups.iter_mut().for_each(|group| group.options.retain(|(key, _)| key != "params"));
    Ok(optimizer)
}

/// A value without tensors and objects in it; a tensor of one number is that number, and an enum of others its value.
pub(super) fn plain(file: &PtFile, value: &PtValue) -> Option<PlainValue> {
    let all = |items: &[PtValue]| items.iter().map(|item| plain(file, item)).collect::<Option<Vec<_>>>();
    Some(match value {
        PtValue::None => PlainValue::None,
        PtValue::Bool(truth) => PlainValue::Bool(*truth),
        PtValue::Int(number) => PlainValue::Int(*number),
        PtValue::Float(number) => PlainValue::Float(*number),
        PtValue::Str(text) => PlainValue::Text(text.to_string()),
        PtValue::List(items) => PlainValue::List(all(items)?),
        PtValue::Tuple(items) => PlainValue::Tuple(all(items)?),
        PtValue::Dict(items) => {
            let pair = |(key, value): &(PtValue, PtValue)| Some((plain(file, key)?, plain(file, value)?));
            PlainValue::Dict(items.iter().map(pair).collect::<Option<_>>()?)
        }
        PtValue::Tensor(tensor) if tensor.elements() == 1 => {
            let tensor = file.tensor(Role::Buffer, "a number", tensor).ok()?;
            scalar(&tensor).map(|number| number.into_plain())?
        }
        PtValue::Object(object) => match object.arguments.as_items()? {
            [PtValue::Str(text)] => PlainValue::Text(text.to_string()),
            _ => return None,
        },
        PtValue::Tensor(_) | PtValue::DType(_) | PtValue::Other(_) => return None,
    })
}

/// The number in a tensor of one element.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Scalar {
    Int(i64),
    Float(f64, DType),
}

impl Scalar {
    fn into_plain(self) -> PlainValue {
        match self {
            Scalar::Int(number) => PlainValue::Int(number),
            // 0.001 in a tensor of float32 is meant as 0.001.
            Scalar::Float(number, DType::F32) => {
                PlainValue::Float((number as f32).to_string().parse().unwrap_or(number))
            }
            Scalar::Float(number, _) => PlainValue::Float(number),
        }
    }
}

pub(super) fn scalar(tensor: &Tensor) -> Option<Scalar> {
    let (bytes, dtype): (&[u8], DType) = ((*tensor.bytes).as_ref(), tensor.meta.dtype);
    match dtype {
        DType::I64 => bytes.try_into().ok().map(|b| Scalar::Int(i64::from_le_bytes(b))),
        DType::I32 => bytes.try_into().ok().map(|b| Scalar::Int(i64::from(i32::from_le_bytes(b)))),
        DType::I16 => bytes.try_into().ok().map(|b| Scalar::Int(i64::from(i16::from_le_bytes(b)))),
        DType::F64 | DType::F32 | DType::F16 | DType::BF16 => match *ckptd_core::dtype::numbers(dtype, bytes) {
            [number] => Some(Scalar::Float(number, dtype)),
            _ => None,
        },
        DType::I8 | DType::U8 | DType::Bool => None,
    }
}
