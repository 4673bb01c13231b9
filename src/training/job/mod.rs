//! What the agent does about what happens: a state machine without clock, process or disk.
//!
//! SnapshotEvery event goes through [`Job::on`], which returns what is to be done; the loop around it does that and nothing
//! else. Invariant: at most one worker runs; what it commits counts only after the keeper has read it back; a job that
//! was asked to stop ends by the time that was given. Deliberately not here: when a snapshot is due (session), when a
//! failed worker is started again (restarts), tokio, the store.

mod ending;
mod events;
mod plan;
mod reload;
#[cfg(test)]
mod session_tests;
#[cfg(test)]
mod tests;
mod worker;

use std::collections::BTreeMap;
use std::time::Duration;

use tracing::{debug, info, warn};

pub use events::{ClockReading, JobAction, JobEvent, Outcome, ReadBack, Resume, ResumeDecision, Signal, WorkerExit};

use super::progress::{HistoryReport, IntervalReport, Progress, Report, SnapshotState, State};
use super::restarts::{Cause, Restarts};
use crate::session::clock::BootInstant;
use crate::session::costs::CostMeter;
use crate::session::notice::{NoticeKind, SessionNotice};
use crate::session::plan::{EXIT_RESERVE, SessionPlan};
use crate::session::records::SessionRecords;
use ckptd_core::config::{Config, SnapshotEvery};
use ckptd_core::error::{Error, Result};
use ckptd_core::ids::{RunId, SnapshotId};
use ckptd_core::protocol::{self, AgentCommand, WorkerFailure};

/// Without a message of the worker's own for so long after its start, it does not speak the protocol.
const HELLO_TIMEOUT: Duration = Duration::from_secs(60);
/// What a worker may take to exit after its last message.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(20);
/// A wake-up so late means that the agent itself stood still, so that the worker's silence proves nothing.
const OVERSLEPT: Duration = Duration::from_secs(3);

pub struct Job {
    config: Config,
    run_id: RunId,
    accept_changes: bool,
    phase: Phase,
    progress: Progress,
    restarts: Restarts,
    stop: Option<Stop>,
    began: BootInstant,
    /// When the state that the next worker would go on from was captured, or the training began.
    last_snapshot: BootInstant,
    /// When the snapshot in flight was begun.
    in_flight: Option<BootInstant>,
    /// What notice sources say of the session's end.
    notices: BTreeMap<String, BootInstant>,
    records: SessionRecords,
    meter: CostMeter,
    /// When the records was given to be written last.
    recorded: Option<BootInstant>,
    /// Snapshots that the keeper has not judged yet.
    unjudged: Vec<Unjudged>,
    /// What the user was told last about snapshots that fail, so that it is told once.
    complaint: Option<String>,
    /// Snapshots in a row that were not what was written.
    refuted_in_a_row: u32,
    actions: Vec<JobAction>,
}

enum Phase {
    Choosing,
    BackingOff {
        until: BootInstant,
    },
    Running(Box<Run>),
    /// No worker is left; what it committed is being read back.
    Settling {
        finished: bool,
    },
    Ended,
}

/// A worker's life.
struct Run {
    resume: Option<Resume>,
    next_seq: u64,
    last_sign: BootInstant,
    greeted: bool,
    ready: bool,
    /// The last completed step, and when that was.
    step: u64,
    step_began: Option<BootInstant>,
    /// Training time is in the records up to here.
    counted_to: Option<BootInstant>,
    /// The worker can be told other settings while it runs.
    configurable: bool,
    /// It has said its last word: `Ok(finished)` or why it failed.
    last_word: Option<Result<bool, (WorkerFailure, String)>>,
    leave_by: Option<BootInstant>,
    killed_for: Option<Cause>,
}

struct Stop {
    by: BootInstant,
    why: String,
    by_signal: bool,
    /// When it was asked for first, by a signal if there was one.
    asked: BootInstant,
    /// When the worker was told, and whether it has made anything durable since.
    began: BootInstant,
    saved: bool,
}

struct Unjudged {
    id: SnapshotId,
    step: u64,
    write: Duration,
    began: BootInstant,
    stall: Duration,
}

