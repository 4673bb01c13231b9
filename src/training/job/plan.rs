//! What the session's plan asks for, and what is learned for the next plans.

use super::*;
use crate::session::interval;
use crate::session::{self, Deadline, Plan, Policy};

/// Time between two records of how far the session is.
const RECORD_INTERVAL: Duration = Duration::from_secs(5);

impl Job {
    /// The earliest moment by which the session must be over.
    pub(super) fn deadline(&self, now: Now) -> Option<Deadline> {
        let Config { session, .. } = &self.config;
        let (budget, time_of_day) = (session.budget.map(|budget| budget.0), session.deadline.map(|time| time.0));
        let notices = self.notices.iter().map(|(source, at)| (source.clone(), *at));
        session::earliest(self.began, budget, time_of_day, notices, now)
    }

    /// What the session's plan asks for now. Snapshots are for a worker that trains.
    pub(super) fn plan(&self, now: Now) -> Plan {
        let step = match &self.phase {
            Phase::Running(run) if self.trains() => run.step_began,
            _ => None,
        };
        let facts = session::Facts {
            began: self.began,
            deadline: self.deadline(now),
            // Nothing is due of what does not train, and nothing is to be learned from it.
            last_snapshot: if self.trains() { self.last_snapshot } else { now.at },
            final_cost: self.ledger.costs.final_cost(),
            step: step.zip(self.meter.fastest_step()),
        };
        let every = self.interval().map(|choice| choice.every).filter(|_| self.trains());
        let policy = Policy { every, margin: self.config.session.margin };
        session::plan(&facts, &policy, now.at)
    }

    /// The time between snapshots; `None` where the worker counts steps: it alone sees a step's end while it is there.
    pub(super) fn interval(&self) -> Option<interval::IntervalChoice> {
        let policy = &self.config.snapshot;
        match (policy.every_steps, policy.every) {
            (Some(_), _) => None,
            (None, SnapshotEvery::Interval(every)) => {
                Some(interval::IntervalChoice { every, why: format!("every {}, as configured", text(every)) })
            }
            (None, SnapshotEvery::Auto) => {
                let costs = &self.ledger.costs;
                let facts = interval::IntervalInputs {
                    lost: costs.lost(),
                    time: costs.snapshot_time().unwrap_or_default(),
                    mtbf: policy.mtbf.map_or_else(|| costs.mtbf(), |mtbf| mtbf.0),
                    mtbf_is_given: policy.mtbf.is_some(),
                    failures: costs.failures,
                };
                Some(interval::choose(&facts, policy.max_overhead))
            }
        }
    }

    pub(super) fn keep_to_plan(&mut self, now: Now) {
        if self.stop.is_some() || matches!(self.phase, Phase::Ended) {
            return;
        }
        match self.plan(now) {
            Plan::GoOn { .. } => {}
            Plan::Snapshot { why } => self.request_snapshot(why, now),
            Plan::Stop { by, why } => self.stop(&why, by, false, now),
        }
    }

    pub(super) fn request_snapshot(&mut self, reason: &str, now: Now) {
        if self.trains() {
            self.last_snapshot = now.at;
            self.act(JobAction::Send(AgentCommand::Snapshot { reason: reason.into() }));
        }
    }

    pub(super) fn noticed(&mut self, notice: Notice, now: Now) {
        let Notice { source, call } = notice;
        match call {
            Call::EndsAt(at) => {
                if self.notices.insert(source.clone(), at) != Some(at) {
                    info!("{source}: the session ends in {}", text(at - now.at));
                }
            }
            Call::Withdrawn => {
                if self.notices.remove(&source).is_some() {
                    info!("{source}: the end of the session is withdrawn");
                }
            }
            Call::Snapshot if self.trains() => {
                info!("{source}: snapshot now");
                self.request_snapshot(&source, now);
            }
            Call::Snapshot => info!("{source}: nothing trains now, so that there is nothing to save"),
            Call::Finish => self.stop(&source, now.at + self.config.session.grace.0, false, now),
        }
    }

    /// A snapshot of the running training was verified that was asked for at `began`.
    pub(super) fn learn_snapshot(&mut self, began: Moment, stall: Duration, now: Now) {
        let lost = self.meter.snapshot_ended(stall);
        if self.stop.is_none() {
            self.ledger.costs.snapshots_ms.push(now.at - began);
            self.ledger.costs.lost_ms.push(lost);
        }
    }

    /// Counts the training time since the last look at it.
    pub(super) fn count_time(&mut self, now: Now) {
        let Phase::Running(run) = &mut self.phase else { return };
        let Some(since) = run.counted_to.replace(now.at).filter(|_| run.ready) else { return };
        let seconds = (now.at - since).as_secs_f64();
        self.ledger.costs.uptime_seconds += seconds;
        if let Some(session) = self.ledger.current() {
            session.trained_seconds += seconds;
        }
    }

    /// Has the ledger written, unless it just was.
    pub(super) fn record(&mut self, at_once: bool, now: Now) {
        if !at_once && self.recorded.is_some_and(|at| now.at < at + RECORD_INTERVAL) {
            return;
        }
        self.recorded = Some(now.at);
        self.count_time(now);
        let saved = self.progress.last_verified.as_ref().map_or(0, |last| last.step);
        let step = self.progress.step;
        if let Some(session) = self.ledger.current() {
            (session.seen, session.step, session.saved_step) = (now.wall, step, saved);
        }
        self.act(JobAction::Record(Box::new(self.ledger.clone())));
    }

    /// Closes the session's entry.
    pub(super) fn record_end(&mut self, cause: String, now: Now) {
        self.count_time(now);
        let saved = self.progress.last_durable().map_or(0, |last| last.step);
        let step = self.progress.step;
        if let Some(session) = self.ledger.current() {
            (session.seen, session.step, session.saved_step) = (now.wall, step, saved);
            session.lost_steps += step.saturating_sub(saved);
            (session.ended, session.cause) = (Some(now.wall), cause);
        }
        self.act(JobAction::Record(Box::new(self.ledger.clone())));
    }

    /// Everything that `ckptd status` tells.
    pub fn report(&self, now: Now) -> Report {
        let mut report = self.progress.report(now.wall);
        if let Some(Deadline { at, why }) = self.deadline(now) {
            report.session.deadline = Some(now.wall_at(at));
            report.session.seconds_left = Some(((at - now.at).as_secs_f64() * 10.0).round() / 10.0);
            report.session.source = Some(why);
        }
        report.interval = match (self.interval(), self.config.snapshot.every_steps) {
            (Some(choice), _) => IntervalReport { seconds: Some(choice.every.as_secs_f64()), why: choice.why },
            (None, steps) => {
                let why = format!("every {} steps, as configured", steps.unwrap_or_default());
                IntervalReport { seconds: None, why }
            }
        };
        let mut ledger = self.ledger.clone();
        let saved = self.progress.last_verified.as_ref().map_or(0, |last| last.step);
        if let Some(session) = ledger.current() {
            (session.seen, session.step, session.saved_step) = (now.wall, self.progress.step, saved);
        }
        report.history = HistoryReport::of(&ledger, Some(self.config.train.steps), now.wall);
        report
    }
}

fn text(duration: Duration) -> String {
    humantime::format_duration(match duration.as_secs() {
        0 => duration,
        seconds => Duration::from_secs(seconds),
    })
    .to_string()
}
