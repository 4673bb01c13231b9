//! The sections of the job file, their keys and their defaults.
//!
//! Invariant: an unknown key is an error. Deliberately not here: which values make sense (`check`), what may change
//! while a job runs (`live`), what changes the arithmetic (`recorded`).

use std::path::PathBuf;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::hooks::HooksSection;
use super::memory::SnapshotMemory;
use super::ranks::RanksSection;
use super::remote::RemoteSection;
use super::status::StatusSection;
use crate::error::Result;
use crate::snapshot::TrainState;
use crate::store::RetentionPolicy;
use crate::text::{TextValue, parse_duration};
use crate::token_file::TokensDtype;

/// A job, as its file says, section by section.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// `[job]`: name, store, seed and machine.
    pub job: JobSection,
    /// `[model]`: where the model comes from.
    pub model: ModelSection,
    /// `[data]`: what it trains on.
    pub data: DataSection,
    /// `[train]`: how.
    pub train: TrainSection,
    /// `[snapshot]`: when and how the state is saved.
    pub snapshot: SnapshotSection,
    /// `[retention]`: which snapshots stay.
    pub retention: RetentionPolicy,
    /// `[remote]`: where snapshots are replicated to.
    pub remote: RemoteSection,
    /// `[ranks]`: how many processes compute it.
    pub ranks: RanksSection,
    /// `[session]`: when a session ends.
    pub session: SessionSection,
    /// `[worker]`: the training program.
    pub worker: WorkerSection,
    /// `[status]`: where the job answers.
    pub status: StatusSection,
    /// `[hooks]`: who is told when something matters.
    pub hooks: HooksSection,
    /// `[log]`: what is logged.
    pub log: LogSection,
}

/// `[job]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct JobSection {
    /// Empty: the config file's stem.
    pub name: String,
    /// Empty: `checkpoints/<name>` beside the config file.
    pub store: PathBuf,
    /// Every random number of the training follows from it.
    pub seed: u64,
    /// "auto", "cpu" or "cuda:N".
    pub device: String,
    /// Threads of one operation; 0: as many as there are processors.
    pub threads: usize,
}

/// `[model]`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ModelSection {
    /// A Hugging Face folder to start from.
    pub from: Option<PathBuf>,
    /// The name of a shape for random weights.
    pub preset: Option<String>,
    /// Overrides the three dropouts of the model's config.
    pub dropout: Option<f64>,
}

/// `[data]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DataSection {
    /// Text files, folders and globs.
    pub text: Vec<String>,
    /// Where records hold their text: a field of JSONL, a column of Parquet; `None`: "text".
    pub field: Option<String>,
    /// A file of little-endian token ids.
    pub tokens: Option<PathBuf>,
    /// The type of its ids, where the file does not say it.
    pub tokens_dtype: Option<TokensDtype>,
    /// A tokenizer.json or a folder with a tokenizer; `None`: the model folder's, else one is trained on the text.
    pub tokenizer: Option<PathBuf>,
    /// Share of the tokens held back for validation, 0 to 0.5.
    pub validation: f64,
    /// Empty: `<store>/cache`.
    pub cache: PathBuf,
}

/// `[train] optimizer`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OptimizerKind {
    /// torch.optim.AdamW.
    Adamw,
    /// torch.optim.SGD.
    Sgd,
}

/// `[train] precision`: what matrix products and attention are computed in. Everything else is float32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ComputePrecision {
    /// float32.
    Float32,
    /// bfloat16, as under torch.autocast.
    Bf16,
}

/// `[train] schedule`: how the learning rate falls after the warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ScheduleKind {
    /// Along half a cosine.
    Cosine,
    /// In a line.
    Linear,
    /// Not at all.
    Constant,
}

/// `[train]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrainSection {
    /// Optimiser steps of the whole training; 0: a script knows how many.
    pub steps: u64,
    /// Sequences per micro-batch.
    pub batch_size: u64,
    /// Micro-batches per step.
    pub grad_accumulation: u64,
    /// Tokens per sequence.
    pub sequence_length: u64,
    /// The update's rule.
    pub optimizer: OptimizerKind,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// How the learning rate falls.
    pub schedule: ScheduleKind,
    /// Steps over which the learning rate rises from 0.
    pub warmup_steps: u64,
    /// What the schedule falls to, as a share of learning_rate.
    pub min_learning_rate: f64,
    /// Decoupled (AdamW) or L2 (SGD); none on biases and layer norms.
    pub weight_decay: f64,
    /// AdamW's decay rates of exp_avg and exp_avg_sq.
    pub betas: [f64; 2],
    /// AdamW's denominator term.
    pub eps: f64,
    /// SGD's momentum.
    pub momentum: f64,
    /// Largest global norm of the gradient; 0: no clipping.
    pub grad_clip: f64,
    /// Steps between evaluations; 0: none.
    pub eval_every: u64,
    /// Micro-batches per evaluation.
    pub eval_batches: u64,
    /// What matrix products and attention are computed in.
    pub precision: ComputePrecision,
    /// The backward pass computes each block again. No setting of the state: the results are the same bits.
    pub activation_checkpointing: bool,
}

