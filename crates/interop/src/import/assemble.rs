//! From the parts of a source to one snapshot.
//!
//! Two ways lead there. A source with an [`ExportRecord`] is an exported snapshot: every tensor is held against its
//! hash, and the snapshot is the one that was exported, to the same root. Any other source is interpreted: its tensors
//! as the GPT-2 of its config, floats widened to float32, the optimiser's state by names or by order.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::optimizer::{self, OptimizerMoments};
use super::optimizer_kind::KindHints;
use super::optimizer_order::OptimizedParameter;
use super::optimizer_state::SourceOptimizer;
use super::options::{FreshOptimizer, LoadOptions};
use super::parts::{OptimizerState, SourceParts};
use crate::export_record::ExportRecord;
use crate::gpt2_config::Gpt2Config;
use crate::gpt2_reading::{self, ModelSays, ReadParameter};
use crate::output::ScratchFolder;
use crate::source_record::SourceRecord;
use crate::source_record::schedule::KnownSchedule;
use crate::torch_pt::PtFile;
use crate::{foreign, gpt2_names, names};
use ckptd_core::error::{Error, Result};
use ckptd_core::progress::ProgressSink;
use ckptd_core::snapshot::{Provenance, Role, Snapshot, Tensor, TensorMeta, TrainState};
use ckptd_core::store::format;

/// A source as a snapshot. Its tensors may lie in a bundle's unpacked files, which live as long as this.
pub struct LoadedSource {
    pub snapshot: Snapshot,
    /// The folder or file that was read.
    pub from: PathBuf,
    /// The snapshot that the source was exported from, whether or not all of it is here.
    pub state: Option<ExportRecord>,
    /// The snapshot is that one, bit for bit.
    pub exact: bool,
    /// The source said which optimiser it had, even if that keeps nothing.
    pub has_optimizer: bool,
    /// The file of the history that came with exactly this state.
    pub history: Option<PathBuf>,
    pub notes: Vec<String>,
    _scratch: Option<ScratchFolder>,
}

