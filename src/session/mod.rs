//! How long a session lasts and what is due when: a pure function of what is known and what the time is.
//!
//! Reading order: [`clock`], [`notice`], [`costs`] (what snapshots and steps cost, learned over all sessions), this
//! planner, [`interval`] (the time between snapshots that loses least), [`ledger`] (the sessions so far).
//!
//! Invariant: the final snapshot begins so early that the dearest one expected, times the margin, is durable and
//! verified before the deadline; a snapshot that would still be under way then is not begun. Nobody's clock on the
//! wall ends or prolongs a budget. Deliberately not here: reading a clock, and doing what was decided (agent/job).

pub mod clock;
pub mod costs;
pub mod interval;
pub mod ledger;
pub mod notice;
#[cfg(test)]
mod simulation;

use std::time::Duration;

use clock::{Moment, Now};

pub use notice::{Call, Notice};

/// What ends with a session after its snapshot: the worker, the record of the session, the agent.
pub const FAREWELL: Duration = Duration::from_millis(300);
/// What the final snapshot may cost as long as nothing was measured, as a share of the session and at most.
const UNMEASURED_SHARE: u32 = 10;
const UNMEASURED_MAX: Duration = Duration::from_secs(30);

/// The moment by which the session must be over, and who says so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deadline {
    pub at: Moment,
    /// For people, so that it follows "stopping:", as "the session's budget ends".
    pub why: String,
}

/// The earliest of all deadlines. A time of day is translated anew at each look, so that it stays the time of day when
/// the clock is set; a budget and a notice are moments already.
pub fn earliest(
    began: Moment,
    budget: Option<Duration>,
    time_of_day: Option<jiff::Timestamp>,
    notices: impl Iterator<Item = (String, Moment)>,
    now: Now,
) -> Option<Deadline> {
    let budget = budget.map(|budget| Deadline { at: began + budget, why: "the session's budget ends".into() });
    let deadline =
        time_of_day.map(|time| Deadline { at: now.moment_of(time), why: "the session's deadline is near".into() });
    let notices = notices.map(|(source, at)| Deadline { at, why: format!("{source} ends the session") });
    budget.into_iter().chain(deadline).chain(notices).min_by_key(|deadline| deadline.at)
}

#[derive(Clone, Debug)]
pub struct Facts {
    pub began: Moment,
    /// The earliest one.
    pub deadline: Option<Deadline>,
    /// When the state that the next worker would go on from was captured, or the training began.
    pub last_snapshot: Moment,
    /// What a final snapshot costs at most, as far as is known: its 99th percentile, from the stop to verified.
    pub final_cost: Option<Duration>,
    /// When the step under way began, and the time of the fastest one lately.
    pub step: Option<(Moment, Duration)>,
}

