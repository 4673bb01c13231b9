//! The steps from `start` to a training that is ready: machine, model, data, state, and its first or restored values.
//!
//! Deliberately not here: what each step does in detail (the files beside this one, `data`, `capture`, `gpt2`).

use std::ops::Range;
use std::path::Path;

use ckptd_core::Result;
use ckptd_core::config::{Config, RankCount, ResolvedJob};
use ckptd_core::protocol::{MessageLevel, Start, WorkerEvent};
use ckptd_core::settings::TrainSettings;
use ckptd_core::snapshot::{CarriedFile, Provenance, TensorMeta, TrainState};
use ckptd_core::store::SnapshotReader;
use ckptd_interop::hf::HfFolder;
use ckptd_interop::names;
use tch::Device;

use super::carried::{carried_files, config_json, source_record};
use super::machine::TrainingMachine;
use super::model::OpenedModel;
use super::restore::{BF16_KEY, ChangedSettings, ResumedFrom, check_fingerprint, check_settings, restore};
use crate::capture::TrainingState;
use crate::data::{self, TokenDataset};
use crate::events::{EventProgress, EventSender};
use crate::gpt2::{Activations, Gpt2Config, Gpt2Model, init};
use crate::optim::ModelOptimizer;
use crate::probe::LogitsProbe;
use crate::reduction::{norm_gradients, owned_elements};
use crate::torch;

/// A training that is ready to run.
pub struct TrainingSetup {
    pub config: Config,
    pub device: Device,
    /// Threads of one operation, at least 1.
    pub threads: usize,
    pub data: TokenDataset,
    pub model: Gpt2Model,
    pub state: TrainingState,
    pub optimizer: ModelOptimizer,
    /// Small files that every snapshot carries.
    pub files: Vec<CarriedFile>,
    pub provenance: Provenance,
    pub resumed: Option<ResumedFrom>,
}

impl TrainingSetup {
    /// Prepares what `start` asks for. Tells `events` what takes time.
    ///
    /// # Errors
    /// [`Error::Config`] where job, data or model are wrong, [`Error::Mismatch`] where the snapshot is of another
    /// training, [`Error::Damaged`] where it is not what was written.
    pub fn open(start: Start, events: &EventSender) -> Result<TrainingSetup> {
        let Start { config, resume, accept_changes, .. } = start;
        let changed = if accept_changes { ChangedSettings::Accept } else { ChangedSettings::Refuse };
        // It was written past the page cache, so that it is not in there, and need not be: it is read once.
        let snapshot = resume.as_deref().map(SnapshotReader::open_past_cache).transpose()?;

        let machine = TrainingMachine::choose(&config, snapshot.as_ref(), changed, events)?;
        let model = OpenedModel::open(&config, snapshot.as_ref(), events)?;
        let data = open_data(&config, &machine, &model, snapshot.as_ref(), changed, events)?;
        let OpenedModel { shape, folder, files: companions } = model;
        let theirs = companions.iter().find(|file| file.name == names::CONFIG).map(|file| file.bytes.as_slice());
        let mut files = carried_files(config_json(&shape, theirs, data.eot), &data, &companions);
        let optimizer = ModelOptimizer::new(&config.train, machine.threads)?;
        let mut state = empty_state(&config, &machine, &shape, &data.content_hash, &optimizer)?;

        events.send(WorkerEvent::Progress { stage: "loading the weights".into(), fraction: None });
        let resumed = match &snapshot {
            Some(snapshot) => {
                let record = source_record(snapshot, &config.train, events)?;
                files.retain(|file| file.name != names::SOURCE_RECORD);
                files.extend(record);
                Some(restore(snapshot, &mut state, machine.threads)?)
            }
            None => {
                begin(&config, &shape, folder.as_ref(), &mut state)?;
                None
            }
        };
        let model = Gpt2Model::new(shape, machine.device)
            .adding_norms(norm_gradients(machine.arithmetic))
            .keeping(Activations::of(&config.train));
        if let Some(snapshot) = &snapshot {
            check_fingerprint(snapshot, (&model, config.train.precision), &state, changed, events)?;
        }
        let TrainingMachine { device, threads, .. } = machine;
        let provenance = provenance(device);
        Ok(TrainingSetup { config, device, threads, data, model, state, optimizer, files, provenance, resumed })
    }

    /// What of each parameter `rank` owns, where the optimizer is sharded.
    pub fn owned_by(&self, rank: usize) -> Option<Vec<Range<usize>>> {
        owned_by_rank(&self.config, &self.model.config().parameters(), rank)
    }