impl LoadedSource {
    /// Adds what the optimiser keeps, all zeros as before its first step, where the source had none of it.
    pub fn complete(&mut self, fresh: FreshOptimizer) -> Result<()> {
        let tensors = &mut self.snapshot.tensors;
        let keeps_nothing = self.has_optimizer && self.snapshot.train.step > 0;
        if self.exact
            || keeps_nothing
            || tensors.iter().any(|tensor| !matches!(tensor.meta.role, Role::Param | Role::Buffer))
        {
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

/// The snapshot of `parts`, which were read from `from`.
///
/// # Errors
/// [`Error::Malformed`] that names the tensor, the entry or the optimiser that does not fit, and what to do;
/// [`Error::Config`] for a config that is no GPT-2's.
pub(super) fn assemble(
    parts: SourceParts,
    from: &Path,
    options: &LoadOptions<'_>,
    scratch: Option<ScratchFolder>,
    progress: &dyn ProgressSink,
) -> Result<LoadedSource> {
    let history = parts.history.clone();
    let mut loaded = match parts.state.clone() {
        Some(state) if is_complete(&parts, &state) && !options.weights_only => {
            exact(parts, state, from, options, progress)?
        }
        Some(state) => {
            check_hashes(&parts.tensors, &state, from, progress)?;
            LoadedSource { state: Some(state), ..plain(parts, from, options)? }
        }
        None => plain(parts, from, options)?,
    };
    loaded.history = history.filter(|_| loaded.exact);
    loaded._scratch = scratch;
    Ok(loaded)
}

/// Whether the source has the optimiser's state, where the snapshot had one.
fn is_complete(parts: &SourceParts, state: &ExportRecord) -> bool {
    let kept = state.tensors.iter().any(|tensor| !matches!(tensor.meta.role, Role::Param | Role::Buffer));
    !kept || !matches!(parts.optimizer, OptimizerState::None)
}

/// The snapshot that `state` describes.
fn exact(
    mut parts: SourceParts,
    state: ExportRecord,
    from: &Path,
    options: &LoadOptions<'_>,
    progress: &dyn ProgressSink,
) -> Result<LoadedSource> {
    let refuse = |reason: String| Error::malformed(from, reason);
    let mut params: Vec<&TensorMeta> =
        state.tensors.iter().map(|tensor| &tensor.meta).filter(|meta| meta.role == Role::Param).collect();
    params.sort_by(|a, b| gpt2_names::order(&a.name, &b.name));
    let as_given = |meta: &&TensorMeta| OptimizedParameter {
        meta: (*meta).clone(),
        source_shape: meta.shape.clone(),
        is_turned: false,
    };
    let params: Vec<OptimizedParameter> = params.iter().map(as_given).collect();
    // The snapshot's own roles say which optimiser it is.
    let adam = state.tensors.iter().any(|tensor| tensor.meta.role == Role::ExpAvg);
    let options = LoadOptions { optimizer: adam.then_some(FreshOptimizer::AdamW), ..*options };
    let moments = moments(&mut parts, &params, &options)?;
    if moments.step.is_some_and(|step| !step.is(state.train.step)) {
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
    Ok(LoadedSource {
        snapshot,
        from: from.to_owned(),
        state: Some(state),
        exact: true,
        has_optimizer: true,
        history: None,
        notes: parts.notes,
        _scratch: None,
    })
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
            "{name} was changed since the export: its hash differs; take ckptd.json out of the folder to import it as \
             it is now"
        ),
    )
}

/// A source that only its own conventions describe.
fn plain(mut parts: SourceParts, from: &Path, options: &LoadOptions<'_>) -> Result<LoadedSource> {
    let refuse = |reason: String| Error::malformed(from, reason);
    let says = model_says(&parts, from)?;
    if says.config.is_none() {
        parts.notes.push("it has no config.json; the job's [model] says what the tensors are, or give --model".into());
    }
    let model = gpt2_reading::read(std::mem::take(&mut parts.tensors), &says).map_err(refuse)?;
    if model.is_turned() {
        parts
            .notes
            .push("its linear layers lay as nn.Linear keeps them, and were transposed to Conv1D's layout".into());
    }
    let params: Vec<OptimizedParameter> = model.parameters.iter().map(optimized).collect();
    let widened = model.into_tensors().into_par_iter().map(optimizer::widen).collect::<Result<_, String>>();
    let round = |what: String| refuse(format!("{what}; to round it: {}", foreign::round_to_float32(from)));
    let mut tensors: Vec<Tensor> = widened.map_err(round)?;
    let moments = moments(&mut parts, &params, options).map_err(|why| options.with_way_out(why, from))?;
    let step = reconcile_steps(&mut parts, &moments, options, from)?;
    parts.record.step = step;
    parts.record.optimizer = moments.record;
    let has_optimizer = parts.record.optimizer.is_some();
    if step > 0 {
        parts.notes.push("the data is read from its beginning: others do not say where they were in it".into());
    }
    if has_optimizer {
        describe_record(&mut parts)?;
    }
    // In the order of a state: all parameters, then each kind of moment in theirs.
    let place: HashMap<&str, usize> = params.iter().enumerate().map(|(i, p)| (p.meta.name.as_str(), i)).collect();
    let mut moments = moments.tensors;
    moments.sort_by_key(|tensor| (tensor.meta.role, place.get(tensor.meta.name.as_str()).copied()));
    tensors.extend(moments);
    let train = TrainState { step, tokens_seen: parts.tokens_seen, ..TrainState::default() };
    let provenance =
        Provenance { ckptd: env!("CARGO_PKG_VERSION").into(), reason: "import".into(), ..Provenance::default() };
    let snapshot = Snapshot { tensors, train, metrics: parts.metrics, provenance, files: parts.files };
    let (from, notes) = (from.to_owned(), parts.notes);
    Ok(LoadedSource { snapshot, from, state: None, exact: false, has_optimizer, history: None, notes, _scratch: None })
}

/// Lets the record of the source travel, and tells what of it a job has to say.
fn describe_record(parts: &mut SourceParts) -> Result<()> {
    let lines = parts.record.train_lines();
    if !lines.is_empty() {
        parts.notes.push(format!("its settings, for [train]: {}", lines.join(", ")));
    }
    if let (Some(_), Err(why)) = (&parts.record.schedule, KnownSchedule::of(&parts.record)) {
        parts
            .notes
            .push(format!("its schedule is not known, and [train] has to say how the learning rate goes on: {why}"));
    }
    parts.files.retain(|file| file.name != names::SOURCE_RECORD);
    parts.files.push(parts.record.to_file()?);
    Ok(())
}

fn optimized(parameter: &ReadParameter) -> OptimizedParameter {
    let ReadParameter { tensor, source_shape, is_turned } = parameter;
    OptimizedParameter { meta: tensor.meta.clone(), source_shape: source_shape.clone(), is_turned: *is_turned }
}

/// The step of weights and optimiser, which must be one.
fn reconcile_steps(
    parts: &mut SourceParts,
    moments: &OptimizerMoments,
    options: &LoadOptions<'_>,
    from: &Path,
) -> Result<u64> {
    let Some(counted) = moments.step else { return Ok(parts.step.unwrap_or(0)) };
    let said = parts.step.unwrap_or(counted.steps);
    if counted.is(said) {
        return Ok(said);
    }
    if parts.has_own_step && !options.mixed_steps {
        let why = Error::malformed(
            from,
            format!(
                "the weights are of step {said}, the optimiser's state of step {}; take both from one checkpoint. \
                 Where the optimiser has passed over steps (as under fp16), --mixed-steps takes them as they are",
                counted.steps
            ),
        );
        return Err(options.with_way_out(why, from));
    }
    parts.notes.push(format!("the source is at step {said}, its optimiser at {}, which counts", counted.steps));
    Ok(counted.steps)
}

/// The moments of `params`; nothing of them where they are not asked for.
fn moments(
    parts: &mut SourceParts,
    params: &[OptimizedParameter],
    options: &LoadOptions<'_>,
) -> Result<OptimizerMoments> {
    let state = std::mem::take(&mut parts.optimizer);
    if options.weights_only {
        parts.step = None;
        return Ok(OptimizerMoments::default());
    }
    let argument = parts.record.arguments.as_ref().and_then(|arguments| arguments.get("optim")?.as_text());
    let hints = KindHints { asked: options.optimizer, argument };
    let groups = match state {
        OptimizerState::None => return Ok(OptimizerMoments::default()),
        OptimizerState::Named(tensors) => return Ok(OptimizerMoments { tensors, ..OptimizerMoments::default() }),
        OptimizerState::Refused(why) => return Err(why),
        OptimizerState::Groups(state) => *state,
        OptimizerState::File(path) => {
            let file = PtFile::open(&path, options.limits)?;
            SourceOptimizer::of_torch(&file, file.value())?
        }
    };
    let record = SourceRecord::of_files(&parts.files, Path::new(""))?;
    let groups = with_names(groups, record.as_ref(), params);
    optimizer::read(&groups, params, hints)
        .map_err(|what| Error::malformed(&groups.path, format!("the optimiser's state: {what}")))
}

/// The groups with the names of their parameters, where the record of an export of ours has groups of the same sizes.
fn with_names(
    mut state: SourceOptimizer,
    record: Option<&SourceRecord>,
    params: &[OptimizedParameter],
) -> SourceOptimizer {
    let Some(optimizer) = record.and_then(|record| record.optimizer.as_ref()) else { return state };
    let metas: Vec<&TensorMeta> = params.iter().map(|param| &param.meta).collect();
    let known = optimizer.exported_groups(gpt2_names::optimizer_groups(&metas));
    if known.iter().map(|(names, _)| names.len()).eq(state.groups.iter().map(|group| group.params.len())) {
        for (group, (names, _)) in state.groups.iter_mut().zip(known).filter(|(group, _)| group.names.is_none()) {
            group.names = Some(names.into_iter().map(str::to_owned).collect());
        }
    }
    state
}

/// What the source says of its model, from its config.json where it has one.
fn model_says(parts: &SourceParts, from: &Path) -> Result<ModelSays> {
    let aliases = parts.aliases.clone();
    let Some(file) = parts.files.iter().find(|file| file.name == names::CONFIG) else {
        return Ok(ModelSays { aliases, ..ModelSays::default() });
    };
    let config_name = parts.config_name.clone().unwrap_or_else(|| "its config.json".into());
    let origin = parts.config_name.clone().unwrap_or_else(|| format!("{}: config.json", from.display()));
    let config = Gpt2Config::from_json(&String::from_utf8_lossy(&file.bytes), &origin)?;
    Ok(ModelSays { config: Some(config), config_name, aliases })
}
