//! The one reading of a GPT-2's tensors, whoever wrote them: names behind wrappers and attributes, `nn.Linear`'s layout
//! turned to `Conv1D`'s, a tied head under either of its names, all of it held against the config.
//!
//! Invariant: the result has every parameter of the model once, in the model's order, or the error names what is
//! missing, what is too much and what has another shape. Bytes are taken in place where they lie as they should.
//! Deliberately not here: the optimiser's state (import), float types other than the source's.

use std::collections::{BTreeMap, BTreeSet};

use rayon::prelude::*;

use crate::gpt2_config::Gpt2Config;
use crate::gpt2_names::{self, BlockParameter, EMBEDDING, Gpt2Parameter, HEAD, NameMeaning};
use ckptd_core::snapshot::{Tensor, TensorMeta};

/// What a source says of its tensors apart from their names and shapes.
#[derive(Clone, Debug, Default)]
pub struct ModelSays {
    /// Its config, where it has one.
    pub config: Option<Gpt2Config>,
    /// What the config is called in messages, such as "its config.json".
    pub config_name: String,
    /// Other names of tensors that it holds once: (other name, name in the file).
    pub aliases: Vec<(String, String)>,
}

/// A parameter of a source.
#[derive(Clone, Debug)]
pub struct ReadParameter {
    /// Under its canonical name, as [`Gpt2Config::parameters`] has it. The type is the source's.
    pub tensor: Tensor,
    /// Its shape in the source.
    pub source_shape: Vec<u64>,
    /// The source has the transpose of it: `nn.Linear`'s layout.
    pub is_turned: bool,
}

/// A whole GPT-2.
#[derive(Clone, Debug)]
pub struct ReadModel {
    /// Every parameter, in the model's order; a tied head is not among them.
    pub parameters: Vec<ReadParameter>,
    /// The head is the embedding.
    pub is_tied: bool,
}

impl ReadModel {
    /// Whether the linear layers lay as `nn.Linear` keeps them.
    pub fn is_turned(&self) -> bool {
        self.parameters.iter().any(|parameter| parameter.is_turned)
    }

    /// The tensors, in the model's order.
    pub fn into_tensors(self) -> Vec<Tensor> {
        self.parameters.into_iter().map(|parameter| parameter.tensor).collect()
    }
}

type Named = BTreeMap<Gpt2Parameter, Tensor>;

/// Reads `tensors`, which have the names and the layout of their source, as the GPT-2 that `says` describes; without
/// a config as the one that follows from their names and shapes.
///
/// # Errors
/// A clause that names each tensor that does not fit, and what to do.
pub fn read(tensors: Vec<Tensor>, says: &ModelSays) -> Result<ReadModel, String> {
    let (mut named, extra) = sort_by_name(tensors)?;
    restore_aliases(&mut named, &says.aliases);
    let is_tied = tie(&mut named, says.config.as_ref().map(|config| config.tie_word_embeddings))?;
    let config = match &says.config {
        Some(config) => config.clone(),
        None => inferred(&named, is_tied),
    };
    let name = if says.config.is_some() { says.config_name.as_str() } else { "the rest of it" };
    check_layers(&named, &config, name)?;
    check_biases(&named)?;
    let turned = is_linear_layout(&named, &config)?;
    check(&named, &extra, &config, turned, name)?;
    let parameters: Vec<ReadParameter> = named
        .into_iter()
        .collect::<Vec<_>>()
        .into_par_iter()
        .map(|(parameter, tensor)| read_one(parameter, tensor, turned && parameter.is_linear()))
        .collect();
    Ok(ReadModel { parameters, is_tied })
}

fn read_one(parameter: Gpt2Parameter, tensor: Tensor, is_turned: bool) -> ReadParameter {
    let source_shape = tensor.meta.shape.clone();
    let tensor = if is_turned { transposed(&tensor) } else { tensor };
    let meta = TensorMeta { name: parameter.to_string(), ..tensor.meta };
    ReadParameter { tensor: Tensor { meta, bytes: tensor.bytes }, source_shape, is_turned }
}

/// A matrix with its two dimensions exchanged; anything else as it is.
pub fn transposed(tensor: &Tensor) -> Tensor {
    const TILE: usize = 32;
    let [rows, columns] = *tensor.meta.shape.as_slice() else { return tensor.clone() };
    let (rows_n, columns_n, size) = (rows as usize, columns as usize, tensor.meta.dtype.size());
    let source: &[u8] = (*tensor.bytes).as_ref();
    let mut out = vec![0u8; source.len()];
    for (top, left) in (0..rows_n).step_by(TILE).flat_map(|top| (0..columns_n).step_by(TILE).map(move |l| (top, l))) {
        for row in top..(top + TILE).min(rows_n) {
            for column in left..(left + TILE).min(columns_n) {
                let (from, to) = ((row * columns_n + column) * size, (column * rows_n + row) * size);
                out[to..to + size].copy_from_slice(&source[from..from + size]);
            }
        }
    }
    Tensor::new(TensorMeta { shape: vec![columns, rows], ..tensor.meta.clone() }, out)
}

