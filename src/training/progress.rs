//! What is known about a running job: the running account, and the report made of it.
//!
//! Deliberately not here: decisions (job), how a report travels (daemon/status), what lines and panel say
//! (progress_words).

use std::collections::VecDeque;
use std::time::Duration;

use jiff::Timestamp;

use crate::daemon::report::{
    DaemonReport, HistoryReport, IntervalReport, JobState, RanksReport, RemoteReport, SessionReport, SnapshotCounts,
    SnapshotReport, SnapshotStage, StallReport, StatusReport, StoredCounts, WorkerReport, percent,
};
use crate::session::clock::BootInstant;
use ckptd_core::error::Result;
use ckptd_core::ids::SnapshotId;

/// Steps over which speed is averaged.
const SPEED_WINDOW: usize = 32;
/// Stalls that the percentiles are taken from.
const STALL_WINDOW: usize = 1024;

/// A snapshot of this session, or the one that it resumed from.
#[derive(Clone, Debug)]
pub struct LastSnapshot {
    pub id: SnapshotId,
    pub step: u64,
    pub at: Timestamp,
    pub state: SnapshotStage,
}

/// A snapshot that is in the store at the end of the session.
#[derive(Clone, Debug, PartialEq)]
pub struct KeptSnapshot {
    pub id: SnapshotId,
    pub step: u64,
    pub is_verified: bool,
    pub created_at: Timestamp,
}

/// The running account of a job.
#[derive(Clone, Debug)]
pub struct JobProgress {
    pub state: JobState,
    pub step: u64,
    pub total_steps: u64,
    pub loss: Option<f64>,
    pub learning_rate: Option<f64>,
    pub deadline: Option<Timestamp>,
    /// The newest snapshot, in any state.
    pub last_snapshot: Option<LastSnapshot>,
    pub last_verified: Option<LastSnapshot>,
    pub counts: SnapshotCounts,
    pub worker_pid: Option<u32>,
    pub restarts: u32,
    /// How far the ranks are; `None` where there is one.
    pub ranks: Option<RanksReport>,
    /// What went wrong last, in the words that the user was told, until a snapshot is verified again.
    pub problem: Option<String>,
    /// The session that ends is followed by another one of this process.
    pub goes_on: bool,
    /// The store was looked at, at the end.
    pub is_confirmed: bool,
    /// Why what was saved is not there any more, or is not what it was.
    pub lost: Option<String>,
    /// What is wrong with the job file as it is now, and since when.
    pub file_problem: Option<String>,
    /// What of the training makes no sense.
    pub warnings: Vec<String>,
    /// What is at the job's remote; `None`: it has none, or nothing is known yet.
    pub remote: Option<RemoteReport>,
    /// What the worker does while it does not train: "reading text", "loading".
    pub stage: Option<(String, Option<f64>)>,
    speed: VecDeque<(BootInstant, u64)>,
    stalls_ms: VecDeque<f64>,
}

impl JobProgress {
    pub fn new(total_steps: u64) -> JobProgress {
        JobProgress {
            state: JobState::Starting,
            step: 0,
            total_steps,
            loss: None,
            learning_rate: None,
            deadline: None,
            last_snapshot: None,
            last_verified: None,
            counts: SnapshotCounts::default(),
            worker_pid: None,
            restarts: 0,
            ranks: None,
            problem: None,
            goes_on: false,
            is_confirmed: false,
            lost: None,
            file_problem: None,
            warnings: Vec::new(),
            remote: None,
            stage: None,
            speed: VecDeque::new(),
            stalls_ms: VecDeque::new(),
        }
    }

    /// A worker is ready to train (again) after `step` steps.
    pub fn ready(&mut self, step: u64, now: BootInstant) {
        self.step = step;
        self.stage = None;
        self.speed.clear();
        self.speed.push_back((now, 0));
    }

    pub fn stepped(&mut self, step: u64, loss: f64, learning_rate: f64, tokens: u64, now: BootInstant) {
        self.step = step;
        self.stage = None;
        self.learning_rate = Some(learning_rate).filter(|rate| rate.is_finite());
        self.loss = Some(loss).filter(|loss| loss.is_finite());
        self.speed.push_back((now, tokens));
        while self.speed.len() > SPEED_WINDOW {
            self.speed.pop_front();
        }
    }

