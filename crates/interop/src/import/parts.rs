//! The sources of an import, each read into the same parts: tensors as they are named there, the optimiser's state,
//! companions, and what the source says of itself.

use std::path::Path;
use std::sync::Arc;

use serde::Deserialize;

use crate::archive::{self, ArchiveEntry};
use crate::export_record::ExportRecord;
use crate::limits::ReadLimits;
use crate::mapped::{MappedFile, read_small};
use crate::safetensors;
use crate::torch_pt::{PtFile, PtValue};
use crate::{bundle, dcp, foreign, gguf, hf, llmc, names, npz};
use ckptd_core::error::{Error, Result};
use ckptd_core::snapshot::{CarriedFile, Metrics, Role, Tensor, TensorMeta};
use ckptd_core::store::SnapshotReader;

/// Largest companion file that a snapshot carries, in bytes.
const MAX_CARRIED_BYTES: u64 = 32 << 20;
const MAX_TRAINER_STATE_BYTES: u64 = 64 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SourceKind {
    Folder,
    /// A folder of `torch.distributed.checkpoint`.
    Dcp,
    Torch,
    Npz,
    Gguf,
    Llmc,
    Safetensors,
    Bundle,
    Snapshot,
}

#[derive(Default)]
pub struct SourceParts {
    /// Parameters and buffers, by the names of the source.
    pub tensors: Vec<Tensor>,
    pub optimizer: OptimizerState,
    /// Steps, as the source says apart from the optimiser's state.
    pub step: Option<u64>,
    pub tokens_seen: u64,
    pub metrics: Metrics,
    pub files: Vec<CarriedFile>,
    /// The snapshot that the source was exported from.
    pub state: Option<ExportRecord>,
    pub notes: Vec<String>,
}