#[derive(Clone, Debug)]
pub struct Policy {
    /// Time between snapshots; `None`: not by time.
    pub every: Option<Duration>,
    /// `[session] margin`.
    pub margin: f64,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Plan {
    /// Nothing before this moment.
    GoOn { until: Option<Moment> },
    /// Snapshot now and go on.
    Snapshot { why: &'static str },
    /// The final snapshot now; be gone by then.
    Stop { by: Moment, why: String },
}

/// How long before a deadline the final snapshot begins, in a session that lasts `session`.
pub fn reserve(final_cost: Option<Duration>, margin: f64, session: Duration) -> Duration {
    let cost = match final_cost {
        Some(cost) => cost.mul_f64(margin),
        None => (session / UNMEASURED_SHARE).min(UNMEASURED_MAX),
    };
    // A session of which more than half were reserved would train less than it prepares to end.
    (cost + FAREWELL).min(session / 2)
}

pub fn plan(facts: &Facts, policy: &Policy, now: Moment) -> Plan {
    let next = policy.every.map(|every| facts.last_snapshot + every);
    let Some(Deadline { at: by, why }) = &facts.deadline else {
        return match next {
            Some(next) if now >= next => Plan::Snapshot { why: "interval" },
            _ => Plan::GoOn { until: next },
        };
    };
    let reserve = reserve(facts.final_cost, policy.margin, *by - facts.began);
    let last_call = *by - reserve;
    // A step that cannot be completed before the last call is lost in any case.
    let too_late_for_a_step = facts.step.is_some_and(|(began, fastest)| began + fastest > last_call);
    if now >= last_call || too_late_for_a_step {
        return Plan::Stop { by: *by, why: why.clone() };
    }
    // As long as nothing is measured, one snapshot is taken early enough to learn from.
    let lesson =
        facts.final_cost.is_none().then(|| *by - reserve.saturating_mul(3)).filter(|at| facts.last_snapshot < *at);
    // What would still be under way at the last call only delays the final one.
    let useful = |at: &Moment| *at.max(&now) + (reserve - FAREWELL.min(reserve)) < last_call;
    let next = next.filter(useful);
    for (at, why) in [(lesson, "to learn what one costs"), (next, "interval")] {
        if at.is_some_and(|at| now >= at) {
            return Plan::Snapshot { why };
        }
    }
    Plan::GoOn { until: [lesson, next, Some(last_call)].into_iter().flatten().min() }
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;
    use proptest::prelude::*;

    use super::*;

    const fn secs(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    const BEGAN: Moment = Moment::since_boot(secs(1000));

    fn facts(final_cost: Option<Duration>) -> Facts {
        let deadline = Some(Deadline { at: BEGAN + secs(60), why: "it ends".into() });
        Facts { began: BEGAN, deadline, last_snapshot: BEGAN, final_cost, step: None }
    }

    #[test]
    fn a_snapshot_is_due_once_the_interval_has_passed_and_the_final_one_before_the_deadline() {
        let facts = facts(Some(secs(2)));
        let policy = Policy { every: Some(secs(40)), margin: 1.5 };
        let last_call = BEGAN + (secs(57) - FAREWELL);
        let at = |seconds: u64| plan(&facts, &policy, BEGAN + secs(seconds));
        assert_eq!(at(0), Plan::GoOn { until: Some(BEGAN + secs(40)) });
        assert_eq!(at(40), Plan::Snapshot { why: "interval" });
        assert_eq!(at(57), Plan::Stop { by: BEGAN + secs(60), why: "it ends".into() });
        let later = Facts { last_snapshot: BEGAN + secs(40), ..facts };
        assert_eq!(plan(&later, &policy, BEGAN + secs(41)), Plan::GoOn { until: Some(last_call) });
    }

    #[test]
    fn a_snapshot_that_would_be_in_the_way_of_the_final_one_is_not_begun() {
        let policy = Policy { every: Some(secs(56)), margin: 1.5 };
        let last_call = BEGAN + (secs(57) - FAREWELL);
        assert_eq!(plan(&facts(Some(secs(2))), &policy, BEGAN + secs(56)), Plan::GoOn { until: Some(last_call) });
    }

    #[test]
    fn without_a_measured_cost_one_snapshot_is_taken_to_learn_it() {
        let policy = Policy { every: None, margin: 1.5 };
        let Plan::GoOn { until: Some(lesson) } = plan(&facts(None), &policy, BEGAN) else { panic!("no lesson") };
        assert!(lesson < BEGAN + secs(54) && lesson > BEGAN + secs(30), "{lesson:?}");
        assert!(matches!(plan(&facts(None), &policy, lesson), Plan::Snapshot { .. }));
        let taken = Facts { last_snapshot: lesson, ..facts(None) };
        assert!(matches!(plan(&taken, &policy, lesson + secs(1)), Plan::GoOn { .. }));
    }

    #[test]
    fn a_step_that_cannot_be_completed_in_time_is_not_waited_for() {
        let policy = Policy { every: None, margin: 1.0 };
        let in_step = |began: u64, fastest: u64| Facts {
            step: Some((BEGAN + secs(began), secs(fastest))),
            ..facts(Some(secs(5)))
        };
        assert!(matches!(plan(&in_step(40, 20), &policy, BEGAN + secs(40)), Plan::Stop { .. }));
        assert!(matches!(plan(&in_step(30, 20), &policy, BEGAN + secs(40)), Plan::GoOn { .. }));
    }

    #[test]
    fn without_interval_and_deadline_nothing_is_ever_due() {
        let facts = Facts { deadline: None, ..facts(None) };
        let policy = Policy { every: None, margin: 1.5 };
        assert_eq!(plan(&facts, &policy, BEGAN + secs(1_000_000)), Plan::GoOn { until: None });
    }

    #[test]
    fn a_clock_that_is_set_moves_a_time_of_day_and_neither_a_budget_nor_a_notice() {
        let now = Now { at: BEGAN, wall: jiff::Timestamp::UNIX_EPOCH };
        let hour = SignedDuration::from_hours(1);
        let evening = now.wall + SignedDuration::from_hours(2);
        for wall in [now.wall, now.wall + hour, now.wall - hour] {
            let now = Now { wall, ..now };
            let budget = earliest(BEGAN, Some(secs(60)), None, std::iter::empty(), now);
            assert_eq!(budget.map(|d| d.at), Some(BEGAN + secs(60)));
            let notice = earliest(BEGAN, None, None, [("Slurm".into(), BEGAN + secs(70))].into_iter(), now);
            assert_eq!(notice.map(|d| d.at), Some(BEGAN + secs(70)));
            let time_of_day = earliest(BEGAN, None, Some(evening), std::iter::empty(), now);
            assert_eq!(time_of_day.map(|d| now.wall_at(d.at)), Some(evening));
        }
    }

    proptest! {
        #[test]
        fn the_planner_never_sleeps_past_the_last_call_and_always_reserves_what_was_measured(
            session in 1u64..100_000, elapsed in 0u64..120_000, cost in proptest::option::of(1u64..1000),
            every in proptest::option::of(1u64..10_000), margin in 1.0f64..5.0, last in 0u64..100_000,
        ) {
            let facts = Facts {
                began: BEGAN,
                deadline: Some(Deadline { at: BEGAN + secs(session), why: String::new() }),
                last_snapshot: BEGAN + secs(last.min(elapsed)),
                final_cost: cost.map(secs),
                step: None,
            };
            let policy = Policy { every: every.map(secs), margin };
            let now = BEGAN + secs(elapsed);
            let wanted = cost.map(|cost| secs(cost).mul_f64(margin)).unwrap_or_default();
            match plan(&facts, &policy, now) {
                Plan::GoOn { until: None } => prop_assert!(false, "a session that ends needs a last call"),
                Plan::GoOn { until: Some(until) } => {
                    prop_assert!(until > now);
                    prop_assert!((BEGAN + secs(session)) - until >= wanted.min(secs(session) / 2));
                }
                Plan::Snapshot { .. } => prop_assert!(now < BEGAN + secs(session)),
                Plan::Stop { by, .. } => prop_assert_eq!(by, BEGAN + secs(session)),
            }
        }
    }
}
