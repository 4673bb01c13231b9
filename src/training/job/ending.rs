//! How a session ends: signals, the last snapshot, the outcome.

use std::time::Duration;

use tracing::{info, warn};

use super::events::{JobAction, SessionOutcome, WorkerExit};
use super::machine::{JobMachine, StopCause, StopRequest};
use super::phase::{JobPhase, TrainingEnd, WorkerPhase};
use crate::daemon::report::{JobState, SnapshotStage};
use crate::daemon::signals::DaemonSignal;
use crate::session::clock::{BootInstant, ClockReading};
use crate::session::plan::EXIT_RESERVE;
use crate::training::restarts::FailureCause;
use ckptd_core::error::{Error, Result};
use ckptd_core::os::process::processors;
use ckptd_core::protocol::AgentCommand;

/// Signals this close together are one request: `timeout` signals a process and then its group, a terminal and a
/// script may both pass on a Ctrl-C.
const SAME_SIGNAL: Duration = Duration::from_millis(200);

/// Killing a worker takes time; it is done so long before the time to stop is over.
const HARD_END: Duration = Duration::from_millis(100);

impl JobMachine {
    pub(super) fn signalled(&mut self, signal: DaemonSignal, now: ClockReading) {
        let by = now.at + self.config.session.grace.0;
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
            DaemonSignal::Interrupt | DaemonSignal::Terminate => match &self.stop {
                Some(StopRequest { cause: StopCause::Signal, asked, .. }) if now.at < *asked + SAME_SIGNAL => {}
                Some(StopRequest { cause: StopCause::Signal, .. }) => {
                    warn!("{} again: ending as it is", signal.name());
                    self.end_as_it_is(now);
                }
                _ => self.stop(signal.name(), by, StopCause::Signal, now),
            },
            DaemonSignal::Finish => self.stop(signal.name(), by, StopCause::Signal, now),
        }
    }

    /// Ends the session with a last snapshot, by `by` at the latest.
    pub(super) fn stop(&mut self, why: &str, by: BootInstant, cause: StopCause, now: ClockReading) {
        let first = self.stop.is_none();
        let is_first_signal = |stop: &&StopRequest| stop.cause == StopCause::Plan && cause == StopCause::Signal;
        let asked = self.stop.as_ref().filter(|stop| !is_first_signal(stop)).map_or(now.at, |stop| stop.asked);
        // Leave HARD_END for killing the worker.
        let by = (by - HARD_END).max(now.at);
        // A deadline does not wait because a signal came first, nor a signal because a deadline is near.
        let by = self.deadline(now).map_or(by, |deadline| (deadline.at - HARD_END).max(now.at).min(by));
        let (by, began, saved) = match &self.stop {
            Some(stop) => (stop.by.min(by), stop.began, stop.saved),
            None => (by, now.at, false),
        };
        self.stop = Some(StopRequest { by, why: why.to_owned(), cause, asked, began, saved });
        if !first {
            return;
        }
        self.progress.state = JobState::Stopping;
        match &mut self.phase {
            JobPhase::Choosing | JobPhase::BackingOff { .. } => {
                info!("stopping: {why}");
                self.settle_when_idle(now);
            }
            JobPhase::Running(run) => match run.phase {
                WorkerPhase::Training { .. } => {
                    info!("stopping: {why}; taking the last snapshot (a second signal ends at once)");
                    let within = (by - now.at).saturating_sub(EXIT_RESERVE);
                    let within_ms = Some(u64::try_from(within.as_millis()).unwrap_or(u64::MAX));
                    self.act(JobAction::Send(AgentCommand::Stop { snapshot: true, reason: why.to_owned(), within_ms }));
                }
                WorkerPhase::Leaving { .. } | WorkerPhase::Killed { .. } if run.was_ready() => {
                    info!("stopping: {why}");
                }
                // It has trained nothing yet: there is nothing to save and nothing to wait for.
                _ => {
                    info!("stopping: {why}");
                    self.act(JobAction::Kill);
                }
            },
            JobPhase::Settling(_) | JobPhase::Ended => info!("stopping: {why}"),
        }
    }

    fn settle_when_idle(&mut self, now: ClockReading) {
        self.phase = JobPhase::Settling(TrainingEnd::Interrupted);
        if self.unverified.is_empty() {
            self.end_as_it_is(now);
        }
    }

    /// No worker is left: the session ends when what it committed is read back.
    pub(super) fn settle(&mut self, end: TrainingEnd, now: ClockReading) {
        self.phase = JobPhase::Settling(end);
        self.progress.state = JobState::Stopping;
        self.conclude_if_settled(now);
    }

    pub(super) fn conclude_if_settled(&mut self, now: ClockReading) {
        let JobPhase::Settling(end) = self.phase else { return };
        if !self.unverified.is_empty() {
            return;
        }
        let total = self.config.train.steps;
        let complete = self.progress.last_verified.as_ref().is_some_and(|last| last.step >= total);
        if end == TrainingEnd::Complete && complete {
            info!(step = total, "finished: all {total} steps are done, the last one is saved and verified");
            self.end(Ok(SessionOutcome::Finished), now);
        } else if end == TrainingEnd::Complete && self.stop.is_none() {
            let why = self.complaint.clone().unwrap_or_else(|| "it was not verified".to_owned());
            let silent = WorkerExit { code: None, signal: None, out_of_memory: false, stderr_tail: Vec::new() };
            self.crashed(FailureCause::LastSnapshot(why), Some(self.progress.step), &silent, now);
        } else {
            self.learn_final(now);
            self.end_as_it_is(now);
        }
    }

    /// Ends a session whose training is not complete, saying what the next one goes on from.
    pub(super) fn end_as_it_is(&mut self, now: ClockReading) {
        let (step, total) = (self.progress.step, self.config.train.steps);
        let why = self.stop.as_ref().map_or("stopped", |stop| stop.why.as_str());
        let outcome = match self.progress.last_durable() {
            None if step > 0 => Err(Error::Other(format!(
                "the session ended ({why}) after step {step} of {total} and before any snapshot; \
                 training restarts from step 0"
            ))),
            None => {
                info!("session over ({why}): nothing was trained yet");
                Ok(SessionOutcome::Resume)
            }
            Some(last) => {
                let state = match last.state {
                    SnapshotStage::Verified => "saved and verified",
                    _ => "saved, not yet verified",
                };
                let lost = match step.saturating_sub(last.step) {
                    0 => String::new(),
                    n => format!("; {n} later steps are lost"),
                };
                let saved = last.step;
                info!(
                    step = saved,
                    "session over ({why}): step {saved} of {total} is {state}{lost}; `ckptd run` goes on from it"
                );
                Ok(SessionOutcome::Resume)
            }
        };
        self.end(outcome, now);
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
        self.count_time(now);
        self.phase = JobPhase::Ended;
        self.record_end(
            match (&outcome, &self.stop) {
                (Ok(SessionOutcome::Finished), _) => "finished".to_owned(),
                (Err(error), None) => format!("failed: {error}"),
                (_, Some(stop)) => stop.why.clone(),
                (Ok(SessionOutcome::Resume), None) => "stopped".to_owned(),
            },
            now,
        );
        if let (Ok(SessionOutcome::Resume), Some(outlook)) =
            (&outcome, self.records.outlook(self.config.train.steps, now.wall))
        {
            info!(sessions_left = outlook.sessions, "{}", outlook.text());
        }
        self.progress.state = match &outcome {
            Ok(SessionOutcome::Finished) => JobState::Finished,
            Ok(SessionOutcome::Resume) => JobState::Stopped,
            Err(error) => {
                self.progress.problem = Some(error.to_string());
                JobState::Failed
            }
        };
        self.act(JobAction::End(outcome));
    }
}
