//! What the entries of a `.pt` file are: the model, its optimiser and schedule, the step, the shape of the model.
//!
//! Loops name their entries as they like. The model is the one entry that holds GPT-2's tensors, the optimiser the one
//! that has an optimiser's form, wherever they stand; where two could be meant, the names decide, or it is refused.
//! Deliberately not here: what the tensors and the optimiser's state mean.

use std::path::Path;

use serde_json::json;

use super::optimizer_state::{is_optimizer, plain};
use crate::foreign;
use crate::gpt2_names::{NameMeaning, meaning};
use crate::plain::PlainValue;
use crate::torch_pt::{PtFile, PtValue};
use ckptd_core::error::{Error, Result};
use ckptd_core::snapshot::Role;

/// Where loops keep a model, the likeliest first.
const MODEL_KEYS: [&str; 13] = [
    "model",
    "state_dict",
    "model_state_dict",
    "model_state",
    "model_dict",
    "net",
    "network",
    "weights",
    "params",
    "parameters",
    "module",
    "generator",
    "policy",
];
/// Where they keep a smoothed copy of it, which is meant only where it is alone.
const COPY_KEYS: [&str; 6] = ["ema", "ema_state_dict", "ema_model", "model_ema", "ema_weights", "swa_state_dict"];
const OPTIMIZER_KEYS: [&str; 8] = [
    "optimizer",
    "optimizer_state_dict",
    "optim",
    "opt",
    "optimizers",
    "optimizer_states",
    "optim_state_dict",
    "optimizer_state",
];
const STEP_KEYS: [&str; 7] = ["step", "global_step", "iter_num", "steps", "iteration", "iter", "num_updates"];

/// The state dict in `file`, and the keys that lead to it; none where the whole file is one.
pub(super) fn model(file: &PtFile) -> Result<(&PtValue, Vec<String>)> {
    let root = file.value();
    if is_gpt2(root) || root.as_dict().is_none() {
        return Ok((root, Vec::new()));
    }
    let mut found = Vec::new();
    for (key, value) in entries(root) {
        if is_gpt2(value) {
            found.push((value, vec![key.to_owned()]));
        } else {
            let inner = entries(value).filter(|(_, value)| is_gpt2(value));
            found.extend(inner.map(|(name, value)| (value, vec![key.to_owned(), name.to_owned()])));
        }
    }
    let rank = |keys: &[String]| {
        let known = |list: &[&str]| keys.last().is_some_and(|last| list.contains(&last.as_str()));
        if known(&MODEL_KEYS) { 0 } else { 1 + usize::from(known(&COPY_KEYS)) }
    };
    found.sort_by_key(|(_, keys)| rank(keys));
    match found.as_slice() {
        [] => unknown(file),
        [_] => Ok(found.swap_remove(0)),
        [first, second, ..] if rank(&first.1) < rank(&second.1) => Ok(found.swap_remove(0)),
        [(_, first), (_, second), ..] => Err(Error::malformed(
            file.path(),
            format!(
                "the entries {:?} and {:?} both hold a GPT-2; save the one that is meant alone, as \"model\"",
                first.join("."),
                second.join(".")
            ),
        )),
    }
}

/// A dict in which no GPT-2 is to be seen: as a state dict where it or a known entry has tensors, else refused.
fn unknown(file: &PtFile) -> Result<(&PtValue, Vec<String>)> {
    let root = file.value();
    let has_tensors = |value: &PtValue| {
        value.as_dict().is_some_and(|items| items.iter().any(|(_, value)| value.as_tensor().is_some()))
    };
    let known = MODEL_KEYS.iter().find_map(|key| Some((key, root.get(key).filter(|value| has_tensors(value))?)));
    if let Some((key, value)) = known {
        return Ok((value, vec![(*key).to_owned()]));
    }
    let objects = entries(root).find_map(|(key, value)| Some((key, value.as_object()?)));
    match (has_tensors(root), objects) {
        (true, _) => Ok((root, Vec::new())),
        (false, Some((key, object))) => Err(Error::malformed(
            file.path(),
            format!(
                "the entry {key:?} is an object of {}, and no entry holds a GPT-2's tensors; save model.state_dict(), \
                 not the model",
                object.class
            ),
        )),
        (false, None) => {
            let keys: Vec<&str> = entries(root).map(|(key, _)| key).take(8).collect();
            Err(Error::malformed(
                file.path(),
                format!(
                    "no entry of its dict holds a GPT-2's tensors (it has {keys:?}); the model is looked for under any \
                     key, such as {}",
                    MODEL_KEYS[..6].join(", ")
                ),
            ))
        }
    }
}

fn entries(value: &PtValue) -> impl Iterator<Item = (&str, &PtValue)> {
    value.as_dict().unwrap_or_default().iter().filter_map(|(key, value)| Some((key.as_str()?, value)))
}

/// Whether it holds tensors under names of GPT-2.
fn is_gpt2(value: &PtValue) -> bool {
    entries(value).any(|(name, value)| {
        let is_value = value.as_tensor().is_some() || value.as_object().is_some();
        is_value && matches!(meaning(name), NameMeaning::Parameter { .. })
    })
}

