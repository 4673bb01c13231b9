//! `torch.optim.Optimizer.state_dict()` of AdamW or SGD: which moments belong to which parameter, and the step.
//!
//! PyTorch numbers parameters in the order in which the optimiser was given them and forgets their names. Two orders
//! are known: Trainer's (and nanoGPT's) two groups, decaying parameters first, and one group of all parameters.

use std::collections::HashMap;

use crate::gpt2_names;
use crate::torch_pt::{PtFile, PtValue, TensorRef};
use ckptd_core::dtype::{self, DType};
use ckptd_core::error::{Error, Result};
use ckptd_core::snapshot::{Role, Tensor, TensorMeta};

#[derive(Debug, Default)]
pub(super) struct OptimizerMoments {
    pub tensors: Vec<Tensor>,
    /// Steps that the optimiser has made, where it counts them.
    pub step: Option<u64>,
    /// The settings of its groups, as lines of `[train]`.
    pub settings: Vec<String>,
}

/// Reads `value` of `file` for `params`, which are in the model's order.
pub(super) fn read(file: &PtFile, value: &PtValue, params: &[&TensorMeta]) -> Result<OptimizerMoments> {
    let refuse = |reason: String| Error::malformed(file.path(), format!("the optimiser's state: {reason}"));
    let groups =
        value.get("param_groups").and_then(PtValue::as_items).ok_or_else(|| refuse("no param_groups".into()))?;
    let state = value.get("state").and_then(PtValue::as_dict).ok_or_else(|| refuse("no state".into()))?;
    let ids = groups.iter().map(group_ids).collect::<Option<Vec<_>>>();
    let ids = ids.ok_or_else(|| refuse("a group without its list of parameters".into()))?;
    let sizes: Vec<usize> = ids.iter().map(Vec::len).collect();
    let (order, decaying) = gpt2_names::optimizer_order(params);
    let order = match sizes.as_slice() {
        [all] if *all == params.len() => (0..params.len()).collect(),
        [first, second] if *first == decaying && first + second == params.len() => order,
        _ => {
            return Err(refuse(format!(
                "its groups have {sizes:?} parameters; known are one group of {} in the model's order, or two of \
                 [{decaying}, {}] \
                 with the decaying ones (two dimensions) first, as Trainer has them",
                params.len(),
                params.len() - decaying
            )));
        }
    };
    let mut entries: HashMap<i64, &PtValue> = HashMap::new();
    for (key, value) in state {
        let id = key.as_int().ok_or_else(|| refuse(format!("{} as the number of a parameter", key.kind())))?;
        if entries.insert(id, value).is_some() {
            return Err(refuse(format!("parameter {id} occurs twice")));
        }
    }
    let mut moments = OptimizerMoments { settings: settings(groups), ..OptimizerMoments::default() };
    if entries.is_empty() {
        return Ok(moments);
    }
    for (id, &param) in ids.concat().iter().zip(&order) {
        let meta = params[param];
        let entry =
            entries.remove(id).ok_or_else(|| refuse(format!("nothing for parameter {id}, which is {}", meta.name)))?;
        moments
            .add(file, meta, entry)
            .map_err(|what| refuse(format!("parameter {id}, which is {}: {what}", meta.name)))?;
    }
    match entries.keys().next() {
        Some(id) => Err(refuse(format!("parameter {id} is in no group"))),
        None => Ok(moments),
    }
}

fn group_ids(group: &PtValue) -> Option<Vec<i64>> {
    group.get("params")?.as_items()?.iter().map(PtValue::as_int).collect()
}

impl OptimizerMoments {
    fn add(&mut self, file: &PtFile, param: &TensorMeta, entry: &PtValue) -> Result<(), String> {
        let items = entry.as_dict().ok_or("its state is no dict")?;
        for (key, value) in items {
            let key = key.as_str().ok_or("its state has a key that is not text")?;
            let role = match key {
                "exp_avg" => Role::ExpAvg,
                "exp_avg_sq" => Role::ExpAvgSq,
                "momentum_buffer" => Role::MomentumBuffer,
                "step" => {
                    let step = step(file, value)?;
                    if *self.step.get_or_insert(step) != step {
                        return Err("another number of steps than the parameters before it".into());
                    }
                    continue;
                }
                "max_exp_avg_sq" => return Err("its optimiser is AMSGrad, which ckptd does not have".into()),
                _ => return Err(format!("{key:?} is nothing that AdamW or SGD keeps")),
            };
            let tensor = match value {
                PtValue::Tensor(tensor) => self::tensor(file, role, param, tensor)?,
                // SGD before its first step with momentum.
                PtValue::None => zeros(role, param),
                other => return Err(format!("its {key} is {}", other.kind())),
            };
            self.tensors.push(tensor);
        }
        Ok(())
    }
}

