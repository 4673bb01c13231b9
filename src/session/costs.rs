//! What snapshots and steps cost and how often something fails, learned over all sessions of a store.
//!
//! Invariant: bounded: of each figure the newest few are kept. An estimate from few values is the larger for it.
//! Deliberately not here: where it is kept (store), and what follows from it (the planner, the interval).

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Values kept of each figure.
const WINDOW: usize = 64;
/// What takes longer than a month was not measured.
const LONGEST_MS: f64 = 31.0 * 86_400e3;
/// Failures are assumed to be this far apart as long as none was seen; counts as much as one that was.
const ASSUMED_MTBF: Duration = Duration::from_secs(6 * 3600);

/// The newest values of a figure, in milliseconds, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CostWindow(Vec<f64>);

impl CostWindow {
    pub fn push(&mut self, value: Duration) {
        if self.0.len() >= WINDOW {
            self.0.drain(..=self.0.len() - WINDOW);
        }
        self.0.push(value.as_secs_f64() * 1e3);
    }

    fn sorted(&self) -> Vec<f64> {
        // What was read from a file may be anything.
        let mut sorted: Vec<f64> = self.0.iter().copied().filter(|ms| (0.0..LONGEST_MS).contains(ms)).collect();
        sorted.sort_by(f64::total_cmp);
        sorted
    }

    pub fn median(&self) -> Option<Duration> {
        let sorted = self.sorted();
        duration(*sorted.get(sorted.len() / 2)?)
    }

    pub fn mean(&self) -> Option<Duration> {
        let sorted = self.sorted();
        (!sorted.is_empty()).then(|| sorted.iter().sum::<f64>() / sorted.len() as f64).and_then(duration)
    }

    pub fn least(&self) -> Option<Duration> {
        duration(*self.sorted().first()?)
    }

    /// The 99th percentile. Among fewer than 100 values that is the largest, and the fewer they are, the further
    /// above it the next one may be: one value is raised by half, nine by a tenth.
    pub fn p99(&self) -> Option<Duration> {
        let sorted = self.sorted();
        let largest = *sorted.last()?;
        duration(largest * (1.0 + 1.0 / (sorted.len() + 1) as f64))
    }
}

fn duration(ms: f64) -> Option<Duration> {
    Duration::try_from_secs_f64(ms / 1e3).ok()
}

/// What is known of a store's costs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LearnedCosts {
    /// Final snapshots, from the stop to verified; at full priority, the training stopped.
    pub finals_ms: CostWindow,
    /// The others, from the request to verified; at low priority beside the training.
    pub snapshots_ms: CostWindow,
    /// What the training lost to each of those: the steps' time beyond their usual one.
    pub lost_ms: CostWindow,
    /// Snapshots sent to the job's remote, from the first request to the marker.
    pub uploads_ms: CostWindow,
    /// Training time in all, and the failures in it that lost work: crashes, kills, sessions without an end.
    pub uptime_seconds: f64,
    pub failures: u64,
}

impl LearnedCosts {
    /// What the next final snapshot costs at most. Before the first one: what any snapshot does.
    pub fn final_cost(&self) -> Option<Duration> {
        self.finals_ms.p99().or_else(|| self.snapshots_ms.p99())
    }

    /// What the end of a session costs at most whose last snapshot is also to be at the job's remote.
    pub fn final_cost_with_upload(&self) -> Option<Duration> {
        Some(self.final_cost()? + self.uploads_ms.p99().unwrap_or_default())
    }

    /// What a snapshot beside the training takes.
    pub fn snapshot_time(&self) -> Option<Duration> {
        self.snapshots_ms.median().or_else(|| self.finals_ms.median())
    }

    /// What the training loses to a snapshot, on average.
    pub fn lost(&self) -> Option<Duration> {
        self.lost_ms.mean()
    }

