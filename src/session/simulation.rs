//! Whole sessions by the thousand: steps and disks that vary, notices that come late or never, costs that are learned
//! from session to session, and the planner between them.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use super::clock::{BootInstant, ClockReading};
use super::costs::{CostMeter, LearnedCosts};
use super::plan::{PlanInputs, PlanPolicy, SessionPlan, earliest, plan};

/// The same numbers for the same seed.
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn uniform(&mut self) -> f64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as f64 / (1u64 << 53) as f64
    }

    fn between(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.uniform()
    }

    /// Log-normal around `median`.
    fn around(&mut self, median: f64, sigma: f64) -> f64 {
        let normal: f64 = (0..12).map(|_| self.uniform()).sum::<f64>() - 6.0;
        median * (sigma * normal).exp()
    }
}

/// A machine and a job, in seconds.
struct World {
    step: f64,
    step_sigma: f64,
    snapshot: f64,
    snapshot_sigma: f64,
    startup: f64,
    every: Option<f64>,
    budget: f64,
    margin: f64,
}

struct Session {
    /// When the final snapshot was verified, or the session given up, since its beginning.
    ended: f64,
    /// The end that really was.
    end: f64,
    final_cost: f64,
    /// What the planner had reserved for that, and the time that it had.
    expected: Option<Duration>,
    trained: f64,
    unsaved_steps: u64,
    had_notice_in_time: bool,
}

fn secs(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds)
}

/// One session. `notice`: (when it comes, when the machine then ends), both since the beginning.
fn run(world: &World, costs: &mut LearnedCosts, notice: Option<(f64, f64)>, random: &mut Random) -> Session {
    let began = BootInstant::since_boot(secs(1e6));
    let at = |seconds: f64| began + secs(seconds);
    let mut now = world.startup;
    let (mut step_began, mut step_ends) = (now, now + random.around(world.step, world.step_sigma));
    let (mut last_snapshot, mut in_flight): (f64, Option<(f64, f64)>) = (now, None);
    let (mut steps, mut saved) = (0u64, 0u64);
    let mut meter = CostMeter::default();
    let budget_end = world.budget;
    let end = notice.map_or(budget_end, |(_, end)| end.min(budget_end));
    loop {
        let known = notice.filter(|(comes, _)| *comes <= now);
        let deadline = earliest(
            began,
            Some(secs(budget_end)),
            None,
            known.map(|(_, end)| ("notice".to_owned(), at(end))).into_iter(),
            ClockReading { at: at(now), wall: jiff::Timestamp::UNIX_EPOCH },
        );
        let inputs = PlanInputs {
            began,
            deadline,
            last_snapshot: at(last_snapshot),
            final_cost: costs.final_cost(),
            step: meter.fastest_step().map(|fastest| (at(step_began), fastest)),
        };
        let policy = PlanPolicy { every: world.every.map(secs), margin: world.margin };
        let plan = plan(&inputs, &policy, at(now));
        match plan {
            SessionPlan::Stop(_) => {
                // One in flight is finished first, at full speed.
                let wait = in_flight.map_or(0.0, |(_, ends)| ((ends - now) / 2.0).max(0.0));
                let cost = random.around(world.snapshot, world.snapshot_sigma);
                let done = now + wait + cost;
                if done <= end {
                    saved = steps;
                    costs.finals_ms.push(secs(wait + cost));
                }
                let in_time = known.is_none_or(|(comes, end)| {
                    comes + inputs.final_cost.map_or(1e9, |c| c.as_secs_f64() * world.margin) + 1.0 < end
                });
                return Session {
                    ended: done.min(end),
                    end,
                    final_cost: wait + cost,
                    expected: inputs.final_cost,
                    trained: now - world.startup,
                    unsaved_steps: steps - saved,
                    had_notice_in_time: in_time,
                };
            }
            SessionPlan::Snapshot { .. } => {
                last_snapshot = now;
                if in_flight.is_none() {
                    in_flight = Some((now, now + 1.3 * random.around(world.snapshot, world.snapshot_sigma)));
                    meter.snapshot_began();
                }
                continue;
            }
            SessionPlan::GoOn { until } => {
                let wake = (until.unwrap() - began).as_secs_f64() + 1e-6;
                let comes = notice.map(|(comes, _)| comes).filter(|comes| *comes > now).unwrap_or(f64::MAX);
                let lands = in_flight.map_or(f64::MAX, |(_, ends)| ends);
                let next = wake.min(comes).min(lands).min(step_ends);
                if next >= end {
                    // The machine is gone before anything else happens.
                    let (final_cost, expected) = (f64::MAX, None);
                    let (ended, trained) = (end, end - world.startup);
                    return Session {
                        ended,
                        end,
                        final_cost,
                        expected,
                        trained,
                        unsaved_steps: steps - saved,
                        had_notice_in_time: false,
                    };
                }
                now = next;
            }
        }
        if now >= step_ends {
            steps += 1;
            meter.stepped(secs(step_ends - step_began));
            step_began = now;
            step_ends = now + random.around(world.step, world.step_sigma);
        }
        if let Some((asked, ends)) = in_flight
            && now >= ends
        {
            costs.snapshots_ms.push(secs(ends - asked));
            meter.snapshot_ended(Duration::ZERO);
            saved = steps;
            in_flight = None;
        }
    }
}