    /// What computes the fingerprint of a captured model.
    pub fn probe(&self) -> LogitsProbe {
        LogitsProbe {
            config: self.model.config().clone(),
            device: self.device,
            threads: self.threads,
            precision: self.config.train.precision,
        }
    }
}

/// The tokens of the job, whose notes go to `events`.
///
/// # Errors
/// A mismatch where the snapshot came about under other settings, or with other data, and that is not accepted.
fn open_data(
    config: &Config,
    machine: &TrainingMachine,
    model: &OpenedModel,
    snapshot: Option<&SnapshotReader>,
    changed: ChangedSettings,
    events: &EventSender,
) -> Result<TokenDataset> {
    let file = |name: &str| model.files.iter().find(|file| file.name == name).map(|file| file.bytes.as_slice());
    let before = snapshot.map(|snapshot| data::DataBefore {
        path: snapshot.path(),
        files: &model.files,
        content: snapshot.manifest().train.settings.data_content(),
        accepts_changes: changed == ChangedSettings::Accept,
    });
    let request = data::DataRequest {
        data: &config.data,
        train: &config.train,
        model_folder: config.model.from.as_deref(),
        model_configs: [file(names::CONFIG), file(names::GENERATION)],
        vocab_size: model.shape.vocab_size as u64,
        threads: machine.threads,
        before,
    };
    let progress = EventProgress::new(events);
    let plan = data::plan(&request, &progress)?;
    if let Some(snapshot) = snapshot {
        let now = train_settings(config, machine, &model.shape, plan.content_hash());
        check_settings(snapshot, &now, plan.changes(), changed, events)?;
    }
    let data = plan.open(&progress)?;
    data.notes.iter().for_each(|note| events.log(MessageLevel::Warn, note));
    Ok(data)
}

/// A state of zeros at step 0, under the settings and the arithmetic of this session.
fn empty_state(
    config: &Config,
    machine: &TrainingMachine,
    shape: &Gpt2Config,
    data_content: &str,
    optimizer: &ModelOptimizer,
) -> Result<TrainingState> {
    let settings = train_settings(config, machine, shape, data_content);
    let train = TrainState { settings, arithmetic: machine.arithmetic, ..TrainState::default() };
    let params = shape.parameters();
    let state = match owned_by_rank(config, &params, 0) {
        Some(owned) => TrainingState::sharded(&params, optimizer.roles(), machine.device, train, &owned),
        None => TrainingState::new(&params, optimizer.roles(), machine.device, train),
    };
    Ok(state?.sparing(config.snapshot.memory))
}

/// What of each parameter `rank` owns, where the optimizer is sharded.
pub(super) fn owned_by_rank(config: &Config, params: &[TensorMeta], rank: usize) -> Option<Vec<Range<usize>>> {
    match config.ranks.count {
        RankCount::Fixed(size) if size > 1 && config.ranks.shard_optimizer => Some(owned_elements(params, rank, size)),
        _ => None,
    }
}

/// Everything that changes the arithmetic, by name.
pub(super) fn train_settings(
    config: &Config,
    machine: &TrainingMachine,
    shape: &Gpt2Config,
    data_content: &str,
) -> TrainSettings {
    let device = if matches!(machine.device, Device::Cpu) { "cpu" } else { "cuda" };
    let resolved = ResolvedJob { device, threads: machine.threads, data_content };
    let mut settings = config.train_settings(&resolved);
    shape.record(&mut settings);
    if let Some(path) = &machine.bf16 {
        settings.set(BF16_KEY, path.as_str());
    }
    settings
}

/// The first values of a training that begins: the folder's weights, or random ones.
pub(super) fn begin(
    config: &Config,
    shape: &Gpt2Config,
    folder: Option<&HfFolder>,
    state: &mut TrainingState,
) -> Result<()> {
    state.fill(|destinations| match folder {
        Some(folder) => {
            let origin = config.model.from.as_deref().unwrap_or(Path::new("")).display().to_string();
            init::from_tensors(shape, &folder.tensors, &folder.aliases, &origin, destinations)
        }
        None => init::random(shape, config.job.seed, destinations),
    })
}

/// Where the snapshots of this session come from.
pub(super) fn provenance(device: Device) -> Provenance {
    Provenance {
        ckptd: env!("CARGO_PKG_VERSION").into(),
        libtorch: option_env!("CKPTD_LIBTORCH_VERSION").unwrap_or("unknown").into(),
        host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
        device: torch::device_name(device),
        reason: String::new(),
    }
}