impl Job {
    /// A job whose session begins `now`, with what is to be done first.
    /// `records` is what the store's earlier sessions left.
    pub fn new(
        config: Config,
        run_id: RunId,
        accept_changes: bool,
        mut records: SessionRecords,
        now: ClockReading,
    ) -> (Job, Vec<JobAction>) {
        let progress = Progress::new(config.train.steps);
        records.begin(&run_id, now.wall);
        let mut job = Job {
            phase: Phase::Choosing,
            progress,
            restarts: Restarts::default(),
            stop: None,
            began: now.at,
            last_snapshot: now.at,
            in_flight: None,
            notices: BTreeMap::new(),
            records,
            meter: CostMeter::default(),
            recorded: None,
            unjudged: Vec::new(),
            complaint: None,
            refuted_in_a_row: 0,
            actions: Vec::new(),
            config,
            run_id,
            accept_changes,
        };
        job.act(JobAction::Choose { discard: None });
        job.record(true, now);
        let actions = std::mem::take(&mut job.actions);
        (job, actions)
    }

    pub fn progress(&self) -> &Progress {
        &self.progress
    }

    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Takes note of `event` and says what is to be done.
    pub fn on(&mut self, event: JobEvent, now: ClockReading) -> Vec<JobAction> {
        match event {
            JobEvent::Chosen(choice) => self.chosen(choice, now),
            JobEvent::NotStarted(error) => self.end(Err(error), now),
            JobEvent::Judged { id, verdict } => self.judged(&id, verdict, now),
            JobEvent::Started { pid } => self.progress.worker_pid = Some(pid),
            JobEvent::Said(message) => self.said(*message, now),
            JobEvent::Garbage(what) => self.kill_for(Cause::Garbage(what), now),
            JobEvent::Exited(exit) => self.exited(exit, now),
            JobEvent::Signal(signal) => self.signalled(signal, now),
            JobEvent::Notice(notice) => self.noticed(notice, now),
            JobEvent::Config(config) => self.reconfigured(config, now),
            JobEvent::Tick => self.ticked(now),
        }
        self.keep_to_plan(now);
        self.progress.deadline = self.deadline(now).map(|deadline| now.wall_at(deadline.at));
        std::mem::take(&mut self.actions)
    }

    /// When [`JobEvent::Tick`] is wanted at the latest.
    pub fn wake_at(&self, now: ClockReading) -> Option<BootInstant> {
        let of_phase = match &self.phase {
            Phase::BackingOff { until } => Some(*until),
            Phase::Running(run) => Some(self.patience_ends(run)),
            Phase::Choosing | Phase::Settling { .. } | Phase::Ended => None,
        };
        let of_plan = match (&self.stop, self.plan(now)) {
            (None, SessionPlan::GoOn { until }) => until,
            (None, SessionPlan::Snapshot { .. } | SessionPlan::Stop { .. }) => Some(now.at),
            (Some(stop), _) => Some(stop.by),
        };
        [of_phase, of_plan].into_iter().flatten().min()
    }

    /// When a worker that says nothing more is killed.
    fn patience_ends(&self, run: &Run) -> BootInstant {
        let silence = if run.greeted { self.config.worker.hang_timeout.0 } else { HELLO_TIMEOUT };
        run.leave_by.unwrap_or(run.last_sign + silence)
    }

    /// Whether a worker trains that commands can be given to.
    fn trains(&self) -> bool {
        let trains = |run: &Run| run.ready && run.last_word.is_none() && run.killed_for.is_none();
        matches!(&self.phase, Phase::Running(run) if trains(run))
    }

    fn ticked(&mut self, now: ClockReading) {
        if let Some(stop) = &self.stop
            && now.at >= stop.by
        {
            warn!("the time to stop is over; ending as it is");
            return self.end_as_it_is(now);
        }
        let patience_ends = match &self.phase {
            Phase::Running(run) => self.patience_ends(run),
            _ => now.at,
        };
        match &mut self.phase {
            Phase::BackingOff { until } if now.at >= *until => self.choose(None),
            Phase::Running(run) if now.at >= patience_ends => {
                if run.killed_for.is_some() {
                    warn!("the killed worker is not gone yet");
                    run.leave_by = Some(now.at + LEAVE_TIMEOUT);
                } else if now.at - patience_ends > OVERSLEPT {
                    run.last_sign = now.at;
                    run.leave_by = run.leave_by.map(|_| now.at + LEAVE_TIMEOUT);
                } else {
                    let silence = now.at - run.last_sign;
                    self.kill_for(Cause::Hung(silence), now);
                }
            }
            _ => {}
        }
    }

    fn choose(&mut self, discard: Option<(SnapshotId, String)>) {
        self.phase = Phase::Choosing;
        self.progress.state = State::Starting;
        self.act(JobAction::Choose { discard });
    }

