//! From a config to a training that is ready to run: device, data, model, state, and where to go on.
//!
//! Invariant: a resume either restores every tensor and the train state exactly, or is refused with the tensor or the
//! setting that does not fit. Deliberately not here: the training itself (`train`).

use std::collections::BTreeMap;
use std::path::Path;

use ckptd_core::arithmetic::{ArithmeticNumber, KnownArithmetic};
use ckptd_core::config::{Config, ResolvedJob};
use ckptd_core::ids::StateRoot;
use ckptd_core::os::process::processors;
use ckptd_core::protocol::{MessageLevel, Start, WorkerEvent};
use ckptd_core::settings::TrainSettings;
use ckptd_core::snapshot::{CarriedFile, Metrics, Provenance, TrainState};
use ckptd_core::store::SnapshotReader;
use ckptd_core::{Error, Result};
use ckptd_interop::limits::ReadLimits;
use ckptd_interop::{hf, names};
use serde_json::{Map, Value};
use tch::Device;

use crate::capture::TrainingState;
use crate::data::{self, TokenDataset};
use crate::device;
use crate::events::{EventProgress, EventSender};
use crate::gpt2::{Gpt2Config, Gpt2Model, init};
use crate::optim::ModelOptimizer;
use crate::probe::{LogitsFingerprint, LogitsProbe};

/// Largest companion file of a model folder that travels in snapshots, in bytes.
const MAX_CARRIED: u64 = 32 << 20;

/// The arithmetic of this worker: `gpt2` and `optim` as they are, and the older ones that they still compute.
const ARITHMETIC: KnownArithmetic = KnownArithmetic { newest: ArithmeticNumber::FIRST, older: &[] };

/// A training that is ready to run.
pub struct TrainingSetup {
    pub config: Config,
    pub device: Device,
    pub threads: usize,
    pub data: TokenDataset,
    pub model: Gpt2Model,
    pub state: TrainingState,
    pub optimizer: ModelOptimizer,
    /// Small files that every snapshot carries.
    pub files: Vec<CarriedFile>,
    pub provenance: Provenance,
    /// What was resumed from: the train state as it was saved, and its root.
    pub resumed: Option<(TrainState, StateRoot)>,
}

impl TrainingSetup {
    /// What computes the hash of a captured model's answers.
    pub fn prober(&self) -> LogitsProbe {
        LogitsProbe { config: self.model.config().clone(), device: self.device, threads: self.threads }
    }

    /// Prepares what `start` asks for. Tells `events` what takes time.
    pub fn open(start: Start, events: &EventSender) -> Result<TrainingSetup> {
        let Start { config, resume, accept_changes, .. } = start;
        // It was written past the page cache, so that it is not in there, and need not be: it is read once.
        let snapshot = resume.as_deref().map(SnapshotReader::open_past_cache).transpose()?;
        let device = device::open(&config.job.device)?;
        let recorded = snapshot.as_ref().and_then(|s| s.manifest().train.settings.threads());
        let threads = choose_threads(config.job.threads, recorded, accept_changes, events);
        let threads = device::set_threads(threads)?;

        let folder = config.model.from.as_deref().map(|dir| hf::open(dir, &ReadLimits::default())).transpose()?;
        let shape = match (&folder, &config.model.preset) {
            (Some(folder), _) => {
                let origin = config.model.from.clone().unwrap_or_default().join("config.json");
                Gpt2Config::from_json(&String::from_utf8_lossy(&folder.config_json), &origin.display().to_string())?
            }
            (None, preset) => Gpt2Config::preset(preset.as_deref().unwrap_or_default())?,
        };
        let shape = config.model.dropout.map_or(shape.clone(), |p| shape.with_dropout(p));
        if config.train.sequence_length > shape.n_positions as u64 {
            let (asked, has) = (config.train.sequence_length, shape.n_positions);
            return Err(Error::Config(format!(
                "[train] sequence_length: {asked} is more than the model's {has} positions"
            )));
        }

        let request = data::DataRequest {
            data: &config.data,
            train: &config.train,
            model_folder: config.model.from.as_deref(),
            vocab_size: shape.vocab_size as u64,
            threads,
        };
        let data = data::open(&request, &EventProgress::new(events))?;
        data.notes.iter().for_each(|note| events.log(MessageLevel::Warn, note));

        let settings = settings(&config, &shape, &data, device, threads);
        let theirs = folder.as_ref().map(|folder| folder.config_json.as_slice());
        let files = carried(&config, config_json(&shape, theirs, data.eot), &data)?;
        let optimizer = ModelOptimizer::new(&config.train, threads)?;
        let arithmetic = choose_arithmetic(snapshot.as_ref(), accept_changes, events)?;
        let train = TrainState { settings, arithmetic, ..TrainState::default() };
        let mut state = TrainingState::new(&shape.parameters(), optimizer.roles(), device, train)?;
        events.send(WorkerEvent::Progress { stage: "loading the weights".into(), fraction: None });
        let probe = snapshot.as_ref().and_then(|snapshot| snapshot.manifest().metrics.probe.clone());
        let resumed = match snapshot {
            Some(snapshot) => Some(restore(&snapshot, &mut state, accept_changes, threads, events)?),
            None => {
                state.fill(|destinations| match &folder {
                    Some(folder) => {
                        let origin = config.model.from.as_deref().unwrap_or(Path::new("")).display().to_string();
                        init::from_tensors(&folder.tensors, &origin, destinations)
                    }
                    None => init::random(&shape, config.job.seed, destinations),
                })?;
                None
            }
        };
        let model = Gpt2Model::new(shape, device);
        if let (Some(saved), Some(path)) = (probe, &resume) {
            check_probe(&saved, path, &model, &state, accept_changes, events)?;
        }
        let provenance = provenance(device);
        Ok(TrainingSetup { config, device, threads, data, model, state, optimizer, files, provenance, resumed })
    }
}

