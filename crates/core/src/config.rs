//! The job file: raw TOML in, a validated [`Config`] out. Everything after this module sees only the validated form.
//!
//! Reading order: `sections` (keys and defaults), `load`, `check`, [`live`] (what may change while a job runs),
//! `recorded` (what changes the arithmetic).
//!
//! Invariant: an unknown key is an error that names the nearest known one; every key is documented in
//! `config/ckptd.toml`, which a test holds equal to the defaults. Paths are relative to the file's folder.
//! Deliberately not here: whether files exist (the code that opens them says so).

mod check;
pub mod live;
mod load;
mod recorded;
mod sections;

pub use load::TEMPLATE;
pub use recorded::ResolvedJob;
pub use sections::{
    Config, DataSection, JobSection, LogLevel, LogSection, ModelSection, OptimizerKind, ScheduleKind, SessionSection,
    SnapshotEvery, SnapshotSection, StatusSection, TrainSection, WorkerSection,
};
