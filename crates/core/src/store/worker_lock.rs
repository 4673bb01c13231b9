//! That a worker may still write into the store.
//!
//! A worker that the daemon starts itself inherits the store's lock. One behind a launcher (mpirun, torchrun, srun)
//! does not: launchers close what they have inherited, and a worker may outlive its launcher. Nor does a training
//! script, whose children would keep it. So a worker holds a lock of its own, on a second file, until it has ended: a
//! record lock, which belongs to the process alone; what it forks or starts does not hold it, and the kernel knows
//! whose it is. Invariant: the store's lock is given to nobody while another process holds this one. Deliberately not
//! here: ending a worker that does not leave.

use std::fs::File;
use std::time::{Duration, Instant};

use super::handle::Store;
use super::layout::WORKER_LOCK;
use super::lock::{self, StoreLock};
use crate::error::{Error, Result};
use crate::os::fs;

const LOOKING: Duration = Duration::from_millis(20);

/// Held by a worker for as long as it may write.
#[derive(Debug)]
pub struct WorkerLock {
    /// No other file of this process may have this lock file open: closing one would end the lock. `None`: the disk is
    /// full, and an inherited lock has to be enough.
    _file: Option<File>,
}

impl Store {
    /// Takes the worker's lock for this process alone.
    ///
    /// # Errors
    /// [`Error::Locked`] while another worker holds it.
    pub fn lock_as_worker(&self) -> Result<WorkerLock> {
        let file = match self.dir.open_kept(WORKER_LOCK) {
            Err(Error::NoSpace { .. }) => return Ok(WorkerLock { _file: None }),
            opened => opened?,
        };
        if fs::try_record_lock(&file, &self.dir.join(WORKER_LOCK))? {
            return Ok(WorkerLock { _file: Some(file) });
        }
        Err(lock::held_by_worker(lock::worker_holder(&self.dir)?.unwrap_or_default(), &self.dir))
    }

    /// Waits until no other process writes as a worker any more.
    ///
    /// # Errors
    /// [`Error::Locked`] with the worker's process where one still does after `patience`.
    pub fn await_worker(&self, _lock: &StoreLock, patience: Duration) -> Result<()> {
        let by = Instant::now() + patience;
        loop {
            match lock::worker_holder(&self.dir)? {
                None => return Ok(()),
                Some(pid) if Instant::now() >= by => return Err(lock::held_by_worker(pid, &self.dir)),
                Some(_) => std::thread::sleep(LOOKING),
            }
        }
    }

    /// The other process that holds the worker's lock; 0 where it is not one of this machine's or container's.
    ///
    /// # Errors
    /// Those of looking.
    pub fn worker_holder(&self) -> Result<Option<u32>> {
        lock::worker_holder(&self.dir)
    }
}