    /// Mean time between failures; an assumption that each observed hour and failure corrects.
    pub fn mtbf(&self) -> Duration {
        let seconds = self.uptime_seconds.clamp(0.0, 1e10) + ASSUMED_MTBF.as_secs_f64();
        Duration::try_from_secs_f64(seconds / (self.failures as f64 + 1.0)).unwrap_or(ASSUMED_MTBF)
    }
}

/// Measures what snapshots cost the training: a step beside a snapshot against a step without one.
#[derive(Debug, Default)]
pub struct CostMeter {
    quiet_ms: CostWindow,
    in_flight: bool,
    /// Signed, over the whole snapshot: a single step is as often faster than usual as it is slower.
    lost_seconds: f64,
}

impl CostMeter {
    pub fn snapshot_began(&mut self) {
        self.in_flight = true;
        self.lost_seconds = 0.0;
    }

    pub fn stepped(&mut self, step: Duration) {
        if !self.in_flight {
            return self.quiet_ms.push(step);
        }
        if let Some(usual) = self.quiet_ms.median() {
            self.lost_seconds += step.as_secs_f64() - usual.as_secs_f64();
        }
    }

    /// A snapshot is over that held up the training thread for `stall`. Returns what the training lost to it.
    pub fn snapshot_ended(&mut self, stall: Duration) -> Duration {
        self.in_flight = false;
        Duration::try_from_secs_f64(self.lost_seconds).unwrap_or_default().max(stall)
    }

    /// The fastest step lately.
    pub fn fastest_step(&self) -> Option<Duration> {
        self.quiet_ms.least()
    }

    pub fn usual_step(&self) -> Option<Duration> {
        self.quiet_ms.median()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn few_values_are_trusted_less_and_old_ones_are_forgotten() {
        let mut window = CostWindow::default();
        assert_eq!((window.p99(), window.median(), window.mean()), (None, None, None));
        window.push(ms(100));
        assert_eq!(window.p99(), Some(ms(150)));
        for _ in 0..8 {
            window.push(ms(100));
        }
        assert_eq!(window.p99(), Some(ms(110)));
        window.push(ms(5000));
        assert!(window.p99().unwrap() >= ms(5000));
        for _ in 0..WINDOW {
            window.push(ms(100));
        }
        assert!(window.p99().unwrap() < ms(105));
        assert_eq!(window.0.len(), WINDOW);
    }

    #[test]
    fn a_session_with_a_remote_ends_early_enough_for_the_last_upload() {
        let mut costs = LearnedCosts::default();
        costs.uploads_ms.push(ms(2000));
        assert_eq!(costs.final_cost_with_upload(), None);
        costs.finals_ms.push(ms(100));
        assert_eq!((costs.final_cost(), costs.final_cost_with_upload()), (Some(ms(150)), Some(ms(3150))));
    }

    #[test]
    fn the_mean_time_between_failures_follows_what_is_seen() {
        let mut costs = LearnedCosts::default();
        assert_eq!(costs.mtbf(), ASSUMED_MTBF);
        costs.uptime_seconds = 100.0 * 600.0;
        costs.failures = 100;
        let mtbf = costs.mtbf().as_secs_f64();
        assert!((600.0..900.0).contains(&mtbf), "{mtbf}");
        costs.uptime_seconds = f64::NAN;
        assert!(costs.mtbf() > Duration::ZERO);
    }

    #[test]
    fn a_snapshot_costs_the_steps_time_beyond_the_usual_one() {
        let mut meter = CostMeter::default();
        (0..10).for_each(|_| meter.stepped(ms(100)));
        meter.snapshot_began();
        [150, 130, 90, 100].into_iter().for_each(|step| meter.stepped(ms(step)));
        assert_eq!(meter.snapshot_ended(ms(1)), ms(70));
        meter.snapshot_began();
        meter.stepped(ms(90));
        assert_eq!(meter.snapshot_ended(ms(1)), ms(1));
    }
}
