//! Rows of the campaign's table, and work that is shared by threads.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use ckptd_core::os::process::processors;
use serde::Serialize;

/// One line of the table; `faults/README.md` says what the fields mean.
#[derive(Clone, Debug, Default, Serialize)]
pub struct FaultRow {
    pub kind: String,
    pub points: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub distinct: Option<u64>,
    pub violations: u64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub examples: Vec<String>,
    pub seed: u64,
}

/// Longest list of examples.
const EXAMPLES: usize = 5;

impl FaultRow {
    pub fn new(kind: &str, seed: u64) -> FaultRow {
        FaultRow { kind: kind.into(), seed, ..FaultRow::default() }
    }

    /// A point was tried, and this is what was broken.
    pub fn point(&mut self, what: impl FnOnce() -> String, broken: Vec<String>) {
        self.points += 1;
        if let Some(first) = broken.first() {
            self.violations += 1;
            if self.examples.len() < EXAMPLES {
                self.examples.push(format!("{}: {first}", what()));
            }
        }
    }

    pub fn print(&self) {
        // A row of plain fields always serialises.
        println!("{}", serde_json::to_string(self).unwrap_or_default());
    }
}

/// Empty folders, one after the other, each removed before the next one comes.
pub struct CampaignScratch {
    path: PathBuf,
}

impl CampaignScratch {
    pub fn new(below: &Path) -> CampaignScratch {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let path = below.join(format!("scratch-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed)));
        CampaignScratch { path }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn empty(&self) -> std::io::Result<&Path> {
        let _ = std::fs::remove_dir_all(&self.path);
        std::fs::create_dir_all(&self.path)?;
        Ok(&self.path)
    }
}

impl Drop for CampaignScratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

/// Does `work` for every number below `count` on all processors.
pub fn each(count: u64, work: impl Fn(u64) + Sync) {
    each_on(processors(), count, work);
}

/// The same for work that mostly waits.
pub fn each_waiting(count: u64, work: impl Fn(u64) + Sync) {
    each_on(8 * processors(), count, work);
}

fn each_on(threads: usize, count: u64, work: impl Fn(u64) + Sync) {
    let next = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let now = next.fetch_add(1, Ordering::Relaxed);
                    if now >= count {
                        return;
                    }
                    work(now);
                }
            });
        }
    });
}

/// What `work` found broken; a panic in it is.
pub fn guarded(work: impl FnOnce() -> Vec<String>) -> Vec<String> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| vec!["panicked".into()])
}

pub fn add(row: &Mutex<FaultRow>, what: impl FnOnce() -> String, broken: Vec<String>) {
    row.lock().unwrap_or_else(|e| e.into_inner()).point(what, broken);
}

pub fn violated(row: &Mutex<FaultRow>) -> bool {
    row.lock().unwrap_or_else(|e| e.into_inner()).violations > 0
}
