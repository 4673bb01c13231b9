//! The planner: what is due now, or when something will be.
//!
//! Invariant: the final snapshot begins so early that the dearest one expected, times the margin, is durable and
//! verified before the deadline; a snapshot that would still be under way then is not begun. A wall clock that is set
//! neither ends nor prolongs a budget. Deliberately not here: the time between snapshots (interval).

use std::time::Duration;

use super::clock::{BootInstant, ClockReading};

/// Time that is kept for what ends after the last snapshot: the worker, the record of the session, the daemon.
pub const EXIT_RESERVE: Duration = Duration::from_millis(300);
/// What the final snapshot may cost as long as nothing was measured, as a share of the session and at most.
const UNMEASURED_SHARE: u32 = 10;
const UNMEASURED_MAX: Duration = Duration::from_secs(30);

/// The moment by which the session must be over, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionDeadline {
    pub at: BootInstant,
    pub source: DeadlineSource,
    /// For people, after "stopping:": "the session's budget ends".
    pub why: String,
}

/// Who says that the session ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeadlineSource {
    /// `[session] budget`: nothing but this session ends.
    Budget,
    /// `[session] deadline`.
    TimeOfDay,
    /// A source of notices, by its name: something is taken away then.
    Notice(String),
}

/// The earliest of all deadlines. A time of day is translated anew at each call: it stays that time of day when
/// the clock is set; a budget and a notice are moments already.
pub fn earliest(
    began: BootInstant,
    budget: Option<Duration>,
    time_of_day: Option<jiff::Timestamp>,
    notices: impl Iterator<Item = (String, BootInstant)>,
    now: ClockReading,
) -> Option<SessionDeadline> {
    let of = |at, source, why: &str| SessionDeadline { at, source, why: why.to_owned() };
    let budget = budget.map(|budget| of(began + budget, DeadlineSource::Budget, "the session's budget ends"));
    let deadline =
        time_of_day.map(|time| of(now.moment_of(time), DeadlineSource::TimeOfDay, "the session's deadline is near"));
    let notices = notices.map(|(source, at)| {
        let why = format!("{source} ends the session");
        SessionDeadline { at, source: DeadlineSource::Notice(source), why }
    });
    budget.into_iter().chain(deadline).chain(notices).min_by_key(|deadline| deadline.at)
}

#[derive(Clone, Debug)]
pub struct PlanInputs {
    pub began: BootInstant,
    /// The earliest one.
    pub deadline: Option<SessionDeadline>,
    /// When the state that the next worker would go on from was captured, or the training began.
    pub last_snapshot: BootInstant,
    /// What a final snapshot costs at most, as far as is known: its 99th percentile, from the stop to verified.
    pub final_cost: Option<Duration>,
    /// When the step under way began, and the time of the fastest one lately.
    pub step: Option<(BootInstant, Duration)>,
}

#[derive(Clone, Debug)]
pub struct PlanPolicy {
    /// Time between snapshots; `None`: not by time.
    pub every: Option<Duration>,
    /// `[session] margin`.
    pub margin: f64,
}

