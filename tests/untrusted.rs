//! Files that are not what they should be are refused with the reason, quickly, in little memory, and without a trace.
//!
//! All of them are harmless to any program that reads them: a global that stands for nothing, a size that is one too
//! large, a limit that the test has lowered and the file exceeds by one. Guards of plain arithmetic have their tests
//! beside them (crates/interop).
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "untrusted/archives.rs"]
mod archives;
#[path = "untrusted/bundles.rs"]
mod bundles;
#[path = "untrusted/pickles.rs"]
mod pickles;
#[path = "untrusted/snapshots.rs"]
mod snapshots;
#[path = "../fuzz/src/lib.rs"]
#[allow(dead_code)]
mod targets;
#[path = "untrusted/weights.rs"]
mod weights;

use std::alloc::{GlobalAlloc, Layout, System};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use ckptd_core::progress::NoProgress;
use ckptd_interop::limits::ReadLimits;
use ckptd_interop::output::OverwriteRule;
use ckptd_interop::{bundle, import};
use targets::craft;

const MAX_BYTES: usize = 4 << 20;
const MAX_TIME: Duration = Duration::from_secs(1);

/// Counts what is allocated, and the most that ever was.
struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: everything is passed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = NOW.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(now, Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// An input, and what its refusal must say under the limits of the case.
pub struct Case {
    name: String,
    expect: &'static str,
    input: Input,
    limits: ReadLimits,
}

enum Input {
    File(Vec<u8>),
    Bundle(Vec<u8>),
    Folder(Vec<(String, Vec<u8>)>),
}

impl Case {
    pub fn file(name: &str, expect: &'static str, bytes: Vec<u8>) -> Case {
        Case::new(name, expect, Input::File(bytes))
    }

    pub fn bundle(name: &str, expect: &'static str, bytes: Vec<u8>) -> Case {
        Case::new(name, expect, Input::Bundle(bytes))
    }

    pub fn folder(name: &str, expect: &'static str, files: &[(&str, Vec<u8>)]) -> Case {
        let files = files.iter().map(|(name, bytes)| ((*name).to_owned(), bytes.clone())).collect();
        Case::new(name, expect, Input::Folder(files))
    }

    fn new(name: &str, expect: &'static str, input: Input) -> Case {
        Case { name: name.into(), expect, input, limits: ReadLimits::default() }
    }

    /// The case under limits that `change` has lowered.
    pub fn under(mut self, change: impl FnOnce(&mut ReadLimits)) -> Case {
        change(&mut self.limits);
        self
    }

    /// Puts the input into `dir`.
    fn lay(&self, dir: &Path) -> PathBuf {
        let path = dir.join("input");
        match &self.input {
            Input::File(bytes) | Input::Bundle(bytes) => std::fs::write(&path, bytes).unwrap(),
            Input::Folder(files) => {
                std::fs::create_dir(&path).unwrap();
                for (name, bytes) in files {
                    // A name that ends with a slash is a folder's.
                    if name.ends_with('/') {
                        std::fs::create_dir(path.join(name)).unwrap();
                    } else {
                        std::fs::write(path.join(name), bytes).unwrap();
                    }
                }
            }
        }
        path
    }
}

/// All that lies below `dir`, with sizes.
fn listing(dir: &Path) -> BTreeMap<PathBuf, u64> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(dir).unwrap().map(Result::unwrap) {
        let metadata = entry.metadata().unwrap();
        found.insert(entry.path(), metadata.len());
        if metadata.is_dir() {
            found.append(&mut listing(&entry.path()));
        }
    }
    found
}

/// Runs `attempt`, which must fail; returns its refusal, the time and the most memory that it took: what Rust
/// allocated, or where that is more what the process has touched (zstd allocates by itself, and files are mapped).
fn measure<T>(attempt: impl FnOnce() -> ckptd_core::Result<T>) -> (String, Duration, usize) {
    // Makes the peak of the resident memory that of now.
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    let (before, resident) = (NOW.load(Ordering::Relaxed), resident("VmRSS:"));
    PEAK.store(before, Ordering::Relaxed);
    let began = Instant::now();
    let refusal = attempt().err().map(|e| e.to_string());
    let time = began.elapsed();
    let bytes = [(PEAK.load(Ordering::Relaxed), before), (self::resident("VmHWM:"), resident)];
    let largest = bytes.map(|(peak, before)| peak.saturating_sub(before)).into_iter().max();
    (refusal.unwrap_or_else(|| "accepted".into()), time, largest.unwrap_or_default())
}

