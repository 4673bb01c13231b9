//! What a source of another program says of its training: the settings of its optimiser's groups, its schedule,
//! the steps at which its Trainer saves, evaluates and logs. A snapshot carries it as a small file beside
//! config.json; no part of it is a setting of the job, or enters the root.
//!
//! Reading order: [`record`] (the file), [`schedule`] (the learning rates that it stands for), [`advice`] (what it
//! means for a job's `[train]`). Deliberately not here: reading it from a source (import), writing it back (export).

pub mod advice;
pub mod record;
pub mod schedule;

pub use record::{GroupRecord, OptimizerRecord, SourceRecord};
