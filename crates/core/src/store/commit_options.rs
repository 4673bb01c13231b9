//! How a snapshot is written, and what another thread may say meanwhile.
//!
//! Deliberately not here: writing it (`commit`, `encode`).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::format::Manifest;
use crate::error::Result;
use crate::ids::{RunId, StateRoot};

/// What a commit shares the machine with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommitPace {
    /// A training that goes first.
    Background,
    /// Nothing in particular.
    Alone,
    /// Nothing, and a deadline is near: a chunk that the device would wait for is stored as it is.
    Hurried,
}

/// How a snapshot is written, and what its manifest says of its place in the run.
#[derive(Clone, Debug)]
pub struct CommitOptions {
    /// The training that it belongs to.
    pub run_id: RunId,
    /// Its number in the run, from 1.
    pub seq: u64,
    /// Root of the snapshot before it.
    pub parent: Option<StateRoot>,
    /// `[snapshot] level`.
    pub level: u8,
    /// Encoding threads, at least 1.
    pub threads: usize,
    /// What the commit shares the machine with.
    pub pace: CommitPace,
    /// What the manifest gives as its time; `None`: the moment at which the manifest is made.
    pub created_at: Option<jiff::Timestamp>,
    /// Size of the snapshot before, to reserve room; 0 if unknown.
    pub expected_bytes: u64,
    /// Lets another thread hurry or cancel the commit.
    pub handle: Arc<CommitHandle>,
    /// Asked when the file is whole and before it gets its name: an error is the commit's, and the file is removed.
    pub approval: Option<Approval>,
}

/// The last word on a commit of someone who may know that the state changed while it was encoded.
#[derive(Clone)]
pub struct Approval(pub(super) Arc<ApprovalQuestion>);

pub(super) type ApprovalQuestion = dyn Fn(&Manifest) -> Result<()> + Send + Sync;

impl Approval {
    /// Asked with the manifest of the file, which has the tensors' hashes. It may wait.
    pub fn new(question: impl Fn(&Manifest) -> Result<()> + Send + Sync + 'static) -> Approval {
        Approval(Arc::new(question))
    }
}

impl std::fmt::Debug for Approval {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Approval")
    }
}

/// Lets another thread hurry or cancel a commit, and see how far it is.
#[derive(Debug, Default)]
pub struct CommitHandle {
    pub(super) hurried: AtomicBool,
    pub(super) cancelled: Arc<AtomicBool>,
    pub(super) chunks: AtomicUsize,
    pub(super) written: AtomicUsize,
}

impl CommitHandle {
    /// Gives a commit at low priority all processors at the usual one.
    pub fn hurry(&self) {
        self.hurried.store(true, Ordering::Relaxed);
    }

    /// Ends the commit with [`Error::Abandoned`], unless its last chunk is written already.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    /// One whose commit is cancelled by setting `flag`.
    pub fn cancelled_by(flag: Arc<AtomicBool>) -> CommitHandle {
        CommitHandle { cancelled: flag, ..CommitHandle::default() }
    }

    /// The share of its chunks that is written, from 0 to 1.
    pub fn fraction(&self) -> f64 {
        let chunks = self.chunks.load(Ordering::Relaxed);
        if chunks == 0 { 0.0 } else { self.written.load(Ordering::Relaxed) as f64 / chunks as f64 }
    }
}

impl CommitOptions {
    /// Level 1, one thread, no parent, nothing beside it.
    pub fn new(run_id: impl Into<RunId>, seq: u64) -> CommitOptions {
        CommitOptions {
            run_id: run_id.into(),
            seq,
            parent: None,
            level: 1,
            threads: 1,
            pace: CommitPace::Alone,
            created_at: None,
            expected_bytes: 0,
            handle: Arc::default(),
            approval: None,
        }
    }
}
