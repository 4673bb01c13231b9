//! The machine: every event goes through [`JobMachine::on`], which returns what is to be done; the loop around it does
//! that and nothing else.
//!
//! Invariant: at most one worker runs; what it commits counts only after the verifier has read it back; a job that was
//! asked to stop ends by the time that was given. Deliberately not here: when a snapshot is due (session/plan), when a
//! failed worker is started again (restarts), tokio, the store.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use tracing::{info, warn};

use super::committed::{CommittedSnapshot, SuspectSnapshots};
use super::events::{JobAction, JobEvent, SessionOutcome};
use super::phase::{JobPhase, WorkerPhase, WorkerRun};
use crate::daemon::report::{JobState, SnapshotStage};
use crate::daemon::verifier::{ResumeDecision, ResumePoint};
use crate::session::clock::{BootInstant, ClockReading};
use crate::session::costs::CostMeter;
use crate::session::plan::SessionPlan;
use crate::session::records::SessionRecords;
use crate::training::opening::MachineRoom;
use crate::training::progress::JobProgress;
use crate::training::replication::Replication;
use crate::training::restarts::{FailureCause, RestartPolicy};
use crate::training::sanity::SanityWatch;
use crate::training::settings_change;
use ckptd_core::config::{Config, DataSection};
use ckptd_core::error::{Error, Result};
use ckptd_core::ids::RunId;

/// Without a message of the worker's own for so long after its start, it does not speak the protocol.
pub(super) const HELLO_TIMEOUT: Duration = Duration::from_secs(60);
/// What a worker may take to exit after its last message.
pub(super) const LEAVE_TIMEOUT: Duration = Duration::from_secs(20);
/// A wake-up so late means that the daemon itself stood still, so that the worker's silence proves nothing.
pub(super) const OVERSLEPT: Duration = Duration::from_secs(3);

/// One job in one session.
pub struct JobMachine {
    pub(super) config: Config,
    /// What the worker is given in place of the config's own data.
    pub(super) data: Option<DataSection>,
    pub(super) run_id: RunId,
    pub(super) accept_changes: bool,
    pub(super) phase: JobPhase,
    pub(super) progress: JobProgress,
    pub(super) restarts: RestartPolicy,
    pub(super) stop: Option<StopRequest>,
    pub(super) began: BootInstant,
    /// When the state that the next worker would go on from was captured, or the training began.
    pub(super) last_snapshot: BootInstant,
    /// When the snapshot in flight was begun.
    pub(super) in_flight: Option<BootInstant>,
    /// What notice sources say of the session's end.
    pub(super) notices: BTreeMap<String, BootInstant>,
    /// When the sources were asked, beside their own rhythm, since an end was past; and who has answered.
    pub(super) question: Option<SourceQuestion>,
    /// When the last event was taken in; the session begins before the loop does.
    pub(super) awake_at: Option<BootInstant>,
    /// When each kind of signal that ends the session came first.
    pub(super) heard: BTreeMap<&'static str, BootInstant>,
    pub(super) surroundings: JobSurroundings,
    pub(super) records: SessionRecords,
    pub(super) meter: CostMeter,
    pub(super) sanity: SanityWatch,
    /// What there is on this machine; `None` once the session's opening was told.
    pub(super) room: Option<MachineRoom>,
    /// When the records were given to be written last.
    pub(super) recorded: Option<BootInstant>,
    /// Snapshots that the verifier has not read back yet.
    pub(super) unverified: Vec<CommittedSnapshot>,
    pub(super) suspects: SuspectSnapshots,
    /// What the user was told last about snapshots that fail, so that it is told once.
    pub(super) complaint: Option<String>,
    /// Why no worker is started any more; told with what the store holds then.
    pub(super) gave_up: Option<String>,
    /// Snapshots in a row that were not what was written.
    pub(super) refuted_in_a_row: u32,
    /// `None`: the job has no remote.
    pub(super) replication: Option<Replication>,
    /// Another process owns the job now, in words.
    pub(super) lost: Option<String>,
    pub(super) actions: Vec<JobAction>,
}

