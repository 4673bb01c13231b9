//! The store: one folder per job, and in it whole, durable, verified snapshots.
//!
//! Reading order: [`layout`] (names), [`format`] (the file), [`trailer`], [`outline`], [`peek`], [`read`], [`receipt`],
//! [`lock`], [`handle`] (an open store), [`worker_lock`], [`commit_options`], `encode`, [`commit`](mod@commit),
//! [`receive`], [`catalogue`], [`choice`] (what a name means), [`verify`], [`quarantine`], [`resume`], [`retain`],
//! [`rotate`], [`clean`], [`records`], [`log`], [`session`].
//!
//! Invariant: every answer is read from the disk at the time of the question. Order comes from (run, sequence number)
//! in the manifests. Damaged files are moved aside, not deleted; only [`rotate`] deletes snapshots.

pub mod catalogue;
pub mod choice;
pub mod clean;
pub mod commit;
pub mod commit_options;
mod encode;
pub mod format;
pub mod handle;
pub mod layout;
pub mod lock;
pub mod log;
pub mod mark;
pub mod outline;
pub mod peek;
pub mod quarantine;
pub mod read;
pub mod receipt;
pub mod receive;
pub mod records;
pub mod resume;
pub mod retain;
pub mod rotate;
pub mod session;
pub mod trailer;
pub mod verify;
pub mod worker_lock;

pub use catalogue::{SnapshotEntry, SnapshotState};
pub use choice::{PassedOver, SnapshotChoice};
pub use commit::{Committed, commit, commit_with};
pub use commit_options::{CommitHandle, CommitOptions, CommitPace};
pub use format::Manifest;
pub use handle::Store;
pub use lock::{LastSession, SessionEnding, StoreLock};
pub use quarantine::QuarantinedFile;
pub use read::{ItemPart, SnapshotReader};
pub use receipt::Receipt;
pub use records::Record;
pub use resume::ResumeChoice;
pub use retain::{KeepReason, RetentionPolicy, RetentionVerdict};
pub use rotate::RotationPlan;
pub use session::SessionStart;
pub use worker_lock::WorkerLock;
