//! What `ckptd status` reports, live or of the store's files.
//!
//! Invariant: the report's keys are a contract; figures that are not known are null, and none is NaN.
//! Deliberately not here: where the figures come from, how a report travels (status).

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::session::outlook::SessionOutlook;
use crate::session::records::{SessionRecord, SessionRecords};
use ckptd_core::config::RanksSection;
use ckptd_core::ids::SnapshotId;
use ckptd_core::protocol::RankProgress;

/// Sessions that a report lists.
const LISTED: usize = 20;

/// `ckptd status --json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StatusReport {
    pub state: JobState,
    pub step: u64,
    pub total_steps: Option<u64>,
    /// How much of the training is done, in percent of its steps.
    #[serde(default)]
    pub percent: Option<f64>,
    /// Until the training is complete, where it goes on as it does; pauses between sessions included.
    #[serde(default)]
    pub seconds_to_finish: Option<f64>,
    pub loss: Option<f64>,
    /// Of the last step.
    #[serde(default)]
    pub learning_rate: Option<f64>,
    pub tokens_per_second: Option<f64>,
    pub session: SessionReport,
    pub last_snapshot: Option<SnapshotReport>,
    pub snapshots: SnapshotCounts,
    /// What lies in the store.
    #[serde(default)]
    pub stored: StoredCounts,
    pub stall_ms: StallReport,
    #[serde(default)]
    pub daemon: DaemonReport,
    pub worker: WorkerReport,
    /// Null where one process computes the training, or none.
    #[serde(default)]
    pub ranks: Option<RanksReport>,
    pub interval: IntervalReport,
    pub history: HistoryReport,
    /// Null where the job has no remote, or where no daemon runs.
    #[serde(default)]
    pub remote: Option<RemoteReport>,
    /// What went wrong and what to do about it, while it is so; for a job that is not running, how it ended.
    #[serde(default)]
    pub problem: Option<String>,
    /// What of the training itself makes no sense, each told once in the log, too.
    #[serde(default)]
    pub warnings: Vec<String>,
}

/// The snapshots of a store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredCounts {
    pub snapshots: u64,
    pub verified: u64,
}

/// The daemon itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DaemonReport {
    /// Null where none runs.
    pub pid: Option<u32>,
}

/// When the session ends, and why.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SessionReport {
    /// When it began.
    #[serde(default)]
    pub began: Option<Timestamp>,
    pub deadline: Option<Timestamp>,
    pub seconds_left: Option<f64>,
    /// Why it ends then: "the session's budget ends".
    pub source: Option<String>,
    /// When its last snapshot begins.
    #[serde(default)]
    pub last_call: Option<Timestamp>,
}

/// What is at the job's remote.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RemoteReport {
    pub place: String,
    /// Of the newest snapshot that is there, and how long it has been.
    pub step: Option<u64>,
    pub age_seconds: Option<f64>,
    /// Verified snapshots of this session that are not there.
    pub missing: u64,
    pub problem: Option<String>,
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
    /// How many more it takes after the one under way, null where no end of a session is known; and when the training
    /// ends at this pace, if nothing else interrupts it.
    pub sessions_left: Option<u64>,
    pub ends_at: Option<Timestamp>,
    /// Newest first.
    pub latest: Vec<SessionRecord>,
}

impl HistoryReport {
    /// Of the sessions in `records`, with what is to come.
    pub fn of(records: &SessionRecords, outlook: Option<SessionOutlook>) -> HistoryReport {
        HistoryReport {
            sessions: records.count(),
            sessions_left: outlook.and_then(|outlook| outlook.sessions),
            ends_at: outlook.map(|outlook| outlook.ends_at),
            latest: records.sessions.iter().rev().take(LISTED).cloned().collect(),
        }
    }
}

/// `step` of `total` steps in percent, to a tenth.
pub fn percent(step: u64, total: u64) -> Option<f64> {
    (total > 0).then(|| (step.min(total) as f64 / total as f64 * 1000.0).floor() / 10.0)
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

/// The processes that compute the training together.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RanksReport {
    pub count: u64,
    /// The rank that the others wait for longest, and how long per step; null before the first step.
    pub slowest: Option<u64>,
    pub lag_ms: Option<f64>,
    /// Each holds a shard of the optimizer's state: a lost rank costs the steps since the newest snapshot.
    #[serde(default)]
    pub shard_optimizer: bool,
    /// In their order.
    pub each: Vec<RankProgress>,
}

impl RanksReport {
    /// Of what rank 0 says of all of them, under this `section`; `None` where it is alone.
    pub fn of(ranks: &[RankProgress], section: &RanksSection) -> Option<RanksReport> {
        let rounded = |ms: f64| (ms * 10.0).round() / 10.0;
        let each: Vec<RankProgress> = ranks
            .iter()
            .map(|rank| RankProgress {
                silent_ms: rounded(rank.silent_ms),
                lag_ms: rank.lag_ms.filter(|lag| lag.is_finite()).map(rounded),
                ..*rank
            })
            .collect();
        let lags = each.iter().filter_map(|rank| Some((rank.rank, rank.lag_ms?)));
        let slowest = lags.max_by(|(_, one), (_, other)| one.total_cmp(other));
        let (slowest, lag_ms) = slowest.unzip();
        let shard_optimizer = section.shard_optimizer;
        (each.len() > 1).then_some(RanksReport { count: each.len() as u64, slowest, lag_ms, shard_optimizer, each })
    }
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
    /// For which the training waited, since memory for them is bounded.
    #[serde(default)]
    pub waited: u64,
}
