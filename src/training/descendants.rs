//! What a worker has started, in whatever process group or session: launchers such as torchrun give each rank one of
//! its own.
//!
//! Invariant: a process is signalled by a handle that was made while it was a child of one that the handle before
//! means, and not by a number that may have come to mean another.

use std::os::fd::OwnedFd;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// Handles of processes that are to end.
pub(super) struct Descendants(Vec<OwnedFd>);

impl Descendants {
    /// Those of `ancestor`, which is a child of this process and not reaped.
    pub(super) fn of(ancestor: Pid) -> Descendants {
        let (mut found, mut parents) = (Vec::new(), vec![ancestor]);
        while let Some(parent) = parents.pop() {
            for child in children(parent) {
                let Ok(handle) = pidfd_open(child, PidfdFlags::empty()) else { continue };
                // Looked at after the handle was made: it means this child.
                if children(parent).contains(&child) {
                    found.push(handle);
                    parents.push(child);
                }
            }
        }
        Descendants(found)
    }

    /// SIGKILL to those that are still there.
    pub(super) fn kill(self) {
        for handle in self.0 {
            let _ = pidfd_send_signal(handle, Signal::KILL);
        }
    }
}

/// The processes that any thread of `parent` has started and that it has not reaped.
fn children(parent: Pid) -> Vec<Pid> {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", parent.as_raw_nonzero()));
    let lists = tasks.into_iter().flatten().flatten().filter_map(|task| {
        // Not every kernel has it; then the group alone is ended.
        std::fs::read_to_string(task.path().join("children")).ok()
    });
    let numbers =
        lists.flat_map(|list| list.split_whitespace().filter_map(|word| word.parse().ok()).collect::<Vec<i32>>());
    numbers.filter_map(Pid::from_raw).collect()
}