/// The optimiser's state in `file`, beside the model at `model`.
///
/// # Errors
/// [`Error::Malformed`] for two of them, and for an entry of an optimiser's name that is none.
pub(super) fn optimizer<'a>(file: &'a PtFile, model: &[String]) -> Result<Option<&'a PtValue>> {
    let refuse = |reason: String| Err(Error::malformed(file.path(), reason));
    let mut found: Vec<(String, &PtValue)> = Vec::new();
    let outer = model.len() > 1;
    let places = [Some(file.value()), model.first().filter(|_| outer).and_then(|key| file.value().get(key))];
    for (key, value) in places.into_iter().flatten().flat_map(entries) {
        if model.contains(&key.to_owned()) {
            continue;
        }
        if is_optimizer(value) {
            found.push((key.to_owned(), value));
        } else if let Some(items) = value.as_items().filter(|items| items.iter().any(is_optimizer)) {
            let states = items.iter().enumerate().filter(|(_, item)| is_optimizer(item));
            found.extend(states.map(|(i, item)| (format!("{key}[{i}]"), item)));
        } else if OPTIMIZER_KEYS.contains(&key) && !is_empty(value) {
            return refuse(format!(
                "the entry {key:?} is {}, not the state of an optimiser with state and param_groups",
                value.kind()
            ));
        }
    }
    match found.as_slice() {
        [] => Ok(None),
        [(_, value)] => Ok(Some(value)),
        [(first, _), (second, _), ..] => refuse(format!(
            "the optimiser's state: the entries {first} and {second} are two of them, and ckptd has one"
        )),
    }
}

fn is_empty(value: &PtValue) -> bool {
    let no_items = value.as_items().is_some_and(<[PtValue]>::is_empty);
    matches!(value, PtValue::None) || no_items || value.as_dict().is_some_and(<[_]>::is_empty)
}

/// The schedule's state, by its form.
pub(super) fn schedule(file: &PtFile) -> Option<PlainValue> {
    let is_schedule = |value: &PtValue| value.get("last_epoch").is_some();
    let found = entries(file.value()).find_map(|(_, value)| match value.as_items() {
        Some([one]) if is_schedule(one) => Some(one),
        Some(_) => None,
        None => Some(value).filter(|value| is_schedule(value)),
    })?;
    // Methods and functions are left out.
    let items = found.as_dict()?.iter().filter_map(|(key, value)| Some((plain(file, key)?, plain(file, value)?)));
    Some(PlainValue::Dict(items.collect()))
}

/// The steps that the file says.
pub(super) fn step(file: &PtFile) -> Option<u64> {
    STEP_KEYS.iter().find_map(|key| match file.value().get(key)? {
        PtValue::Int(step) => u64::try_from(*step).ok(),
        PtValue::Tensor(tensor) if tensor.elements() == 1 => {
            let tensor = file.tensor(Role::Buffer, key, tensor).ok()?;
            match super::optimizer_state::scalar(&tensor)? {
                super::optimizer_state::Scalar::Int(step) => u64::try_from(step).ok(),
                super::optimizer_state::Scalar::Float(..) => None,
            }
        }
        _ => None,
    })
}

/// The entries that are objects of others, which are left out.
pub(super) fn objects(file: &PtFile) -> Vec<String> {
    let object = |(key, value): (&str, &PtValue)| Some(format!("{key} ({})", value.as_object()?.class));
    entries(file.value()).filter_map(object).collect()
}

/// The text of a config.json for the shape that nanoGPT's `model_args` gives, and what it assumes.
///
/// # Errors
/// A clause that names what is missing, or what ckptd does not have.
pub(super) fn nanogpt_config(file: &PtFile, path: &Path) -> Result<Option<String>> {
    let Some(arguments) = file.value().get("model_args") else { return Ok(None) };
    let refuse = |reason: String| Error::malformed(path, format!("the entry \"model_args\": {reason}"));
    let size = |key: &str| arguments.get(key).and_then(PtValue::as_int);
    if arguments.get("bias") == Some(&PtValue::Bool(false)) {
        return Err(refuse(format!(
            "bias is False: ckptd's GPT-2, like that of transformers, has biases in every layer and would train them; \
             with biases of zero it computes the same: {}",
            foreign::add_biases(path)
        )));
    }
    let mut config = serde_json::Map::new();
    let names = [
        ("n_layer", "n_layer"),
        ("n_head", "n_head"),
        ("n_embd", "n_embd"),
        ("block_size", "n_positions"),
        ("vocab_size", "vocab_size"),
    ];
    for (theirs, ours) in names {
        let value = size(theirs).ok_or_else(|| refuse(format!("it has no {theirs}")))?;
        config.insert(ours.into(), json!(value));
    }
    let dropout = arguments.get("dropout").and_then(PtValue::as_float).unwrap_or(0.0);
    for key in ["resid_pdrop", "embd_pdrop", "attn_pdrop"] {
        config.insert(key.into(), json!(dropout));
    }
    config.insert("activation_function".into(), json!("gelu"));
    config.insert("model_type".into(), json!("gpt2"));
    config.insert("architectures".into(), json!(["GPT2LMHeadModel"]));
    Ok(Some(format!("{:#}\n", serde_json::Value::Object(config))))
}