    pub fn stalled(&mut self, stall_ms: f64) {
        if stall_ms.is_finite() {
            self.stalls_ms.push_back(stall_ms);
        }
        while self.stalls_ms.len() > STALL_WINDOW {
            self.stalls_ms.pop_front();
        }
    }

    /// A worker is about to go on from another state: what later ones were is void.
    pub fn forget_snapshots(&mut self) {
        self.last_snapshot = None;
        self.last_verified = None;
    }

    /// The newest snapshot has become `state`.
    pub fn snapshot(&mut self, id: &SnapshotId, step: u64, state: SnapshotStage, at: Timestamp) {
        let last = LastSnapshot { id: id.clone(), step, at, state };
        if state == SnapshotStage::Verified && self.last_verified.as_ref().is_none_or(|newest| newest.step <= step) {
            self.last_verified = Some(last.clone());
        }
        // Results may arrive out of order; one on an older snapshot says nothing about the newest.
        if self.last_snapshot.as_ref().is_none_or(|newest| newest.step <= step) {
            self.last_snapshot = Some(last);
        }
    }

    /// Takes over what the store holds at the end, in the place of what was read back before.
    pub fn confirm(&mut self, kept: Result<Option<KeptSnapshot>>) {
        self.is_confirmed = true;
        let known = self.last_durable().map(|last| last.step);
        let (kept, why) = match kept {
            Ok(kept) => (kept, "it is not in the store any more".to_owned()),
            Err(error) => (None, error.to_string()),
        };
        if let Some(step) = known.filter(|step| kept.as_ref().is_none_or(|kept| kept.step < *step)) {
            self.lost = Some(format!("step {step} was saved, and {why}"));
        }
        self.forget_snapshots();
        if let Some(KeptSnapshot { id, step, is_verified, created_at }) = kept {
            let stage = if is_verified { SnapshotStage::Verified } else { SnapshotStage::Committed };
            self.snapshot(&id, step, stage, created_at);
        }
    }

    /// The newest snapshot that a resume can count on.
    pub fn last_durable(&self) -> Option<&LastSnapshot> {
        let durable = |last: &&LastSnapshot| last.state != SnapshotStage::Quarantined;
        self.last_snapshot.as_ref().filter(durable).or(self.last_verified.as_ref())
    }

    pub fn tokens_per_second(&self) -> Option<f64> {
        let (elapsed, steps) = self.window()?;
        let tokens: u64 = self.speed.iter().skip(1).map(|(_, tokens)| tokens).sum();
        (steps > 0).then(|| tokens as f64 / elapsed.as_secs_f64())
    }

    /// Time to the last step at the present speed.
    pub fn time_left(&self) -> Option<Duration> {
        let (elapsed, steps) = self.window().filter(|_| self.total_steps > 0)?;
        let left = self.total_steps.saturating_sub(self.step) as f64;
        Duration::try_from_secs_f64(elapsed.as_secs_f64() / steps as f64 * left).ok()
    }

    /// How long the last few steps took, and how many they are.
    fn window(&self) -> Option<(Duration, usize)> {
        let elapsed = self.speed.back()?.0 - self.speed.front()?.0;
        let steps = self.speed.len() - 1;
        (steps > 0 && !elapsed.is_zero()).then_some((elapsed, steps))
    }

