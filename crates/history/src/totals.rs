//! A history as counters: figures that only grow, over all sessions.
//!
//! Invariant: what a resume made void was done all the same, and stays counted.

use crate::reader::TrainingHistory;
use crate::record::HistoryEvent;

/// Upper bounds of the classes that durations are counted in, in seconds; longer ones are in a last class.
pub const DURATION_BOUNDS: [f64; 12] = [0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0];

/// Durations, counted in classes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DurationCounts {
    /// How many are in each class, not in those below it.
    pub classes: [u64; DURATION_BOUNDS.len() + 1],
    /// All together, in seconds.
    pub sum: f64,
}

impl DurationCounts {
    fn add(&mut self, seconds: f64) {
        if seconds.is_finite() && seconds >= 0.0 {
            self.classes[DURATION_BOUNDS.partition_point(|bound| *bound < seconds)] += 1;
            self.sum += seconds;
        }
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.classes.iter().sum()
    }
}

/// What was done in all sessions.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HistoryTotals {
    /// Steps, those that were lost included.
    pub steps: u64,
    /// Sessions that began.
    pub sessions: u64,
    /// Failures of the worker.
    pub worker_failures: u64,
    /// Snapshots that became durable.
    pub committed: u64,
    /// Bytes of their files.
    pub written_bytes: u64,
    /// How long they were written.
    pub snapshot_seconds: DurationCounts,
    /// Snapshots that were read back.
    pub verified: u64,
    /// Snapshots that could not be written.
    pub failed: u64,
    /// Snapshots that were not what was written.
    pub quarantined: u64,
    /// Snapshots that arrived at the remote.
    pub replicated: u64,
    /// Bytes that were sent for them.
    pub replicated_bytes: u64,
    /// When one arrived there last, in milliseconds since 1970.
    pub replicated_ms: Option<i64>,
}

impl HistoryTotals {
    /// Of `history`.
    pub fn of(history: &TrainingHistory) -> HistoryTotals {
        let mut totals = HistoryTotals { steps: history.rows(), ..HistoryTotals::default() };
        for (timed, _) in history.events() {
            match &timed.event {
                HistoryEvent::SessionStarted { .. } => totals.sessions += 1,
                HistoryEvent::WorkerFailed { .. } => totals.worker_failures += 1,
                HistoryEvent::SnapshotCommitted { bytes, seconds, .. } => {
                    totals.committed += 1;
                    totals.written_bytes = totals.written_bytes.saturating_add(*bytes);
                    totals.snapshot_seconds.add(*seconds);
                }
                HistoryEvent::SnapshotVerified { .. } => totals.verified += 1,
                HistoryEvent::SnapshotFailed { .. } => totals.failed += 1,
                HistoryEvent::SnapshotQuarantined { .. } => totals.quarantined += 1,
                HistoryEvent::Replicated { bytes, .. } => {
                    totals.replicated += 1;
                    totals.replicated_bytes = totals.replicated_bytes.saturating_add(*bytes);
                    totals.replicated_ms = Some(timed.at_ms);
                }
                _ => {}
            }
        }
        totals
    }
}