/// What a job is run in.
#[derive(Clone, Copy, Debug, Default)]
pub struct JobSurroundings {
    /// An allocation of Slurm, which sends SIGTERM more than once by itself.
    pub slurm: bool,
    /// A process that begins the next session when the budget has ended this one.
    pub until_done: bool,
}

/// When the records are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RecordTiming {
    AtOnce,
    /// Unless they just were.
    WhenDue,
}

/// That the sources of notices were asked again.
pub(super) struct SourceQuestion {
    pub(super) asked: BootInstant,
    pub(super) answered: Vec<String>,
    /// That an end waits for the answer was told.
    pub(super) is_told: bool,
}

/// What asks for an end of the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StopCause {
    Signal,
    /// A time of day, or a notice.
    Plan,
    /// The session's budget.
    Budget,
}

pub(super) struct StopRequest {
    pub(super) by: BootInstant,
    pub(super) why: String,
    pub(super) cause: StopCause,
    /// When the worker was told, and whether it has made anything durable since.
    pub(super) began: BootInstant,
    pub(super) saved: bool,
}

impl JobMachine {
    /// A job whose session begins `now`, with what is to be done first. `records`: the store's earlier sessions.
    pub fn new(
        config: Config,
        run_id: RunId,
        accept_changes: bool,
        mut records: SessionRecords,
        now: ClockReading,
    ) -> (JobMachine, Vec<JobAction>) {
        let progress = JobProgress::new(config.train.steps);
        records.begin(&run_id, now.wall);
        let mut job = JobMachine {
            phase: JobPhase::Choosing,
            progress,
            restarts: RestartPolicy::default(),
            stop: None,
            began: now.at,
            last_snapshot: now.at,
            in_flight: None,
            notices: BTreeMap::new(),
            question: None,
            awake_at: None,
            heard: BTreeMap::new(),
            surroundings: JobSurroundings::default(),
            records,
            meter: CostMeter::default(),
            sanity: SanityWatch::default(),
            room: None,
            recorded: None,
            unverified: Vec::new(),
            suspects: SuspectSnapshots::default(),
            complaint: None,
            gave_up: None,
            refuted_in_a_row: 0,
            replication: Replication::of(&config.remote),
            lost: None,
            actions: Vec::new(),
            data: None,
            config,
            run_id,
            accept_changes,
        };
        job.act(JobAction::Choose { discard: Vec::new() });
        job.record(RecordTiming::AtOnce, now);
        job.keep_start(now);
        let actions = std::mem::take(&mut job.actions);
        (job, actions)
    }

    /// Has the session's opening told once a worker is ready, with the room that this machine has.
    pub fn tell_opening(&mut self, room: MachineRoom) {
        self.room = Some(room);
    }

    /// How far it is.
    pub fn progress(&self) -> &JobProgress {
        &self.progress
    }

    /// Its config as it is now.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The same job in such `surroundings`.
    #[must_use]
    pub fn within(mut self, surroundings: JobSurroundings) -> JobMachine {
        self.surroundings = surroundings;
        self
    }

    /// Takes note of `event` and says what is to be done.
    pub fn on(&mut self, event: JobEvent, now: ClockReading) -> Vec<JobAction> {
        self.stay_awake(now);
        match event {
            JobEvent::Chosen(choice) => self.chosen(choice, now),
            JobEvent::NotStarted(error) => self.end(Err(error), now),
            JobEvent::ReadBack { id, result } => self.read_back(&id, result, now),
            JobEvent::Started { pid, ranks } => self.started(pid, ranks),
            JobEvent::Connected { pid } => self.progress.worker_pid = Some(pid),
            JobEvent::Said(message) => self.said(*message, now),
            JobEvent::ProtocolError(what) => self.kill_for(FailureCause::ProtocolError(what), now),
            JobEvent::Exited(exit) => self.exited(exit, now),
            JobEvent::Signal(signal) => self.signalled(signal, now),
            JobEvent::Notice(notice) => self.noticed(notice, now),
            JobEvent::Config(config) => self.reconfigured(config, now),
            JobEvent::Kept(kept) => self.confirmed(kept, now),
            JobEvent::Remote(news) => self.replicated(news, now),
            JobEvent::Tick => self.ticked(now),
        }
        self.after(now);
        std::mem::take(&mut self.actions)
    }

