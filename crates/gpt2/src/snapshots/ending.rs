//! What becomes of a snapshot in flight when the session ends: a pure function of how much time there is.
//!
//! Invariant: whichever way makes the newest state durable that the time allows. Deliberately not here: measuring, and
//! doing what was decided (snapshots).

use std::time::Duration;

/// Estimates are only that: what is to fit is given half as much again.
const MARGIN: f64 = 1.5;

#[derive(Clone, Copy, Debug)]
pub(super) struct EndingInputs {
    /// A newer state than the one in flight is there to be saved.
    pub newer: bool,
    /// What the one in flight still takes, and what a new one would; `None`: unknown.
    pub rest: Option<Duration>,
    pub fresh: Option<Duration>,
    /// `None`: there is no hurry.
    pub time: Option<Duration>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum EndingChoice {
    /// Finish the one in flight; a newer one is taken after it, as far as the time allows.
    Finish,
    /// Give it up for a newer one.
    Abandon,
}

pub(super) fn decide(facts: &EndingInputs) -> EndingChoice {
    let (true, Some(time)) = (facts.newer, facts.time) else { return EndingChoice::Finish };
    // Without a measure the one that has begun is the surer one.
    let (Some(rest), Some(fresh)) = (facts.rest, facts.fresh) else { return EndingChoice::Finish };
    let fits = |duration: Duration| duration.mul_f64(MARGIN) <= time;
    match (fits(rest + fresh), fits(fresh)) {
        // Both: something is durable early, and then the newest.
        (true, _) => EndingChoice::Finish,
        (false, true) => EndingChoice::Abandon,
        // Nothing newer can be durable in time.
        (false, false) => EndingChoice::Finish,
    }
}

/// What is left of a snapshot that has written `fraction` of its chunks in `elapsed`; `None` where that says nothing.
pub(super) fn rest(fraction: f64, elapsed: Duration) -> Option<Duration> {
    let left = (1.0 - fraction).max(0.0);
    (fraction > 0.02).then(|| elapsed.mul_f64(left / fraction))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(rest: u64, fresh: u64, time: u64) -> EndingChoice {
        let secs = |n| Some(Duration::from_secs(n));
        decide(&EndingInputs { newer: true, rest: secs(rest), fresh: secs(fresh), time: secs(time) })
    }

    #[test]
    fn a_snapshot_in_flight_is_finished_where_a_newer_one_still_fits_after_it() {
        assert_eq!(after(2, 4, 10), EndingChoice::Finish);
    }

    #[test]
    fn it_is_abandoned_where_only_a_newer_one_alone_fits() {
        assert_eq!(after(3, 4, 8), EndingChoice::Abandon);
    }

    #[test]
    fn it_is_finished_where_nothing_newer_could_be_durable_in_time() {
        assert_eq!(after(3, 10, 8), EndingChoice::Finish);
        assert_eq!(after(100, 100, 1), EndingChoice::Finish);
    }

    #[test]
    fn it_is_finished_where_there_is_nothing_newer_no_hurry_or_no_measure() {
        let facts = EndingInputs { newer: true, rest: None, fresh: None, time: Some(Duration::from_secs(1)) };
        assert_eq!(decide(&facts), EndingChoice::Finish);
        assert_eq!(decide(&EndingInputs { time: None, ..facts }), EndingChoice::Finish);
        let long = Some(Duration::from_secs(5));
        assert_eq!(
            decide(&EndingInputs { newer: false, rest: long, fresh: Some(Duration::ZERO), ..facts }),
            EndingChoice::Finish
        );
    }

    #[test]
    fn the_rest_follows_from_what_is_written_so_far() {
        assert_eq!(rest(0.25, Duration::from_secs(1)), Some(Duration::from_secs(3)));
        assert_eq!(rest(0.0, Duration::from_secs(1)), None);
    }
}
