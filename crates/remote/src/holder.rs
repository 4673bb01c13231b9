//! Which process owns a job, and whether it is gone.
//!
//! Invariant: a process counts as gone only where this machine can see that it is: the same boot, the same PID
//! namespace, and processes of others visible. Two containers share a boot id, and two machines share process numbers.

use std::os::unix::fs::MetadataExt;

use serde::{Deserialize, Serialize};

use ckptd_core::os::process::start_ticks;

/// A process on some machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Holder {
    /// Name of the machine, for messages.
    pub host: String,
    /// The kernel's id of the machine's boot; empty where it cannot be read.
    pub boot_id: String,
    /// Number of the PID namespace; 0 where it cannot be read.
    pub pid_namespace: u64,
    /// Id of the process there.
    pub pid: u32,
    /// Start time of the process in clock ticks since boot; 0 where it cannot be read.
    pub started: u64,
    /// What it does, for messages: "ckptd run".
    pub who: String,
}

impl Holder {
    /// This process.
    pub fn this(who: &str) -> Holder {
        let pid = std::process::id();
        let read = |path| std::fs::read_to_string(path).map(|text| text.trim().to_owned()).unwrap_or_default();
        Holder {
            host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            boot_id: read("/proc/sys/kernel/random/boot_id"),
            pid_namespace: std::fs::metadata("/proc/self/ns/pid").map_or(0, |namespace| namespace.ino()),
            pid,
            started: start_ticks(pid).unwrap_or(0),
            who: who.to_owned(),
        }
    }

    /// Whether `self` was a process where `here` is one, and is no more. `started_of` looks a process up.
    pub fn is_gone(&self, here: &Holder, started_of: impl Fn(u32) -> Option<u64>) -> bool {
        let is_known = !self.boot_id.is_empty() && self.pid_namespace != 0 && self.started != 0;
        let is_here = self.boot_id == here.boot_id && self.pid_namespace == here.pid_namespace;
        // Where /proc hides the processes of others, the first one cannot be seen either.
        is_known && is_here && started_of(1).is_some() && started_of(self.pid) != Some(self.started)
    }

    /// For messages: "process 71 of gpu-3 (ckptd run)".
    pub fn text(&self) -> String {
        format!("process {} of {} ({})", self.pid, self.host, self.who)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holder(boot_id: &str, pid_namespace: u64, pid: u32, started: u64) -> Holder {
        Holder { boot_id: boot_id.into(), pid_namespace, pid, started, ..Holder::default() }
    }

    #[test]
    fn a_process_is_gone_only_where_that_can_be_seen() {
        let here = holder("b", 7, 100, 5000);
        let alive = |pid| [(1, 10), (70, 700)].into_iter().find(|(id, _)| *id == pid).map(|(_, at)| at);
        assert!(!holder("b", 7, 70, 700).is_gone(&here, alive), "it runs");
        assert!(holder("b", 7, 70, 699).is_gone(&here, alive), "its number is another one's now");
        assert!(holder("b", 7, 71, 710).is_gone(&here, alive), "no such process");
        assert!(!holder("c", 7, 71, 710).is_gone(&here, alive), "another machine, or another boot");
        assert!(!holder("b", 8, 71, 710).is_gone(&here, alive), "another container");
        assert!(!holder("b", 0, 71, 710).is_gone(&holder("b", 0, 100, 5000), alive), "nothing is known of namespaces");
        assert!(!holder("", 7, 71, 710).is_gone(&holder("", 7, 100, 5000), alive), "nothing is known of the boot");
        assert!(!holder("b", 7, 71, 710).is_gone(&here, |_| None), "processes are hidden");
    }

    #[test]
    fn this_process_is_not_gone() {
        let here = Holder::this("test");
        assert!(!here.is_gone(&here, start_ticks));
        assert!(here.pid == std::process::id() && here.started > 0 && here.pid_namespace > 0, "{here:?}");
    }
}
