//! The time between snapshots that loses least: Young's approximation with Daly's correction.
//!
//! With C what the training loses to one snapshot and M the mean time between failures, an interval T loses C/T of the
//! time to snapshots and about (T/2 + D)/M of it to work that is done again, D being the time until a snapshot is
//! durable. The sum is least at T = sqrt(2CM) (Young, "A first order approximation to the optimum checkpoint interval",
//! CACM 17, 1974); Daly ("A higher order estimate of the optimum checkpoint interval for restart dumps", FGCS 22, 2006)
//! adds the terms that matter where C is not small against M. D shifts both sides alike and only bounds T from below.
//!
//! Invariant: snapshots take at most `max_overhead` of the training time, and one is over before the next begins.
//! Deliberately not here: measuring (costs).

use std::time::Duration;

use ckptd_core::text::rough_duration;

/// Never more often than that: a snapshot has costs that no step shows (the device's wear, the reader's time).
const SHORTEST: Duration = Duration::from_secs(1);
/// Never more seldom, also where the figures say so: they may be wrong.
const LONGEST: Duration = Duration::from_secs(2 * 3600);
/// Until a snapshot was measured.
const FIRST: Duration = Duration::from_secs(60);
/// How much of the interval a snapshot may be under way.
const BUSY_SHARE: u32 = 2;

/// What the interval follows from.
#[derive(Clone, Copy, Debug)]
pub struct IntervalInputs {
    /// What the training loses to a snapshot; `None`: not measured yet.
    pub lost: Option<Duration>,
    /// How long one is under way.
    pub time: Duration,
    /// Mean time between failures.
    pub mtbf: Duration,
    pub mtbf_is_given: bool,
    pub failures: u64,
}

/// An interval, and the reasons in a sentence.
#[derive(Clone, Debug, PartialEq)]
pub struct IntervalChoice {
    pub every: Duration,
    pub why: String,
}

/// Daly's estimate of the best interval, in seconds.
pub fn daly(lost: f64, mtbf: f64) -> f64 {
    if lost >= 2.0 * mtbf {
        return mtbf;
    }
    let ratio = lost / (2.0 * mtbf);
    (2.0 * lost * mtbf).sqrt() * (1.0 + ratio.sqrt() / 3.0 + ratio / 9.0) - lost
}

/// The interval that loses least, within the bounds.
pub fn choose(inputs: &IntervalInputs, max_overhead: f64) -> IntervalChoice {
    let Some(lost) = inputs.lost else {
        let why = format!("every {}, until the first snapshot shows what one costs", rough_duration(FIRST));
        return IntervalChoice { every: FIRST.max(inputs.time.saturating_mul(BUSY_SHARE)), why };
    };
    let (cost, mtbf) = (lost.as_secs_f64(), inputs.mtbf.as_secs_f64());
    let seconds = |seconds: f64| Duration::try_from_secs_f64(seconds).unwrap_or(LONGEST);
    let best = seconds(daly(cost, mtbf).max(0.0));
    let bounds = [
        (seconds(cost / max_overhead), format!("max_overhead = {} % asks for", percent(max_overhead))),
        (
            inputs.time.saturating_mul(BUSY_SHARE),
            format!("a snapshot, which takes {}, must be over before the next:", rough_duration(inputs.time)),
        ),
        (SHORTEST, "the shortest interval is".to_owned()),
    ];
    let (least, reason) = bounds.into_iter().max_by_key(|(bound, _)| *bound).unwrap_or((SHORTEST, String::new()));
    let every = round(best.max(least).min(LONGEST));
    let failures = match (inputs.mtbf_is_given, inputs.failures) {
        (true, _) => format!("failures {} apart as [snapshot] mtbf says", rough_duration(inputs.mtbf)),
        (false, 0) => format!("failures assumed {} apart, none seen yet", rough_duration(inputs.mtbf)),
        (false, 1) => format!("failures about {} apart, one seen", rough_duration(inputs.mtbf)),
        (false, n) => format!("failures about {} apart, {n} seen", rough_duration(inputs.mtbf)),
    };
    let bound = if least > best {
        format!("; {reason} {}", rough_duration(round(least)))
    } else if best > LONGEST {
        "; the longest interval".to_owned()
    } else {
        String::new()
    };
    let share = 100.0 * cost / every.as_secs_f64();
    let why = format!(
        "every {}: a snapshot costs the training {}, {failures}: {} would lose least{bound}; \
         snapshots take {share:.2} % of the time",
        rough_duration(every),
        rough_duration(lost),
        rough_duration(round(best)),
    );
    IntervalChoice { every, why }
}

/// Two digits are more than the figures are worth already; rounded up: a lower bound must hold.
fn round(duration: Duration) -> Duration {
    let seconds = duration.as_secs();
    match seconds {
        0..10 => Duration::from_millis(duration.as_millis().div_ceil(100) as u64 * 100),
        10..600 => Duration::from_secs(duration.as_secs_f64().ceil() as u64),
        _ => Duration::from_secs(seconds.div_ceil(60) * 60),
    }
}

fn percent(share: f64) -> String {
    let percent = (share * 1e4).round() / 1e2;
    format!("{percent}")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn inputs(lost: f64, mtbf: f64) -> IntervalInputs {
        let lost = Some(Duration::from_secs_f64(lost));
        let (time, mtbf) = (Duration::from_millis(500), Duration::from_secs_f64(mtbf));
        IntervalInputs { lost, time, mtbf, mtbf_is_given: false, failures: 3 }
    }

    #[test]
    fn the_interval_is_youngs_where_snapshots_are_cheap_and_else_dalys() {
        assert!((daly(0.1, 36_000.0) / (2.0f64 * 0.1 * 36_000.0).sqrt() - 1.0).abs() < 0.01);
        // Daly 2006, for an overhead that is no longer small: less than Young's, since the snapshot itself takes time.
        assert!(daly(300.0, 3600.0) < (2.0f64 * 300.0 * 3600.0).sqrt());
        assert_eq!(daly(100.0, 50.0), 50.0);
    }

    #[test]
    fn the_choice_is_explained_in_one_sentence() {
        let choice = choose(&inputs(0.2, 36_000.0), 0.01);
        assert_eq!(
            choice.why,
            "every 2m: a snapshot costs the training 200ms, failures about 10h apart, 3 seen: 2m would lose least; \
             snapshots take 0.17 % of the time"
        );
        let bound = choose(&inputs(1.0, 600.0), 0.01);
        assert_eq!(bound.every, Duration::from_secs(100));
        assert!(bound.why.contains("max_overhead = 1 % asks for 1m 40s"), "{}", bound.why);
        let unknown = choose(&IntervalInputs { lost: None, ..inputs(1.0, 600.0) }, 0.01);
        assert!(unknown.why.contains("until the first snapshot shows"), "{}", unknown.why);
    }

    proptest! {
        #[test]
        fn whatever_was_measured_the_bounds_hold(
            lost in 0.0f64..1e4, mtbf in 0.0f64..1e8, time in 0.0f64..1e3, overhead in 0.001f64..0.5,
        ) {
            let inputs = IntervalInputs { time: Duration::from_secs_f64(time), ..inputs(lost, mtbf) };
            let every = choose(&inputs, overhead).every;
            prop_assert!(every >= SHORTEST);
            if every < LONGEST {
                prop_assert!(lost / every.as_secs_f64() <= overhead + 1e-9);
                prop_assert!(every >= inputs.time);
            }
        }
    }
}