/// Holds what the restored model answers against what it answered when the snapshot was taken.
fn check_probe(
    saved: &str,
    path: &Path,
    model: &Gpt2Model,
    state: &TrainingState,
    accept_changes: bool,
    events: &EventSender,
) -> Result<()> {
    let answers = LogitsFingerprint::of(model.config(), state.params(), model.device())?;
    if answers.hash() == saved {
        events.log(MessageLevel::Info, "the model answers to the bit as it did when the snapshot was taken");
        return Ok(());
    }
    const DIFFERS: &str = "the same parameters give other answers here than where the snapshot was taken: another kind \
                           of processor, device or libtorch";
    if accept_changes {
        events.log(MessageLevel::Warn, format!("going on although {DIFFERS}"));
        return Ok(());
    }
    let what = format!(
        "{DIFFERS}; the training would not go on to the same bits. To let it all the same, give --accept-changes"
    );
    Err(Error::mismatch(path, what))
}

/// 0 (automatic) takes a resume's own number, so that it stays exact on a machine of another size.
fn choose_threads(asked: usize, recorded: Option<usize>, accept_changes: bool, events: &EventSender) -> usize {
    let here = processors();
    match recorded {
        Some(recorded) if asked == 0 && !accept_changes => {
            if recorded != here {
                events.log(
                    MessageLevel::Info,
                    format!(
                        "going on with {recorded} threads as before, so that the result stays exact; \
                         this machine has {here} processors ([job] threads = {here} with --accept-changes uses them)"
                    ),
                );
            }
            recorded
        }
        _ => asked,
    }
}

/// The snapshot's own arithmetic, or the newest for a training that begins.
fn choose_arithmetic(
    snapshot: Option<&SnapshotReader>,
    accept_changes: bool,
    events: &EventSender,
) -> Result<ArithmeticNumber> {
    // A state imported from other programs was computed under none of ours.
    let Some(snapshot) = snapshot.filter(|snapshot| !snapshot.manifest().train.settings.is_empty()) else {
        return Ok(ARITHMETIC.newest);
    };
    let unknown = match ARITHMETIC.going_on(snapshot.manifest().train.arithmetic) {
        Ok(number) => return Ok(number),
        Err(unknown) => unknown,
    };
    if !accept_changes {
        let what = format!("{unknown}; use the release that took it, or go on to another result with --accept-changes");
        return Err(Error::mismatch(snapshot.path(), what));
    }
    events.log(MessageLevel::Warn, format!("going on with arithmetic {}: the snapshot {unknown}", ARITHMETIC.newest));
    Ok(ARITHMETIC.newest)
}

/// Everything that changes the arithmetic, by name.
fn settings(config: &Config, shape: &Gpt2Config, data: &TokenDataset, device: Device, threads: usize) -> TrainSettings {
    let device = if matches!(device, Device::Cpu) { "cpu" } else { "cuda" };
    let mut settings = config.train_settings(&ResolvedJob { device, threads, data_content: &data.content_hash });
    shape.record(&mut settings);
    settings
}

