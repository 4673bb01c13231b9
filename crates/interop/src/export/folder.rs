//! The Hugging Face folder: what `from_pretrained` loads as it is, and with the optimiser what Trainer resumes from.

use std::io::BufWriter;
use std::panic::resume_unwind;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::options::ExportOptions;
use super::source::{ExportPart, ExportSource, exported_dtype};
use super::target::ExportFolder;
use super::{job_file, torch};
use crate::export_record::{self, ExportRecord};
use crate::names;
use crate::output::{self, OutputKind};
use crate::safetensors::{self, TensorSpec};
use ckptd_core::dtype::DType;
use ckptd_core::error::{Error, Result};
use ckptd_core::progress::ProgressSink;
use ckptd_core::snapshot::TensorMeta;
use ckptd_core::store::Store;
use ckptd_core::store::format::FileRecord;
use ckptd_history::travel;

/// What a folder was filled with.
pub(super) struct WrittenFolder {
    pub tensor_bytes: u64,
    /// Of all files.
    pub bytes: u64,
    /// What of the history could not be read, in sentences.
    pub history_lacks: Vec<String>,
}

impl WrittenFolder {
    /// Bytes of the tensors, and of all files.
    pub(super) fn sizes(&self) -> (u64, u64) {
        (self.tensor_bytes, self.bytes)
    }
}

/// Fills the folder `dir`, which is there and empty.
pub(super) fn write(
    source: &ExportSource,
    dir: &Path,
    options: &ExportOptions,
    progress: &dyn ProgressSink,
) -> Result<WrittenFolder> {
    let mut folder = ExportFolder::new(dir);
    let carried = companions(source, &mut folder, options)?;
    let mut tensor_bytes = weights(source, &mut folder, options, progress)?;
    if options.with_optimizer {
        tensor_bytes += torch::write_trainer_files(source, &mut folder, options, progress)?;
        job_file::write(source, &mut folder, options, progress)?;
    }
    let history_of = options.history_of.as_deref().filter(|_| options.format.bundle().is_some());
    let history_lacks = history_of.map_or(Ok(Vec::new()), |store| history(&mut folder, store))?;
    let manifest = source.manifest();
    let libtorch = &manifest.provenance.libtorch;
    folder.file(
        names::VERSION,
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
    let stays = options.format.kind() == OutputKind::Folder;
    // Rounded weights are another state: nothing may claim that they are this one.
    let exact = source.is_exact_as(options.dtype);
    let records = std::thread::scope(|scope| {
        // The disk has to do while the files are hashed.
        let syncing = stays.then(|| scope.spawn(|| output::sync(dir, folder.names())));
        let records = records(dir, &folder, progress);
        let synced = syncing.map_or(Ok(()), |thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic)));
        synced.and(records)
    })?;
    if exact {
        let record = ExportRecord { carried, files: records, ..ExportRecord::new(manifest) };
        folder.file(names::RECORD, &record.to_json()?)?;
    } else {
        folder.file(names::FILES_RECORD, &export_record::files_json(records)?)?;
    }
    if stays {
        output::sync(dir, &folder.names()[folder.names().len() - 1..])?;
    }
    Ok(WrittenFolder { tensor_bytes, bytes: folder.bytes()?, history_lacks })
}

/// Writes the history of the store at `store`, where it has one. What of it cannot be read is no reason to give up the
/// state that goes with it; it is returned in sentences.
fn history(folder: &mut ExportFolder, store: &Path) -> Result<Vec<String>> {
    let store = Store::open(store)?;
    if travel::part_numbers(&store)?.is_empty() {
        return Ok(Vec::new());
    }
    folder.part(names::HISTORY, |file| travel::write_file(&store, &mut BufWriter::new(file)))
}

/// The records of all files so far; those that were not hashed while they were written are read.
fn records(dir: &Path, folder: &ExportFolder, progress: &dyn ProgressSink) -> Result<Vec<FileRecord>> {
    let record = |name: &String| {
        progress.advance(0)?;
        folder.known(name).cloned().map_or_else(|| export_record::file_record(dir, name), Ok)
    };
    folder.names().iter().map(record).collect()
}