#[test]
fn no_completed_work_is_lost_to_a_deadline_that_was_known_in_time() {
    let mut random = Random::new(7);
    let (mut sessions, mut beyond, mut noticed) = (0, 0, 0);
    for _ in 0..150 {
        let snapshot = random.around(1.0, 1.0);
        let world = World {
            step: random.around(0.5, 1.2),
            step_sigma: random.between(0.0, 0.4),
            snapshot,
            snapshot_sigma: random.between(0.0, 0.3),
            startup: random.between(0.2, 5.0),
            every: (random.uniform() < 0.8).then(|| random.between(5.0, 100.0).max(3.0 * snapshot)),
            budget: random.between(60.0, 600.0).max(40.0 * snapshot),
            margin: 1.5,
        };
        // What one session teaches the next one knows.
        let mut costs = LearnedCosts::default();
        for _ in 0..10 {
            let notice = (random.uniform() < 0.4).then(|| {
                let comes = random.between(world.startup, world.budget);
                (comes, comes + random.between(0.0, 120.0))
            });
            let session = run(&world, &mut costs, notice, &mut random);
            sessions += 1;
            noticed += u32::from(notice.is_some());
            assert!(session.ended <= session.end + 1e-9);
            let Some(expected) = session.expected else { continue };
            if !session.had_notice_in_time {
                continue;
            }
            if session.final_cost <= expected.as_secs_f64() * world.margin {
                assert_eq!(session.unsaved_steps, 0, "cost {} of {expected:?}", session.final_cost);
            } else {
                beyond += 1;
            }
        }
    }
    assert!(sessions >= 1000 && noticed >= 400, "{sessions} sessions, {noticed} with a notice");
    // The estimate itself: a final snapshot is dearer than its p99 times the margin in less than one of a hundred.
    assert!(beyond * 100 < sessions, "{beyond} of {sessions}");
    println!("{sessions} sessions, {noticed} with a notice, {beyond} final snapshots dearer than reserved");
}

#[test]
fn cheap_snapshots_leave_95_percent_of_a_budget_of_60_seconds() {
    let mut random = Random::new(8);
    let mut least: f64 = 1.0;
    for _ in 0..100 {
        let world = World {
            step: random.between(0.05, 0.4),
            step_sigma: 0.2,
            snapshot: random.between(0.1, 0.4),
            snapshot_sigma: 0.2,
            startup: random.between(0.3, 1.2),
            every: Some(15.0),
            budget: 60.0,
            margin: 1.5,
        };
        let mut costs = LearnedCosts::default();
        for _ in 0..5 {
            let session = run(&world, &mut costs, None, &mut random);
            least = least.min(session.trained / 60.0);
            assert!(session.trained / 60.0 >= 0.95, "{}", session.trained);
        }
    }
    println!("at least {:.1} % of the budget", 100.0 * least);
}