/// The config.json that snapshots carry: the model folder's own, as the model is trained, and with the special tokens of
/// the tokenizer where it names none; GPT-2's would lie outside a smaller vocabulary.
fn config_json(shape: &Gpt2Config, theirs: Option<&[u8]>, end_of_text: Option<u32>) -> String {
    let object = |json: &[u8]| serde_json::from_slice::<Map<String, Value>>(json).unwrap_or_default();
    let mut config = theirs.map(object).unwrap_or_default();
    config.extend(object(shape.to_json().as_bytes()));
    for key in ["bos_token_id", "eos_token_id"] {
        config.entry(key).or_insert_with(|| end_of_text.into());
    }
    format!("{:#}\n", Value::Object(config))
}

/// Config, tokenizer and the model folder's other small files, so that a snapshot can become such a folder again.
fn carried(config: &Config, config_json: String, data: &TokenDataset) -> Result<Vec<CarriedFile>> {
    let mut files = vec![CarriedFile { name: "config.json".into(), bytes: config_json.into_bytes().into() }];
    if let Some(json) = &data.tokenizer_json {
        files.push(CarriedFile { name: "tokenizer.json".into(), bytes: json.clone().into() });
    }
    let Some(folder) = &config.model.from else { return Ok(files) };
    for name in names::COMPANIONS {
        let path = folder.join(name);
        let small = std::fs::metadata(&path).is_ok_and(|m| m.is_file() && m.len() <= MAX_CARRIED);
        if small && !files.iter().any(|f| f.name == name) {
            let bytes = std::fs::read(&path).map_err(|e| Error::io("reading", &path, e))?;
            files.push(CarriedFile { name: name.into(), bytes: bytes.into() });
        }
    }
    Ok(files)
}

fn provenance(device: Device) -> Provenance {
    Provenance {
        ckptd: env!("CARGO_PKG_VERSION").into(),
        libtorch: option_env!("CKPTD_LIBTORCH_VERSION").unwrap_or("unknown").into(),
        host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
        device: device::name(device),
        reason: String::new(),
    }
}

/// Fills `state` from `snapshot`. Returns the train state as it was saved, and its root.
fn restore(
    snapshot: &SnapshotReader,
    state: &mut TrainingState,
    accept_changes: bool,
    threads: usize,
    events: &EventSender,
) -> Result<(TrainState, StateRoot)> {
    let manifest = snapshot.manifest();
    let saved = &manifest.train;
    let (now, _) = state.train();
    let changed = match saved.settings.is_empty() {
        // Imported from others, who do not say under which settings it came about.
        true => Vec::new(),
        false => saved.settings.differences(&now.settings),
    };
    if !changed.is_empty() {
        let list = changed.join("; ");
        if !accept_changes {
            return Err(Error::mismatch(
                snapshot.path(),
                format!("was trained with other settings ({list}); put them back, or go on with --accept-changes"),
            ));
        }
        events.log(MessageLevel::Warn, format!("going on with other settings: {list}"));
    }
    state.fill(|destinations| {
        let mut wanted = Vec::with_capacity(destinations.len());
        let mut wrong = Vec::new();
        let mut left: BTreeMap<_, usize> =
            manifest.tensors.iter().enumerate().map(|(i, t)| ((t.meta.role, t.meta.name.clone()), i)).collect();
        for destination in destinations.iter_mut() {
            let meta = destination.meta;
            match left.remove(&(meta.role, meta.name.clone())) {
                Some(i) if manifest.tensors[i].meta == *meta => wanted.push((i, &mut *destination.bytes)),
                Some(i) => {
                    let has = &manifest.tensors[i].meta;
                    wrong.push(format!(
                        "{} is {} {:?}, not {} {:?}",
                        meta.label(),
                        has.dtype,
                        has.shape,
                        meta.dtype,
                        meta.shape
                    ));
                }
                None => wrong.push(format!("{} is missing", meta.label())),
            }
        }
        wrong.extend(left.into_keys().map(|(role, name)| format!("{role} {name} is not part of this training")));
        match wrong.is_empty() {
            // Twice the threads, since each of them waits for the device half of the time.
            true => snapshot.read_into(wanted, 2 * threads.max(2)),
            false => Err(Error::mismatch(snapshot.path(), format!("does not fit this training: {}", wrong.join("; ")))),
        }
    })?;
    state.edit(|train, metrics| {
        let settings = std::mem::take(&mut train.settings);
        *train = TrainState { settings, arithmetic: train.arithmetic, ..saved.clone() };
        // The answers were those of that snapshot; each one has its own.
        *metrics = Metrics { probe: None, ..manifest.metrics.clone() };
    });
    Ok((saved.clone(), manifest.root.clone()))
}
