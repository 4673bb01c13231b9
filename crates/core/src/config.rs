//! The job file: raw TOML in, a validated [`Config`] out. Everything after this module sees only the validated form.
//!
//! Invariant: an unknown key is an error that names the nearest known one; every key is documented in
//! `config/ckptd.toml`, which a test holds equal to the defaults. Paths are relative to the file's folder.
//! Deliberately not here: whether files exist (whoever opens them says so).

mod check;
pub mod live;

use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::snapshot::TrainState;
use crate::store::{RetentionPolicy, layout};
use crate::text::{TextValue, parse_duration};

/// The commented job file with every key at its default; `ckptd init` writes it.
pub const TEMPLATE: &str = include_str!("../../../config/ckptd.toml");

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
    /// Store a hash of what the model answers to a fixed input; a resume holds the model against it.
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

impl Config {
    /// Reads and validates the job file at `path`.
    pub fn load(path: &Path) -> Result<Config> {
        Config::parse(&Config::read(path)?, path)
    }

    /// The text of the job file at `path`.
    pub fn read(path: &Path) -> Result<String> {
        std::fs::read_to_string(path).map_err(|e| {
            Error::Config(format!("reading config {}: {e}; `ckptd init` writes one to start from", path.display()))
        })
    }

    /// Validates `text`, which stands in the file `path`.
    pub fn parse(text: &str, path: &Path) -> Result<Config> {
        let mut config: Config =
            toml::from_str(text).map_err(|e| Error::Config(format!("{}: {}", path.display(), explain(&e, text))))?;
        config.resolve(path)?;
        config.validate().map_err(|what| Error::Config(format!("{}: {what}", path.display())))?;
        Ok(config)
    }

    /// Fills in what is derived from the file's place, and makes paths absolute.
    fn resolve(&mut self, path: &Path) -> Result<()> {
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        // Without links in it, `..` can be taken off the folder's path.
        let folder = std::fs::canonicalize(folder)
            .or_else(|_| std::path::absolute(folder))
            .map_err(|e| Error::io("resolving", folder, e))?;
        if self.job.name.is_empty() {
            self.job.name = path.file_stem().map_or_else(|| "job".into(), |s| s.to_string_lossy().into_owned());
        }
        if self.job.store.as_os_str().is_empty() {
            self.job.store = Path::new("checkpoints").join(&self.job.name);
        }
        self.job.store = below(&folder, &self.job.store);
        let (model, data, session) = (&mut self.model, &mut self.data, &mut self.session);
        let given = [&mut model.from, &mut data.tokens, &mut data.tokenizer, &mut session.notice_file];
        for path in given.into_iter().flatten() {
            *path = below(&folder, path);
        }
        self.data.cache = match self.data.cache.as_os_str().is_empty() {
            true => self.job.store.join(layout::CACHE),
            false => below(&folder, &self.data.cache),
        };
        for glob in &mut self.data.text {
            *glob = below(&folder, glob.as_ref()).to_string_lossy().into_owned();
        }
        self.status.socket = match self.status.socket.as_os_str().is_empty() {
            true => self.job.store.join(layout::STATUS_SOCKET),
            false => below(&folder, &self.status.socket),
        };
        if let Some(program) = self.worker.command.first_mut()
            && program.contains('/')
        {
            *program = below(&folder, program.as_ref()).to_string_lossy().into_owned();
        }
        Ok(())
    }
}

/// `path` as seen from `folder`, which holds no links: leading `.` and `..` are resolved, so that messages are short.
fn below(folder: &Path, path: &Path) -> PathBuf {
    let mut folder = folder.to_path_buf();
    let mut components = path.components();
    loop {
        let rest = components.as_path();
        match components.next() {
            Some(Component::ParentDir) if folder.pop() => {}
            Some(Component::ParentDir | Component::CurDir) => {}
            _ => return folder.join(rest),
        }
    }
}

