//! A Hugging Face model folder as it stands: config, weights (one file or shards, safetensors or PyTorch), tokenizer.
//!
//! Invariant: only files that lie in the folder by their plain names are opened; names of tensors are those of the
//! files. Deliberately not here: what the names mean to a model (the worker), and how a store's snapshot is made of
//! the folder (import).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::limits::ReadLimits;
use crate::mapped::read_small;
use crate::names::{COMPANIONS, CONFIG, TORCH_WEIGHTS, TORCH_WEIGHTS_INDEX, WEIGHTS, WEIGHTS_INDEX, is_safetensors};
use crate::python_json;
use crate::safetensors;
use crate::torch_pt::{PtFile, PtValue};
use ckptd_core::error::{Error, Result};
use ckptd_core::snapshot::{Role, Tensor};

const MAX_CONFIG_BYTES: u64 = 1 << 20;
const MAX_INDEX_BYTES: u64 = 16 << 20;

pub struct HfFolder {
    pub config_json: Vec<u8>,
    /// All of role `Param`, sorted by name; the bytes lie in memory mappings of the files.
    pub tensors: Vec<Tensor>,
    /// Other names of tensors that it holds once: (other name, name among `tensors`).
    pub aliases: Vec<(String, String)>,
    /// Those of [`COMPANIONS`] that are there.
    pub files: Vec<PathBuf>,
}

/// Reads the folder `dir`, whose config may come from elsewhere: `config_json` is empty where it has none.
pub fn open_without_config(dir: &Path, limits: &ReadLimits) -> Result<HfFolder> {
    if dir.join(CONFIG).is_file() {
        return open(dir, limits);
    }
    let (tensors, aliases) = weights_and_aliases(dir, limits)?;
    Ok(HfFolder { config_json: Vec::new(), tensors, aliases, files: companions(dir) })
}

/// Reads the folder `dir`. Its weights are checked and mapped, not copied.
pub fn open(dir: &Path, limits: &ReadLimits) -> Result<HfFolder> {
    let config = dir.join(CONFIG);
    if !config.is_file() {
        let what = if dir.is_dir() { "has no config.json" } else { "is not a folder" };
        return Err(Error::NotFound(format!(
            "{} {what}; a Hugging Face model folder holds config.json and model.safetensors",
            dir.display()
        )));
    }
    let config_json = read_small(&config, MAX_CONFIG_BYTES)?;
    python_json::parse::<serde_json::Map<String, serde_json::Value>>(&config_json)
        .map_err(|e| Error::malformed(&config, format!("not a JSON object: {e}")))?;
    let (tensors, aliases) = weights_and_aliases(dir, limits)?;
    Ok(HfFolder { config_json, tensors, aliases, files: companions(dir) })
}

/// Those of [`COMPANIONS`] that are in the folder.
pub fn companions(dir: &Path) -> Vec<PathBuf> {
    COMPANIONS.iter().map(|name| dir.join(name)).filter(|path| path.is_file()).collect()
}

/// Whether the folder holds weights, under their usual names or as a variant.
pub fn has_weights(dir: &Path) -> bool {
    let usual = [WEIGHTS, WEIGHTS_INDEX, TORCH_WEIGHTS, TORCH_WEIGHTS_INDEX];
    usual.iter().any(|name| dir.join(name).exists()) || !variants(dir).is_empty()
}

/// The weights of variants, as `save_pretrained(variant="fp16")` names them: `model.fp16.safetensors`.
fn variants(dir: &Path) -> Vec<PathBuf> {
    let is_variant = |name: &str| {
        let between = |start: &str, end: &str| name.strip_prefix(start).and_then(|rest| rest.strip_suffix(end));
        let (weights, index) = (between("model.", ".safetensors"), between("model.safetensors.index.", ".json"));
        let (torch, torch_index) = (between("pytorch_model.", ".bin"), between("pytorch_model.bin.index.", ".json"));
        let named = |variant: &str| !variant.is_empty() && !variant.contains('.') && !variant.contains("-of-");
        [weights, index, torch, torch_index].into_iter().flatten().any(named)
    };
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> =
        entries.filter(|entry| entry.file_name().to_str().is_some_and(is_variant)).map(|entry| entry.path()).collect();
    found.sort();
    found
}

/// The folder's weights, from the first of the four usual places that is there.
pub fn weights(dir: &Path, limits: &ReadLimits) -> Result<Vec<Tensor>> {
    weights_and_aliases(dir, limits).map(|(tensors, _)| tensors)
}

/// Two names of one tensor: the other one, and the one under which it stands.
pub type TiedName = (String, String);

/// The folder's weights, and the other names of those that are tied.
pub fn weights_and_aliases(dir: &Path, limits: &ReadLimits) -> Result<(Vec<Tensor>, Vec<TiedName>)> {
    let mut aliases = Vec::new();
    let there = |name: &str| Some(dir.join(name)).filter(|path| path.exists());
    let mut tensors = if let Some(path) = there(WEIGHTS) {
        let file = safetensors::open(&path, limits)?;
        aliases = file.metadata;
        file.tensors
    } else if let Some(path) = there(WEIGHTS_INDEX) {
        shards(dir, &path, limits)?
    } else if let Some(path) = there(TORCH_WEIGHTS) {
        state_dict(&path, limits)?
    } else if let Some(path) = there(TORCH_WEIGHTS_INDEX) {
        shards(dir, &path, limits)?
    } else {
        variant(dir, limits)?
    };
    tensors.sort_by(|a, b| a.meta.name.cmp(&b.meta.name));
    Ok((tensors, aliases))
}

