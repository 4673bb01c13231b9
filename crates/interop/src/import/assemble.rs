//! From the parts of a source to one snapshot.
//!
//! Two ways lead there. A source with an [`ExportRecord`] is an exported snapshot: every tensor is held against its
//! hash, and the snapshot is the one that was exported, to the same root. Any other source is interpreted: names and
//! tied weights as GPT-2's, floats widened to float32, the optimiser's state by the order of the parameters.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use rayon::prelude::*;

use super::optimizer::{self, OptimizerMoments};
use super::options::FreshOptimizer;
use super::parts::{OptimizerState, SourceParts};
use crate::export_record::ExportRecord;
use crate::output::ScratchFolder;
use crate::{gpt2_names, names};
use ckptd_core::error::{Error, Result};
use ckptd_core::progress::ProgressSink;
use ckptd_core::snapshot::{CarriedFile, Provenance, Role, Snapshot, Tensor, TensorMeta, TrainState};
use ckptd_core::store::format;

/// A source as a snapshot. Its tensors may lie in a bundle's unpacked files, which live as long as this.
pub struct LoadedSource {
    pub snapshot: Snapshot,
    /// The snapshot that the source was exported from, whether or not all of it is here.
    pub state: Option<ExportRecord>,
    /// The snapshot is that one, bit for bit.
    pub exact: bool,
    pub notes: Vec<String>,
    _scratch: Option<ScratchFolder>,
}

impl LoadedSource {
    /// Adds what the optimiser keeps, all zeros as before its first step, where the source had none of it.
    pub fn complete(&mut self, fresh: FreshOptimizer) -> Result<()> {
        let tensors = &mut self.snapshot.tensors;
        if self.exact || tensors.iter().any(|tensor| !matches!(tensor.meta.role, Role::Param | Role::Buffer)) {
            return Ok(());
        }
        let params: Vec<TensorMeta> =
            tensors.iter().map(|tensor| tensor.meta.clone()).filter(|meta| meta.role == Role::Param).collect();
        for &role in fresh.roles() {
            tensors.extend(params.iter().map(|param| optimizer::zeros(role, param)));
        }
        if !fresh.roles().is_empty() {
            self.snapshot.train.step = 0;
            self.notes
                .push("without the optimiser's state: its moments are zeros, and the training starts at step 0".into());
        }
        Ok(())
    }
}

pub fn assemble(
    parts: SourceParts,
    from: &Path,
    scratch: Option<ScratchFolder>,
    progress: &dyn ProgressSink,
) -> Result<LoadedSource> {
    let mut loaded = match parts.state.clone() {
        Some(state) if is_complete(&parts, &state) => exact(parts, state, from, progress)?,
        Some(state) => {
            check_hashes(&parts.tensors, &state, from, progress)?;
            LoadedSource { state: Some(state), ..plain(parts, from)? }
        }
        None => plain(parts, from)?,
    };
    loaded._scratch = scratch;
    Ok(loaded)
}

/// Whether the source has the optimiser's state, where the snapshot had one.
fn is_complete(parts: &SourceParts, state: &ExportRecord) -> bool {
    let kept = state.tensors.iter().any(|tensor| !matches!(tensor.meta.role, Role::Param | Role::Buffer));
    !kept || !matches!(parts.optimizer, OptimizerState::None)
}

