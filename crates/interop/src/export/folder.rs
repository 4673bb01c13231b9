//! The Hugging Face folder: what `from_pretrained` loads as it is, and with the optimiser what Trainer resumes from.

use std::io::Write;
use std::panic::resume_unwind;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::source::{Part, Source, exported_dtype};
use super::{Format, Options, job, torch};
use crate::safetensors::{self, Item};
use crate::state::{self, State};
use crate::{hf, output};
use ckptd_core::dtype::DType;
use ckptd_core::error::{Error, Result};
use ckptd_core::progress::ProgressSink;
use ckptd_core::snapshot::TensorMeta;
use ckptd_core::store::format::FileRecord;

const GENERATION: &str = "generation_config.json";
const VERSION: &str = "version.txt";

/// Fills the folder `dir`, which is there and empty. Returns the bytes of its tensors and of its files.
pub fn write(source: &Source, dir: &Path, options: &Options, progress: &dyn ProgressSink) -> Result<(u64, u64)> {
    let mut folder = Folder { dir, names: Vec::new(), records: Vec::new() };
    let carried = companions(source, &mut folder, options.dtype)?;
    let mut tensor_bytes = weights(source, &mut folder, options, progress)?;
    if options.with_optimizer {
        tensor_bytes += torch::write_trainer_files(source, &mut folder, options, progress)?;
        job::write(source, &mut folder, options, progress)?;
    }
    let manifest = source.manifest();
    let libtorch = &manifest.provenance.libtorch;
    folder.file(
        VERSION,
        format!(
            "ckptd {}\nstep {}\nroot {}\nlibtorch {}\n",
            env!("CARGO_PKG_VERSION"),
            manifest.train.step,
            manifest.root,
            if libtorch.is_empty() { "unknown" } else { libtorch }
        )
        .as_bytes(),
    )?;
    // What a bundle is made of goes again.
    let stays = options.format == Format::Hf;
    // Rounded weights are another state: nothing may claim that they are this one.
    let exact = source.model().iter().all(|meta| exported_dtype(meta, options.dtype) == meta.dtype);
    let (names, known) = (folder.names.clone(), std::mem::take(&mut folder.records));
    let records = std::thread::scope(|scope| {
        // The disk has to do while the files are hashed.
        let syncing = stays.then(|| scope.spawn(|| output::sync(dir, &names)));
        let records = if exact { records(dir, &names, known, progress) } else { Ok(Vec::new()) };
        let synced = syncing.map_or(Ok(()), |thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic)));
        synced.and(records)
    })?;
    if exact {
        let state = State { carried, files: records, ..State::new(manifest) };
        folder.file(state::FILE, &state.to_json()?)?;
        if stays {
            output::sync(dir, &[state::FILE.to_owned()])?;
        }
    }
    Ok((tensor_bytes, folder.bytes()?))
}

/// The files' records, in the order of `names`; those that are not `known` are read.
fn records(
    dir: &Path,
    names: &[String],
    known: Vec<FileRecord>,
    progress: &dyn ProgressSink,
) -> Result<Vec<FileRecord>> {
    let record = |name: &String| {
        progress.advance(0)?;
        known.iter().find(|known| known.name == *name).cloned().map_or_else(|| state::file_record(dir, name), Ok)
    };
    names.iter().map(record).collect()
}

/// The folder that is being filled, with the names of what is in it.
pub(super) struct Folder<'a> {
    pub dir: &'a Path,
    pub names: Vec<String>,
    /// Of the files that were hashed while they were written.
    records: Vec<FileRecord>,
}

impl Folder<'_> {
    pub fn file(&mut self, name: &str, content: &[u8]) -> Result<()> {
        self.part(name, |file| file.write_all(content).map_err(|e| Error::io("writing", name, e)))
    }

    pub fn part<T>(&mut self, name: &str, fill: impl FnOnce(&mut std::fs::File) -> Result<T>) -> Result<T> {
        let result = output::part(self.dir, name, fill)?;
        self.names.push(name.to_owned());
        Ok(result)
    }

    fn hashed(&mut self, name: &str, written: safetensors::Written) {
        let (bytes, hash) = (written.bytes, written.hash.to_hex().to_string());
        self.records.push(FileRecord { name: name.to_owned(), bytes, hash });
    }

    fn bytes(&self) -> Result<u64> {
        let size = |name: &String| {
            let path = self.dir.join(name);
            std::fs::metadata(&path).map(|found| found.len()).map_err(|e| Error::io("looking at", path, e))
        };
        self.names.iter().map(size).sum()
    }
}

/// Everything that the snapshot carries, and what a folder needs beyond that. Returns the carried names.
fn companions(source: &Source, folder: &mut Folder, dtype: Option<DType>) -> Result<Vec<String>> {
    let config = source.config_json()?.ok_or_else(|| {
        Error::mismatch(
            source.path(),
            "the snapshot carries no config.json, without which no folder can be made; export it as pt or safetensors",
        )
    })?;
    let mut config_map: Map<String, Value> = serde_json::from_str(&config).map_err(|e| {
        Error::mismatch(source.path(), format!("the config.json that it carries is no JSON object: {e}"))
    })?;
    let mut carried = Vec::new();
    for record in &source.manifest().files {
        let name = record.name.as_str();
        // What this export writes itself cannot be carried: the names would clash.
        if is_written(name) {
            return Err(Error::mismatch(source.path(), format!("the snapshot carries a file named {name}")));
        }
        carried.push(record.name.clone());
        if name != hf::CONFIG {
            folder.file(name, &source.carried(name)?.unwrap_or_default())?;
        }
    }
    match agree_on_dtype(&mut config_map, &source.model(), dtype) {
        true => folder.file(hf::CONFIG, format!("{:#}\n", Value::Object(config_map.clone())).as_bytes())?,
        false => folder.file(hf::CONFIG, config.as_bytes())?,
    }
    if !carried.iter().any(|name| name == GENERATION) {
        folder.file(GENERATION, format!("{:#}\n", generation(&config_map)).as_bytes())?;
    }
    Ok(carried)
}