/// The weights of the only variant that is there.
fn variant(dir: &Path, limits: &ReadLimits) -> Result<Vec<Tensor>> {
    match variants(dir).as_slice() {
        [path] if is_safetensors(&path.to_string_lossy()) => Ok(safetensors::open(path, limits)?.tensors),
        [path] if path.extension().is_some_and(|extension| extension == "json") => shards(dir, path, limits),
        [path] => state_dict(path, limits),
        [first, second, ..] => Err(Error::malformed(
            dir,
            format!(
                "it holds the weights in several variants, {} and {}; copy one of them under the name {WEIGHTS} or \
                 {TORCH_WEIGHTS}",
                first.file_name().unwrap_or_default().display(),
                second.file_name().unwrap_or_default().display()
            ),
        )),
        [] => Err(Error::NotFound(format!(
            "{} holds no weights: neither {WEIGHTS} nor {TORCH_WEIGHTS}, nor an index of shards; \
             save the model with save_pretrained",
            dir.display()
        ))),
    }
}

#[derive(Deserialize)]
struct ShardIndex {
    weight_map: BTreeMap<String, String>,
}

/// All tensors of the shards that the index at `path` names, each tensor in the file where the index says it is.
fn shards(dir: &Path, path: &Path, limits: &ReadLimits) -> Result<Vec<Tensor>> {
    let refuse = |reason: String| Error::malformed(path, reason);
    let index: ShardIndex = serde_json::from_slice(&read_small(path, MAX_INDEX_BYTES)?)
        .map_err(|e| refuse(format!("not an index of shards: {e}")))?;
    let mut files: Vec<&str> = index.weight_map.values().map(String::as_str).collect();
    files.sort_unstable();
    files.dedup();
    if files.len() > limits.shards {
        return Err(refuse(format!("{} shards; at most {} are read", files.len(), limits.shards)));
    }
    let mut tensors: Vec<Tensor> = Vec::new();
    let mut found: BTreeMap<String, &str> = BTreeMap::new();
    for file in files {
        check_plain(file).map_err(|what| refuse(format!("the shard name {file:?} {what}")))?;
        let shard = dir.join(file);
        if !shard.exists() {
            return Err(refuse(format!("it names the shard {file:?}, which is not in the folder; copy it there")));
        }
        let mut part =
            if is_safetensors(file) { safetensors::open(&shard, limits)?.tensors } else { state_dict(&shard, limits)? };
        for tensor in &part {
            if let Some(other) = found.insert(tensor.meta.name.clone(), file) {
                return Err(refuse(format!("the tensor {:?} is both in {other:?} and in {file:?}", tensor.meta.name)));
            }
        }
        tensors.append(&mut part);
    }
    match index.weight_map.iter().find(|(name, file)| found.get(*name) != Some(&file.as_str())) {
        Some((name, file)) => Err(refuse(format!("it says that {name:?} is in {file:?}, where it is not"))),
        None => Ok(tensors),
    }
}

/// The tensors of a `.pt` file that holds a state dict and nothing else.
pub fn state_dict(path: &Path, limits: &ReadLimits) -> Result<Vec<Tensor>> {
    let file = PtFile::open(path, limits)?;
    state_dict_tensors(&file, file.value())
}

/// The tensors of one dict of the file, under their keys.
pub fn state_dict_tensors(file: &PtFile, dict: &PtValue) -> Result<Vec<Tensor>> {
    let refuse = |reason: String| Error::malformed(file.path(), reason);
    let items = dict.as_dict().ok_or_else(|| refuse(format!("it holds {}, not a state_dict", dict.kind())))?;
    let mut tensors = Vec::with_capacity(items.len());
    for (key, value) in items {
        let name =
            key.as_str().ok_or_else(|| refuse("a state_dict's keys are text; this one has another key".into()))?;
        safetensors::check_name(name).map_err(refuse)?;
        let tensor = value.as_tensor().ok_or_else(|| refuse(not_a_tensor(name, value)))?;
        tensors.push(file.tensor(Role::Param, name, tensor)?);
    }
    Ok(tensors)
}

/// What an entry is that should be a tensor.
fn not_a_tensor(name: &str, value: &PtValue) -> String {
    let what = format!("the entry {name:?} is {}, not a tensor", value.kind());
    match value.as_object() {
        Some(object) if object.class.starts_with("torch.distributed") => format!(
            "{what}: a part of a sharded tensor; gather it, get_model_state_dict(model, \
             options=StateDictOptions(full_state_dict=True))"
        ),
        Some(object) if object.class.starts_with("torchao") => {
            format!("{what}: a quantised one; save the model before it is quantised")
        }
        _ => what,
    }
}

/// A name that stays in the folder: one plain component.
fn check_plain(name: &str) -> Result<(), &'static str> {
    let plain = !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\\', '\0']);
    if plain && name.len() <= 255 { Ok(()) } else { Err("is not the plain name of a file in the folder") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_plain_name_of_a_file_is_a_shards_name() {
        assert_eq!(check_plain("model-00001-of-00002.safetensors"), Ok(()));
        assert_eq!(check_plain(&"n".repeat(255)), Ok(()));
        for name in ["", ".", "..", "a/../b", "/b", "a/b", "a\\b", "a\0b", &"n".repeat(256)] {
            assert!(check_plain(name).is_err(), "{name:?}");
        }
    }
}