/// The snapshot that `state` describes.
fn exact(parts: SourceParts, state: ExportRecord, from: &Path, progress: &dyn ProgressSink) -> Result<LoadedSource> {
    let refuse = |reason: String| Error::malformed(from, reason);
    let mut params: Vec<&TensorMeta> =
        state.tensors.iter().map(|tensor| &tensor.meta).filter(|meta| meta.role == Role::Param).collect();
    params.sort_by(|a, b| gpt2_names::order(&a.name, &b.name));
    let moments = moments(&parts.optimizer, &params)?;
    if moments.step.is_some_and(|step| step != state.train.step) {
        return Err(refuse(format!(
            "the optimiser's state is not of step {}, which the source names",
            state.train.step
        )));
    }
    let role = |tensor: &Tensor| match tensor.meta.role {
        Role::Param | Role::Buffer => None,
        role => Some(role),
    };
    let mut found: HashMap<(Option<Role>, String), Tensor> = parts
        .tensors
        .into_iter()
        .chain(moments.tensors)
        .map(|tensor| ((role(&tensor), tensor.meta.name.clone()), tensor))
        .collect();
    let mut tensors = Vec::with_capacity(state.tensors.len());
    for record in &state.tensors {
        let model = matches!(record.meta.role, Role::Param | Role::Buffer);
        let key = ((!model).then_some(record.meta.role), record.meta.name.clone());
        let tensor = found.remove(&key).ok_or_else(|| refuse(format!("{} is missing", record.meta.label())))?;
        if (tensor.meta.dtype, &tensor.meta.shape) != (record.meta.dtype, &record.meta.shape) {
            return Err(changed(from, &record.meta));
        }
        tensors.push(Tensor { meta: record.meta.clone(), bytes: tensor.bytes });
    }
    check_hashes(&tensors, &state, from, progress)?;
    for ((_, name), extra) in &found {
        let embedding = tensors.iter().find(|tensor| tensor.meta.name == gpt2_names::EMBEDDING);
        if name != gpt2_names::HEAD || !embedding.is_some_and(|embedding| embedding.has_values_of(extra)) {
            return Err(refuse(format!("{} is not part of the snapshot that was exported", extra.meta.label())));
        }
    }
    if format::root(&state.tensors, &state.train) != state.root {
        return Err(refuse("its description was changed: root is not the hash of what it describes".into()));
    }
    let snapshot = Snapshot {
        tensors,
        train: state.train.clone(),
        metrics: state.metrics.clone(),
        provenance: Provenance { reason: "import".into(), ..state.provenance.clone() },
        files: parts.files,
    };
    Ok(LoadedSource { snapshot, state: Some(state), exact: true, notes: parts.notes, _scratch: None })
}

/// Holds those tensors that `state` describes against their hashes.
fn check_hashes(tensors: &[Tensor], state: &ExportRecord, from: &Path, progress: &dyn ProgressSink) -> Result<()> {
    let of_model = |role: Role| matches!(role, Role::Param | Role::Buffer);
    let key = |meta: &TensorMeta| ((!of_model(meta.role)).then_some(meta.role), meta.name.clone());
    let records: HashMap<_, _> = state.tensors.iter().map(|record| (key(&record.meta), record)).collect();
    progress.begin("checking", tensors.iter().filter_map(|tensor| tensor.meta.bytes()).sum());
    tensors.par_iter().try_for_each(|tensor| {
        let Some(record) = records.get(&key(&tensor.meta)) else { return Ok(()) };
        let bytes: &[u8] = (*tensor.bytes).as_ref();
        progress.advance(bytes.len() as u64)?;
        if blake3::hash(bytes).to_hex().as_str() == record.hash { Ok(()) } else { Err(changed(from, &record.meta)) }
    })
}

fn changed(from: &Path, meta: &TensorMeta) -> Error {
    let name = meta.label();
    Error::malformed(
        from,
        format!(
            "{name} was changed since the export: its hash differs; delete ckptd.json to import the folder as it is now"
        ),
    )
}

