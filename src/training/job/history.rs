//! What of a job's life goes to the history of the training.

use super::events::JobAction;
use super::machine::JobMachine;
use crate::daemon::verifier::ResumePoint;
use crate::session::clock::ClockReading;
use ckptd_core::protocol::WorkerEvent;
use ckptd_history::record::{HistoryEvent, HistoryRecord, StepRow, TimedEvent};

impl JobMachine {
    /// Has `event` kept.
    pub(super) fn keep(&mut self, event: HistoryEvent, now: ClockReading) {
        let event = TimedEvent { at_ms: now.wall.as_millisecond(), event };
        self.act(JobAction::Keep(HistoryRecord::Event(event)));
    }

    pub(super) fn keep_start(&mut self, now: ClockReading) {
        let (run, version) = (self.run_id.to_string(), env!("CARGO_PKG_VERSION").to_owned());
        self.keep(HistoryEvent::SessionStarted { run, total_steps: self.config.train.steps, version }, now);
    }

    /// A worker is about to go on from `resume`: what was trained beyond it belongs to no training any more.
    pub(super) fn keep_resume(&mut self, resume: Option<&ResumePoint>, now: ClockReading) {
        let step = resume.map_or(0, |resume| resume.step);
        let snapshot = resume.map(|resume| resume.id.to_string());
        self.keep(HistoryEvent::Resumed { step, snapshot }, now);
    }

    pub(super) fn keep_end(&mut self, why: &str, now: ClockReading) {
        let saved_step = self.records.current().map_or(0, |session| session.saved_step);
        let (step, why) = (self.progress.step, why.to_owned());
        self.keep(HistoryEvent::SessionEnded { step, saved_step, why }, now);
    }

    /// What the worker says of the training and of its snapshots.
    pub(super) fn keep_said(&mut self, message: &WorkerEvent, now: ClockReading) {
        let at_ms = now.wall.as_millisecond();
        match message {
            WorkerEvent::Step { step, loss, learning_rate, grad_norm, step_ms, tokens } => {
                let row = StepRow {
                    step: *step,
                    at_ms,
                    loss: *loss as f32,
                    learning_rate: *learning_rate as f32,
                    grad_norm: grad_norm.map(|norm| norm as f32),
                    // A float that is too large, or none, becomes the nearest number.
                    micros: (step_ms * 1e3).round() as u64,
                    tokens: *tokens,
                };
                self.act(JobAction::Keep(HistoryRecord::Step(row)));
            }
            WorkerEvent::Eval { step, val_loss, best } => {
                let val_loss = Some(*val_loss).filter(|loss| loss.is_finite());
                self.keep(HistoryEvent::Evaluated { step: *step, val_loss, best: *best }, now);
            }
            WorkerEvent::Committed { step, path, bytes, write_ms, .. } => {
                let id = path.file_stem().map_or_else(String::new, |stem| stem.to_string_lossy().into_owned());
                let seconds = write_ms / 1e3;
                self.keep(HistoryEvent::SnapshotCommitted { step: *step, id, bytes: *bytes, seconds }, now);
            }
            WorkerEvent::SnapshotFailed { step, what, .. } => {
                self.keep(HistoryEvent::SnapshotFailed { step: *step, reason: what.clone() }, now);
            }
            _ => {}
        }
    }
}
