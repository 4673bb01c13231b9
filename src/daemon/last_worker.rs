//! The end of a worker that outlived what had started it.
//!
//! Invariant: only the process that holds the worker's lock of this store is signalled, and by a handle that no other
//! process can come to mean. Deliberately not here: the lock (core's store).

use std::time::Duration;

use ckptd_core::error::{Error, Result};
use ckptd_core::store::{Store, StoreLock};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tracing::{info, warn};

/// What a worker may take to save and leave once its launcher is gone.
const LEAVING: Duration = Duration::from_secs(30);
/// What the kernel may take to end a process.
const DYING: Duration = Duration::from_secs(10);
const AT_ONCE: Duration = Duration::from_millis(200);

/// Waits until no worker writes into the store; ends one that does not leave.
///
/// # Errors
/// [`Error::Locked`] where it is on another machine, or cannot be ended.
pub(super) fn await_end(store: &Store, lock: &StoreLock) -> Result<()> {
    if !matches!(store.await_worker(lock, AT_ONCE), Err(Error::Locked { .. })) {
        return Ok(());
    }
    info!("waiting for the last worker, which still writes into the store");
    match store.await_worker(lock, LEAVING) {
        Err(Error::Locked { pid, .. }) => {
            warn!("the last worker (process {pid}) does not leave, and is killed");
            kill(store, pid);
            store.await_worker(lock, DYING)
        }
        outcome => outcome,
    }
}

fn kill(store: &Store, pid: u32) {
    let Some(process) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return };
    let Ok(handle) = pidfd_open(process, PidfdFlags::empty()) else { return };
    // Looked at after the handle was made: it means this process from then on.
    if matches!(store.worker_holder(), Ok(Some(holder)) if holder == pid) {
        let _ = pidfd_send_signal(&handle, Signal::KILL);
    }
}