    fn chosen(&mut self, choice: Result<ResumeDecision>, now: ClockReading) {
        if !matches!(self.phase, Phase::Choosing) {
            return; // The session was asked to end meanwhile.
        }
        let choice = match choice {
            Ok(choice) => choice,
            Err(error) => return self.end(Err(error), now),
        };
        let total = self.config.train.steps;
        let step = choice.resume.as_ref().map_or(0, |resume| resume.step);
        self.progress.forget_snapshots();
        if let Some(resume) = &choice.resume {
            self.progress.snapshot(&resume.id, resume.step, SnapshotState::Verified, resume.created_at);
        }
        self.began_at(step);
        self.progress.step = step;
        if choice.resume.as_ref().is_some_and(|resume| self.config.train.is_complete(&resume.train)) {
            info!(step, "the training is finished: step {step} of {total} is saved and verified");
            return self.end(Ok(Outcome::Finished), now);
        }
        match &choice.resume {
            Some(resume) => info!(step, id = %resume.id, "resuming from step {step} of {total}: {}", resume.why),
            None => info!("starting a training of {total} steps"),
        }
        self.phase = Phase::Running(Box::new(Run {
            resume: choice.resume,
            next_seq: choice.next_seq,
            last_sign: now.at,
            greeted: false,
            ready: false,
            step,
            step_began: None,
            counted_to: None,
            configurable: false,
            last_word: None,
            leave_by: None,
            killed_for: None,
        }));
        self.act(JobAction::Spawn);
    }

    /// A worker is about to go on after `step` steps; what an earlier one did beyond them is lost.
    fn began_at(&mut self, step: u64) {
        let reached = self.progress.step;
        let Some(session) = self.records.current() else { return };
        if session.from_step == session.saved_step && session.trained_seconds == 0.0 {
            (session.from_step, session.saved_step, session.step) = (step, step, step);
        }
        session.lost_steps += reached.saturating_sub(step);
    }

    fn judged(&mut self, id: &SnapshotId, verdict: ReadBack, now: ClockReading) {
        let Some(at) = self.unjudged.iter().position(|u| u.id == *id) else { return };
        let Unjudged { step, write, began, stall, .. } = self.unjudged.swap_remove(at);
        match verdict {
            ReadBack::Verified { step: found, .. } if found != step => {
                self.kill_for(Cause::Garbage(format!("it announced {id} as step {step}, and it is step {found}")), now);
            }
            ReadBack::Verified { bytes, raw_bytes, healthy, created_at, took, .. } => {
                let ratio = raw_bytes as f64 / bytes.max(1) as f64;
                let seconds = (write + took).as_secs_f64();
                let size = bytesize::ByteSize(bytes);
                info!(
                    step,
                    %id, bytes, ratio, seconds, "verified step {step}: {size}, {ratio:.2}x smaller, {seconds:.1} s"
                );
                if !healthy {
                    warn!(step, "step {step} holds values that are not finite; a resume passes over it");
                }
                self.refuted_in_a_row = 0;
                self.progress.counts.verified += 1;
                // What is verified now may be older than what could not be written since.
                if self.complaint.is_none() {
                    self.progress.problem = None;
                }
                self.progress.snapshot(id, step, SnapshotState::Verified, created_at);
                self.learn_snapshot(began, stall, now);
                self.record(false, now);
            }
            ReadBack::Quarantined { reason } => {
                let told = format!("step {step} is not what was written and went to quarantine: {reason}");
                warn!(step, %id, "{told}");
                self.progress.problem = Some(told);
                self.progress.counts.quarantined += 1;
                self.progress.snapshot(id, step, SnapshotState::Quarantined, now.wall);
                self.refuted(now);
            }
            ReadBack::Unknown { reason } => {
                let told = format!("step {step} could not be verified: {reason}");
                warn!(step, %id, "{told}");
                self.progress.problem = Some(told);
                self.refuted(now);
            }
            ReadBack::Gone => warn!(step, %id, "step {step} is not in the store any more"),
        }
        self.conclude_if_settled(now);
    }

    /// Takes another snapshot at once, unless that one was just taken for the same reason.
    fn refuted(&mut self, now: ClockReading) {
        self.refuted_in_a_row += 1;
        if self.refuted_in_a_row == 1 && self.stop.is_none() {
            self.request_snapshot("the last one failed its verification", now);
        }
    }

    fn act(&mut self, action: JobAction) {
        self.actions.push(action);
    }
}