#[derive(Clone, Debug, PartialEq)]
pub enum SessionPlan {
    /// Nothing before this moment.
    GoOn { until: Option<BootInstant> },
    /// Snapshot now and go on.
    Snapshot { why: &'static str },
    /// The final snapshot now; be gone by this deadline.
    Stop(SessionDeadline),
}

/// How long before a deadline the final snapshot begins, in a session that lasts `session`.
pub fn reserve(final_cost: Option<Duration>, margin: f64, session: Duration) -> Duration {
    let cost = match final_cost {
        Some(cost) => cost.mul_f64(margin),
        None => (session / UNMEASURED_SHARE).min(UNMEASURED_MAX),
    };
    // A session of which more than half were reserved would train less than it prepares to end.
    (cost + EXIT_RESERVE).min(session / 2)
}

pub fn plan(inputs: &PlanInputs, policy: &PlanPolicy, now: BootInstant) -> SessionPlan {
    let next = policy.every.map(|every| inputs.last_snapshot + every);
    let Some(deadline @ SessionDeadline { at: by, .. }) = &inputs.deadline else {
        return match next {
            Some(next) if now >= next => SessionPlan::Snapshot { why: "interval" },
            _ => SessionPlan::GoOn { until: next },
        };
    };
    let reserve = reserve(inputs.final_cost, policy.margin, *by - inputs.began);
    let last_call = *by - reserve;
    // A step that cannot be completed before the last call is lost in any case.
    let too_late_for_a_step = inputs.step.is_some_and(|(began, fastest)| began + fastest > last_call);
    if now >= last_call || too_late_for_a_step {
        return SessionPlan::Stop(deadline.clone());
    }
    // As long as nothing is measured, one snapshot is taken early enough to learn from.
    let lesson =
        inputs.final_cost.is_none().then(|| *by - reserve.saturating_mul(3)).filter(|at| inputs.last_snapshot < *at);
    // What would still be under way at the last call only delays the final one.
    let useful = |at: &BootInstant| *at.max(&now) + (reserve - EXIT_RESERVE.min(reserve)) < last_call;
    let next = next.filter(useful);
    for (at, why) in [(lesson, "to learn what one costs"), (next, "interval")] {
        if at.is_some_and(|at| now >= at) {
            return SessionPlan::Snapshot { why };
        }
    }
    SessionPlan::GoOn { until: [lesson, next, Some(last_call)].into_iter().flatten().min() }
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;
    use proptest::prelude::*;

    use super::*;

    const fn secs(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    const BEGAN: BootInstant = BootInstant::since_boot(secs(1000));

    fn ends_after(seconds: u64) -> SessionDeadline {
        SessionDeadline { at: BEGAN + secs(seconds), source: DeadlineSource::Budget, why: "it ends".into() }
    }

    fn inputs(final_cost: Option<Duration>) -> PlanInputs {
        PlanInputs { began: BEGAN, deadline: Some(ends_after(60)), last_snapshot: BEGAN, final_cost, step: None }
    }

    #[test]
    fn a_snapshot_is_due_at_the_interval_and_the_final_one_at_the_deadline() {
        let inputs = inputs(Some(secs(2)));
        let policy = PlanPolicy { every: Some(secs(40)), margin: 1.5 };
        let last_call = BEGAN + (secs(57) - EXIT_RESERVE);
        let at = |seconds: u64| plan(&inputs, &policy, BEGAN + secs(seconds));
        assert_eq!(at(0), SessionPlan::GoOn { until: Some(BEGAN + secs(40)) });
        assert_eq!(at(40), SessionPlan::Snapshot { why: "interval" });
        assert_eq!(at(57), SessionPlan::Stop(ends_after(60)));
        let later = PlanInputs { last_snapshot: BEGAN + secs(40), ..inputs };
        assert_eq!(plan(&later, &policy, BEGAN + secs(41)), SessionPlan::GoOn { until: Some(last_call) });
    }

    #[test]
    fn a_snapshot_that_would_be_in_the_way_of_the_final_one_is_not_begun() {
        let policy = PlanPolicy { every: Some(secs(56)), margin: 1.5 };
        let last_call = BEGAN + (secs(57) - EXIT_RESERVE);
        assert_eq!(
            plan(&inputs(Some(secs(2))), &policy, BEGAN + secs(56)),
            SessionPlan::GoOn { until: Some(last_call) }
        );
    }

    #[test]
    fn without_a_measured_cost_one_snapshot_is_taken_to_learn_it() {
        let policy = PlanPolicy { every: None, margin: 1.5 };
        let SessionPlan::GoOn { until: Some(lesson) } = plan(&inputs(None), &policy, BEGAN) else {
            panic!("no lesson")
        };
        assert!(lesson < BEGAN + secs(54) && lesson > BEGAN + secs(30), "{lesson:?}");
        assert!(matches!(plan(&inputs(None), &policy, lesson), SessionPlan::Snapshot { .. }));
        let taken = PlanInputs { last_snapshot: lesson, ..inputs(None) };
        assert!(matches!(plan(&taken, &policy, lesson + secs(1)), SessionPlan::GoOn { .. }));
    }

    #[test]
    fn a_step_that_cannot_be_completed_in_time_is_not_waited_for() {
        let policy = PlanPolicy { every: None, margin: 1.0 };
        let in_step = |began: u64, fastest: u64| PlanInputs {
            step: Some((BEGAN + secs(began), secs(fastest))),
            ..inputs(Some(secs(5)))
        };
        assert!(matches!(plan(&in_step(40, 20), &policy, BEGAN + secs(40)), SessionPlan::Stop(_)));
        assert!(matches!(plan(&in_step(30, 20), &policy, BEGAN + secs(40)), SessionPlan::GoOn { .. }));
    }

    #[test]
    fn without_interval_and_deadline_nothing_is_ever_due() {
        let inputs = PlanInputs { deadline: None, ..inputs(None) };
        let policy = PlanPolicy { every: None, margin: 1.5 };
        assert_eq!(plan(&inputs, &policy, BEGAN + secs(1_000_000)), SessionPlan::GoOn { until: None });
    }

    #[test]
    fn a_clock_that_is_set_moves_a_time_of_day_but_no_budget_and_no_notice() {
        let now = ClockReading { at: BEGAN, wall: jiff::Timestamp::UNIX_EPOCH };
        let hour = SignedDuration::from_hours(1);
        let evening = now.wall + SignedDuration::from_hours(2);
        for wall in [now.wall, now.wall + hour, now.wall - hour] {
            let now = ClockReading { wall, ..now };
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
        fn the_planner_never_sleeps_past_the_last_call_and_keeps_the_reserve(
            session in 1u64..100_000, elapsed in 0u64..120_000, cost in proptest::option::of(1u64..1000),
            every in proptest::option::of(1u64..10_000), margin in 1.0f64..5.0, last in 0u64..100_000,
        ) {
            let inputs = PlanInputs {
                began: BEGAN,
                deadline: Some(ends_after(session)),
                last_snapshot: BEGAN + secs(last.min(elapsed)),
                final_cost: cost.map(secs),
                step: None,
            };
            let policy = PlanPolicy { every: every.map(secs), margin };
            let now = BEGAN + secs(elapsed);
            let wanted = cost.map(|cost| secs(cost).mul_f64(margin)).unwrap_or_default();
            match plan(&inputs, &policy, now) {
                SessionPlan::GoOn { until: None } => prop_assert!(false, "a session that ends needs a last call"),
                SessionPlan::GoOn { until: Some(until) } => {
                    prop_assert!(until > now);
                    prop_assert!((BEGAN + secs(session)) - until >= wanted.min(secs(session) / 2));
                }
                SessionPlan::Snapshot { .. } => prop_assert!(now < BEGAN + secs(session)),
                SessionPlan::Stop(deadline) => prop_assert_eq!(deadline.at, BEGAN + secs(session)),
            }
        }
    }
}
