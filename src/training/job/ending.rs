//! How a session ends: signals, the last snapshot, the outcome.

use std::time::Duration;

use tracing::{info, warn};

use super::events::{JobAction, SessionOutcome, WorkerExit};
use super::machine::{JobMachine, StopCause, StopRequest, of_total};
use super::phase::{JobPhase, LastWord, TrainingEnd, WorkerPhase};
use crate::daemon::report::{JobState, SnapshotStage};
use crate::daemon::signals::DaemonSignal;
use crate::session::clock::{BootInstant, ClockReading};
use crate::session::plan::EXIT_RESERVE;
use crate::training::progress::KeptSnapshot;
use crate::training::restarts::FailureCause;
use ckptd_core::error::{Error, Result};
use ckptd_core::os::process::processors;
use ckptd_core::protocol::AgentCommand;
use ckptd_core::text::rough_duration;

/// The same signal again within this time is the same request: `timeout` signals a process and then its group, a
/// terminal and a script may both pass on a Ctrl-C.
const SAME_SIGNAL: Duration = Duration::from_secs(1);
/// How long the store is looked at at most, before the end is told as it was last known.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(10);

/// Killing a worker takes time; it is done so long before the time to stop is over.
const HARD_END: Duration = Duration::from_millis(100);

impl JobMachine {
    pub(super) fn signalled(&mut self, signal: DaemonSignal, now: ClockReading) {
        let by = self.grace_ends(now);
        match signal {
            DaemonSignal::Snapshot if self.trains() => {
                info!("SIGUSR1: snapshot now");
                self.request_snapshot("signal", now);
            }
            DaemonSignal::Snapshot => info!("SIGUSR1: no worker trains now: there is nothing to save"),
            DaemonSignal::Hangup => {
                info!("SIGHUP: reading the job file again; the training goes on");
                self.act(JobAction::Reload);
            }
            DaemonSignal::Suspend => self.act(JobAction::StandStill),
            DaemonSignal::Continue => self.ask_sources(now),
            DaemonSignal::Interrupt | DaemonSignal::Terminate | DaemonSignal::Finish => {
                let first = *self.heard.entry(signal.name()).or_insert(now.at);
                if now.at >= first + SAME_SIGNAL && self.is_impatience(signal) {
                    warn!("{} again: ending as it is", signal.name());
                    self.end_as_it_is(now);
                } else {
                    self.stop(signal.name(), by, StopCause::Signal, now);
                }
            }
        }
    }

    /// Whether somebody means it who sends `signal` again. Slurm sends a second SIGTERM of its own, when a preempted
    /// job's GraceTime is over, and its SIGKILL comes by itself.
    fn is_impatience(&self, signal: DaemonSignal) -> bool {
        match signal {
            DaemonSignal::Interrupt => true,
            DaemonSignal::Terminate => !self.surroundings.slurm,
            _ => false,
        }
    }

    /// Whether `signal`, while the last snapshot is on its way to the remote, means that it is not waited for.
    pub fn ends_the_wait(&mut self, signal: DaemonSignal, now: ClockReading) -> bool {
        let first = *self.heard.entry(signal.name()).or_insert(now.at);
        (first == now.at || now.at >= first + SAME_SIGNAL) && self.is_impatience(signal)
    }

    /// When a session is over that is asked to end now. A deadline does not wait because a signal came first; one that
    /// is past has ended nothing.
    pub(super) fn grace_ends(&self, now: ClockReading) -> BootInstant {
        let by = now.at + self.config.session.grace.0;
        let ahead = self.deadline(now).filter(|deadline| deadline.at > now.at + HARD_END);
        ahead.map_or(by, |deadline| deadline.at.min(by))
    }

    /// Ends the session with a last snapshot, by `by` at the latest.
    pub(super) fn stop(&mut self, why: &str, by: BootInstant, cause: StopCause, now: ClockReading) {
        let first = self.stop.is_none();
        // Leave HARD_END for killing the worker.
        let by = (by - HARD_END).max(now.at);
        let (by, began, saved) = match &self.stop {
            Some(stop) => (stop.by.min(by), stop.began, stop.saved),
            None => (by, now.at, false),
        };
        self.stop = Some(StopRequest { by, why: why.to_owned(), cause, began, saved });
        self.progress.goes_on = self.surroundings.until_done && cause == StopCause::Budget;
        if !first {
            return;
        }
        self.progress.state = JobState::Stopping;
        match &self.phase {
            JobPhase::Choosing => {
                info!("stopping: {why}");
                // What it had committed before, it still reads back.
                self.phase = JobPhase::Settling(TrainingEnd::Interrupted);
                if self.unverified.is_empty() {
                    self.end_as_it_is(now);
                }
            }
            JobPhase::BackingOff { .. } => {
                info!("stopping: {why}");
                self.settle(TrainingEnd::Interrupted, now);
            }
            JobPhase::Running(run) => match run.phase {
                WorkerPhase::Training { .. } => {
                    self.say_stopping(why, cause, now);
                    let within = (by - now.at).saturating_sub(EXIT_RESERVE);
                    let within_ms = Some(u64::try_from(within.as_millis()).unwrap_or(u64::MAX));
                    self.act(JobAction::Send(AgentCommand::Stop { snapshot: true, reason: why.to_owned(), within_ms }));
                }
                WorkerPhase::Leaving { last_word: LastWord::Done(TrainingEnd::Complete), .. }
                    if cause != StopCause::Signal => {}
                WorkerPhase::Leaving { .. } | WorkerPhase::Killed { .. } if run.was_ready() => {
                    info!("stopping: {why}");
                }
                // It has trained nothing yet: there is nothing to save and nothing to wait for.
                _ => {
                    info!("stopping: {why}");
                    self.act(JobAction::Kill);
                }
            },
            // Nothing is left to be stopped.
            JobPhase::Settling(TrainingEnd::Complete) if cause != StopCause::Signal => {}
            JobPhase::Settling(_) | JobPhase::Confirming { .. } | JobPhase::Ended => info!("stopping: {why}"),
        }
    }