/// A TOML error as "line L: what", with the nearest known key where a key is unknown.
fn explain(error: &toml::de::Error, text: &str) -> String {
    let line = error.span().map(|span| text[..span.start.min(text.len())].matches('\n').count() + 1);
    let mut what = error.message().trim().to_owned();
    // serde's derive writes: unknown field `x`, expected one of `a`, `b`
    if let Some((unknown, known)) = what.strip_prefix("unknown field `").and_then(|rest| rest.split_once('`')) {
        let nearest = known
            .split('`')
            .skip(1)
            .step_by(2)
            .max_by(|a, b| strsim::jaro_winkler(a, unknown).total_cmp(&strsim::jaro_winkler(b, unknown)));
        what = match nearest {
            Some(nearest) => format!("unknown key `{unknown}`; did you mean `{nearest}`?"),
            None => format!("unknown key `{unknown}`"),
        };
    }
    match line {
        Some(line) => format!("line {line}: {what}"),
        None => what,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config> {
        Config::parse(text, Path::new("/jobs/tiny.toml"))
    }

    #[test]
    fn the_template_holds_every_key_at_its_default() {
        // Optional keys stand in it commented out, as "#key = value".
        let mut defaults = toml::Table::try_from(Config::default()).unwrap();
        let template: toml::Table = toml::from_str(TEMPLATE).unwrap();
        // The template names a model and text, so that it is a job; they have no default.
        for (section, key) in [("model", "preset"), ("data", "text")] {
            let value = template[section][key].clone();
            defaults[section].as_table_mut().unwrap().insert(key.into(), value);
        }
        assert_eq!(template, defaults);
        let uncommented: String = TEMPLATE
            .lines()
            .map(|line| line.strip_prefix('#').filter(|l| !l.starts_with(' ')).unwrap_or(line))
            .fold(String::new(), |text, line| text + line + "\n");
        let all: toml::Table = toml::from_str(&uncommented).unwrap();
        let known: toml::Table = toml::from_str(
            r#"model = ["from", "dropout"]
               data = ["tokens", "tokenizer"]
               snapshot = ["every_steps", "mtbf"]
               retention = ["keep_every_steps", "max_bytes"]
               session = ["budget", "deadline", "notice_file"]"#,
        )
        .unwrap();
        for (section, optional) in known {
            for key in optional.as_array().unwrap() {
                assert!(all[&section].get(key.as_str().unwrap()).is_some(), "[{section}] {key} is not documented");
            }
        }
        toml::from_str::<Config>(&uncommented).unwrap();
    }

    #[test]
    fn an_unknown_key_is_refused_with_its_line_and_the_nearest_known_key() {
        let error = parse("[model]\npreset = \"gpt2\"\n[train]\nlerning_rate = 1.0\n").unwrap_err().to_string();
        assert_eq!(error, "/jobs/tiny.toml: line 4: unknown key `lerning_rate`; did you mean `learning_rate`?");
        let error = parse("[trian]\nsteps = 1\n").unwrap_err().to_string();
        assert!(error.contains("did you mean `train`?"), "{error}");
    }

    #[test]
    fn paths_are_relative_to_the_file_and_durations_and_sizes_are_text() {
        let config = parse(
            "[model]\nfrom = \"gpt\"\n[data]\ntext = [\"*.txt\"]\n[session]\nbudget = \"11h45m\"\n\
             [retention]\nmax_bytes = \"2GiB\"\n[status]\nsocket = \"./../run/s.sock\"\n[snapshot]\nevery = \"auto\"\n",
        )
        .unwrap();
        assert_eq!(config.job.store, Path::new("/jobs/checkpoints/tiny"));
        assert_eq!(config.model.from.unwrap(), Path::new("/jobs/gpt"));
        assert_eq!(config.data.text, ["/jobs/*.txt"]);
        assert_eq!(config.session.budget, Some(TextValue(Duration::from_secs(11 * 3600 + 45 * 60))));
        assert_eq!(config.retention.max_bytes, Some(TextValue(2 << 30)));
        assert_eq!(config.snapshot.every, SnapshotEvery::Auto);
        assert_eq!(config.status.socket, Path::new("/run/s.sock"));
    }

    #[test]
    fn a_value_that_makes_no_sense_is_refused_with_section_and_key() {
        let base = "[model]\npreset = \"gpt2-mini\"\n[data]\ntext = [\"a\"]\n";
        for (line, names) in [
            ("[train]\nsteps = 0", "[train] steps"),
            ("[train]\nbetas = [0.9, 1.0]", "[train] betas"),
            ("[retention]\nkeep_last = 1", "[retention] keep_last"),
            ("[snapshot]\nevery = \"soon\"", "line 6"),
            ("[job]\ndevice = \"tpu\"", "[job] device"),
            ("[session]\nmargin = 0.5", "[session] margin"),
            ("[session]\ndeadline = \"tonight\"", "line 6"),
            ("[log]\nlevel = \"loud\"", "line 6"),
        ] {
            let error = parse(&format!("{base}{line}\n")).unwrap_err();
            assert_eq!(error.exit_code(), 78);
            assert!(error.to_string().contains(names), "{error}");
        }
    }

    #[test]
    fn a_config_survives_the_protocol_unchanged() {
        let config =
            parse("[model]\npreset = \"gpt2-mini\"\n[data]\ntext = [\"a\"]\n[session]\nbudget = \"90s\"").unwrap();
        let json = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::from_str::<Config>(&json).unwrap(), config);
    }
}