#[derive(Default)]
pub enum OptimizerState {
    #[default]
    None,
    /// Moments under the names of their parameters.
    Named(Vec<Tensor>),
    /// `OptimizerState.state_dict()`, the whole file or the entry under a key.
    Torch { file: PtFile, key: Option<&'static str> },
}

/// What lies at `path`.
pub(super) fn kind(path: &Path, limits: &ReadLimits) -> Result<SourceKind> {
    if path.is_dir() {
        let is_dcp = path.join(dcp::METADATA).exists();
        return Ok(if is_dcp { SourceKind::Dcp } else { SourceKind::Folder });
    }
    let mapped = MappedFile::open(path)?;
    let bytes = mapped.bytes();
    if let Some(known) = foreign::by_first_bytes(path, bytes) {
        return Err(Error::malformed(path, known));
    }
    match bytes {
        _ if bytes.starts_with(b"PK\x03\x04") => zip_kind(path, &archive::entries(&mapped, limits)?),
        _ if bytes.starts_with(gguf::MAGIC) => Ok(SourceKind::Gguf),
        _ if bytes.starts_with(&llmc::MAGIC) => Ok(SourceKind::Llmc),
        _ if bundle::kind_of(bytes).is_some() => Ok(SourceKind::Bundle),
        _ if bytes.starts_with(b"\x89CKPTD\r\n") => Ok(SourceKind::Snapshot),
        // The pickles of PyTorch's legacy format are refused by name where they are opened.
        _ if bytes.first() == Some(&0x80) || bytes.get(257..262) == Some(b"ustar") => Ok(SourceKind::Torch),
        _ if bytes.get(8) == Some(&b'{') => Ok(SourceKind::Safetensors),
        _ => Err(Error::malformed(
            path,
            "neither a .pt, a safetensors file, a zip or tar.zst bundle nor a ckptd snapshot; is it cut?",
        )),
    }
}

/// What a zip archive with these entries is.
fn zip_kind(path: &Path, entries: &[ArchiveEntry]) -> Result<SourceKind> {
    if let Some(known) = foreign::by_entries(path, entries) {
        return Err(Error::malformed(path, known));
    }
    let has_pickle = entries.iter().any(|entry| entry.name == "data.pkl" || entry.name.ends_with("/data.pkl"));
    Ok(match has_pickle {
        true => SourceKind::Torch,
        false if npz::is_npz(entries) => SourceKind::Npz,
        false => SourceKind::Bundle,
    })
}

/// A Hugging Face folder or a Trainer checkpoint.
pub(super) fn folder(dir: &Path, has_model: bool, limits: &ReadLimits) -> Result<SourceParts> {
    let folder = if has_model { hf::open_without_config(dir, limits)? } else { hf::open(dir, limits)? };
    let state = ExportRecord::read(dir)?;
    let mut parts = SourceParts { tensors: folder.tensors, ..SourceParts::default() };
    parts.files = match &state {
        // Exactly what the snapshot carried, in its order.
        Some(state) => state.carried.iter().map(|name| carry(&dir.join(name))).collect::<Result<_>>()?,
        None => {
            let config = CarriedFile { name: names::CONFIG.into(), bytes: Arc::new(folder.config_json) };
            let config = Some(Ok(config)).filter(|_| dir.join(names::CONFIG).is_file());
            let companions = folder.files.iter().map(|path| carry(path));
            config.into_iter().chain(companions).collect::<Result<_>>()?
        }
    };
    parts.state = state;
    let kept = [names::OPTIMIZER, names::ACCELERATE_OPTIMIZER].map(|name| dir.join(name));
    if let Some(optimizer) = kept.into_iter().find(|path| path.exists()) {
        parts.optimizer = OptimizerState::Torch { file: PtFile::open(&optimizer, limits)?, key: None };
    }
    let trainer_state = dir.join(names::TRAINER_STATE);
    if trainer_state.exists() {
        parts.trainer_state(&trainer_state)?;
    }
    Ok(parts)
}

/// A `.pt` file: a state dict, or a dict that holds one beside the optimiser's.
pub(super) fn torch(path: &Path, limits: &ReadLimits) -> Result<SourceParts> {
    torch_file(PtFile::open(path, limits)?, path)
}

/// What `torch.save` has written to `path`, or another container in its form.
pub(super) fn torch_file(file: PtFile, path: &Path) -> Result<SourceParts> {
    let mut parts = SourceParts::default();
    let value = file.value();
    let first = |keys: &[&'static str], fits: fn(&PtValue) -> bool| {
        keys.iter().copied().find(|key| value.get(key).is_some_and(fits))
    };
    let is_dict: fn(&PtValue) -> bool = |value| value.as_dict().is_some();
    let model = first(&["model", "state_dict", "model_state_dict"], is_dict);
    let dict = model.and_then(|key| value.get(key)).unwrap_or(value);
    parts.tensors = hf::state_dict_tensors(&file, dict)?;
    if model.is_some() {
        let is_number: fn(&PtValue) -> bool = |value| value.as_int().is_some();
        let step = first(&["step", "global_step", "iter_num"], is_number).and_then(|key| value.get(key)?.as_int());
        parts.step = step.and_then(|step| u64::try_from(step).ok());
        if let Some(config) = value.get(names::CONFIG_KEY).and_then(PtValue::as_str) {
            parts.files.push(CarriedFile { name: names::CONFIG.into(), bytes: Arc::new(config.as_bytes().to_vec()) });
        }
        if let Some(state) = value.get(names::RECORD_KEY).and_then(PtValue::as_str) {
            parts.state = Some(ExportRecord::parse(state.as_bytes(), path)?);
        }
        if let Some(key) = first(&["optimizer", "optimizer_state_dict"], is_dict) {
            parts.optimizer = OptimizerState::Torch { file, key: Some(key) };
        }
    }
    Ok(parts)
}

pub(super) fn safetensors(path: &Path, limits: &ReadLimits) -> Result<SourceParts> {
    let file = safetensors::open(path, limits)?;
    let mut parts = SourceParts::default();
    let entry = |key: &str| file.metadata.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str());
    if let Some(config) = entry(names::CONFIG_KEY) {
        parts.files.push(CarriedFile { name: names::CONFIG.into(), bytes: Arc::new(config.as_bytes().to_vec()) });
    }
    if let Some(state) = entry(names::RECORD_KEY) {
        parts.state = Some(ExportRecord::parse(state.as_bytes(), path)?);
    }
    let mut moments = Vec::new();
    for tensor in file.tensors {
        let moment = names::parse_moment(&tensor.meta.name).map(|(role, name)| (role, name.to_owned()));
        match moment {
            Some((role, name)) => {
                let meta = TensorMeta { role, name, ..tensor.meta };
                moments.push(Tensor { meta, bytes: tensor.bytes });
            }
            None => parts.tensors.push(tensor),
        }
    }
    if !moments.is_empty() {
        parts.optimizer = OptimizerState::Named(moments);
    }
    Ok(parts)
}

