//! What can be in a history: steps, and everything else as events.
//!
//! Invariant: an event of a later release that this one does not know is read as [`HistoryEvent::Other`] and passed
//! over.

use serde::{Deserialize, Serialize};

/// One step of the training.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepRow {
    /// Steps completed with this one.
    pub step: u64,
    /// When it was heard of, in milliseconds since 1970.
    pub at_ms: i64,
    /// Mean loss over its tokens; NaN where it was not finite.
    pub loss: f32,
    /// Learning rate of its update.
    pub learning_rate: f32,
    /// Norm of the gradient before clipping; `None` where the worker does not say.
    pub grad_norm: Option<f32>,
    /// Time that it took, in microseconds.
    pub micros: u64,
    /// Tokens whose loss entered it.
    pub tokens: u64,
}

impl StepRow {
    /// Its speed.
    pub fn tokens_per_second(&self) -> Option<f64> {
        (self.micros > 0).then(|| self.tokens as f64 * 1e6 / self.micros as f64)
    }
}

/// Something else that happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum HistoryEvent {
    /// A session began.
    SessionStarted {
        /// The training that it belongs to. Another one than before: what came before is none of it.
        run: String,
        /// Steps of the whole training.
        total_steps: u64,
        /// Of the program.
        version: String,
    },
    /// A worker goes on after `step`: what was recorded of later steps is not part of the training any more.
    Resumed {
        /// Steps that its state has.
        step: u64,
        /// The snapshot that it goes on from; `None`: it begins with the first step.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        snapshot: Option<String>,
    },
    /// An evaluation was completed.
    Evaluated {
        /// Steps before it.
        step: u64,
        /// Mean loss on the validation share; `None`: it was not finite.
        val_loss: Option<f64>,
        /// The lowest so far.
        best: bool,
    },
    /// A snapshot is durable.
    SnapshotCommitted {
        /// Steps that its state has.
        step: u64,
        /// Its name.
        id: String,
        /// Bytes of its file.
        bytes: u64,
        /// How long it was written.
        seconds: f64,
    },
    /// A snapshot was read back and is what was written.
    SnapshotVerified {
        /// Steps that its state has.
        step: u64,
        /// Its name.
        id: String,
        /// Its values are finite.
        healthy: bool,
        /// Its validation loss, where it has one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        val_loss: Option<f64>,
    },
    /// A snapshot is not what was written, and in quarantine.
    SnapshotQuarantined {
        /// Steps that its state had.
        step: u64,
        /// Its name.
        id: String,
        /// What is wrong with it.
        reason: String,
    },
    /// There is no snapshot of a step.
    SnapshotFailed {
        /// Steps that its state had.
        step: u64,
        /// The error.
        reason: String,
    },
    /// A snapshot is at the job's remote.
    Replicated {
        /// Steps that its state has.
        step: u64,
        /// Bytes that were sent.
        bytes: u64,
        /// How long it took.
        seconds: f64,
    },
    /// The worker failed, and is started again or given up.
    WorkerFailed {
        /// The last step that was heard of.
        step: u64,
        /// Why.
        reason: String,
    },
    /// The session is over. One without this was killed.
    SessionEnded {
        /// The last step that was completed.
        step: u64,
        /// The step that is saved.
        saved_step: u64,
        /// Why.
        why: String,
    },
    /// The end of the history was torn when a process was killed, and was cut off.
    Torn {
        /// So many bytes.
        bytes: u64,
    },
    /// The disk would not take the history for a while.
    Gap {
        /// Steps that are missing.
        steps: u64,
        /// Other events that are missing.
        events: u64,
    },
    /// Something that a later release recorded.
    #[serde(other)]
    Other,
}

impl HistoryEvent {
    /// The step that it is about, where it is about one.
    pub fn step(&self) -> Option<u64> {
        match self {
            HistoryEvent::Resumed { step, .. }
            | HistoryEvent::Evaluated { step, .. }
            | HistoryEvent::SnapshotCommitted { step, .. }
            | HistoryEvent::SnapshotVerified { step, .. }
            | HistoryEvent::SnapshotQuarantined { step, .. }
            | HistoryEvent::SnapshotFailed { step, .. }
            | HistoryEvent::Replicated { step, .. }
            | HistoryEvent::WorkerFailed { step, .. }
            | HistoryEvent::SessionEnded { step, .. } => Some(*step),
            HistoryEvent::SessionStarted { .. }
            | HistoryEvent::Torn { .. }
            | HistoryEvent::Gap { .. }
            | HistoryEvent::Other => None,
        }
    }

    /// Whether it describes a state of the training, which a resume from an earlier step makes void.
    pub fn is_of_state(&self) -> bool {
        matches!(
            self,
            HistoryEvent::Evaluated { .. }
                | HistoryEvent::SnapshotCommitted { .. }
                | HistoryEvent::SnapshotVerified { .. }
                | HistoryEvent::Replicated { .. }
        )
    }
}

/// An event with its time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TimedEvent {
    /// In milliseconds since 1970.
    pub at_ms: i64,
    /// What happened.
    #[serde(flatten)]
    pub event: HistoryEvent,
}

/// A step or an event.
#[derive(Clone, Debug, PartialEq)]
pub enum HistoryRecord {
    /// A step.
    Step(StepRow),
    /// Anything else.
    Event(TimedEvent),
}