    /// What follows on anything that has happened.
    pub(super) fn after(&mut self, now: ClockReading) {
        self.keep_to_plan(now);
        self.note_outlook(now);
    }

    /// When [`JobEvent::Tick`] is wanted at the latest.
    pub fn wake_at(&self, now: ClockReading) -> Option<BootInstant> {
        let of_phase = match &self.phase {
            JobPhase::BackingOff { until } => Some(*until),
            JobPhase::Running(run) => Some(self.patience_ends(run)),
            JobPhase::Confirming { until, .. } => Some(*until),
            JobPhase::Choosing | JobPhase::Settling(_) | JobPhase::Ended => None,
        };
        let of_plan = match (&self.stop, self.plan(now)) {
            (None, SessionPlan::GoOn { until }) => until,
            (None, SessionPlan::Stop(deadline)) => Some(self.answer_awaited(&deadline, now).unwrap_or(now.at)),
            (None, SessionPlan::Snapshot { .. }) => Some(now.at),
            (Some(stop), _) => Some(stop.by),
        };
        [of_phase, of_plan].into_iter().flatten().min()
    }

    /// When a worker that says nothing more is killed.
    fn patience_ends(&self, run: &WorkerRun) -> BootInstant {
        match run.phase {
            WorkerPhase::Starting => run.last_sign + HELLO_TIMEOUT,
            WorkerPhase::Loading | WorkerPhase::Training { .. } => run.last_sign + self.config.worker.hang_timeout.0,
            WorkerPhase::Leaving { by, .. } | WorkerPhase::Killed { by, .. } => by,
        }
    }

    /// When the step under way began; `None`: no worker trains that commands can be given to.
    pub(super) fn step_began(&self) -> Option<BootInstant> {
        match &self.phase {
            JobPhase::Running(run) => run.step_began(),
            _ => None,
        }
    }

    /// Whether a worker trains that commands can be given to.
    pub(super) fn trains(&self) -> bool {
        self.step_began().is_some()
    }

    fn ticked(&mut self, now: ClockReading) {
        if let Some(stop) = &self.stop
            && now.at >= stop.by
        {
            warn!("the time to stop is over; ending as it is");
            return self.end_as_it_is(now);
        }
        let patience_ends = match &self.phase {
            JobPhase::Running(run) => self.patience_ends(run),
            _ => now.at,
        };
        match &mut self.phase {
            JobPhase::BackingOff { until } if now.at >= *until => self.choose(),
            JobPhase::Confirming { until, .. } if now.at >= *until => self.unconfirmed(now),
            JobPhase::Running(run) if now.at >= patience_ends => match &mut run.phase {
                WorkerPhase::Killed { by, .. } => {
                    warn!("the killed worker is not gone yet");
                    *by = now.at + LEAVE_TIMEOUT;
                }
                phase if now.at - patience_ends > OVERSLEPT => {
                    if let WorkerPhase::Leaving { by, .. } = phase {
                        *by = now.at + LEAVE_TIMEOUT;
                    }
                    run.last_sign = now.at;
                }
                _ => {
                    let silence = now.at - run.last_sign;
                    self.kill_for(FailureCause::Hung(silence), now);
                }
            },
            _ => {}
        }
    }

    pub(super) fn choose(&mut self) {
        self.phase = JobPhase::Choosing;
        self.progress.state = JobState::Starting;
        let discard = self.take_spoiled();
        self.act(JobAction::Choose { discard });
    }