    /// The report, but for what only the job knows: the session's end, the interval, the history.
    pub fn report(&self, now: Timestamp) -> StatusReport {
        let seconds = |from: Timestamp, to: Timestamp| (to.duration_since(from).as_secs_f64() * 10.0).round() / 10.0;
        StatusReport {
            state: self.state,
            step: self.step,
            total_steps: Some(self.total_steps).filter(|total| *total > 0),
            percent: percent(self.step, self.total_steps),
            seconds_to_finish: None,
            loss: self.loss,
            learning_rate: self.learning_rate,
            tokens_per_second: self.tokens_per_second().map(f64::round),
            session: SessionReport {
                deadline: self.deadline,
                seconds_left: self.deadline.map(|deadline| seconds(now, deadline).max(0.0)),
                ..SessionReport::default()
            },
            last_snapshot: self.last_snapshot.as_ref().map(|last| SnapshotReport {
                id: last.id.clone(),
                age_seconds: seconds(last.at, now).max(0.0),
                state: last.state,
            }),
            snapshots: self.counts,
            stored: StoredCounts::default(),
            daemon: DaemonReport { pid: Some(std::process::id()) },
            stall_ms: StallReport { p50: percentile(&self.stalls_ms, 0.50), p99: percentile(&self.stalls_ms, 0.99) },
            worker: WorkerReport { pid: self.worker_pid, restarts: self.restarts },
            ranks: self.ranks.clone(),
            interval: IntervalReport::default(),
            history: HistoryReport::default(),
            remote: None,
            problem: self.problem.clone().or_else(|| self.file_problem.clone()),
            warnings: self.warnings.clone(),
        }
    }
}

/// The nearest-rank percentile: the smallest value that at least `share` of all do not exceed.
fn percentile(values: &VecDeque<f64>, share: f64) -> Option<f64> {
    let mut sorted: Vec<f64> = values.iter().copied().collect();
    sorted.sort_by(f64::total_cmp);
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_by_nearest_rank_and_none_without_values() {
        assert_eq!(percentile(&VecDeque::new(), 0.5), None);
        let values: VecDeque<f64> = (1..=100).rev().map(f64::from).collect();
        assert_eq!((percentile(&values, 0.5), percentile(&values, 0.99)), (Some(50.0), Some(99.0)));
        assert_eq!(percentile(&VecDeque::from([3.0]), 0.99), Some(3.0));
    }

    #[test]
    fn the_speed_is_that_of_the_last_steps_and_gives_the_time_left() {
        let mut progress = JobProgress::new(100);
        let began = BootInstant::now();
        progress.ready(10, began);
        assert_eq!(progress.tokens_per_second(), None);
        for n in 1..=10 {
            progress.stepped(10 + n, 2.0, 1e-3, 500, began + Duration::from_millis(500 * n));
        }
        assert_eq!(progress.tokens_per_second(), Some(1000.0));
        assert_eq!(progress.time_left(), Some(Duration::from_secs(40)));
    }

    #[test]
    fn a_late_result_on_an_older_snapshot_does_not_hide_the_newest() {
        let mut progress = JobProgress::new(10);
        let now = Timestamp::now();
        progress.snapshot(&"step-2".into(), 2, SnapshotStage::Committed, now);
        progress.snapshot(&"step-1".into(), 1, SnapshotStage::Verified, now);
        let report = progress.report(now);
        assert_eq!(report.last_snapshot.unwrap().id, "step-2");
        assert_eq!(progress.last_verified.unwrap().id, "step-1");
    }

    #[test]
    fn a_report_holds_the_keys_of_the_contract_and_null_for_what_is_unknown() {
        let mut progress = JobProgress::new(10);
        progress.ready(0, BootInstant::now());
        progress.stepped(1, f64::NAN, 1e-3, 5, BootInstant::now());
        let json = serde_json::to_value(progress.report(Timestamp::now())).unwrap();
        assert!(json["loss"].is_null());
        let keys = |value: &serde_json::Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>().join(" ");
        assert_eq!(
            keys(&json),
            "daemon history interval last_snapshot learning_rate loss percent problem ranks remote seconds_to_finish \
             session snapshots stall_ms state step stored tokens_per_second total_steps warnings worker"
        );
        assert_eq!(keys(&json["session"]), "began deadline last_call seconds_left source");
        assert_eq!(keys(&json["interval"]), "seconds why");
        assert_eq!(keys(&json["history"]), "ends_at latest sessions sessions_left");
        assert_eq!(keys(&json["snapshots"]), "committed failed quarantined skipped verified waited");
        assert_eq!(keys(&json["stall_ms"]), "p50 p99");
        assert_eq!(keys(&json["worker"]), "pid restarts");
    }
}