/// The parameters by what they are, and the tensors that are none. All must hang under one prefix.
fn sort_by_name(tensors: Vec<Tensor>) -> Result<(Named, Vec<TensorMeta>), String> {
    let (mut named, mut extra, mut prefixes) = (Named::new(), Vec::new(), BTreeMap::new());
    for tensor in tensors {
        match gpt2_names::meaning(&tensor.meta.name) {
            NameMeaning::Mask => {}
            NameMeaning::Other(_) => extra.push(tensor.meta),
            NameMeaning::Parameter { prefix, parameter } => {
                if parameter != Gpt2Parameter::Head {
                    prefixes.entry(prefix).or_insert_with(|| tensor.meta.name.clone());
                }
                if let Some(other) = named.insert(parameter, tensor) {
                    let theirs = &other.meta.name;
                    let name = &named[&parameter].meta.name;
                    return Err(format!(
                        "two of its tensors are {parameter}: {theirs} and {name}; save the one model that is meant"
                    ));
                }
            }
        }
    }
    let mut prefixes = prefixes.values();
    match (prefixes.next(), prefixes.next()) {
        (Some(one), Some(other)) => {
            Err(format!("{one} and {other} are parts of two models; save the one that is meant"))
        }
        _ => Ok((named, extra)),
    }
}

/// Adds what the source has under another name only.
fn restore_aliases(named: &mut Named, aliases: &[(String, String)]) {
    let parameter = |name: &str| match gpt2_names::meaning(name) {
        NameMeaning::Parameter { parameter, .. } => Some(parameter),
        _ => None,
    };
    for (other, name) in aliases {
        let (Some(other), Some(name)) = (parameter(other), parameter(name)) else { continue };
        if let Some(tensor) = named.get(&name).cloned() {
            named.entry(other).or_insert(tensor);
        }
    }
}

/// A tied head is the embedding, and no tensor of its own; a source may have it under either name. `says` is what the
/// config says. Returns whether it is tied.
fn tie(named: &mut Named, says: Option<bool>) -> Result<bool, String> {
    if says == Some(true)
        && !named.contains_key(&Gpt2Parameter::TokenEmbedding)
        && let Some(head) = named.remove(&Gpt2Parameter::Head)
    {
        named.insert(Gpt2Parameter::TokenEmbedding, head);
    }
    let Some(embedding) = named.get(&Gpt2Parameter::TokenEmbedding) else {
        let head = if named.contains_key(&Gpt2Parameter::Head) {
            format!(" ({HEAD} alone is the embedding only where a config.json ties them: give --model)")
        } else {
            String::new()
        };
        return Err(format!("it has no {EMBEDDING}: not a GPT-2{head}"));
    };
    let Some(head) = named.get(&Gpt2Parameter::Head) else {
        return match says {
            Some(false) => Err(format!("its config says that the head is not tied, but there is no {HEAD}")),
            _ => Ok(true),
        };
    };
    match (says, embedding.has_values_of(head)) {
        (Some(true) | None, true) => {
            named.remove(&Gpt2Parameter::Head);
            Ok(true)
        }
        (Some(true), false) => Err(format!(
            "{HEAD} is not {EMBEDDING}, although its config ties them; set \"tie_word_embeddings\": false to keep both"
        )),
        (Some(false), _) | (None, false) => Ok(false),
    }
}

/// The config that follows from names and shapes; the number of heads does not, and is no part of any shape.
fn inferred(named: &Named, is_tied: bool) -> Gpt2Config {
    let size = |parameter, dimension: usize| {
        named.get(&parameter).and_then(|tensor| tensor.meta.shape.get(dimension)).map_or(0, |&size| size as i64)
    };
    let inner_bias = |layer| Gpt2Parameter::Block { layer, part: BlockParameter::InnerBias };
    Gpt2Config {
        vocab_size: size(Gpt2Parameter::TokenEmbedding, 0),
        n_embd: size(Gpt2Parameter::TokenEmbedding, 1),
        n_positions: size(Gpt2Parameter::PositionEmbedding, 0),
        n_inner: Some(size(inner_bias(0), 0)).filter(|&inner| inner > 0),
        n_layer: layers(named).last().map_or(0, |&last| (last as i64).saturating_add(1)),
        n_head: 1,
        tie_word_embeddings: is_tied,
        ..Gpt2Config::default()
    }
}