/// Bytes of memory that the process has in use, by the name of /proc.
fn resident(name: &str) -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() << 10
}

/// What is wrong about the refusal of a case, with how long it took and how much memory.
fn judge(case: &Case, dir: &Path, wrong: &mut Vec<String>) -> (Duration, usize) {
    let input = case.lay(dir);
    let (store, out) = (dir.join("store"), dir.join("out"));
    let before = listing(dir);
    let import = |limits: &ReadLimits| {
        let options = import::ImportOptions { limits: limits.clone(), ..import::ImportOptions::default() };
        measure(|| import::import(&input, &store, &options, &NoProgress).map(drop))
    };
    let mut attempts = vec![import(&case.limits)];
    if matches!(case.input, Input::Bundle(_)) {
        attempts
            .push(measure(|| bundle::unpack(&input, &out, OverwriteRule::Refuse, &case.limits, &NoProgress).map(drop)));
    }
    let (mut slowest, mut largest) = (Duration::ZERO, 0);
    for (refusal, time, bytes) in attempts {
        let fits = refusal != "accepted" && refusal.contains(case.expect) && refusal.len() < 2000;
        if !fits || time > MAX_TIME || bytes > MAX_BYTES {
            wrong.push(format!("{}: {time:?}, {bytes} bytes: {refusal}", case.name));
        }
        (slowest, largest) = (slowest.max(time), largest.max(bytes));
    }
    if listing(dir) != before {
        wrong.push(format!("{}: left something behind", case.name));
    }
    if case.limits != ReadLimits::default() && import(&ReadLimits::default()).0.contains(case.expect) {
        wrong.push(format!("{}: the refusal does not come from the lowered limit", case.name));
    }
    (slowest, largest)
}

// One test, because memory is counted for the whole process.
#[test]
fn untrusted_files_are_refused_by_reason_quickly_and_without_a_trace() {
    // In memory where that is possible: every attempt makes a store, each of them synced.
    let memory = Some(Path::new("/dev/shm")).filter(|path| path.is_dir());
    let sandbox = memory.map_or_else(tempfile::tempdir, tempfile::tempdir_in).unwrap();
    let mut wrong = Vec::new();
    let (mut count, mut slowest, mut largest) = (0, Duration::ZERO, 0);
    let cases = [pickles::cases(), archives::cases(), weights::cases(), bundles::cases(), snapshots::cases()];
    for case in cases.into_iter().flatten() {
        let dir = sandbox.path().join("deep/deeper/case");
        std::fs::create_dir_all(&dir).unwrap();
        let (time, bytes) = judge(&case, &dir, &mut wrong);
        (slowest, largest) = (slowest.max(time), largest.max(bytes));
        let above = std::fs::read_dir(sandbox.path()).unwrap().chain(std::fs::read_dir(dir.parent().unwrap()).unwrap());
        if above.count() != 2 {
            wrong.push(format!("{}: left something above", case.name));
        }
        count += 1;
        std::fs::remove_dir_all(sandbox.path().join("deep")).unwrap();
    }
    println!("{count} inputs; slowest {slowest:?}, largest {} KiB", largest >> 10);
    assert!(wrong.is_empty(), "{} of {count}:\n{}", wrong.len(), wrong.join("\n"));
    assert!(count >= 150, "{count}");
}

#[test]
fn the_limits_of_the_readers_are_what_the_documentation_says() {
    let limits = ReadLimits::default();
    assert_eq!((limits.zip_entries, limits.zip_directory_bytes), (65_535, 16 << 20));
    assert_eq!((limits.pickle_bytes, limits.pickle_opcodes), (512 << 20, 300_000_000));
    assert_eq!((limits.pickle_nodes, limits.pickle_text_bytes), (2_000_000, 64 << 20));
    assert_eq!((limits.pickle_values, limits.pickle_depth), (1_000_000, 64));
    assert_eq!((limits.tensors, limits.sharing, limits.header_bytes), (65_536, 4, 8 << 20));
    assert_eq!((limits.bundle_files, limits.shards, limits.zstd_window_log), (4096, 1024, 25));
    assert_eq!(limits.expanded(1 << 20), (200 << 20) + (64 << 20));
    assert_eq!(limits.expanded(u64::MAX), u64::MAX);
}
