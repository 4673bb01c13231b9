//! What the session's plan asks for, and what is learned for the next plans.

use std::time::Duration;

use tracing::info;

use super::events::JobAction;
use super::machine::{JobMachine, RecordTiming, StopCause};
use super::phase::JobPhase;
use crate::daemon::report::{HistoryReport, IntervalReport, StatusReport};
use crate::session::clock::{BootInstant, ClockReading};
use crate::session::interval::{self, IntervalChoice, IntervalInputs};
use crate::session::notice::{NoticeKind, SessionNotice};
use crate::session::outlook::{self, LivePace, SessionOutlook};
use crate::session::plan::{self, DeadlineSource, PlanInputs, PlanPolicy, SessionDeadline, SessionPlan};
use crate::session::records::SessionRecords;
use ckptd_core::config::{Config, SnapshotEvery};
use ckptd_core::protocol::AgentCommand;
use ckptd_core::text::{counted, exact_duration, rough_duration};

/// A last snapshot that begins so much later than it should have is late.
const LATE: Duration = Duration::from_secs(1);
/// Two moments that are no further apart are one end, heard of twice.
const SAME_END: Duration = Duration::from_secs(2);

/// Time between two records of how far the session is.
const RECORD_INTERVAL: Duration = Duration::from_secs(5);

impl JobMachine {
    /// The earliest moment by which the session must be over.
    pub(super) fn deadline(&self, now: ClockReading) -> Option<SessionDeadline> {
        let Config { session, .. } = &self.config;
        let (budget, time_of_day) = (session.budget.map(|budget| budget.0), session.deadline.map(|time| time.0));
        let notices = self.notices.iter().map(|(source, at)| (source.clone(), *at));
        plan::earliest(self.began, budget, time_of_day, notices, now)
    }

    /// What the end of the session costs at most: the last snapshot and, where it is replicated, its upload.
    pub(super) fn final_cost(&self) -> Option<Duration> {
        let costs = &self.records.costs;
        if self.replication.is_some() { costs.final_cost_with_upload() } else { costs.final_cost() }
    }

    /// What the session's plan asks for now. Snapshots are for a worker that trains.
    pub(super) fn plan(&self, now: ClockReading) -> SessionPlan {
        let inputs = PlanInputs {
            began: self.began,
            deadline: self.deadline(now),
            // No snapshot is due while no worker trains.
            last_snapshot: if self.trains() { self.last_snapshot } else { now.at },
            final_cost: self.final_cost(),
            step: self.step_began().zip(self.meter.fastest_step()),
        };
        let every = self.interval().map(|choice| choice.every).filter(|_| self.trains());
        let policy = PlanPolicy { every, margin: self.config.session.margin };
        plan::plan(&inputs, &policy, now.at)
    }

    /// The time between snapshots; `None` where the worker counts steps: it alone sees a step's end while it is there.
    pub(super) fn interval(&self) -> Option<IntervalChoice> {
        let policy = &self.config.snapshot;
        match (policy.every_steps, policy.every) {
            (Some(_), _) => None,
            (None, SnapshotEvery::Interval(every)) => {
                Some(IntervalChoice { every, why: format!("every {}, as configured", exact_duration(every)) })
            }
            (None, SnapshotEvery::Auto) => {
                let costs = &self.records.costs;
                let inputs = IntervalInputs {
                    lost: costs.lost(),
                    time: costs.snapshot_time().unwrap_or_default(),
                    mtbf: policy.mtbf.map_or_else(|| costs.mtbf(), |mtbf| mtbf.0),
                    mtbf_is_given: policy.mtbf.is_some(),
                    failures: costs.failures,
                };
                Some(interval::choose(&inputs, policy.max_overhead))
            }
        }
    }

    pub(super) fn keep_to_plan(&mut self, now: ClockReading) {
        if self.stop.is_some() || matches!(self.phase, JobPhase::Ended) {
            return;
        }
        match self.plan(now) {
            SessionPlan::GoOn { .. } => {}
            SessionPlan::Snapshot { why } => self.request_snapshot(why, now),
            SessionPlan::Stop(deadline) if self.asks_first(&deadline, now) => {}
            SessionPlan::Stop(deadline) => self.stop_by(&deadline, now),
        }
    }

