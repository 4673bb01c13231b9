//! What the worker says, and how it goes.

use std::time::Duration;

use rustix::process::Signal;
use tracing::{debug, info, warn};

use super::events::{JobAction, WorkerExit};
use super::machine::{JobMachine, LEAVE_TIMEOUT, RecordTiming};
use super::phase::{JobPhase, LastWord, TrainingEnd, WorkerPhase};
use crate::daemon::report::{JobState, RanksReport};
use crate::session::clock::ClockReading;
use crate::training::restarts::{FailureCause, RestartDecision};
use crate::training::sanity::TrainingFacts;
use ckptd_core::config::{Config, RankCount, RanksSection};
use ckptd_core::error::Error;
use ckptd_core::ids::SnapshotId;
use ckptd_core::protocol::{self, AgentCommand, MessageLevel, Start, WorkerEvent, WorkerFailure};
use ckptd_core::text::{counted, rough_duration};
use ckptd_history::record::HistoryEvent;

impl JobMachine {
    pub(super) fn said(&mut self, message: WorkerEvent, now: ClockReading) {
        let JobPhase::Running(run) = &mut self.phase else { return };
        if !run.is_heard() {
            return;
        }
        if let WorkerEvent::Ranks { ranks } = message {
            // Said by a thread that goes on when the training hangs.
            self.progress.ranks = RanksReport::of(&ranks, &self.config.ranks);
            return;
        }
        run.last_sign = now.at;
        if let WorkerEvent::Hello { protocol, worker, version, accepts, .. } = message {
            run.configurable = accepts.iter().any(|command| command == "configure");
            run.evaluates = accepts.iter().any(|what| what == "evaluations");
            return self.greeted(protocol, &worker, &version, now);
        }
        if matches!(run.phase, WorkerPhase::Starting) {
            return self.kill_for(FailureCause::ProtocolError("its first message is not hello".into()), now);
        }
        self.keep_said(&message, now);
        let JobPhase::Running(run) = &mut self.phase else { return };
        match message {
            WorkerEvent::Hello { .. } | WorkerEvent::Alive { .. } | WorkerEvent::Ranks { .. } => {}
            WorkerEvent::Agreed { step } => self.agreed(step),
            WorkerEvent::Disagreed { dispute, what, is_rank_zero_right } => {
                self.disagreed(dispute, &what, is_rank_zero_right, now);
            }
            WorkerEvent::Progress { stage, fraction } => {
                if self.progress.stage.as_ref().is_none_or(|(known, _)| *known != stage) {
                    // Between steps the panel is enough.
                    if run.was_ready() { debug!("{stage}") } else { info!("{stage}") }
                }
                self.progress.stage = Some((stage, fraction));
            }
            WorkerEvent::Ready { step, .. } if step != run.step => {
                let what = format!("it begins after step {step} and not after step {}", run.step);
                self.kill_for(FailureCause::ProtocolError(what), now);
            }
            WorkerEvent::Ready {
                step,
                parameters,
                state_bytes,
                device,
                threads,
                vocabulary,
                train_tokens,
                peak_bytes,
                ..
            } => {
                self.ready(now);
                let size = bytesize::ByteSize(state_bytes);
                info!(
                    step,
                    parameters,
                    state_bytes,
                    device,
                    threads,
                    "training {parameters} parameters on {device} with {}; a state is {size}",
                    counted(threads, "thread")
                );
                self.open(TrainingFacts { vocabulary, train_tokens }, step, state_bytes, peak_bytes, now);
            }
            WorkerEvent::Step { step, loss, learning_rate, grad_norm, step_ms, tokens } => {
                // In full: two runs that compute the same say the same.
                debug!(
                    "step {step} done: loss {loss}, grad_norm {}, learning_rate {learning_rate}, {step_ms:.1} ms",
                    grad_norm.map_or("not said".into(), |norm| norm.to_string())
                );
                run.step = step;
                if let WorkerPhase::Training { step_began } = &mut run.phase {
                    *step_began = now.at;
                }
                self.meter.stepped(Duration::try_from_secs_f64(step_ms / 1e3).unwrap_or_default());
                self.restarts.completed(step);
                self.progress.stepped(step, loss, learning_rate, tokens, now.at);
                let found = self.sanity.stepped(step, loss, grad_norm, self.config.train.grad_clip);
                self.tell(found);
                self.mark(now);
            }
            WorkerEvent::Eval { step, val_loss, best } => {
                self.progress.stage = None;
                let found = self.sanity.evaluated(step, val_loss);
                self.tell(found);
                let mark = if best { ", the best so far" } else { "" };
                let perplexity = val_loss.exp();
                info!(
                    step,
                    val_loss, best, "step {step}: validation loss {val_loss:.4}, perplexity {perplexity:.2}{mark}"
                );
            }
            WorkerEvent::Failed { failure, what } => self.last_word(LastWord::Failed { failure, what }, now),
            WorkerEvent::Done { step, finished } => {
                run.step = step;
                let end = if finished { TrainingEnd::Complete } else { TrainingEnd::Interrupted };
                self.last_word(LastWord::Done(end), now);
            }
            WorkerEvent::Log { level: MessageLevel::Info, message } => info!("{message}"),
            WorkerEvent::Log { level: MessageLevel::Warn, message } => warn!("{message}"),
            WorkerEvent::SnapshotStarted { .. }
            | WorkerEvent::Committed { .. }
            | WorkerEvent::SnapshotFailed { .. }
            | WorkerEvent::SnapshotSkipped { .. } => self.said_of_snapshot(message, now),
        }
    }