fn layers(named: &Named) -> BTreeSet<u64> {
    let layer = |parameter: &Gpt2Parameter| match parameter {
        Gpt2Parameter::Block { layer, .. } => Some(*layer),
        _ => None,
    };
    named.keys().filter_map(layer).collect()
}

/// The blocks are those of the config, each of them there.
fn check_layers(named: &Named, config: &Gpt2Config, name: &str) -> Result<(), String> {
    let here = layers(named);
    let count = here.len() as u64;
    let expected = config.n_layer as u64;
    // The numbers are those of a file: a list of all that are missing could be of any length.
    let missing = (0..expected).find(|layer| !here.contains(layer));
    match (missing, here.last()) {
        (Some(layer), _) => Err(format!(
            "it has {count} blocks, h.{layer} is missing, and {name} has {expected}; save the whole model, or give the \
             config of this one with --model"
        )),
        (None, Some(&last)) if last >= expected => Err(format!(
            "it has {count} blocks, up to h.{last}, and {name} has {expected}; give this model's config with --model"
        )),
        _ => Ok(()),
    }
}

/// A model without biases is another model.
fn check_biases(named: &Named) -> Result<(), String> {
    if named.keys().any(|parameter| parameter.is_bias()) {
        return Ok(());
    }
    Err("it has no biases (bias=False): ckptd's GPT-2, like that of transformers, has them in every layer and would \
         train them; save a model that was built with bias=True"
        .into())
}

/// Whether the blocks' matrices are those of `nn.Linear`: the oblong ones say it, for the square ones too.
fn is_linear_layout(named: &Named, config: &Gpt2Config) -> Result<bool, String> {
    let shape = |parameter: &Gpt2Parameter| config.shape(*parameter);
    let (mut straight, mut turned) = (None, None);
    for (parameter, tensor) in named.iter().filter(|(parameter, _)| parameter.is_linear()) {
        let expected = shape(parameter);
        let reversed: Vec<u64> = expected.iter().rev().copied().collect();
        if expected == reversed {
            continue;
        }
        let place = if tensor.meta.shape == expected {
            &mut straight
        } else if tensor.meta.shape == reversed {
            &mut turned
        } else {
            continue;
        };
        place.get_or_insert((&tensor.meta.name, &tensor.meta.shape));
    }
    match (straight, turned) {
        (Some((a, a_shape)), Some((b, b_shape))) => Err(format!(
            "{a} {a_shape:?} lies as Conv1D keeps it, and {b} {b_shape:?} transposed, as nn.Linear does; save all \
             layers in one layout"
        )),
        (_, turned) => Ok(turned.is_some()),
    }
}

/// Every parameter of the config is there in its shape, and nothing else.
fn check(named: &Named, extra: &[TensorMeta], config: &Gpt2Config, turned: bool, name: &str) -> Result<(), String> {
    let mut faults = Vec::new();
    let expected: BTreeSet<Gpt2Parameter> =
        Gpt2Parameter::all(config.n_layer as u64, config.tie_word_embeddings).collect();
    for parameter in &expected {
        let mut shape = config.shape(*parameter);
        if turned && parameter.is_linear() {
            shape.reverse();
        }
        match named.get(parameter) {
            None => faults.push(format!("{parameter} is missing")),
            Some(tensor) if tensor.meta.shape != shape => {
                faults.push(format!("{parameter} has the shape {:?}, and {name} says {shape:?}", tensor.meta.shape));
            }
            Some(_) => {}
        }
    }
    faults.extend(named.keys().filter(|p| !expected.contains(p)).map(|p| format!("{p} is not part of the model")));
    faults.extend(extra.iter().map(|meta| format!("{} is no tensor of a GPT-2 language model", meta.name)));
    if faults.is_empty() {
        return Ok(());
    }
    let advice = match (extra.first(), faults.len() == extra.len()) {
        (Some(_), true) => "save the language model alone, without heads and adapters of its own",
        _ => "give the config of this very model, with --model where it is not beside it",
    };
    Err(format!("{}; {advice}", first_three(&faults)))
}