    /// Ends the session by `deadline`. One that is past, or so near that the last snapshot may not fit, was heard of
    /// too late: that snapshot is tried all the same, within `[session] grace`.
    fn stop_by(&mut self, deadline: &SessionDeadline, now: ClockReading) {
        let SessionDeadline { at, source, why } = deadline;
        let grace = self.config.session.grace.0;
        let reserve = plan::reserve(self.final_cost(), self.config.session.margin, *at - self.began);
        let is_late = *at <= now.at || *at - now.at + LATE < reserve;
        let (by, cause) = match source {
            DeadlineSource::Notice(_) if *at <= now.at => (now.at + grace, StopCause::Plan),
            DeadlineSource::Notice(_) => (*at, StopCause::Plan),
            DeadlineSource::TimeOfDay if is_late => ((*at).max(now.at + grace), StopCause::Plan),
            DeadlineSource::TimeOfDay => (*at, StopCause::Plan),
            DeadlineSource::Budget if is_late => ((*at).max(now.at + grace), StopCause::Budget),
            DeadlineSource::Budget => (*at, StopCause::Budget),
        };
        self.stop(why, by, cause, now);
    }

    pub(super) fn request_snapshot(&mut self, reason: &str, now: ClockReading) {
        if self.trains() {
            self.last_snapshot = now.at;
            self.act(JobAction::Send(AgentCommand::Snapshot { reason: reason.into() }));
        }
    }

    pub(super) fn noticed(&mut self, notice: SessionNotice, now: ClockReading) {
        let SessionNotice { source, kind } = notice;
        self.answered(&source);
        match kind {
            NoticeKind::EndsAt(at) => {
                let known = self.notices.insert(source.clone(), at);
                let is_known = known.is_some_and(|known| (known - at).max(at - known) < SAME_END);
                if !is_known && at > now.at {
                    info!("{source}: the session ends in {}", rough_duration(at - now.at));
                }
            }
            NoticeKind::Withdrawn => {
                if self.notices.remove(&source).is_some() {
                    info!("{source}: the end of the session is withdrawn");
                }
            }
            NoticeKind::Snapshot if self.trains() => {
                info!("{source}: snapshot now");
                self.request_snapshot(&source, now);
            }
            NoticeKind::Snapshot => info!("{source}: no worker trains now: there is nothing to save"),
            NoticeKind::Finish => self.stop(&source, self.grace_ends(now), StopCause::Plan, now),
        }
    }

    /// A snapshot of the running training was verified that was asked for at `began`.
    pub(super) fn learn_snapshot(&mut self, began: BootInstant, stall: Duration, now: ClockReading) {
        let lost = self.meter.snapshot_ended(stall);
        if self.stop.is_none() {
            self.records.costs.snapshots_ms.push(now.at - began);
            self.records.costs.lost_ms.push(lost);
        }
    }

    /// What is shown of the session's end and of the remote.
    pub(super) fn note_outlook(&mut self, now: ClockReading) {
        self.progress.deadline = self.deadline(now).map(|deadline| now.wall_at(deadline.at));
        self.progress.remote = self.replication.as_ref().map(|replication| replication.report(now.wall));
    }

    /// Counts the training time since the last look at it.
    pub(super) fn count_time(&mut self, now: ClockReading) {
        let JobPhase::Running(run) = &mut self.phase else { return };
        let Some(since) = &mut run.counted_to else { return };
        let seconds = (now.at - *since).as_secs_f64();
        *since = now.at;
        self.records.costs.uptime_seconds += seconds;
        if let Some(session) = self.records.current() {
            session.trained_seconds += seconds;
        }
    }

