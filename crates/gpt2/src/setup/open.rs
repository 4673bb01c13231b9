//! The steps from `start` to a training that is ready: machine, model, data, state, and its first or restored values.
//!
//! Deliberately not here: what each step does in detail (the files beside this one, `data`, `capture`, `gpt2`).

use std::path::Path;

use ckptd_core::config::{Config, ResolvedJob};
use ckptd_core::protocol::{MessageLevel, Start, WorkerEvent};
use ckptd_core::settings::TrainSettings;
use ckptd_core::snapshot::{CarriedFile, Provenance, TrainState};
use ckptd_core::store::SnapshotReader;
use ckptd_core::{Error, Result};
use ckptd_interop::hf::{self, HfFolder};
use ckptd_interop::limits::ReadLimits;
use tch::Device;

use super::carried::{carried_files, config_json};
use super::machine::TrainingMachine;
use super::restore::{ChangedSettings, ResumedFrom, check_fingerprint, restore};
use crate::capture::TrainingState;
use crate::data::{self, TokenDataset};
use crate::events::{EventProgress, EventSender};
use crate::gpt2::{Gpt2Config, Gpt2Model, init};
use crate::optim::ModelOptimizer;
use crate::probe::LogitsProbe;
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
        let (shape, folder) = open_model(&config)?;
        let data = open_data(&config, &shape, machine.threads, events)?;
        let theirs = folder.as_ref().map(|folder| folder.config_json.as_slice());
        let files = carried_files(&config, config_json(&shape, theirs, data.eot), &data)?;
        let optimizer = ModelOptimizer::new(&config.train, machine.threads)?;
        let mut state = empty_state(&config, &machine, &shape, &data, &optimizer)?;

        events.send(WorkerEvent::Progress { stage: "loading the weights".into(), fraction: None });
        let resumed = match &snapshot {
            Some(snapshot) => Some(restore(snapshot, &mut state, changed, machine.threads, events)?),
            None => {
                begin(&config, &shape, folder.as_ref(), &mut state)?;
                None
            }
        };
        let model = Gpt2Model::new(shape, machine.device);
        if let Some(snapshot) = &snapshot {
            check_fingerprint(snapshot, &model, &state, changed, events)?;
        }
        let TrainingMachine { device, threads, .. } = machine;
        let provenance = provenance(device);
        Ok(TrainingSetup { config, device, threads, data, model, state, optimizer, files, provenance, resumed })
    }

    /// What computes the fingerprint of a captured model.
    pub fn probe(&self) -> LogitsProbe {
        LogitsProbe { config: self.model.config().clone(), device: self.device, threads: self.threads }
    }
}

/// The model's shape, and the folder that it comes from where the job names one.
fn open_model(config: &Config) -> Result<(Gpt2Config, Option<HfFolder>)> {
    let folder = config.model.from.as_deref().map(|dir| hf::open(dir, &ReadLimits::default())).transpose()?;
    let mut shape = match (&folder, &config.model.preset) {
        (Some(folder), _) => {
            let origin = config.model.from.clone().unwrap_or_default().join("config.json");
            Gpt2Config::from_json(&String::from_utf8_lossy(&folder.config_json), &origin.display().to_string())?
        }
        (None, preset) => Gpt2Config::preset(preset.as_deref().unwrap_or_default())?,
    };
    if let Some(p) = config.model.dropout {
        shape = shape.with_dropout(p);
    }
    if config.train.sequence_length > shape.n_positions as u64 {
        let (asked, has) = (config.train.sequence_length, shape.n_positions);
        return Err(Error::Config(format!(
            "[train] sequence_length: {asked} is more than the model's {has} positions"
        )));
    }
    Ok((shape, folder))
}

/// The tokens of the job, whose notes go to `events`.
fn open_data(config: &Config, shape: &Gpt2Config, threads: usize, events: &EventSender) -> Result<TokenDataset> {
    let request = data::DataRequest {
        data: &config.data,
        train: &config.train,
        model_folder: config.model.from.as_deref(),
        vocab_size: shape.vocab_size as u64,
        threads,
    };
    let data = data::open(&request, &EventProgress::new(events))?;
    data.notes.iter().for_each(|note| events.log(MessageLevel::Warn, note));
    Ok(data)
}

/// A state of zeros at step 0, under the settings and the arithmetic of this session.
fn empty_state(
    config: &Config,
    machine: &TrainingMachine,
    shape: &Gpt2Config,
    data: &TokenDataset,
    optimizer: &ModelOptimizer,
) -> Result<TrainingState> {
    let settings = train_settings(config, machine, shape, data);
    let train = TrainState { settings, arithmetic: machine.arithmetic, ..TrainState::default() };
    TrainingState::new(&shape.parameters(), optimizer.roles(), machine.device, train)
}

/// Everything that changes the arithmetic, by name.
fn train_settings(
    config: &Config,
    machine: &TrainingMachine,
    shape: &Gpt2Config,
    data: &TokenDataset,
) -> TrainSettings {
    let device = if matches!(machine.device, Device::Cpu) { "cpu" } else { "cuda" };
    let resolved = ResolvedJob { device, threads: machine.threads, data_content: &data.content_hash };
    let mut settings = config.train_settings(&resolved);
    shape.record(&mut settings);
    settings
}

/// The first values of a training that begins: the folder's weights, or random ones.
fn begin(config: &Config, shape: &Gpt2Config, folder: Option<&HfFolder>, state: &mut TrainingState) -> Result<()> {
    state.fill(|destinations| match folder {
        Some(folder) => {
            let origin = config.model.from.as_deref().unwrap_or(Path::new("")).display().to_string();
            init::from_tensors(&folder.tensors, &origin, destinations)
        }
        None => init::random(shape, config.job.seed, destinations),
    })
}

/// Where the snapshots of this session come from.
fn provenance(device: Device) -> Provenance {
    Provenance {
        ckptd: env!("CARGO_PKG_VERSION").into(),
        libtorch: option_env!("CKPTD_LIBTORCH_VERSION").unwrap_or("unknown").into(),
        host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
        device: torch::device_name(device),
        reason: String::new(),
    }
}
