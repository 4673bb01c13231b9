//! A job as the page shows it: plain values, of a job that runs or of one that does not.
//!
//! Invariant: times are milliseconds since 1970; what is not known is null, and nothing is NaN. Deliberately not here:
//! where the values come from (the daemon, or the store's files).

use serde::Serialize;

/// All that is known of a job but its curve.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct JobView {
    /// When this was so.
    pub now_ms: i64,
    /// The job.
    pub name: String,
    /// Where its store is.
    pub store: String,
    /// "training" and so on, as in `ckptd status --json`.
    pub state: String,
    /// A session is under way.
    pub is_live: bool,
    /// Steps completed.
    pub step: u64,
    /// Steps of the whole training.
    pub total_steps: Option<u64>,
    /// Of the last step; `None`: unknown, or not finite.
    pub loss: Option<f64>,
    /// The last step's loss is not finite.
    pub is_diverged: bool,
    /// Of the last step.
    pub learning_rate: Option<f64>,
    /// Of the last few steps.
    pub tokens_per_second: Option<f64>,
    /// When the training ends at this pace.
    pub ends_ms: Option<i64>,
    /// Sessions to come after this one.
    pub sessions_left: Option<u64>,
    /// What is wrong, each with what to do.
    pub problems: Vec<String>,
    /// The newest snapshot that was read back.
    pub last_verified: Option<SavedStep>,
    /// This session.
    pub plan: PlanView,
    /// `None`: the job has no remote.
    pub remote: Option<RemoteView>,
    /// Where it runs.
    pub machine: MachineView,
    /// Snapshots of this session.
    pub counts: SnapshotCountView,
    /// Newest first, of many the newest ones.
    pub snapshots: Vec<SnapshotRow>,
    /// All that the store holds.
    pub stored: StoredView,
    /// Newest first.
    pub sessions: Vec<SessionRow>,
}

/// What a store holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct StoredView {
    /// Snapshots, without those in quarantine.
    pub snapshots: u64,
    /// Of all of them, quarantine included.
    pub bytes: u64,
}

/// A step that is saved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct SavedStep {
    /// Steps that its state has.
    pub step: u64,
    /// When its snapshot was made.
    pub at_ms: i64,
}

/// What is planned for a session.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct PlanView {
    /// When it began.
    pub began_ms: Option<i64>,
    /// When it ends.
    pub deadline_ms: Option<i64>,
    /// Why then.
    pub source: Option<String>,
    /// When its last snapshot begins.
    pub last_call_ms: Option<i64>,
    /// Time between snapshots, where it is counted in time.
    pub interval_seconds: Option<f64>,
    /// Why it is that.
    pub interval_why: String,
}

/// What is at a job's remote.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct RemoteView {
    /// Its address.
    pub place: String,
    /// The newest snapshot there.
    pub newest: Option<SavedStep>,
    /// Verified snapshots of this session that are not there.
    pub missing: u64,
    /// What does not work.
    pub problem: Option<String>,
}

/// Machine and processes.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct MachineView {
    /// The machine's name.
    pub host: String,
    /// Of ckptd.
    pub version: String,
    /// The daemon's process.
    pub daemon_pid: Option<u32>,
    /// The worker's.
    pub worker_pid: Option<u32>,
    /// How often the worker was started again in this session.
    pub restarts: u32,
    /// Processes that compute the training.
    pub ranks: u64,
    /// What is trained on: "cpu".
    pub device: String,
    /// Milliseconds that a snapshot holds up the training thread, in the middle and at most but for 1 %.
    pub stall_p50_ms: Option<f64>,
    /// See `stall_p50_ms`.
    pub stall_p99_ms: Option<f64>,
}

/// Snapshots of this session, by what became of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct SnapshotCountView {
    /// Durable.
    pub committed: u64,
    /// Read back.
    pub verified: u64,
    /// Not begun, since another one was under way.
    pub skipped: u64,
    /// Not written.
    pub failed: u64,
    /// Not what was written.
    pub quarantined: u64,
}

/// A snapshot of the store.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct SnapshotRow {
    /// Steps that its state has.
    pub step: Option<u64>,
    /// "verified", "committed", "damaged", "unreadable", "newer" or "quarantined".
    pub state: &'static str,
    /// Its values are finite.
    pub is_healthy: bool,
    /// Of its file.
    pub bytes: u64,
    /// Training loss.
    pub loss: Option<f64>,
    /// Validation loss.
    pub val_loss: Option<f64>,
    /// When it was made.
    pub created_ms: Option<i64>,
    /// Why it stays.
    pub kept_because: Vec<String>,
    /// What is wrong with it.
    pub problem: Option<String>,
}

/// A session.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct SessionRow {
    /// From 1.
    pub number: u64,
    /// When it began.
    pub began_ms: i64,
    /// When it ended; `None`: it is under way.
    pub ended_ms: Option<i64>,
    /// The step that it went on from.
    pub from_step: u64,
    /// The furthest step, or the one that was saved when it ended.
    pub step: u64,
    /// Steps that were trained and lost.
    pub lost_steps: u64,
    /// Failures of the worker.
    pub failures: u32,
    /// Why it ended.
    pub cause: String,
}