    /// Has the sessions so far written.
    pub(super) fn record(&mut self, timing: RecordTiming, now: ClockReading) {
        let is_recent = self.recorded.is_some_and(|at| now.at < at + RECORD_INTERVAL);
        if timing == RecordTiming::WhenDue && is_recent {
            return;
        }
        self.recorded = Some(now.at);
        self.count_time(now);
        self.note_progress(now);
        self.act(JobAction::Record(Box::new(self.records.clone())));
    }

    /// Has written how far the session is.
    pub(super) fn mark(&mut self, now: ClockReading) {
        self.count_time(now);
        self.note_progress(now);
        let session = self.records.current().cloned();
        session.into_iter().for_each(|session| self.act(JobAction::Mark(Box::new(session))));
    }

    /// How far the session has come; before its first look into the store nothing is known of that.
    fn note_progress(&mut self, now: ClockReading) {
        let (saved, step) = (self.progress.last_verified.as_ref().map(|last| last.step), self.progress.step);
        let planned = self.deadline(now).map(|deadline| (deadline.at - self.began).as_secs_f64());
        if let Some(session) = self.records.current() {
            session.seen = now.wall;
            session.saved_step = saved.unwrap_or(session.saved_step);
            session.step = step.max(session.saved_step);
            session.planned_seconds = planned.or(session.planned_seconds);
        }
    }

    /// Closes the session's entry.
    pub(super) fn record_end(&mut self, cause: String, now: ClockReading) {
        self.count_time(now);
        self.note_progress(now);
        let saved = self.progress.last_durable().map(|last| last.step);
        let is_lost = self.progress.lost.is_some();
        if let Some(session) = self.records.current() {
            session.saved_step = if is_lost { 0 } else { saved.unwrap_or(session.saved_step) };
            session.lost_steps += session.step.saturating_sub(session.saved_step);
            (session.ended, session.cause) = (Some(now.wall), cause);
        }
        self.act(JobAction::Record(Box::new(self.records.clone())));
    }

    /// What is to come of the training, as `records` have it.
    pub(super) fn outlook(&self, records: &SessionRecords, now: ClockReading) -> Option<SessionOutlook> {
        let live = self.trains().then(|| LivePace { step: self.progress.step, step_time: self.meter.usual_step() });
        outlook::outlook(records, self.config.train.steps, live, now.wall)
    }

    /// The time between snapshots, or the steps, and why it is that.
    pub(super) fn interval_report(&self) -> IntervalReport {
        match (self.interval(), self.config.snapshot.every_steps) {
            (Some(choice), _) => IntervalReport { seconds: Some(choice.every.as_secs_f64()), why: choice.why },
            (None, steps) => {
                let why = format!("every {}, as configured", counted(steps.unwrap_or_default(), "step"));
                IntervalReport { seconds: None, why }
            }
        }
    }

    /// Everything that `ckptd status` tells.
    pub fn report(&self, now: ClockReading) -> StatusReport {
        let mut report = self.progress.report(now.wall);
        report.session.began = Some(now.wall_at(self.began));
        if let Some(SessionDeadline { at, why, .. }) = self.deadline(now) {
            let reserve = plan::reserve(self.final_cost(), self.config.session.margin, at - self.began);
            report.session.last_call = Some(now.wall_at(at - reserve));
            report.session.deadline = Some(now.wall_at(at));
            report.session.seconds_left = Some(((at - now.at).as_secs_f64() * 10.0).round() / 10.0);
            report.session.source = Some(why);
        }
        report.interval = self.interval_report();
        report.remote = self.replication.as_ref().map(|replication| replication.report(now.wall));
        let mut records = self.records.clone();
        let saved = self.progress.last_verified.as_ref().map(|last| last.step);
        if let Some(session) = records.current() {
            session.seen = now.wall;
            session.saved_step = saved.unwrap_or(session.saved_step);
            session.step = self.progress.step.max(session.saved_step);
        }
        let outlook = self.outlook(&records, now);
        report.seconds_to_finish = outlook.map(|outlook| outlook.time_left.as_secs_f64().round());
        report.history = HistoryReport::of(&records, outlook);
        report
    }
}