    /// That the last snapshot is taken now, and why not later.
    fn say_stopping(&self, why: &str, cause: StopCause, now: ClockReading) {
        match (cause, self.deadline(now)) {
            (StopCause::Signal, _) if self.surroundings.slurm => {
                info!("stopping: {why}; taking the last snapshot (SIGINT again ends at once)");
            }
            (StopCause::Signal, _) => {
                info!("stopping: {why}; taking the last snapshot (SIGINT or SIGTERM again ends at once)");
            }
            (_, Some(deadline)) if deadline.why == why && deadline.at > now.at => {
                let because = match self.final_cost() {
                    Some(cost) if self.replication.is_some() => {
                        format!("saving and sending it takes up to {}", rough_duration(cost))
                    }
                    Some(cost) => format!("saving takes up to {}", rough_duration(cost)),
                    None => "it is not measured yet how long saving takes".to_owned(),
                };
                let left = rough_duration(deadline.at - now.at);
                info!("stopping: {why}; taking the last snapshot {left} before the end, because {because}");
            }
            _ => info!("stopping: {why}; taking the last snapshot"),
        }
    }

    /// No worker is left: the session ends when what it committed is read back.
    pub(super) fn settle(&mut self, end: TrainingEnd, now: ClockReading) {
        self.phase = JobPhase::Settling(end);
        self.progress.state = JobState::Stopping;
        self.set_aside_spoiled();
        self.conclude_if_settled(now);
    }

    pub(super) fn conclude_if_settled(&mut self, now: ClockReading) {
        let JobPhase::Settling(end) = self.phase else { return };
        if self.unverified.is_empty() {
            self.phase = JobPhase::Confirming { end, until: now.at + CONFIRM_TIMEOUT };
            self.act(JobAction::LookAtStore);
        }
    }

    /// What the store holds at this moment: that is what the session ends with, whatever was read back before.
    pub(super) fn confirmed(&mut self, kept: Result<Option<KeptSnapshot>>, now: ClockReading) {
        let JobPhase::Confirming { end, .. } = self.phase else { return };
        self.progress.confirm(kept);
        self.conclude(end, now);
    }

    /// The store does not answer.
    pub(super) fn unconfirmed(&mut self, now: ClockReading) {
        let JobPhase::Confirming { end, .. } = self.phase else { return };
        warn!("the store does not say in time what it holds");
        self.conclude(end, now);
    }

    fn conclude(&mut self, end: TrainingEnd, now: ClockReading) {
        if let Some(reason) = self.gave_up.take() {
            let saved = match (&self.progress.lost, self.progress.last_durable()) {
                (Some(lost), _) => format!("nothing of it is left: {lost}"),
                (None, Some(last)) if last.state == SnapshotStage::Verified => {
                    format!("step {} is saved and verified", last.step)
                }
                (None, Some(last)) => format!("step {} is saved, not yet verified", last.step),
                (None, None) => "no snapshot is saved".to_owned(),
            };
            return self.end(Err(Error::Other(format!("{reason}; {saved}"))), now);
        }
        // A script is complete at the step at which it says so.
        let total = match self.config.train.steps {
            0 => self.progress.step,
            total => total,
        };
        let complete = self.progress.last_verified.as_ref().is_some_and(|last| last.step >= total);
        if end == TrainingEnd::Complete && complete {
            info!(step = total, "finished: all {total} steps are done, the last one is saved and verified");
            self.end(Ok(SessionOutcome::Finished), now);
        } else if end == TrainingEnd::Complete && self.stop.is_none() {
            let why = self.progress.lost.take().or_else(|| self.complaint.clone());
            let why = why.unwrap_or_else(|| "it was not verified".to_owned());
            let silent = WorkerExit { code: None, signal: None, out_of_memory: false, stderr_tail: Vec::new() };
            self.crashed(FailureCause::LastSnapshot(why), Some(self.progress.step), &silent, now);
        } else {
            self.learn_final(now);
            self.end_as_it_is(now);
        }
    }

