//! What the worker says, and how it goes.

use super::*;
use crate::training::restarts;
use ckptd_core::ids::SnapshotId;
use ckptd_core::protocol::{MessageLevel, Start, WorkerEvent as Message};
use ckptd_core::text::rough_duration;

/// One complaint, and what to do.
const DISK_FULL: &str = "disk full: free some space or lower [retention] keep_last, then run again";

impl Job {
    pub(super) fn said(&mut self, message: Message, now: ClockReading) {
        let Phase::Running(run) = &mut self.phase else { return };
        if run.killed_for.is_some() || run.last_word.is_some() {
            return;
        }
        run.last_sign = now.at;
        if let Message::Hello { protocol, worker, version, accepts, .. } = message {
            run.configurable = accepts.iter().any(|command| command == "configure");
            return self.greeted(protocol, &worker, &version, now);
        }
        if !run.greeted {
            return self.kill_for(Cause::Garbage("its first message is not hello".into()), now);
        }
        match message {
            Message::Hello { .. } | Message::Alive { .. } => {}
            Message::Progress { stage, fraction } => {
                if self.progress.stage.as_ref().is_none_or(|(known, _)| *known != stage) {
                    // Between steps the panel is enough.
                    if run.ready { debug!("{stage}") } else { info!("{stage}") }
                }
                self.progress.stage = Some((stage, fraction));
            }
            Message::Ready { step, parameters, state_bytes, device, threads, .. } => {
                if step != run.step {
                    let what = format!("it begins after step {step} and not after step {}", run.step);
                    return self.kill_for(Cause::Garbage(what), now);
                }
                self.ready(now);
                let size = bytesize::ByteSize(state_bytes);
                info!(
                    step,
                    parameters,
                    state_bytes,
                    device,
                    threads,
                    "training {parameters} parameters on {device} with {threads} threads; a state is {size}"
                );
            }
            Message::Step { step, loss, learning_rate, grad_norm, step_ms, tokens } => {
                // In full: two runs that compute the same say the same.
                debug!(
                    "step {step} done: loss {loss}, grad_norm {}, learning_rate {learning_rate}, {step_ms:.1} ms",
                    grad_norm.unwrap_or(f64::NAN)
                );
                run.step = step;
                run.step_began = Some(now.at);
                self.meter.stepped(Duration::try_from_secs_f64(step_ms / 1e3).unwrap_or_default());
                self.restarts.completed(step);
                self.progress.stepped(step, loss, tokens, now.at);
            }
            Message::Eval { step, val_loss, best } => {
                let mark = if best { ", the best so far" } else { "" };
                info!(
                    step,
                    val_loss,
                    best,
                    "step {step}: validation loss {val_loss:.4}, perplexity {:.2}{mark}",
                    val_loss.exp()
                );
            }
            Message::Failed { failure, what } => self.last_word(Err((failure, what)), now),
            Message::Done { step, finished } => {
                run.step = step;
                self.last_word(Ok(finished), now);
            }
            Message::Log { level: MessageLevel::Info, message } => info!("{message}"),
            Message::Log { level: MessageLevel::Warn, message } => warn!("{message}"),
            Message::SnapshotStarted { .. }
            | Message::Committed { .. }
            | Message::SnapshotFailed { .. }
            | Message::SnapshotSkipped { .. } => self.said_of_snapshot(message, now),
        }
    }

    fn greeted(&mut self, version: u32, worker: &str, worker_version: &str, now: ClockReading) {
        let Phase::Running(run) = &mut self.phase else { return };
        if version != protocol::VERSION {
            let what = format!(
                "the worker {worker} {worker_version} speaks protocol {version}, this ckptd {}; install the two of one release",
                protocol::VERSION
            );
            return self.end(Err(Error::Other(what)), now);
        }
        if std::mem::replace(&mut run.greeted, true) {
            return;
        }
        debug!("{worker} {worker_version} is there");
        let start = Start {
            protocol: protocol::VERSION,
            config: self.config.clone(),
            run_id: self.run_id.clone(),
            next_seq: run.next_seq,
            resume: run.resume.as_ref().map(|resume| resume.path.clone()),
            accept_changes: self.accept_changes,
        };
        self.act(JobAction::Send(AgentCommand::Start(Box::new(start))));
    }

    fn ready(&mut self, now: ClockReading) {
        let Phase::Running(run) = &mut self.phase else { return };
        run.ready = true;
        run.counted_to = Some(now.at);
        run.step_began = Some(now.at);
        self.in_flight = None;
        self.progress.ready(run.step, now.at);
        self.progress.state = State::Training;
        self.last_snapshot = now.at;
    }

    fn last_word(&mut self, word: Result<bool, (WorkerFailure, String)>, now: ClockReading) {
        let Phase::Running(run) = &mut self.phase else { return };
        run.last_word = Some(word);
        run.leave_by = Some(now.at + LEAVE_TIMEOUT);
    }