/// A snapshot file from another store.
pub(super) fn snapshot(path: &Path, limits: &ReadLimits) -> Result<SourceParts> {
    let reader = SnapshotReader::open(path)?;
    let (raw, file) = (reader.manifest().raw_bytes, reader.file_bytes());
    if raw > limits.expanded(file) {
        return Err(Error::malformed(
            path,
            format!("its {raw} bytes of tensors are not justified by {file} bytes of file"),
        ));
    }
    let snapshot = reader.read_snapshot()?;
    let of_model = |tensor: &Tensor| matches!(tensor.meta.role, Role::Param | Role::Buffer);
    let (tensors, moments): (Vec<Tensor>, Vec<Tensor>) = snapshot.tensors.into_iter().partition(of_model);
    let mut state = ExportRecord::new(reader.manifest());
    state.carried = snapshot.files.iter().map(|file| file.name.clone()).collect();
    let optimizer = if moments.is_empty() { OptimizerState::None } else { OptimizerState::Named(moments) };
    Ok(SourceParts { tensors, optimizer, files: snapshot.files, state: Some(state), ..SourceParts::default() })
}

#[derive(Deserialize)]
struct TrainerState {
    global_step: u64,
    #[serde(default)]
    num_input_tokens_seen: u64,
    #[serde(default)]
    log_history: Vec<LogEntry>,
}

#[derive(Deserialize)]
struct LogEntry {
    #[serde(default)]
    loss: Option<f64>,
}

impl SourceParts {
    fn trainer_state(&mut self, path: &Path) -> Result<()> {
        let bytes = read_small(path, MAX_TRAINER_STATE_BYTES)?;
        let state: TrainerState = serde_json::from_slice(&bytes)
            .map_err(|e| Error::malformed(path, format!("not the state of a Trainer: {e}")))?;
        self.step = Some(state.global_step);
        self.tokens_seen = state.num_input_tokens_seen;
        self.metrics.train_loss = state.log_history.iter().rev().find_map(|entry| entry.loss);
        Ok(())
    }

    /// Adds a small file of this text.
    pub(super) fn add_text(&mut self, name: &str, text: &str) {
        self.files.push(CarriedFile { name: name.into(), bytes: Arc::new(text.as_bytes().to_vec()) });
    }

    /// Config and tokenizer from a model folder, or a config.json alone, for a source that has none.
    pub fn add_companions(&mut self, model: &Path) -> Result<()> {
        let paths = if model.is_dir() {
            std::iter::once(names::CONFIG).chain(names::COMPANIONS).map(|name| model.join(name)).collect()
        } else {
            vec![model.to_path_buf()]
        };
        for path in paths.iter().filter(|path| path.is_file()) {
            let mut file = carry(path)?;
            if !model.is_dir() {
                file.name = names::CONFIG.into();
            }
            self.files.retain(|known| known.name != file.name);
            self.files.push(file);
        }
        Ok(())
    }
}

fn carry(path: &Path) -> Result<CarriedFile> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Ok(CarriedFile { name, bytes: Arc::new(read_small(path, MAX_CARRIED_BYTES)?) })
}
