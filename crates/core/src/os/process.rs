//! Processes and threads: how many run at once, which ones are alive, which ones give way.
//!
//! Invariant: every nice value of the workspace is [`ENCODING_NICE`] or [`YIELDING_NICE`].
//! Deliberately not here: starting and ending processes.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::{DumpableBehavior, Pid, set_dumpable_behavior, setpriority_process};

/// Nice value of a thread beside a training: it gets about a third of a processor that the training wants, too.
///
/// What a snapshot takes from the training is its processor time, whenever that is spent. At the lowest priority it was
/// spent so late that a snapshot took longer to be durable than the interval to the next one.
pub const ENCODING_NICE: i32 = 3;

/// Nice value that weighs about a third of the usual one: of threads that prepare memory beside the training, and of
/// the training's own threads while the last snapshot is saved.
pub const YIELDING_NICE: i32 = 5;

/// Processors that this process may use, at least 1.
pub fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Gives the calling thread this nice value. A refusal only means that the thread competes as an equal.
pub fn lower_priority(nice: i32) {
    // Linux keeps a nice value per thread.
    let _ = setpriority_process(Some(rustix::thread::gettid()), nice);
}

/// Gives every thread of this process this nice value, except those with a name in `spared`. A new thread has the name
/// of the one that made it until it gets its own.
pub fn lower_other_threads(nice: i32, spared: &[&str]) {
    let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    for task in tasks {
        let name = std::fs::read_to_string(task.path().join("comm")).unwrap_or_default();
        let id = task.file_name().to_str().and_then(|id| id.parse().ok()).and_then(Pid::from_raw);
        if let Some(id) = id.filter(|_| !spared.contains(&name.trim_end())) {
            // It may be gone by now.
            let _ = setpriority_process(Some(id), nice);
        }
    }
}

/// Keeps the memory of this process, its environment included, out of core dumps, and from other processes of its user.
/// What it starts is dumped as ever.
pub fn keep_memory_private() {
    // The kernel refuses only values that it does not know.
    let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
}

/// Start time of a process in clock ticks since boot (field 22 of /proc/PID/stat); `None` for one that is gone or a
/// zombie. Together with the id it names one process for good: ids are used again.
pub fn start_ticks(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything; the fields after it are plain.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    if fields.next()? == "Z" {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

/// The processes that have the file open which `device` and `inode` name, as far as this process may see them.
pub fn holders_of(device: u64, inode: u64) -> Vec<u32> {
    let entries = |path: &Path| std::fs::read_dir(path).into_iter().flatten().flatten();
    let is_it = |path: &Path| std::fs::metadata(path).is_ok_and(|file| (file.dev(), file.ino()) == (device, inode));
    entries("/proc".as_ref())
        .filter_map(|process| Some((process.file_name().to_str()?.parse().ok()?, process.path().join("fd"))))
        .filter(|(_, files)| entries(files).any(|file| is_it(&file.path())))
        .map(|(pid, _)| pid)
        .collect()
}

/// The processes that have a file open whose name ends with `/name`, each with the file's path, as far as this process
/// may see them.
pub fn holders_of_named(name: &str) -> Vec<(u32, PathBuf)> {
    let entries = |path: &Path| std::fs::read_dir(path).into_iter().flatten().flatten();
    let mut found = Vec::new();
    for process in entries("/proc".as_ref()) {
        let Some(pid) = process.file_name().to_str().and_then(|pid| pid.parse().ok()) else { continue };
        let files = entries(&process.path().join("fd")).filter_map(|file| std::fs::read_link(file.path()).ok());
        found.extend(files.filter(|file| file.file_name().is_some_and(|own| own == name)).map(|file| (pid, file)));
    }
    found
}

/// Bytes of memory that this process and what it starts may still take, swap apart: what the machine has, and what the
/// control groups leave. `None` where the system does not say.
pub fn available_memory() -> Option<u64> {
    let info = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = info.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let machine = line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()? << 10;
    Some(group_memory().map_or(machine, |group| machine.min(group)))
}

/// What the control groups of this process leave it; `None` without a limit.
fn group_memory() -> Option<u64> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let number = |path: &Path| std::fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let left = |folder: &Path, [limit, used]: [&str; 2]| {
        let used = number(&folder.join(used)).unwrap_or(0);
        number(&folder.join(limit)).map(|limit| limit.saturating_sub(used))
    };
    let limits = groups.lines().flat_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, group) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        let (root, files) = match controllers {
            "" => ("/sys/fs/cgroup", ["memory.max", "memory.current"]),
            _ => ("/sys/fs/cgroup/memory", ["memory.limit_in_bytes", "memory.usage_in_bytes"]),
        };
        let of_memory = controllers.is_empty() || controllers.split(',').any(|name| name == "memory");
        let group = Path::new(root).join(group.trim_start_matches('/'));
        let above: Vec<_> =
            group.ancestors().take_while(|folder| folder.starts_with(root)).map(Path::to_owned).collect();
        above.into_iter().filter(move |_| of_memory).filter_map(move |folder| left(&folder, files))
    });
    limits.min()
}

/// When this process started, as time since boot.
pub fn started_since_boot() -> Option<Duration> {
    let per_second = u32::try_from(rustix::param::clock_ticks_per_second()).ok().filter(|&ticks| ticks > 0)?;
    start_ticks(std::process::id()).map(|ticks| Duration::from_secs(ticks) / per_second)
}

/// Whether what a process with this id wrote is a leftover. Either that process is gone, as far as this one may see, or
/// it is this one, which has just started and in a container often gets the number of the one before.
pub fn is_over(pid: u32) -> bool {
    pid == std::process::id() || start_ticks(pid).is_none()
}
