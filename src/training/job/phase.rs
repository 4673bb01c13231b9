//! What a job and its worker can be in, each with what is known then and only then.

use crate::daemon::verifier::ResumePoint;
use crate::session::clock::BootInstant;
use crate::training::restarts::FailureCause;
use ckptd_core::protocol::WorkerFailure;

/// What a job is in.
pub(super) enum JobPhase {
    /// The verifier picks the snapshot to go on from.
    Choosing,
    /// The worker failed; the next one is started then.
    BackingOff {
        until: BootInstant,
    },
    Running(Box<WorkerRun>),
    /// No worker is left; what it committed is being read back.
    Settling(TrainingEnd),
    /// All that it committed is read back; the store is looked at once more, until then at most.
    Confirming {
        end: TrainingEnd,
        until: BootInstant,
    },
    Ended,
}

/// Whether the last worker completed the training.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TrainingEnd {
    Complete,
    Interrupted,
}

/// A worker, from its start to its exit.
pub(super) struct WorkerRun {
    pub(super) resume: Option<ResumePoint>,
    pub(super) next_seq: u64,
    /// How many processes compute the training.
    pub(super) ranks: usize,
    pub(super) last_sign: BootInstant,
    /// The last completed step.
    pub(super) step: u64,
    /// Training time is in the records up to here; `None`: it has not been ready to train.
    pub(super) counted_to: Option<BootInstant>,
    /// The worker can be told other settings while it runs.
    pub(super) configurable: bool,
    /// That goes for its evaluations, too.
    pub(super) evaluates: bool,
    pub(super) phase: WorkerPhase,
}

/// What a worker is in.
pub(super) enum WorkerPhase {
    /// It has not said hello.
    Starting,
    /// It was told to start, and reads texts and state.
    Loading,
    Training {
        step_began: BootInstant,
    },
    /// It has said its last word, and has until `by` to exit.
    Leaving {
        last_word: LastWord,
        by: BootInstant,
    },
    /// It was sent SIGKILL for `cause`; it is waited for anew at `by`.
    Killed {
        cause: FailureCause,
        last_word: Option<LastWord>,
        by: BootInstant,
    },
}

/// The last message of a worker.
pub(super) enum LastWord {
    Done(TrainingEnd),
    Failed { failure: WorkerFailure, what: String },
}

impl WorkerRun {
    /// One that is about to be started after `step` steps.
    pub(super) fn new(resume: Option<ResumePoint>, next_seq: u64, step: u64, now: BootInstant) -> WorkerRun {
        WorkerRun {
            resume,
            next_seq,
            ranks: 1,
            last_sign: now,
            step,
            counted_to: None,
            configurable: false,
            evaluates: false,
            phase: WorkerPhase::Starting,
        }
    }

    /// Whether it is, or was, ready to train.
    pub(super) fn was_ready(&self) -> bool {
        self.counted_to.is_some()
    }

    /// When the step under way began, while it trains and takes commands.
    pub(super) fn step_began(&self) -> Option<BootInstant> {
        match self.phase {
            WorkerPhase::Training { step_began } => Some(step_began),
            _ => None,
        }
    }

    /// Whether more is to be heard of it than its exit.
    pub(super) fn is_heard(&self) -> bool {
        !matches!(self.phase, WorkerPhase::Leaving { .. } | WorkerPhase::Killed { .. })
    }
}
