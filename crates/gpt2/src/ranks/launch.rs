//! Ranks that rank 0 starts itself, as processes on its own machine.
//!
//! Invariant: they end with the thread that started them, which is the main one. Deliberately not here: connecting.

use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use ckptd_core::{Error, Result};
use rustix::process::{Signal, set_parent_process_death_signal};

use super::place::{ADDRESS, COUNT, RANK, RankPlace, SECRET};

/// Processes that are ranks; they are killed where they have not left before this is dropped.
pub struct LaunchedRanks(Vec<Child>);

impl LaunchedRanks {
    /// Ranks 1 to `size` - 1 of rank 0's `place`, this program again. To be called on the main thread.
    pub(super) fn start(place: &RankPlace) -> Result<LaunchedRanks> {
        let mut started = LaunchedRanks(Vec::new());
        for rank in 1..place.size {
            let mut command = Command::new("/proc/self/exe");
            command.arg0("ckptd-gpt2").stdin(Stdio::null()).stdout(Stdio::null());
            command.env(RANK, rank.to_string()).env(COUNT, place.size.to_string());
            command.env(ADDRESS, &place.address).env(SECRET, &place.secret);
            // SAFETY: one system call between fork and exec, which allocates nothing.
            unsafe {
                command.pre_exec(|| Ok(set_parent_process_death_signal(Some(Signal::KILL))?));
            }
            let child = command.spawn().map_err(|e| Error::Other(format!("starting rank {rank}: {e}")))?;
            started.0.push(child);
        }
        Ok(started)
    }
}

impl Drop for LaunchedRanks {
    fn drop(&mut self) {
        for child in &mut self.0 {
            // One that has left by itself is no error.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