    /// Ends a session whose training is not complete, saying what the next one goes on from.
    pub(super) fn end_as_it_is(&mut self, now: ClockReading) {
        let (step, of) = (self.progress.step, of_total(self.config.train.steps));
        let why = self.stop.as_ref().map_or("stopped", |stop| stop.why.as_str());
        let outcome = match (&self.progress.lost, self.progress.last_durable()) {
            (Some(lost), None) => Err(Error::Other(format!(
                "the session ended ({why}) after step {step}{of}, and nothing of it is left: {lost}; training restarts \
                 from step 0"
            ))),
            (None, None) if step > 0 => Err(Error::Other(format!(
                "the session ended ({why}) after step {step}{of} and before any snapshot; training restarts from step \
                 0"
            ))),
            (None, None) => {
                info!("session over ({why}): nothing was trained yet");
                Ok(SessionOutcome::Resume)
            }
            (lost, Some(last)) => {
                let is = if self.progress.is_confirmed { "is" } else { "was" };
                let state = match last.state {
                    SnapshotStage::Verified => "saved and verified",
                    _ => "saved, not yet verified",
                };
                let later = match step.saturating_sub(last.step) {
                    0 => String::new(),
                    n => format!("; {n} later steps are lost"),
                };
                let lost = lost.as_ref().map_or_else(String::new, |lost| format!(" ({lost})"));
                let saved = last.step;
                info!(
                    step = saved,
                    "session over ({why}): step {saved}{of} {is} {state}{later}{lost}; `ckptd run` goes on \
                     from it"
                );
                Ok(self.resume_when(saved))
            }
        };
        self.end(outcome, now);
    }

    /// Whether the next session may begin at once: nothing but the budget has ended this one, and it got on.
    fn resume_when(&mut self, saved: u64) -> SessionOutcome {
        let is_over = self.stop.as_ref().is_some_and(|stop| stop.cause == StopCause::Budget);
        let got_on = self.records.current().is_some_and(|session| saved > session.from_step);
        if is_over && !got_on && self.surroundings.until_done {
            warn!("a session of this budget saves no step: another one would not either; raise [session] budget");
        }
        self.progress.goes_on &= got_on;
        if is_over && got_on { SessionOutcome::BudgetOver } else { SessionOutcome::Resume }
    }

    /// What the final snapshot took, from the stop to its verification.
    fn learn_final(&mut self, now: ClockReading) {
        let verified = self.progress.last_snapshot.as_ref().is_some_and(|last| last.state == SnapshotStage::Verified);
        if let Some(stop) = self.stop.as_ref().filter(|stop| stop.saved && verified) {
            self.records.costs.finals_ms.push(now.at - stop.began);
        }
    }

    /// The time that is left for a tidy end.
    pub fn time_to_leave(&self, now: ClockReading) -> Duration {
        self.stop.as_ref().map_or(Duration::MAX, |stop| stop.by - now.at)
    }

    /// Threads that read a snapshot back: one beside a training, else all.
    pub fn verify_threads(&self) -> usize {
        match self.stop {
            None => 1,
            Some(_) => processors(),
        }
    }

    /// Whether nothing is left to be read back.
    pub fn is_settled(&self) -> bool {
        self.unverified.is_empty()
    }

    /// The loop kills and reaps the worker if one is left.
    pub(super) fn end(&mut self, outcome: Result<SessionOutcome>, now: ClockReading) {
        let outcome = match self.lost.take() {
            Some(lost) => Err(Error::Other(lost)),
            None => outcome,
        };
        self.count_time(now);
        self.phase = JobPhase::Ended;
        self.set_aside_spoiled();
        let why = match (&outcome, &self.stop) {
            (Ok(SessionOutcome::Finished), _) => "finished".to_owned(),
            (Err(error), None) => format!("failed: {error}"),
            (_, Some(stop)) => stop.why.clone(),
            (Ok(SessionOutcome::Resume | SessionOutcome::BudgetOver), None) => "stopped".to_owned(),
        };
        self.record_end(why.clone(), now);
        self.keep_end(&why, now);
        self.tell_end(&outcome, &why, now);
        if let (Ok(SessionOutcome::Resume | SessionOutcome::BudgetOver), Some(outlook)) =
            (&outcome, self.outlook(&self.records, now))
        {
            info!(sessions_left = outlook.sessions, "{}", outlook.text());
        }
        self.progress.state = match &outcome {
            Ok(SessionOutcome::Finished) => JobState::Finished,
            Ok(SessionOutcome::Resume | SessionOutcome::BudgetOver) => JobState::Stopped,
            Err(error) => {
                self.progress.problem = Some(error.to_string());
                JobState::Failed
            }
        };
        self.act(JobAction::End(outcome));
    }
}
