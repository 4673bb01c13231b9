//! The sources of an import, each read into the same parts: tensors as they are named there, the optimiser's state,
//! companions, and what the source says of itself.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::optimizer_state::SourceOptimizer;
use super::{pt_dict, trainer};
use crate::archive::{self, ArchiveEntry};
use crate::export_record::ExportRecord;
use crate::limits::ReadLimits;
use crate::mapped::{MappedFile, read_small};
use crate::safetensors;
use crate::source_record::SourceRecord;
use crate::torch_pt::{PtFile, PtValue};
use crate::{bundle, dcp, foreign, gguf, hf, llmc, names, npz};
use ckptd_core::error::{Error, Result};
use ckptd_core::snapshot::{CarriedFile, Metrics, Role, Tensor, TensorMeta};
use ckptd_core::store::SnapshotReader;

/// Largest companion file that a snapshot carries, in bytes.
const MAX_CARRIED_BYTES: u64 = 32 << 20;

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

/// What a source holds and what it says of itself. Every reader fills one of these, with nothing interpreted: the
/// assembling reads names, layouts and the optimiser's state, holds all of it against the config, and makes the
/// snapshot. A reader of a new container gives
/// - `tensors` under the names of the container, wrappers and attributes included, in its layout;
/// - `optimizer` as [`OptimizerState::Groups`], by numbers or names as the container has them (for a value of a `.pt`
///   file [`SourceOptimizer::of_torch`] makes it);
/// - `files` with `config.json` where the container has the model's shape, and the tokenizer's files;
/// - `step`, `record`, `notes`, `aliases` where it says such things.
#[derive(Default)]
pub struct SourceParts {
    /// Parameters and buffers, by the names of the source.
    pub tensors: Vec<Tensor>,
    /// Other names of tensors that it holds once: (other name, name among `tensors`).
    pub aliases: Vec<(String, String)>,
    /// What its optimiser has kept.
    pub optimizer: OptimizerState,
    /// Steps, as the source says apart from the optimiser's state.
    pub step: Option<u64>,
    /// `step` is the weights' own, of another file than the optimiser's state, so that the two must agree.
    pub has_own_step: bool,
    /// Tokens that the weights have been trained on.
    pub tokens_seen: u64,
    /// Its last losses.
    pub metrics: Metrics,
    /// Small files that travel along: config.json, the tokenizer.
    pub files: Vec<CarriedFile>,
    /// What the config is called in messages, where it is not the source's own config.json.
    pub config_name: Option<String>,
    /// The snapshot that the source was exported from.
    pub state: Option<ExportRecord>,
    /// The settings of its training: schedule, Trainer's steps. The optimiser's groups are added from its state.
    pub record: SourceRecord,
    /// The file of its history.
    pub history: Option<PathBuf>,
    /// What the user should know.
    pub notes: Vec<String>,
}

/// What a source has of its optimiser.
#[derive(Default)]
pub enum OptimizerState {
    /// Nothing.
    #[default]
    None,
    /// Moments under the names and in the layout of a snapshot.
    Named(Vec<Tensor>),
    /// Groups and entries as the source has them.
    Groups(Box<SourceOptimizer>),
    /// A `.pt` file of `Optimizer.state_dict()`.
    File(PathBuf),
    /// Something that cannot be taken, and why.
    Refused(Error),
}

impl From<Result<SourceOptimizer>> for OptimizerState {
    fn from(read: Result<SourceOptimizer>) -> OptimizerState {
        read.map_or_else(OptimizerState::Refused, |state| OptimizerState::Groups(Box::new(state)))
    }
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
    let mut parts = SourceParts { tensors: folder.tensors, aliases: folder.aliases, ..SourceParts::default() };
    parts.files = match &state {
        // Exactly what the snapshot carried, in its order.
        Some(state) => state.carried.iter().map(|name| carry(&dir.join(name))).collect::<Result<_>>()?,
        None => {
            let config = Some(dir.join(names::CONFIG)).filter(|path| path.is_file());
            config.iter().chain(&folder.files).map(|path| carry(path)).collect::<Result<_>>()?
        }
    };
    parts.history = state.as_ref().map(|_| dir.join(names::HISTORY)).filter(|path| path.is_file());
    parts.state = state;
    let kept = [names::OPTIMIZER, names::ACCELERATE_OPTIMIZER].map(|name| dir.join(name));
    if let Some(optimizer) = kept.into_iter().find(|path| path.exists()) {
        parts.optimizer = OptimizerState::File(optimizer);
    }
    let says = trainer::read(dir, limits)?;
    (parts.step, parts.tokens_seen, parts.record) = (says.step, says.tokens_seen, says.record);
    parts.metrics.train_loss = says.train_loss;
    parts.notes = says.notes;
    parts.has_own_step = true;
    Ok(parts)
}

/// A `.pt` file: a state dict, or a dict that holds one beside the optimiser's.
pub(super) fn torch(path: &Path, limits: &ReadLimits) -> Result<SourceParts> {
    torch_file(PtFile::open(path, limits)?, path)
}

/// What `torch.save` has written to `path`, or another container in its form.
pub(super) fn torch_file(file: PtFile, path: &Path) -> Result<SourceParts> {
    let mut parts = SourceParts::default();
    let (dict, keys) = pt_dict::model(&file)?;
    parts.tensors = hf::state_dict_tensors(&file, dict)?;
    if keys.is_empty() {
        return Ok(parts);
    }
    let text = |key: &str| file.value().get(key).and_then(PtValue::as_str);
    parts.step = pt_dict::step(&file);
    parts.record.schedule = pt_dict::schedule(&file);
    if let Some(config) = text(names::CONFIG_KEY) {
        parts.add_text(names::CONFIG, config);
    } else if let Some(config) = pt_dict::nanogpt_config(&file, path)? {
        parts.add_text(names::CONFIG, &config);
        parts.notes.push(
            "the shape is that of its model_args; the activation does not stand there: \"gelu\" is taken, as nanoGPT \
             has it (its first versions had \"gelu_new\": --model says another one)"
                .into(),
        );
    }
    if let Some(record) = text(names::SOURCE_KEY) {
        parts.add_text(names::SOURCE_RECORD, record);
    }
    if let Some(state) = text(names::RECORD_KEY) {
        parts.state = Some(ExportRecord::parse(state.as_bytes(), path)?);
    }
    let objects = pt_dict::objects(&file);
    if !objects.is_empty() {
        parts.notes.push(format!("left out, as objects are not read: {}", objects.join(", ")));
    }
    parts.optimizer = match pt_dict::optimizer(&file, &keys) {
        Ok(None) => OptimizerState::None,
        Ok(Some(state)) => SourceOptimizer::of_torch(&file, state).into(),
        Err(why) => OptimizerState::Refused(why),
    };
    Ok(parts)
}

pub(super) fn safetensors(path: &Path, limits: &ReadLimits) -> Result<SourceParts> {
    let file = safetensors::open(path, limits)?;
    let mut parts = SourceParts::default();
    let entry = |key: &str| file.metadata.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str());
    if let Some(config) = entry(names::CONFIG_KEY) {
        parts.add_text(names::CONFIG, config);
    }
    if let Some(record) = entry(names::SOURCE_KEY) {
        parts.add_text(names::SOURCE_RECORD, record);
    }
    // save_model writes tied tensors once, and the other name of each as a key.
    parts.aliases = file.metadata.clone();
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

impl SourceParts {
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
            if file.name == names::CONFIG {
                self.config_name = Some(path.display().to_string());
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
