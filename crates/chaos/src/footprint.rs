//! What a process takes: memory and descriptors.

/// Memory in KiB and open descriptors of a process.
#[derive(Clone, Copy, Debug)]
pub struct ProcessFootprint {
    /// Memory of the process's own (heap, stacks): what a leak fills.
    pub own_kib: u64,
    /// Pages of files and of libraries' code that it has touched, which the kernel can take back.
    pub file_kib: u64,
    pub descriptors: u64,
}

/// `None` when it is gone.
pub fn of(pid: u32) -> Option<ProcessFootprint> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let kib = |field: &str| -> Option<u64> {
        let value = status.lines().find_map(|line| line.strip_prefix(field))?;
        value.trim().trim_end_matches("kB").trim().parse().ok()
    };
    let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count() as u64;
    Some(ProcessFootprint { own_kib: kib("RssAnon:")? + kib("RssShmem:")?, file_kib: kib("RssFile:")?, descriptors })
}
