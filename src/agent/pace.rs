//! When to snapshot and when to end the session: a pure function of what is known and what the time is.
//!
//! Invariant: the last snapshot begins so early that three times the dearest one measured still ends in time.
//! Deliberately not here: reading a clock, and doing what was decided.

use std::time::Duration;

use crate::session::clock::Moment;

/// What a snapshot may cost as long as none was measured, as a share of the budget and at most.
const UNMEASURED_SHARE: u32 = 10;
const UNMEASURED_MAX: Duration = Duration::from_secs(30);
/// What ends with a session besides its snapshot: the worker and the agent.
const FAREWELL: Duration = Duration::from_secs(1);

#[derive(Clone, Debug)]
pub struct Facts {
    pub session_began: Moment,
    /// When the state that the next worker would go on from was captured, or the training began.
    pub last_snapshot: Moment,
    /// The dearest snapshot so far, from its beginning to its verification.
    pub dearest: Option<Duration>,
}

#[derive(Clone, Debug)]
pub struct Rules {
    /// Time between snapshots; `None`: not by time.
    pub every: Option<Duration>,
    pub budget: Option<Duration>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Decision {
    /// Nothing before this moment.
    GoOn { until: Option<Moment> },
    /// Snapshot now and go on.
    Snapshot,
    /// Take the last snapshot now; be gone by then.
    Stop { by: Moment },
}

pub fn decide(facts: &Facts, rules: &Rules, now: Moment) -> Decision {
    let stop = rules.budget.map(|budget| {
        let unmeasured = (budget / UNMEASURED_SHARE).min(UNMEASURED_MAX);
        let reserve = facts.dearest.map_or(unmeasured, |cost| 3 * cost + FAREWELL).min(budget / 2);
        (facts.session_began + (budget - reserve), facts.session_began + budget)
    });
    if let Some((last_call, by)) = stop
        && now >= last_call
    {
        return Decision::Stop { by };
    }
    let next = rules.every.map(|every| facts.last_snapshot + every);
    if next.is_some_and(|next| now >= next) {
        return Decision::Snapshot;
    }
    Decision::GoOn { until: [next, stop.map(|(last_call, _)| last_call)].into_iter().flatten().min() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn secs(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn a_snapshot_is_due_once_the_interval_has_passed_and_the_last_one_before_the_budget_ends() {
        let began = Moment::now();
        let facts = Facts { session_began: began, last_snapshot: began, dearest: Some(secs(2)) };
        let rules = Rules { every: Some(secs(40)), budget: Some(secs(60)) };
        let at = |seconds: u64| decide(&facts, &rules, began + secs(seconds));
        assert_eq!(at(0), Decision::GoOn { until: Some(began + secs(40)) });
        assert_eq!(at(40), Decision::Snapshot);
        assert_eq!(at(53), Decision::Stop { by: began + secs(60) });
        let later = Facts { last_snapshot: began + secs(40), ..facts };
        assert_eq!(decide(&later, &rules, began + secs(41)), Decision::GoOn { until: Some(began + secs(53)) });
    }

    #[test]
    fn without_interval_and_budget_nothing_is_ever_due() {
        let began = Moment::now();
        let facts = Facts { session_began: began, last_snapshot: began, dearest: None };
        let rules = Rules { every: None, budget: None };
        assert_eq!(decide(&facts, &rules, began + secs(1_000_000)), Decision::GoOn { until: None });
    }
}