/// `[snapshot]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SnapshotSection {
    /// A duration, or "auto".
    pub every: SnapshotEvery,
    /// Steps between snapshots; takes the place of `every`.
    pub every_steps: Option<u64>,
    /// Mean time between failures for "auto"; `None`: as observed.
    pub mtbf: Option<TextValue<Duration>>,
    /// Largest share of the training time that snapshots may take under "auto".
    pub max_overhead: f64,
    /// 0: stored as is; from 1: float tensors by planes, everything else by zstd at that level.
    pub level: u8,
    /// 0: one per processor.
    pub encode_threads: usize,
    /// What an update may take beside the state for what a snapshot still holds, instead of waiting for it.
    pub memory: SnapshotMemory,
    /// Store a fingerprint of the logits for a fixed input; a resume compares the restored model with it.
    pub probe: bool,
}

/// `[snapshot] every`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum SnapshotEvery {
    /// At this interval.
    Interval(Duration),
    /// As the measured costs and the failures say.
    Auto,
}

/// `[session]`.
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
    /// Ask AWS's metadata service about interruptions.
    pub aws: bool,
    /// Where that service is, without the path.
    pub aws_url: String,
    /// Ask Google Cloud's metadata service about preemption and maintenance.
    pub gcp: bool,
    /// Where that service is, without the path.
    pub gcp_url: String,
    /// Ask Azure's metadata service about scheduled events.
    pub azure: bool,
    /// Where that service is, without the path.
    pub azure_url: String,
}

/// `[worker]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WorkerSection {
    /// Empty: `ckptd-gpt2` beside ckptd, then in PATH.
    pub command: Vec<String>,
    /// A training script that uses the Python package `ckptd`, and its arguments; takes the place of `command`.
    pub script: Vec<String>,
    /// Restarts in a row without a new step before ckptd gives up.
    pub max_restarts: u32,
    /// Silence after which the worker counts as hung.
    pub hang_timeout: TextValue<Duration>,
    /// While a worker trains, another one has loaded its libraries and waits to take its place.
    pub spare: bool,
}

/// `[log]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogSection {
    /// The least urgent lines that are written.
    pub level: LogLevel,
    /// The job writes event files for TensorBoard into its store.
    pub tensorboard: bool,
}

/// `[log] level`, from the fewest lines to the most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// What ended or failed.
    Error,
    /// And what went wrong.
    Warn,
    /// And what was done.
    Info,
    /// And details.
    Debug,
}

impl Default for JobSection {
    fn default() -> JobSection {
        JobSection { name: String::new(), store: PathBuf::new(), seed: 1337, device: "auto".into(), threads: 0 }
    }
}

impl Default for DataSection {
    fn default() -> DataSection {
        DataSection {
            text: Vec::new(),
            field: None,
            tokens: None,
            tokens_dtype: None,
            tokenizer: None,
            validation: 0.05,
            cache: PathBuf::new(),
        }
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
            precision: ComputePrecision::Float32,
            activation_checkpointing: false,
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
            memory: SnapshotMemory::Auto,
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
        WorkerSection {
            command: Vec::new(),
            script: Vec::new(),
            max_restarts: 10,
            hang_timeout: TextValue(Duration::from_secs(600)),
            spare: true,
        }
    }
}

impl Default for LogSection {
    fn default() -> LogSection {
        LogSection { level: LogLevel::Info, tensorboard: false }
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

impl WorkerSection {
    /// Whether it is the worker that comes with ckptd, which trains what the job file says.
    pub fn is_builtin(&self) -> bool {
        self.command.is_empty() && self.script.is_empty()
    }
}

impl TrainSection {
    /// Whether a training in this state has nothing left to do: the last step, and the evaluation that falls on it.
    pub fn is_complete(&self, state: &TrainState) -> bool {
        self.steps > 0 && state.step >= self.steps && (self.eval_every == 0 || state.last_eval_step >= self.steps)
    }
}
