//! The snapshot in flight and the newest one that is durable.
//!
//! Invariant: at most one is in flight, from its capture to its last fsync. Deliberately not here: who takes and who
//! commits it.

use std::sync::atomic::AtomicBool;
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ckptd_core::Result;
use ckptd_core::snapshot::{DistantTensor, TrainState};
use ckptd_core::store::{CommitHandle, CommitPace};

use crate::capture::StateCapture;

/// What is in flight and what is durable.
pub(super) struct SnapshotFlight {
    pub state: Mutex<DurableState>,
    pub landed: Condvar,
    /// The session ends: no further step is to be computed.
    pub ending: AtomicBool,
}

/// What is known under the lock.
pub(super) struct DurableState {
    pub in_flight: Option<InFlight>,
    /// The newest state that is durable.
    pub newest: Option<TrainState>,
    /// Steps of the newest one that was taken.
    pub newest_taken: Option<u64>,
    /// What the last commit took.
    pub last_time: Option<Duration>,
}

/// The snapshot that is being committed.
pub(super) struct InFlight {
    pub train: TrainState,
    pub began: Instant,
    pub handle: Arc<CommitHandle>,
}

/// A captured snapshot on its way to the committing thread.
pub(super) struct CommitJob {
    pub capture: StateCapture,
    /// Tensors of which other ranks hold parts.
    pub sharded: Vec<DistantTensor>,
    pub reason: String,
    pub pace: CommitPace,
    pub handle: Arc<CommitHandle>,
    pub outcome: Option<SyncSender<Result<()>>>,
}

impl SnapshotFlight {
    /// Nothing in flight; `newest` is durable already.
    pub(super) fn new(newest: Option<TrainState>) -> SnapshotFlight {
        SnapshotFlight {
            state: Mutex::new(DurableState { in_flight: None, newest, newest_taken: None, last_time: None }),
            landed: Condvar::new(),
            ending: AtomicBool::new(false),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, DurableState> {
        // Every change under this lock is one assignment.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
