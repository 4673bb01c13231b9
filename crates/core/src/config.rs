//! The job file: raw TOML in, a validated [`Config`] out. Everything after this module sees only the validated form.
//!
//! Reading order: `sections`, `ranks`, `remote`, `status` and `hooks` (keys and defaults), `keys` (what each takes),
//! `load`, `overrides` (the command line), `document` and `check` (what can be wrong: `syntax`, `values`, `foreign`,
//! told as a `problem`), [`live`] (what may change while a job runs), `recorded` (what changes the arithmetic).
//!
//! Invariant: an error names line, key and value, what is allowed and what to write; every key is documented in
//! `config/ckptd.toml`, which a test holds equal to the defaults. Paths are relative to the file's folder.
//! Deliberately not here: what the files hold that it names.

mod check;
mod document;
mod files;
mod foreign;
mod hooks;
mod keys;
pub mod live;
mod load;
mod memory;
mod overrides;
mod placing;
mod problem;
mod ranks;
mod recorded;
mod remote;
mod sections;
mod status;
mod syntax;
mod values;

pub use hooks::{HookMoment, HooksSection};
pub use load::TEMPLATE;
pub use memory::SnapshotMemory;
pub use overrides::ConfigOverrides;
pub use ranks::{RankBackend, RankCount, RankLauncher, RankRoom, RanksSection};
pub use recorded::ResolvedJob;
pub use remote::{Lease, RemoteSection, RemoteVerify, SendWhat};
pub use sections::{
    ComputePrecision, Config, DataSection, JobSection, LogLevel, LogSection, ModelSection, OptimizerKind, ScheduleKind,
    SessionSection, SnapshotEvery, SnapshotSection, TrainSection, WorkerSection,
};
pub use status::StatusSection;
