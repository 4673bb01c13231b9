//! Files made by attackers are refused with the reason, within a second and 100 MB, and nothing is written but what was
//! asked for.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "hostile/archives.rs"]
mod archives;
#[path = "hostile/bundles.rs"]
mod bundles;
#[path = "hostile/pickles.rs"]
mod pickles;
#[path = "hostile/snapshots.rs"]
mod snapshots;
#[path = "../fuzz/src/lib.rs"]
#[allow(dead_code)]
mod targets;
#[path = "hostile/weights.rs"]
mod weights;

use std::alloc::{GlobalAlloc, Layout, System};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use ckptd_interop::limits::ReadLimits;
use ckptd_interop::progress::Silent;
use ckptd_interop::{bundle, import};
use targets::craft;

const MAX_BYTES: usize = 100 << 20;
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

/// A hostile input, and what its refusal must say.
pub struct Case {
    name: String,
    expect: &'static str,
    input: Input,
}

enum Input {
    File(Vec<u8>),
    Bundle(Vec<u8>),
    Folder(Vec<(String, Vec<u8>)>),
    Fifo,
}

impl Case {
    pub fn file(name: &str, expect: &'static str, bytes: Vec<u8>) -> Case {
        Case { name: name.into(), expect, input: Input::File(bytes) }
    }

    pub fn bundle(name: &str, expect: &'static str, bytes: Vec<u8>) -> Case {
        Case { name: name.into(), expect, input: Input::Bundle(bytes) }
    }

    pub fn folder(name: &str, expect: &'static str, files: &[(&str, Vec<u8>)]) -> Case {
        let files = files.iter().map(|(name, bytes)| ((*name).to_owned(), bytes.clone())).collect();
        Case { name: name.into(), expect, input: Input::Folder(files) }
    }

    pub fn fifo(name: &str, expect: &'static str) -> Case {
        Case { name: name.into(), expect, input: Input::Fifo }
    }

    /// Puts the input into `dir`.
    fn lay(&self, dir: &Path) -> PathBuf {
        let path = dir.join("input");
        match &self.input {
            Input::File(bytes) | Input::Bundle(bytes) => std::fs::write(&path, bytes).unwrap(),
            Input::Folder(files) => {
                std::fs::create_dir(&path).unwrap();
                files.iter().for_each(|(name, bytes)| std::fs::write(path.join(name), bytes).unwrap());
            }
            Input::Fifo => {
                std::fs::create_dir(&path).unwrap();
                std::fs::write(path.join("config.json"), "{}").unwrap();
                let pipe = path.join("model.safetensors");
                let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
                rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, mode, 0).unwrap();
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

/// Runs `attempt`, which must fail; returns its refusal, the time and the most memory that it took: what Rust allocated, or
/// where that is more what the process has touched (zstd allocates by itself, and files are mapped).
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

// One test, because memory is counted for the whole process.
#[test]
fn every_hostile_input_is_refused_quickly_cheaply_and_without_a_trace() {
    let sandbox = tempfile::tempdir().unwrap();
    let mut wrong = Vec::new();
    let (mut count, mut slowest, mut largest) = (0, Duration::ZERO, 0);
    let cases = [pickles::cases(), archives::cases(), weights::cases(), bundles::cases(), snapshots::cases()];
    for case in cases.into_iter().flatten() {
        let dir = sandbox.path().join("deep/deeper/case");
        std::fs::create_dir_all(&dir).unwrap();
        let input = case.lay(&dir);
        let before = listing(sandbox.path());
        let store = dir.join("store");
        let mut attempts =
            vec![measure(|| import::import(&input, &store, &import::Options::default(), &Silent).map(drop))];
        if matches!(case.input, Input::Bundle(_)) {
            attempts.push(measure(|| {
                bundle::unpack(&input, &dir.join("out"), false, &ReadLimits::default(), &Silent).map(drop)
            }));
        }
        for (refusal, time, bytes) in attempts {
            let fits = refusal != "accepted" && refusal.contains(case.expect) && refusal.len() < 2000;
            if !fits || time > MAX_TIME || bytes > MAX_BYTES {
                wrong.push(format!("{}: {time:?}, {bytes} bytes: {refusal}", case.name));
            }
            (slowest, largest) = (slowest.max(time), largest.max(bytes));
        }
        if listing(sandbox.path()) != before {
            wrong.push(format!("{}: left something behind", case.name));
        }
        count += 1;
        std::fs::remove_dir_all(sandbox.path().join("deep")).unwrap();
    }
    println!("{count} inputs; slowest {slowest:?}, largest {} KiB", largest >> 10);
    assert!(wrong.is_empty(), "{} of {count}:\n{}", wrong.len(), wrong.join("\n"));
    assert!(count >= 60);
}
