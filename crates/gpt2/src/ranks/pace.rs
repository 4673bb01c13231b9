//! Which rank the others wait for, and how long: from when each comes to where all meet once per step.
//!
//! Deliberately not here: waiting.

use std::collections::VecDeque;
use std::time::Instant;

/// Steps over which the lag is averaged.
const WINDOW: usize = 16;

/// How late each rank was in the last steps.
#[derive(Debug)]
pub(super) struct RankPace {
    /// Of each step, of each rank: milliseconds after the first one.
    late_ms: VecDeque<Vec<f64>>,
}

impl RankPace {
    pub(super) fn new() -> RankPace {
        RankPace { late_ms: VecDeque::new() }
    }

    /// All ranks have come to a step's meeting, each at its moment.
    pub(super) fn met(&mut self, came: &[Instant]) {
        let Some(first) = came.iter().min() else { return };
        self.late_ms.push_back(came.iter().map(|at| at.duration_since(*first).as_secs_f64() * 1e3).collect());
        if self.late_ms.len() > WINDOW {
            self.late_ms.pop_front();
        }
    }

    /// How many milliseconds per step the first rank waits for this one; `None` before the first step.
    pub(super) fn lag_ms(&self, rank: usize) -> Option<f64> {
        let lags: Vec<f64> = self.late_ms.iter().filter_map(|step| step.get(rank).copied()).collect();
        (!lags.is_empty()).then(|| lags.iter().sum::<f64>() / lags.len() as f64)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_lag_is_the_mean_over_the_last_steps_behind_the_first_rank() {
        let (mut pace, now) = (RankPace::new(), Instant::now());
        assert_eq!(pace.lag_ms(0), None);
        let at = |ms: u64| now + Duration::from_millis(ms);
        pace.met(&[at(10), at(5), at(35)]);
        pace.met(&[at(100), at(100), at(110)]);
        assert_eq!([0, 1, 2].map(|rank| pace.lag_ms(rank)), [Some(2.5), Some(0.0), Some(20.0)]);
        (0..WINDOW).for_each(|_| pace.met(&[at(0), at(0), at(1)]));
        assert_eq!(pace.lag_ms(2), Some(1.0));
    }
}