    fn chosen(&mut self, choice: Result<ResumeDecision>, now: ClockReading) {
        if !matches!(self.phase, JobPhase::Choosing) {
            return; // It was asked to end meanwhile.
        }
        let choice = match choice {
            Ok(choice) => choice,
            Err(error) => return self.end(Err(error), now),
        };
        choice.quarantined.iter().for_each(|(id, reason)| self.keep_quarantined(id, reason, now));
        let total = self.config.train.steps;
        let step = choice.resume.as_ref().map_or(0, |resume| resume.step);
        self.progress.forget_snapshots();
        if let Some(resume) = &choice.resume {
            self.progress.snapshot(&resume.id, resume.step, SnapshotStage::Verified, resume.created_at);
        }
        self.began_at(step, choice.resume.as_ref().map(|resume| resume.created_at));
        self.progress.step = step;
        if choice.resume.as_ref().is_some_and(|resume| self.config.train.is_complete(&resume.train)) {
            match step {
                _ if step > total => {
                    info!(
                        step,
                        "the training is finished: step {step} is saved and verified, [train] steps is {total}"
                    );
                }
                _ => info!(step, "the training is finished: step {step} of {total} is saved and verified"),
            }
            return self.end(Ok(SessionOutcome::Finished), now);
        }
        if let Some(resume) = &choice.resume
            && let Err(refused) = self.check_settings(resume)
        {
            return self.end(Err(refused), now);
        }
        match &choice.resume {
            Some(resume) => {
                info!(step, id = %resume.id, "resuming from step {step}{}: {}", of_total(total), resume.why);
            }
            None if total == 0 => info!("starting a training"),
            None => info!("starting a training of {total} steps"),
        }
        self.keep_resume(choice.resume.as_ref(), now);
        let run = WorkerRun::new(choice.resume, choice.next_seq, step, now.at);
        self.phase = JobPhase::Running(Box::new(run));
        self.act(JobAction::Spawn);
    }

    /// Refuses a resume under other settings before a worker is started, or says what they do.
    fn check_settings(&self, resume: &ResumePoint) -> Result<()> {
        if !self.config.worker.script.is_empty() {
            // Its package compares what it knows, and the file says nothing of it.
            return Ok(());
        }
        let then = &resume.train.settings;
        let differences = settings_change::differences(&self.config, then);
        if differences.is_empty() {
            return Ok(());
        }
        let list = settings_change::list(&differences);
        let rate = settings_change::rate_change(&self.config, then, resume.step);
        if !self.accept_changes {
            let rate = if rate.is_empty() { rate } else { format!(" ({rate})") };
            let reason = format!(
                "was trained with other settings ({list}); put them back, or go on with the new ones: --accept-changes\
                 {rate}"
            );
            return Err(Error::mismatch(&resume.path, reason));
        }
        if !rate.is_empty() {
            info!("{rate}");
        }
        Ok(())
    }

    /// A worker is about to go on after `step` steps; what an earlier one did beyond them is lost.
    fn began_at(&mut self, step: u64, saved_at: Option<Timestamp>) {
        let reached = self.progress.step;
        let Some(session) = self.records.current() else { return };
        let is_first = session.from_step == session.saved_step && session.trained_seconds == 0.0;
        if is_first {
            (session.from_step, session.saved_step, session.step) = (step, step, step);
        }
        session.lost_steps += reached.saturating_sub(step);
        if is_first {
            self.records.correct_killed(step, saved_at);
        }
        self.act(JobAction::Record(Box::new(self.records.clone())));
    }

    pub(super) fn act(&mut self, action: JobAction) {
        self.actions.push(action);
    }
}

/// " of 1000", where the steps of the whole training are known.
pub(super) fn of_total(total: u64) -> String {
    if total > 0 { format!(" of {total}") } else { String::new() }
}