fn tensor(file: &PtFile, role: Role, param: &TensorMeta, tensor: &TensorRef) -> Result<Tensor, String> {
    if tensor.shape != param.shape {
        return Err(format!("its {role} has the shape {:?}, the parameter {:?}", tensor.shape, param.shape));
    }
    let tensor = file.tensor(role, &param.name, tensor).map_err(|e| e.to_string())?;
    widen(tensor)
}

/// A tensor as float32, exactly.
pub(super) fn widen(tensor: Tensor) -> Result<Tensor, String> {
    let dtype = tensor.meta.dtype;
    match dtype {
        DType::F32 => Ok(tensor),
        DType::F16 | DType::BF16 => {
            let bytes = dtype::convert((*tensor.bytes).as_ref(), dtype, DType::F32).unwrap_or_default();
            Ok(Tensor::new(TensorMeta { dtype: DType::F32, ..tensor.meta }, bytes))
        }
        _ => Err(format!(
            "{} is {dtype}; a training state is float32, and only narrower floats become that exactly",
            tensor.meta.label()
        )),
    }
}

pub(super) fn zeros(role: Role, param: &TensorMeta) -> Tensor {
    let bytes = param.elements().unwrap_or(0) as usize * DType::F32.size();
    Tensor::new(TensorMeta { role, dtype: DType::F32, ..param.clone() }, vec![0; bytes])
}

/// AdamW's counter: a number, or a tensor of one.
fn step(file: &PtFile, value: &PtValue) -> Result<u64, String> {
    let number = match value {
        PtValue::Tensor(tensor) if tensor.elements() == 1 => {
            let tensor = file.tensor(Role::Buffer, "step", tensor).map_err(|e| e.to_string())?;
            let bytes: &[u8] = (*tensor.bytes).as_ref();
            match (tensor.meta.dtype, bytes) {
                (DType::F32, &[a, b, c, d]) => f64::from(f32::from_le_bytes([a, b, c, d])),
                (DType::I64, bytes) => bytes.first_chunk().map_or(-1.0, |b| i64::from_le_bytes(*b) as f64),
                (DType::F64, bytes) => bytes.first_chunk().map_or(-1.0, |b| f64::from_le_bytes(*b)),
                (dtype, _) => return Err(format!("its step is a tensor of {dtype}")),
            }
        }
        value => value.as_float().ok_or_else(|| format!("its step is {}", value.kind()))?,
    };
    if number >= 0.0 && number.fract() == 0.0 && number < 1e15 {
        Ok(number as u64)
    } else {
        Err(format!("its step is {number}"))
    }
}

/// The first group's settings, under the names of the job file.
fn settings(groups: &[PtValue]) -> Vec<String> {
    let Some(group) = groups.first() else { return Vec::new() };
    let number = |key: &str| group.get(key).and_then(PtValue::as_float);
    let mut lines = Vec::new();
    if let Some(rate) = number("initial_lr").or_else(|| number("lr")) {
        lines.push(format!("learning_rate = {rate}"));
    }
    if let Some([Some(first), Some(second)]) = group
        .get("betas")
        .and_then(PtValue::as_items)
        .and_then(|pair| Some([pair.first()?.as_float(), pair.get(1)?.as_float()]))
    {
        lines.push(format!("betas = [{first}, {second}]"));
    }
    for (theirs, ours) in [("eps", "eps"), ("weight_decay", "weight_decay"), ("momentum", "momentum")] {
        if let Some(number) = number(theirs) {
            lines.push(format!("{ours} = {number}"));
        }
    }
    lines
}