/// Everything that the snapshot carries, and what a folder needs beyond that. Returns the carried names.
fn companions(source: &ExportSource, folder: &mut ExportFolder, options: &ExportOptions) -> Result<Vec<String>> {
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
        // It is about the optimiser.
        if name == names::SOURCE_RECORD && !options.with_optimizer {
            continue;
        }
        // What this export writes itself cannot be carried: the names would clash.
        if names::is_reserved(name) {
            return Err(Error::mismatch(source.path(), format!("the snapshot carries a file named {name}")));
        }
        carried.push(record.name.clone());
        if name != names::CONFIG {
            folder.file(name, &source.carried(name)?.unwrap_or_default())?;
        }
    }
    if agree_on_dtype(&mut config_map, &source.model(), options.dtype) {
        folder.file(names::CONFIG, format!("{:#}\n", Value::Object(config_map.clone())).as_bytes())?;
    } else {
        folder.file(names::CONFIG, config.as_bytes())?;
    }
    if !carried.iter().any(|name| name == names::GENERATION) {
        folder.file(names::GENERATION, format!("{:#}\n", generation(&config_map)).as_bytes())?;
    }
    Ok(carried)
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
fn weights(
    source: &ExportSource,
    folder: &mut ExportFolder,
    options: &ExportOptions,
    progress: &dyn ProgressSink,
) -> Result<u64> {
    let model = source.model();
    let items: Vec<TensorSpec> = model
        .iter()
        .map(|meta| TensorSpec {
            name: meta.name.clone(),
            dtype: exported_dtype(meta, options.dtype),
            shape: meta.shape.clone(),
        })
        .collect();
    let total: u64 = items.iter().map(TensorSpec::bytes).sum();
    progress.begin("weights", total);
    let shards = shards(&items, options.max_shard_bytes);
    let mut weight_map = Map::new();
    for (number, range) in shards.iter().enumerate() {
        let name = names::weights_file(number + 1, shards.len());
        let part = &items[range.clone()];
        let content = |order: &[usize], take: &mut dyn FnMut(usize, &[u8]) -> Result<()>| {
            let tensor = |&i: &usize| ExportPart::Tensor(model[range.start + i].clone(), part[i].dtype);
            let parts: Vec<ExportPart> = order.iter().map(tensor).collect();
            source.stream(&parts, &mut |part, piece| take(order[part], piece))
        };
        let metadata = [("format", "pt".to_owned())];
        let path = folder.path(&name);
        let write = |file: &mut _| safetensors::write(file, &path, part, &metadata, content, progress);
        let written = folder.part(&name, write)?;
        folder.set_hash(&name, &written);
        weight_map.extend(part.iter().map(|item| (item.name.clone(), json!(name))));
    }
    if shards.len() > 1 {
        let parameters: u64 = items.iter().map(|item| item.shape.iter().product::<u64>()).sum();
        let metadata = json!({"total_parameters": parameters, "total_size": total});
        let index = json!({"metadata": metadata, "weight_map": weight_map});
        folder.file(names::WEIGHTS_INDEX, format!("{index:#}\n").as_bytes())?;
    }
    Ok(total)
}

/// Runs of items that stay within `max_bytes` each; an item that is larger makes a shard alone.
fn shards(items: &[TensorSpec], max_bytes: u64) -> Vec<std::ops::Range<usize>> {
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
        let item = |bytes: u64| TensorSpec { name: String::new(), dtype: DType::U8, shape: vec![bytes] };
        let items: Vec<TensorSpec> = [3, 3, 3, 9, 1, 1].into_iter().map(item).collect();
        assert_eq!(shards(&items, 6), [0..2, 2..3, 3..4, 4..6]);
        assert_eq!(shards(&items, 100).len(), 1);
        assert_eq!(shards(&items, 1), [0..1, 1..2, 2..3, 3..4, 4..5, 5..6]);
    }
}