fn is_written(name: &str) -> bool {
    name.ends_with(".safetensors")
        || [hf::SAFETENSORS_INDEX, VERSION, state::FILE].contains(&name)
        || torch::TRAINER_FILES.contains(&name)
        || job::FILES.contains(&name)
}

/// `from_pretrained` loads in the type that the config names, so it must be that of the weights. Returns whether it
/// had to be changed.
fn agree_on_dtype(config: &mut Map<String, Value>, model: &[&TensorMeta], dtype: Option<DType>) -> bool {
    let weights = model.iter().map(|meta| exported_dtype(meta, dtype)).find_map(|dtype| match dtype {
        DType::F32 => Some("float32"),
        DType::F16 => Some("float16"),
        DType::BF16 => Some("bfloat16"),
        _ => None,
    });
    let Some(weights) = weights else { return false };
    let mut changed = false;
    // The older name of the key is read too.
    for key in ["dtype", "torch_dtype"] {
        if let Some(value) = config.get_mut(key)
            && *value != weights
        {
            *value = json!(weights);
            changed = true;
        }
    }
    if weights != "float32" && !config.contains_key("dtype") && !config.contains_key("torch_dtype") {
        config.insert("dtype".into(), json!(weights));
        changed = true;
    }
    changed
}

/// What transformers itself derives from a config: the special tokens, where the vocabulary has them.
fn generation(config: &Map<String, Value>) -> Value {
    let mut generation = Map::new();
    generation.insert("_from_model_config".into(), json!(true));
    let vocabulary = config.get("vocab_size").and_then(Value::as_u64).unwrap_or(u64::MAX);
    for key in ["bos_token_id", "eos_token_id", "pad_token_id"] {
        if let Some(id) = config.get(key).and_then(Value::as_u64).filter(|&id| id < vocabulary) {
            generation.insert(key.into(), json!(id));
        }
    }
    Value::Object(generation)
}

/// Writes the weights, in one file or in shards with an index; returns their bytes.
fn weights(source: &Source, folder: &mut Folder, options: &Options, progress: &dyn ProgressSink) -> Result<u64> {
    let model = source.model();
    let items: Vec<Item> = model
        .iter()
        .map(|meta| Item {
            name: meta.name.clone(),
            dtype: exported_dtype(meta, options.dtype),
            shape: meta.shape.clone(),
        })
        .collect();
    let total: u64 = items.iter().map(Item::bytes).sum();
    progress.begin("weights", total);
    let shards = shards(&items, options.max_shard_bytes);
    let mut weight_map = Map::new();
    for (number, range) in shards.iter().enumerate() {
        let name = match shards.len() {
            1 => hf::SAFETENSORS.to_owned(),
            count => format!("model-{:05}-of-{count:05}.safetensors", number + 1),
        };
        let part = &items[range.clone()];
        let content = |order: &[usize], take: &mut dyn FnMut(usize, &[u8]) -> Result<()>| {
            let tensor = |&i: &usize| Part::Tensor(model[range.start + i].clone(), part[i].dtype);
            let parts: Vec<Part> = order.iter().map(tensor).collect();
            source.stream(&parts, &mut |part, piece| take(order[part], piece))
        };
        let metadata = [("format", "pt".to_owned())];
        let path = folder.dir.join(&name);
        let write = |file: &mut _| safetensors::write(file, &path, part, &metadata, content, progress);
        let written = folder.part(&name, write)?;
        folder.hashed(&name, written);
        weight_map.extend(part.iter().map(|item| (item.name.clone(), json!(name))));
    }
    if shards.len() > 1 {
        let parameters: u64 = items.iter().map(|item| item.shape.iter().product::<u64>()).sum();
        let metadata = json!({"total_parameters": parameters, "total_size": total});
        let index = json!({"metadata": metadata, "weight_map": weight_map});
        folder.file(hf::SAFETENSORS_INDEX, format!("{index:#}\n").as_bytes())?;
    }
    Ok(total)
}

/// Runs of items that stay within `max_bytes` each; an item that is larger makes a shard alone.
fn shards(items: &[Item], max_bytes: u64) -> Vec<std::ops::Range<usize>> {
    let mut shards = Vec::new();
    let (mut start, mut bytes) = (0, 0u64);
    for (i, item) in items.iter().enumerate() {
        if i > start && bytes + item.bytes() > max_bytes {
            shards.push(start..i);
            (start, bytes) = (i, 0);
        }
        bytes += item.bytes();
    }
    shards.push(start..items.len());
    shards
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_are_full_runs_within_the_limit() {
        let item = |bytes: u64| Item { name: String::new(), dtype: DType::U8, shape: vec![bytes] };
        let items: Vec<Item> = [3, 3, 3, 9, 1, 1].into_iter().map(item).collect();
        assert_eq!(shards(&items, 6), [0..2, 2..3, 3..4, 4..6]);
        assert_eq!(shards(&items, 100).len(), 1);
        assert_eq!(shards(&items, 1), [0..1, 1..2, 2..3, 3..4, 4..5, 5..6]);
    }
}
