//! The sections of the job file, their keys and their defaults.
//!
//! Invariant: an unknown key is an error. Deliberately not here: which values make sense (`check`), what may change while
//! a job runs (`live`), what changes the arithmetic (`recorded`).

use std::path::PathBuf;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::snapshot::TrainState;
use crate::store::RetentionPolicy;
use crate::text::{TextValue, parse_duration};

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    pub job: JobSection,
    pub model: ModelSection,
    pub data: DataSection,
    pub train: TrainSection,
    pub snapshot: SnapshotSection,
    pub retention: RetentionPolicy,
    pub session: SessionSection,
    pub worker: WorkerSection,
    pub status: StatusSection,
    pub log: LogSection,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct JobSection {
    /// Empty: the config file's stem.
    pub name: String,
    /// Empty: `checkpoints/<name>` beside the config file.
    pub store: PathBuf,
    pub seed: u64,
    pub device: String,
    /// Threads of one operation; 0: as many as there are processors.
    pub threads: usize,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ModelSection {
    pub from: Option<PathBuf>,
    pub preset: Option<String>,
    /// Overrides the three dropouts of the model's config.
    pub dropout: Option<f64>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DataSection {
    pub text: Vec<String>,
    pub tokens: Option<PathBuf>,
    pub tokenizer: Option<PathBuf>,
    /// Share of the tokens held back for validation, 0 to 0.5.
    pub validation: f64,
    /// Empty: `<store>/cache`.
    pub cache: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OptimizerKind {
    Adamw,
    Sgd,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ScheduleKind {
    Cosine,
    Linear,
    Constant,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrainSection {
    pub steps: u64,
    pub batch_size: u64,
    pub grad_accumulation: u64,
    pub sequence_length: u64,
    pub optimizer: OptimizerKind,
    pub learning_rate: f64,
    pub schedule: ScheduleKind,
    pub warmup_steps: u64,
    /// What the schedule falls to, as a share of learning_rate.
    pub min_learning_rate: f64,
    pub weight_decay: f64,
    pub betas: [f64; 2],
    pub eps: f64,
    pub momentum: f64,
    /// Largest global norm of the gradient; 0: no clipping.
    pub grad_clip: f64,
    /// Steps between evaluations; 0: none.
    pub eval_every: u64,
    pub eval_batches: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SnapshotSection {
    /// A duration, or "auto".
    pub every: SnapshotEvery,
    pub every_steps: Option<u64>,
    /// Mean time between failures for "auto"; `None`: as observed.
    pub mtbf: Option<TextValue<Duration>>,
    /// Largest share of the training time that snapshots may take under "auto".
    pub max_overhead: f64,
    /// 0: stored as is; from 1: float tensors by planes, everything else by zstd at that level.
    pub level: u8,
    /// 0: one per processor.
    pub encode_threads: usize,
    /// Store a fingerprint of the logits for a fixed input; a resume compares the restored model with it.
    pub probe: bool,
}

/// `[snapshot] every`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum SnapshotEvery {
    Interval(Duration),
    Auto,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SessionSection {
    /// Wall-clock time that this session may last, counted from the start of `ckptd run`.
    pub budget: Option<TextValue<Duration>>,
    /// The time of day by which it must be over.
    pub deadline: Option<TextValue<Timestamp>>,
    /// The final snapshot is given its 99th percentile times this.
    pub margin: f64,
    /// How long a stop may take, from the signal to the exit.
    pub grace: TextValue<Duration>,
    /// Touching this file, or anything in this folder, ends the session.
    pub notice_file: Option<PathBuf>,
    /// Take the end of the allocation from Slurm, inside one.
    pub slurm: bool,
    /// Take RuntimeMaxSec from systemd, inside a unit that has one.
    pub systemd: bool,
    pub aws: bool,
    pub aws_url: String,
    pub gcp: bool,
    pub gcp_url: String,
    pub azure: bool,
    pub azure_url: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WorkerSection {
    /// Empty: `ckptd-gpt2` beside ckptd, then in PATH.
    pub command: Vec<String>,
    /// Restarts in a row without a new step before ckptd gives up.
    pub max_restarts: u32,
    /// Silence after which the worker counts as hung.
    pub hang_timeout: TextValue<Duration>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StatusSection {
    /// Empty: in the store.
    pub socket: PathBuf,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogSection {
    pub level: LogLevel,
}

/// `[log] level`, from the fewest lines to the most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    Error,
    Warn,
    Info,
    Debug,
}

impl Default for JobSection {
    fn default() -> JobSection {
        JobSection { name: String::new(), store: PathBuf::new(), seed: 1337, device: "auto".into(), threads: 0 }
    }
}

impl Default for DataSection {
    fn default() -> DataSection {
        DataSection { text: Vec::new(), tokens: None, tokenizer: None, validation: 0.05, cache: PathBuf::new() }
    }
}

impl Default for TrainSection {
    fn default() -> TrainSection {
        TrainSection {
            steps: 1000,
            batch_size: 8,
            grad_accumulation: 1,
            sequence_length: 256,
            optimizer: OptimizerKind::Adamw,
            learning_rate: 3e-4,
            schedule: ScheduleKind::Cosine,
            warmup_steps: 50,
            min_learning_rate: 0.1,
            weight_decay: 0.1,
            betas: [0.9, 0.95],
            eps: 1e-8,
            momentum: 0.0,
            grad_clip: 1.0,
            eval_every: 100,
            eval_batches: 8,
        }
    }
}

impl Default for SnapshotSection {
    fn default() -> SnapshotSection {
        SnapshotSection {
            every: SnapshotEvery::Interval(Duration::from_secs(300)),
            every_steps: None,
            mtbf: None,
            max_overhead: 0.01,
            level: 1,
            encode_threads: 0,
            probe: false,
        }
    }
}

impl Default for SessionSection {
    fn default() -> SessionSection {
        SessionSection {
            budget: None,
            deadline: None,
            margin: 1.5,
            grace: TextValue(Duration::from_secs(30)),
            notice_file: None,
            slurm: true,
            systemd: true,
            aws: false,
            aws_url: "http://169.254.169.254".into(),
            gcp: false,
            gcp_url: "http://metadata.google.internal".into(),
            azure: false,
            azure_url: "http://169.254.169.254".into(),
        }
    }
}

impl Default for WorkerSection {
    fn default() -> WorkerSection {
        WorkerSection { command: Vec::new(), max_restarts: 10, hang_timeout: TextValue(Duration::from_secs(600)) }
    }
}

impl Default for LogSection {
    fn default() -> LogSection {
        LogSection { level: LogLevel::Info }
    }
}

impl TryFrom<String> for SnapshotEvery {
    type Error = String;
    fn try_from(text: String) -> Result<SnapshotEvery, String> {
        match text.as_str() {
            "auto" => Ok(SnapshotEvery::Auto),
            _ => parse_duration(&text).map(SnapshotEvery::Interval),
        }
    }
}

impl From<SnapshotEvery> for String {
    fn from(every: SnapshotEvery) -> String {
        match every {
            SnapshotEvery::Auto => "auto".into(),
            SnapshotEvery::Interval(interval) => humantime::format_duration(interval).to_string(),
        }
    }
}

impl TrainSection {
    /// Whether a training in this state has nothing left to do: the last step, and the evaluation that falls on it.
    pub fn is_complete(&self, state: &TrainState) -> bool {
        state.step >= self.steps && (self.eval_every == 0 || state.last_eval_step >= self.steps)
    }
}