    fn said_of_snapshot(&mut self, message: Message, now: ClockReading) {
        match message {
            Message::SnapshotStarted { step, reason, .. } => {
                debug!(step, reason, "snapshot of step {step} ({reason})");
                self.last_snapshot = now.at;
                self.in_flight = Some(now.at);
                self.meter.snapshot_began();
            }
            Message::SnapshotSkipped { step, reason } => {
                debug!(step, reason, "no snapshot of step {step} ({reason}): another one is still being written");
                self.progress.counts.skipped += 1;
            }
            Message::SnapshotFailed { step, what, disk_full } => {
                self.progress.counts.failed += 1;
                self.in_flight = None;
                self.meter.snapshot_ended(Duration::ZERO);
                // A full disk is one complaint, whatever was being written when it was met.
                let complaint = if disk_full { DISK_FULL.to_owned() } else { what.clone() };
                if self.complaint.as_ref() == Some(&complaint) {
                    debug!(step, disk_full, "no snapshot of step {step} either: {what}");
                } else {
                    let told = format!("no snapshot of step {step}: {what}; training goes on and tries again");
                    warn!(step, disk_full, "{told}");
                    self.progress.problem = Some(told);
                    self.complaint = Some(complaint);
                }
            }
            Message::Committed { step, path, write_ms, stall_ms, extra_peak_bytes, .. } => {
                // Only the name counts: what lies elsewhere is none of this store's snapshots.
                let Some(id) = path.file_stem().map(|stem| SnapshotId::from(stem.to_string_lossy().into_owned()))
                else {
                    return self.kill_for(Cause::Garbage(format!("{} is no snapshot", path.display())), now);
                };
                if self.complaint.take().is_some() {
                    info!(step, "snapshots work again: step {step} is written");
                }
                debug!(step, stall_ms, extra_peak_bytes, "step {step} is written");
                self.progress.counts.committed += 1;
                self.progress.stalled(stall_ms);
                self.progress.snapshot(&id, step, SnapshotState::Committed, now.wall);
                let write = Duration::try_from_secs_f64(write_ms / 1e3).unwrap_or_default();
                let stall = Duration::try_from_secs_f64(stall_ms / 1e3).unwrap_or_default();
                let began = self.in_flight.take().unwrap_or(now.at - write);
                if let Some(stop) = &mut self.stop {
                    stop.saved = true;
                    let seconds = (now.at - stop.began).as_secs_f64();
                    info!(step, seconds, "step {step} is durable, {seconds:.2} s after the stop");
                }
                self.unjudged.push(Unjudged { id: id.clone(), step, write, began, stall });
                self.act(JobAction::Verify { id });
            }
            _ => {}
        }
    }

    /// Ends a worker that is of no use any more; what follows comes with its exit.
    pub(super) fn kill_for(&mut self, cause: Cause, now: ClockReading) {
        let Phase::Running(run) = &mut self.phase else { return };
        if run.killed_for.is_none() {
            run.killed_for = Some(cause);
            run.leave_by = Some(now.at + LEAVE_TIMEOUT);
            self.act(JobAction::Kill);
        }
    }

    pub(super) fn exited(&mut self, exit: WorkerExit, now: ClockReading) {
        self.progress.worker_pid = None;
        self.count_time(now);
        self.in_flight = None;
        let Phase::Running(run) = std::mem::replace(&mut self.phase, Phase::Ended) else { return };
        let place = run.ready.then_some(run.step);
        if self.stop.is_some() {
            if let Some(Err((_, what))) = &run.last_word {
                warn!("the worker failed while it was stopping: {what}");
            } else if run.ready && run.last_word.is_none() {
                warn!("the worker was gone before its last snapshot: {}", cause_of(&exit));
            }
            return self.settle(matches!(run.last_word, Some(Ok(true))), now);
        }
        match (run.last_word, run.killed_for) {
            (Some(Ok(true)), _) => self.settle(true, now),
            (Some(Err((WorkerFailure::Config, what))), _) => self.end(Err(Error::Config(what)), now),
            (Some(Err((WorkerFailure::Mismatch, what))), _) => self.end(Err(Error::Other(what)), now),
            (Some(Err((WorkerFailure::Damaged, what))), _) if run.resume.is_some() => {
                let id = run.resume.map(|resume| resume.id).unwrap_or_default();
                warn!(%id, "{id} cannot be loaded and goes to quarantine: {what}");
                self.progress.counts.quarantined += 1;
                self.choose(Some((id, what)));
            }
            (Some(Err((_, what))), _) => self.crashed(Cause::Failed(what), place, &exit, now),
            (_, Some(cause)) => self.crashed(cause, place, &exit, now),
            (Some(Ok(false)), None) => self.crashed(Cause::Failed("it ended unasked".into()), place, &exit, now),
            (None, None) => self.crashed(cause_of(&exit), place, &exit, now),
        }
    }

    pub(super) fn crashed(&mut self, cause: Cause, place: Option<u64>, exit: &WorkerExit, now: ClockReading) {
        for line in &exit.last_words {
            warn!("worker: {line}");
        }
        self.records.costs.failures += 1;
        if let Some(session) = self.records.current() {
            session.failures += 1;
        }
        self.record(true, now);
        match self.restarts.failed(&cause, place, self.config.worker.max_restarts) {
            restarts::RestartDecision::GiveUp(reason) => {
                let saved = match &self.progress.last_verified {
                    Some(last) => format!("step {} is saved and verified", last.step),
                    None => "no snapshot is saved".to_owned(),
                };
                self.end(Err(Error::Other(format!("{reason}; {saved}"))), now);
            }
            restarts::RestartDecision::After(wait) => {
                self.progress.restarts += 1;
                let wait_text = match wait.is_zero() {
                    true => "at once".to_owned(),
                    false => format!("in {}", rough_duration(wait)),
                };
                let restarts = self.progress.restarts;
                let told =
                    format!("the worker failed after step {}: {cause}; restarting it {wait_text}", self.progress.step);
                warn!(restarts, "{told}");
                self.progress.problem = Some(told);
                match wait.is_zero() {
                    true => self.choose(None),
                    false => self.phase = Phase::BackingOff { until: now.at + wait },
                }
            }
        }
    }
}

fn cause_of(exit: &WorkerExit) -> Cause {
    match (exit.code, exit.signal) {
        (_, Some(9)) if exit.out_of_memory => Cause::OutOfMemory,
        (_, Some(signal)) => Cause::Killed(signal),
        (code, None) => Cause::Exited(code.unwrap_or(0)),
    }
}