    /// The threads that the snapshot to go on from was computed with.
    pub fn recorded_threads(&self) -> Option<usize> {
        let JobPhase::Running(run) = &self.phase else { return None };
        run.resume.as_ref()?.train.settings.threads()
    }

    pub(super) fn started(&mut self, pid: u32, ranks: usize) {
        self.progress.worker_pid = Some(pid);
        if let JobPhase::Running(run) = &mut self.phase {
            run.ranks = ranks;
        }
    }

    fn greeted(&mut self, version: u32, worker: &str, worker_version: &str, now: ClockReading) {
        let JobPhase::Running(run) = &mut self.phase else { return };
        if version != protocol::VERSION {
            let what = format!(
                "the worker {worker} {worker_version} speaks protocol {version}, this ckptd {}; \
                 install the two of one release",
                protocol::VERSION
            );
            return self.end(Err(Error::Other(what)), now);
        }
        if !matches!(run.phase, WorkerPhase::Starting) {
            return;
        }
        run.phase = WorkerPhase::Loading;
        debug!("{worker} {worker_version} is there");
        let start = Start {
            protocol: protocol::VERSION,
            config: Config {
                data: self.data.as_ref().unwrap_or(&self.config.data).clone(),
                ranks: RanksSection { count: RankCount::Fixed(run.ranks), ..self.config.ranks.clone() },
                ..self.config.clone()
            },
            run_id: self.run_id.clone(),
            next_seq: run.next_seq,
            resume: run.resume.as_ref().map(|resume| resume.path.clone()),
            accept_changes: self.accept_changes,
            dispute: self.suspects.dispute.clone(),
        };
        self.act(JobAction::Send(AgentCommand::Start(Box::new(start))));
    }

    fn ready(&mut self, now: ClockReading) {
        let JobPhase::Running(run) = &mut self.phase else { return };
        run.phase = WorkerPhase::Training { step_began: now.at };
        run.counted_to = Some(now.at);
        self.in_flight = None;
        self.progress.ready(run.step, now.at);
        self.progress.state = JobState::Training;
        self.last_snapshot = now.at;
    }

    fn last_word(&mut self, last_word: LastWord, now: ClockReading) {
        let JobPhase::Running(run) = &mut self.phase else { return };
        run.phase = WorkerPhase::Leaving { last_word, by: now.at + LEAVE_TIMEOUT };
    }

    /// Ends a worker that is of no use any more; what follows comes with its exit.
    pub(super) fn kill_for(&mut self, cause: FailureCause, now: ClockReading) {
        let JobPhase::Running(run) = &mut self.phase else { return };
        let last_word = match std::mem::replace(&mut run.phase, WorkerPhase::Starting) {
            killed @ WorkerPhase::Killed { .. } => {
                run.phase = killed;
                return;
            }
            WorkerPhase::Leaving { last_word, .. } => Some(last_word),
            WorkerPhase::Starting | WorkerPhase::Loading | WorkerPhase::Training { .. } => None,
        };
        run.phase = WorkerPhase::Killed { cause, last_word, by: now.at + LEAVE_TIMEOUT };
        self.act(JobAction::Kill);
    }

