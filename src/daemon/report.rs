//! What `ckptd status` reports, live or of the store's files.
//!
//! Invariant: the report's keys are a contract; figures that are not known are null, and none is NaN.
//! Deliberately not here: where the figures come from, how a report travels (status).

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::session::records::{SessionRecord, SessionRecords};
use ckptd_core::ids::SnapshotId;

/// Sessions that a report lists.
const LISTED: usize = 20;

/// `ckptd status --json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StatusReport {
    pub state: JobState,
    pub step: u64,
    pub total_steps: Option<u64>,
    pub loss: Option<f64>,
    pub tokens_per_second: Option<f64>,
    pub session: SessionReport,
    pub last_snapshot: Option<SnapshotReport>,
    pub snapshots: SnapshotCounts,
    pub stall_ms: StallReport,
    pub worker: WorkerReport,
    pub interval: IntervalReport,
    pub history: HistoryReport,
    /// What went wrong and what to do about it, while it is so; for a job that is not running, how it ended.
    #[serde(default)]
    pub problem: Option<String>,
}

/// When the session ends, and why.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SessionReport {
    pub deadline: Option<Timestamp>,
    pub seconds_left: Option<f64>,
    /// Why it ends then: "the session's budget ends".
    pub source: Option<String>,
}

/// The time between snapshots, and why it is that.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct IntervalReport {
    /// Null where steps are counted, or where no daemon runs.
    pub seconds: Option<f64>,
    pub why: String,
}

/// The sessions so far and those to come.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct HistoryReport {
    /// In all, the one under way included.
    pub sessions: u64,
    /// How many more it takes, and when the training ends at this pace; null where that is not known.
    pub sessions_left: Option<u64>,
    pub ends_at: Option<Timestamp>,
    /// Time of training that is left at the pace of the last sessions.
    #[serde(default)]
    pub work_left_seconds: Option<f64>,
    /// Newest first.
    pub latest: Vec<SessionRecord>,
}

impl HistoryReport {
    /// Of the sessions in `records`, for a training of `total_steps`.
    pub fn of(
        records: &SessionRecords,
        total_steps: Option<u64>,
        budget: Option<Duration>,
        now: Timestamp,
    ) -> HistoryReport {
        let outlook = total_steps.and_then(|total| records.outlook(total, budget, now));
        HistoryReport {
            sessions: records.count(),
            sessions_left: outlook.and_then(|outlook| outlook.sessions),
            work_left_seconds: outlook.map(|outlook| outlook.work.as_secs_f64().round()),
            ends_at: outlook.map(|outlook| outlook.ends_at),
            latest: records.sessions.iter().rev().take(LISTED).cloned().collect(),
        }
    }
}

/// The newest snapshot.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SnapshotReport {
    pub id: SnapshotId,
    pub age_seconds: f64,
    pub state: SnapshotStage,
}

/// How long snapshots held up the training thread, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StallReport {
    pub p50: Option<f64>,
    pub p99: Option<f64>,
}

/// The worker process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct WorkerReport {
    pub pid: Option<u32>,
    pub restarts: u32,
}

/// What a job does, or how it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum JobState {
    Starting,
    Training,
    Stopping,
    Stopped,
    Finished,
    Failed,
}

impl JobState {
    /// As in JSON: "training".
    pub const fn name(self) -> &'static str {
        match self {
            JobState::Starting => "starting",
            JobState::Training => "training",
            JobState::Stopping => "stopping",
            JobState::Stopped => "stopped",
            JobState::Finished => "finished",
            JobState::Failed => "failed",
        }
    }
}

/// How far a snapshot of this session has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SnapshotStage {
    Committed,
    Verified,
    Quarantined,
}

impl SnapshotStage {
    /// As in JSON: "verified".
    pub const fn name(self) -> &'static str {
        match self {
            SnapshotStage::Committed => "committed",
            SnapshotStage::Verified => "verified",
            SnapshotStage::Quarantined => "quarantined",
        }
    }
}

/// Snapshots of this session, by what became of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotCounts {
    pub committed: u64,
    pub verified: u64,
    pub skipped: u64,
    pub failed: u64,
    pub quarantined: u64,
}
