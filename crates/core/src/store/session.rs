//! What a session does with a store before it trains: clean up, know its run, choose what to go on from.
//!
//! Invariant: every session takes the steps in this order. A daemon chooses the snapshot on a thread of its own, since
//! that reads it back whole. Deliberately not here: the lock, which comes first (lock).

use super::handle::Store;
use super::lock::StoreLock;
use super::resume::ResumeChoice;
use crate::error::Result;
use crate::ids::RunId;

/// Where a session begins.
#[derive(Clone, Debug)]
pub struct SessionStart {
    /// The run that the store belongs to.
    pub run_id: RunId,
    /// Sequence number of the session's first snapshot.
    pub next_seq: u64,
    /// The snapshot to go on from; `None`: the training begins with its first step.
    pub resume: Option<ResumeChoice>,
}

impl Store {
    /// Removes what killed writers left, and gives a store without a run the one that `new_run` makes.
    pub fn begin_run(&self, lock: &StoreLock, new_run: impl FnOnce() -> Result<RunId>) -> Result<RunId> {
        self.clean_staging(lock)?;
        if let Some(run_id) = self.run_id()? {
            return Ok(run_id);
        }
        let run_id = new_run()?;
        self.set_run_id(lock, &run_id)?;
        Ok(run_id)
    }

    /// All that comes before a session's first step; `threads` read snapshots back, and `log` is told what is passed
    /// over or quarantined.
    pub fn begin_session(&self, lock: &StoreLock, threads: usize, log: &mut dyn FnMut(String)) -> Result<SessionStart> {
        let run_id = self.begin_run(lock, RunId::random)?;
        let resume = self.choose_resume(lock, threads, log)?;
        Ok(SessionStart { run_id, next_seq: self.next_seq()?, resume })
    }
}