    pub(super) fn exited(&mut self, exit: WorkerExit, now: ClockReading) {
        self.progress.worker_pid = None;
        self.progress.ranks = None;
        self.release_suspects(now);
        self.count_time(now);
        self.in_flight = None;
        let JobPhase::Running(run) = std::mem::replace(&mut self.phase, JobPhase::Ended) else { return };
        let was_ready = run.was_ready();
        let place = was_ready.then_some(run.step);
        let (last_word, killed_for) = match run.phase {
            WorkerPhase::Starting | WorkerPhase::Loading | WorkerPhase::Training { .. } => (None, None),
            WorkerPhase::Leaving { last_word, .. } => (Some(last_word), None),
            WorkerPhase::Killed { cause, last_word, .. } => (last_word, Some(cause)),
        };
        if self.stop.is_some() {
            let end = match last_word {
                Some(LastWord::Done(end)) => end,
                Some(LastWord::Failed { what, .. }) => {
                    warn!("the worker failed while it was stopping: {what}");
                    TrainingEnd::Interrupted
                }
                None => {
                    if was_ready {
                        warn!("the worker was gone before its last snapshot: {}", self.cause_of(&exit));
                    }
                    TrainingEnd::Interrupted
                }
            };
            return self.settle(end, now);
        }
        match (last_word, killed_for) {
            (Some(LastWord::Done(TrainingEnd::Complete)), _) => self.settle(TrainingEnd::Complete, now),
            (Some(LastWord::Failed { failure, what }), _) => {
                self.failed(failure, what, run.resume.map(|resume| resume.id), place, &exit, now);
            }
            (_, Some(cause)) => self.crashed(cause, place, &exit, now),
            (Some(LastWord::Done(TrainingEnd::Interrupted)), None) => {
                self.crashed(FailureCause::Failed("it exited without being told to".into()), place, &exit, now);
            }
            (None, None) => self.crashed(self.cause_of(&exit), place, &exit, now),
        }
    }

    /// A worker that resumed from `resumed` failed with a reason of its own.
    fn failed(
        &mut self,
        failure: WorkerFailure,
        what: String,
        resumed: Option<SnapshotId>,
        place: Option<u64>,
        exit: &WorkerExit,
        now: ClockReading,
    ) {
        match (failure, resumed) {
            (WorkerFailure::Config, _) => self.end(Err(Error::Config(what)), now),
            (WorkerFailure::Mismatch, _) => self.end(Err(Error::Other(what)), now),
            (WorkerFailure::Damaged, Some(id)) => {
                self.spoil_unloadable(id, what, now);
                self.choose();
            }
            (_, _) => self.crashed(FailureCause::Failed(what), place, exit, now),
        }
    }

    pub(super) fn crashed(&mut self, cause: FailureCause, place: Option<u64>, exit: &WorkerExit, now: ClockReading) {
        for line in &exit.stderr_tail {
            warn!("worker: {line}");
        }
        self.records.costs.failures += 1;
        if let Some(session) = self.records.current() {
            session.failures += 1;
        }
        self.record(RecordTiming::AtOnce, now);
        self.keep(HistoryEvent::WorkerFailed { step: self.progress.step, reason: cause.to_string() }, now);
        match self.restarts.failed(&cause, place, self.config.worker.max_restarts) {
            RestartDecision::GiveUp(reason) => {
                self.gave_up = Some(reason);
                self.settle(TrainingEnd::Interrupted, now);
            }
            RestartDecision::After(wait) => {
                self.progress.restarts += 1;
                let wait_text =
                    if wait.is_zero() { "at once".to_owned() } else { format!("in {}", rough_duration(wait)) };
                let restarts = self.progress.restarts;
                let told =
                    format!("the worker failed after step {}: {cause}; restarting it {wait_text}", self.progress.step);
                warn!(restarts, "{told}");
                self.progress.problem = Some(told);
                if wait.is_zero() {
                    self.choose();
                } else {
                    self.phase = JobPhase::BackingOff { until: now.at + wait };
                }
            }
        }
    }

    /// Why a worker is gone that said nothing about it.
    fn cause_of(&self, exit: &WorkerExit) -> FailureCause {
        match (exit.code, exit.signal) {
            (_, Some(signal)) if exit.out_of_memory && signal == Signal::KILL.as_raw() => {
                FailureCause::OutOfMemory(self.memory_advice())
            }
            (_, Some(signal)) => FailureCause::Killed(signal),
            (code, None) => FailureCause::Exited(code.unwrap_or(0)),
        }
    }

    /// What to do where memory runs out.
    fn memory_advice(&self) -> &'static str {
        if !self.config.worker.script.is_empty() {
            return "lower the script's batch size, or raise the memory limit of what it runs in";
        }
        match (self.config.train.batch_size, self.surroundings.slurm) {
            (0..=1, _) if !self.config.train.activation_checkpointing => {
                "[train] batch_size is 1 already: set activation_checkpointing = true, or lower sequence_length"
            }
            (0..=1, true) => "ask Slurm for more with --mem ([train] batch_size is 1 already)",
            (0..=1, false) => {
                "[train] batch_size is 1 already: lower sequence_length, or raise the memory limit of what it runs in"
            }
            (_, true) => "lower [train] batch_size and raise grad_accumulation, or ask Slurm for more with --mem",
            (_, false) => "lower [train] batch_size and raise grad_accumulation",
        }
    }
}