/// A source that only its own conventions describe.
fn plain(parts: SourceParts, from: &Path) -> Result<LoadedSource> {
    let refuse = |reason: String| Error::malformed(from, reason);
    let config = ModelHints::of(&parts.files).map_err(refuse)?;
    let mut tensors = BTreeMap::new();
    for tensor in parts.tensors {
        let Some(name) = gpt2_names::canonical(&tensor.meta.name) else { continue };
        let tensor = Tensor { meta: TensorMeta { name: name.clone(), ..tensor.meta }, bytes: tensor.bytes };
        if tensors.insert(name.clone(), tensor).is_some() {
            return Err(refuse(format!("two of its tensors are {name}")));
        }
    }
    tie(&mut tensors, config.tied).map_err(refuse)?;
    let widened = tensors.into_values().map(optimizer::widen).collect::<Result<Vec<_>, _>>();
    let mut tensors = widened.map_err(refuse)?;
    tensors.sort_by(|a, b| gpt2_names::order(&a.meta.name, &b.meta.name));
    let params: Vec<&TensorMeta> = tensors.iter().map(|tensor| &tensor.meta).collect();
    let moments = moments(&parts.optimizer, &params)?;

    let mut notes = parts.notes;
    let step = moments.step.or(parts.step).unwrap_or(0);
    if parts.step.is_some_and(|said| said != step) {
        notes.push(format!("the source is at step {}, its optimiser at {step}, which counts", parts.step.unwrap_or(0)));
    }
    if step > 0 {
        notes.push("the data is read from its beginning: others do not say where they were in it".into());
    }
    if !moments.settings.is_empty() {
        notes.push(format!("its optimiser's settings, for [train]: {}", moments.settings.join(", ")));
    }
    if !config.known {
        notes.push("it has no config.json; the job's [model] says what the tensors are, or give --model".into());
    }
    // In the order of a state: all parameters, then each kind of moment in theirs.
    let place: HashMap<&str, usize> = params.iter().enumerate().map(|(i, meta)| (meta.name.as_str(), i)).collect();
    let mut moments = moments.tensors;
    moments.sort_by_key(|tensor| (tensor.meta.role, place.get(tensor.meta.name.as_str()).copied()));
    tensors.extend(moments);
    let train = TrainState { step, tokens_seen: parts.tokens_seen, ..TrainState::default() };
    let provenance =
        Provenance { ckptd: env!("CARGO_PKG_VERSION").into(), reason: "import".into(), ..Provenance::default() };
    let snapshot = Snapshot { tensors, train, metrics: parts.metrics, provenance, files: parts.files };
    Ok(LoadedSource { snapshot, state: None, exact: false, notes, _scratch: None })
}

fn moments(optimizer: &OptimizerState, params: &[&TensorMeta]) -> Result<OptimizerMoments> {
    match optimizer {
        OptimizerState::None => Ok(OptimizerMoments::default()),
        OptimizerState::Named(tensors) => {
            Ok(OptimizerMoments { tensors: tensors.clone(), ..OptimizerMoments::default() })
        }
        OptimizerState::Torch { file, key } => {
            let value = match key {
                Some(key) => file.value().get(key).unwrap_or(file.value()),
                None => file.value(),
            };
            optimizer::read(file, value, params)
        }
    }
}

/// What of a config.json decides how tensors are to be taken.
struct ModelHints {
    known: bool,
    tied: Option<bool>,
}

impl ModelHints {
    fn of(files: &[CarriedFile]) -> Result<ModelHints, String> {
        let Some(file) = files.iter().find(|file| file.name == names::CONFIG) else {
            return Ok(ModelHints { known: false, tied: None });
        };
        let config: serde_json::Value =
            serde_json::from_slice(&file.bytes).map_err(|e| format!("its config.json is not JSON: {e}"))?;
        match config.get("model_type").and_then(|kind| kind.as_str()) {
            None | Some("gpt2") => {}
            Some(other) => return Err(format!("it is a model of the type {other:?}; ckptd trains gpt2")),
        }
        let tied = config.get("tie_word_embeddings").and_then(|tied| tied.as_bool()).unwrap_or(true);
        Ok(ModelHints { known: true, tied: Some(tied) })
    }
}

/// A tied head is the embedding, and no tensor of its own.
fn tie(tensors: &mut BTreeMap<String, Tensor>, tied: Option<bool>) -> Result<(), String> {
    let Some(embedding) = tensors.get(gpt2_names::EMBEDDING) else {
        return Err(format!("it has no {}: not a GPT-2", gpt2_names::EMBEDDING));
    };
    let Some(head) = tensors.get(gpt2_names::HEAD) else {
        return match tied {
            Some(false) => {
                Err(format!("its config says that the head is not tied, but there is no {}", gpt2_names::HEAD))
            }
            _ => Ok(()),
        };
    };
    match (tied, embedding.has_values_of(head)) {
        (Some(true) | None, true) => {
            tensors.remove(gpt2_names::HEAD);
            Ok(())
        }
        (Some(true), false) => Err(format!(
            "{} is not {}, although its config ties them; set \"tie_word_embeddings\": false to keep both",
            gpt2_names::HEAD,
            gpt2_names::EMBEDDING
        )),
        (Some(false), _) | (None, false) => Ok(()),
    }
}