/// The first three of a list, and how many there are beyond them.
pub fn first_three(faults: &[String]) -> String {
    let shown = faults.iter().take(3).map(String::as_str).collect::<Vec<_>>().join("; ");
    match faults.len().saturating_sub(3) {
        0 => shown,
        more => format!("{shown}; and {more} more"),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use ckptd_core::dtype::DType;
    use ckptd_core::snapshot::Role;

    fn config() -> Gpt2Config {
        Gpt2Config { vocab_size: 11, n_positions: 5, n_embd: 6, n_layer: 2, n_head: 2, ..Gpt2Config::default() }
    }

    fn says() -> ModelSays {
        ModelSays { config: Some(config()), config_name: "its config.json".into(), aliases: Vec::new() }
    }

    /// Every parameter with numbers that are its own.
    fn model() -> Vec<Tensor> {
        let parameters = config().parameters();
        let value = |seed: usize, i: usize| ((seed * 1000 + i) as f32).to_le_bytes();
        let tensor = |(seed, meta): (usize, TensorMeta)| {
            let bytes = (0..meta.elements().unwrap() as usize).flat_map(|i| value(seed, i)).collect();
            Tensor::new(meta, bytes)
        };
        parameters.into_iter().enumerate().map(tensor).collect()
    }

    fn renamed(tensors: Vec<Tensor>, name: impl Fn(&str) -> String) -> Vec<Tensor> {
        tensors
            .into_iter()
            .map(|t| Tensor { meta: TensorMeta { name: name(&t.meta.name), ..t.meta }, bytes: t.bytes })
            .collect()
    }

    fn turned(tensors: Vec<Tensor>) -> Vec<Tensor> {
        let is_linear = |t: &Tensor| Gpt2Parameter::parse(&t.meta.name).is_some_and(Gpt2Parameter::is_linear);
        tensors.into_iter().map(|t| if is_linear(&t) { transposed(&t) } else { t }).collect()
    }

    fn bytes(tensors: &[Tensor]) -> Vec<(TensorMeta, Vec<u8>)> {
        tensors.iter().map(|t| (t.meta.clone(), (*t.bytes).as_ref().to_vec())).collect()
    }

    fn refusal(tensors: Vec<Tensor>) -> String {
        read(tensors, &says()).unwrap_err()
    }

    #[test]
    fn names_and_layouts_of_others_become_the_models_own() {
        let expected = bytes(&model());
        let wrapped = |name: &str| name.replace("h.0.", "h.0._checkpoint_wrapped_module.");
        for tensors in [
            model(),
            renamed(model(), |name| format!("_orig_mod.module.{name}")),
            renamed(model(), |name| format!("net.lm.{name}")),
            renamed(model(), |name| name.trim_start_matches("transformer.").to_owned()),
            renamed(model(), wrapped),
            turned(model()),
            renamed(turned(model()), |name| format!("_orig_mod.{name}")),
        ] {
            for says in [says(), ModelSays::default()] {
                assert_eq!(bytes(&read(tensors.clone(), &says).unwrap().into_tensors()), expected);
            }
        }
    }

    #[test]
    fn a_tied_head_is_taken_under_either_name() {
        let head_alone = renamed(model(), |name| if name == EMBEDDING { HEAD.into() } else { name.into() });
        assert_eq!(bytes(&read(head_alone.clone(), &says()).unwrap().into_tensors()), bytes(&model()));
        assert!(read(head_alone.clone(), &ModelSays::default()).unwrap_err().contains("give --model"));
        let aliases = vec![(EMBEDDING.to_owned(), HEAD.to_owned())];
        let read = read(head_alone, &ModelSays { aliases, ..ModelSays::default() }).unwrap();
        assert!(read.is_tied);
    }

    #[test]
    fn what_does_not_fit_the_config_is_named() {
        let other = |change: fn(&mut Gpt2Config)| {
            let mut config = config();
            change(&mut config);
            read(model(), &ModelSays { config: Some(config), ..says() }).unwrap_err()
        };
        assert!(other(|c| c.n_layer = 3).contains("h.2 is missing"), "{}", other(|c| c.n_layer = 3));
        assert!(other(|c| c.n_layer = 1).contains("up to h.1"), "{}", other(|c| c.n_layer = 1));
        let wider = other(|c| c.vocab_size = 12);
        assert!(wider.contains("wte.weight has the shape [11, 6], and its config.json says [12, 6]"), "{wider}");
        let without = |part: &str| model().into_iter().filter(|t| !t.meta.name.contains(part)).collect::<Vec<_>>();
        assert!(refusal(without("h.1.")).contains("h.1 is missing"));
        assert!(refusal(without("wpe")).contains("transformer.wpe.weight is missing"));
        assert!(refusal(without(".bias")).contains("bias=False"));
        let mut more = model();
        more.push(Tensor::new(
            TensorMeta { role: Role::Param, name: "score.weight".into(), dtype: DType::F32, shape: vec![1] },
            vec![0; 4],
        ));
        assert!(refusal(more).contains("score.weight is no tensor of a GPT-2"));
        let mut two = model();
        two.extend(renamed(model(), |name| format!("teacher.{name}")));
        assert!(refusal(two).contains("teacher.transformer.wte.weight"));
    }

    #[test]
    fn layers_in_two_layouts_are_refused() {
        let mixed: Vec<Tensor> = model()
            .into_iter()
            .zip(turned(model()))
            .map(|(straight, turned)| if straight.meta.name.contains("h.1.") { turned } else { straight })
            .collect();
        assert!(refusal(mixed).contains("in one layout"));
    }
}
