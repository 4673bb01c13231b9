//! The learning rate as a pure function of the update's index.
//!
//! Invariant: nothing is remembered between updates, so that a resume needs only the step. Deliberately not here:
//! who applies it (the optimiser).

use std::f64::consts::PI;

use crate::config::{ScheduleKind, TrainSection};

/// The learning rate of update `step` (0-based: the first update is 0, the last `steps - 1`).
///
/// With w = `warmup_steps`, n = `steps`, peak = `learning_rate` and low = `learning_rate * min_learning_rate`:
/// - step < w: peak * (step + 1) / (w + 1). A line through 0 just before the first update, as in nanoGPT, so that no
///   update is wasted on a rate of 0.
/// - else t = (step - w) / (n - 1 - w), which is 0 right after the warm-up and 1 at the last update, and the rate is
///   low + s * (peak - low) with s = (1 + cos(pi t)) / 2 for cosine, s = 1 - t for linear, s = 1 for constant.
///
/// The first update after the warm-up gets exactly `peak`, the last of a falling schedule exactly `low`. Where one
/// update is left after the warm-up it gets `peak`; a warm-up of n or more steps never ends; updates past the last
/// stay at the end value.
pub fn learning_rate(train: &TrainSection, step: u64) -> f64 {
    let warmup = train.warmup_steps;
    if step < warmup {
        return train.learning_rate * ((step + 1) as f64 / (warmup as f64 + 1.0));
    }
    let falling_steps = train.steps.saturating_sub(1).saturating_sub(warmup);
    let t = match falling_steps {
        0 => 0.0,
        n => ((step - warmup) as f64 / n as f64).min(1.0),
    };
    let share = match train.schedule {
        ScheduleKind::Cosine => (1.0 + (PI * t).cos()) / 2.0,
        ScheduleKind::Linear => 1.0 - t,
        ScheduleKind::Constant => 1.0,
    };
    // Written as a weighted mean, which is exact at both ends.
    train.learning_rate * (share + (1.0 - share) * train.min_learning_rate)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn train(schedule: ScheduleKind, steps: u64, warmup_steps: u64) -> TrainSection {
        TrainSection {
            schedule,
            steps,
            warmup_steps,
            learning_rate: 3e-4,
            min_learning_rate: 0.07,
            ..TrainSection::default()
        }
    }

    #[test]
    fn the_rate_rises_in_a_line_peaks_after_the_warm_up_and_ends_exactly_at_its_minimum() {
        for (schedule, end) in
            [(ScheduleKind::Cosine, 0.07), (ScheduleKind::Linear, 0.07), (ScheduleKind::Constant, 1.0)]
        {
            let train = train(schedule, 1000, 9);
            for step in 0..9 {
                assert_eq!(learning_rate(&train, step), 3e-4 * ((step + 1) as f64 / 10.0));
            }
            assert_eq!(learning_rate(&train, 9), 3e-4);
            assert_eq!(learning_rate(&train, 999), 3e-4 * end);
            assert_eq!(learning_rate(&train, 5000), 3e-4 * end, "past the end");
            for step in 9..999 {
                assert!(learning_rate(&train, step) >= learning_rate(&train, step + 1), "{schedule:?} rises at {step}");
            }
        }
    }

    #[test]
    fn half_way_down_cosine_and_linear_are_at_the_mean() {
        for schedule in [ScheduleKind::Cosine, ScheduleKind::Linear] {
            let middle = learning_rate(&train(schedule, 101, 0), 50);
            assert!((middle - 3e-4 * (1.0 + 0.07) / 2.0).abs() < 1e-18, "{middle}");
        }
    }

    #[test]
    fn a_single_step_and_a_warm_up_longer_than_the_training_have_finite_rates() {
        for schedule in [ScheduleKind::Cosine, ScheduleKind::Linear, ScheduleKind::Constant] {
            assert_eq!(learning_rate(&train(schedule, 1, 0), 0), 3e-4);
            assert_eq!(learning_rate(&train(schedule, 1, 1), 0), 3e-4 / 2.0);
            assert_eq!(learning_rate(&train(schedule, 10, 9), 9), 3e-4, "one step after the warm-up");
            let endless = train(schedule, 10, 100);
            assert_eq!(learning_rate(&endless, 9), 3e-4 * (10.0 / 101.0));
            assert!(learning_rate(&train(schedule, 1, u64::MAX), 0) > 0.0);
        }
    }
}
