//! The verifier: one thread that reads snapshots back, records them as verified, quarantines and rotates.
//!
//! Invariant: nothing is rotated out before its successor was read back here. One thread, so that no two of these
//! overlap, and none of them holds up the event loop. Deliberately not here: how each is done (core's store).

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tracing::{debug, warn};

use super::last_worker;
use ckptd_core::error::{Error, Result};
use ckptd_core::ids::SnapshotId;
use ckptd_core::os::process::processors;
use ckptd_core::progress::NoProgress;
use ckptd_core::snapshot::TrainState;
use ckptd_core::store::RetentionPolicy;
use ckptd_core::store::{SnapshotEntry, SnapshotState, Store, StoreLock, layout};

/// What is to be done.
pub enum VerifierTask {
    /// Quarantine each of `discard` (id, reason), then pick the snapshot to go on from.
    Choose { discard: Vec<(SnapshotId, String)> },
    /// Quarantine these (id, reason).
    SetAside { spoiled: Vec<(SnapshotId, String)> },
    /// Read a snapshot back, quarantine it if it is not what was written, rotate if it is. Snapshots of steps beyond
    /// `sure_up_to` are left alone.
    Verify { id: SnapshotId, retention: RetentionPolicy, threads: usize, sure_up_to: u64 },
}

/// What came of a task.
#[derive(Debug)]
pub enum VerifierReport {
    Chosen(Result<ResumeDecision>),
    ReadBack { id: SnapshotId, result: ReadBack },
}

/// Where the training goes on.
#[derive(Debug)]
pub struct ResumeDecision {
    /// `None`: the training begins with its first step.
    pub resume: Option<ResumePoint>,
    pub next_seq: u64,
    /// What went to quarantine on the way, each with the reason.
    pub quarantined: Vec<(SnapshotId, String)>,
}

/// A verified snapshot to go on from.
#[derive(Clone, Debug)]
pub struct ResumePoint {
    pub id: SnapshotId,
    pub path: PathBuf,
    pub step: u64,
    pub train: TrainState,
    pub created_at: Timestamp,
    pub why: String,
}

/// What reading a snapshot back has shown.
#[derive(Debug)]
pub enum ReadBack {
    Verified {
        step: u64,
        bytes: u64,
        raw_bytes: u64,
        healthy: bool,
        val_loss: Option<f64>,
        created_at: Timestamp,
        took: Duration,
    },
    /// It is not what was written, and in quarantine now.
    Quarantined { reason: String },
    /// It could not be judged, and stays where it is.
    Unknown { reason: String },
    /// It is not in the store: taken away, or written elsewhere by the worker.
    Gone,
}

/// A handle to the verifying thread.
pub struct Verifier {
    /// `None` once it was told to finish.
    tasks: Option<mpsc::Sender<VerifierTask>>,
    /// Closed by the thread's end.
    end: mpsc::Receiver<()>,
}

impl Verifier {
    /// Starts the thread, which reports until `report` breaks off. It may end with the process in the middle of its
    /// work: each step of it is whole or absent.
    pub fn start(
        store: Arc<Store>,
        lock: Arc<StoreLock>,
        report: impl Fn(VerifierReport) -> ControlFlow<()> + Send + 'static,
    ) -> Result<Verifier> {
        let (tasks, queue) = mpsc::channel();
        let (ends, end) = mpsc::channel();
        std::thread::Builder::new()
            .name("verifier".into())
            .spawn(move || {
                work_off(&store, &lock, &queue, &report);
                drop(ends);
            })
            .map_err(|e| Error::Other(format!("starting a thread: {e}")))?;
        Ok(Verifier { tasks: Some(tasks), end })
    }

    /// Has `task` done; of several that wait the newest comes first.
    pub fn give(&self, task: VerifierTask) {
        // The thread ends only after this handle does.
        let _ = self.tasks.as_ref().map(|tasks| tasks.send(task));
    }

    /// Lets it complete what it does, for at most `timeout`.
    pub fn finish(&mut self, timeout: Duration) {
        self.tasks = None;
        let _ = self.end.recv_timeout(timeout);
    }
}

fn work_off(
    store: &Store,
    lock: &StoreLock,
    queue: &mpsc::Receiver<VerifierTask>,
    report: &dyn Fn(VerifierReport) -> ControlFlow<()>,
) {
    let mut waiting = Vec::new();
    loop {
        if waiting.is_empty() {
            match queue.recv() {
                Ok(task) => waiting.push(task),
                Err(_) => return,
            }
        }
        waiting.extend(queue.try_iter());
        // The latest first: it is the one that a resume would take.
        let Some(task) = waiting.pop() else { continue };
        if perform(store, lock, task, report).is_break() {
            return;
        }
    }
}

fn perform(
    store: &Store,
    lock: &StoreLock,
    task: VerifierTask,
    report: &dyn Fn(VerifierReport) -> ControlFlow<()>,
) -> ControlFlow<()> {
    match task {
        VerifierTask::Choose { discard } => {
            report(VerifierReport::Chosen(guarded(|| choose(store, lock, discard)).and_then(|chosen| chosen)))
        }
        VerifierTask::SetAside { spoiled } => {
            if let Err(e) = guarded(|| set_aside(store, lock, spoiled)).and_then(|done| done) {
                warn!("a snapshot that must not be gone on from stays where it is: {e}");
            }
            ControlFlow::Continue(())
        }
        VerifierTask::Verify { id, retention, threads, sure_up_to } => {
            let result = guarded(|| read_back(store, lock, &id, threads))
                .unwrap_or_else(|e| ReadBack::Unknown { reason: e.to_string() });
            let verified = matches!(result, ReadBack::Verified { .. });
            report(VerifierReport::ReadBack { id, result })?;
            if verified {
                catch_up(store, lock, sure_up_to);
                rotate(store, lock, &retention);
            }
            ControlFlow::Continue(())
        }
    }
}

/// A bug in here must not leave the loop waiting for an answer that never comes.
fn guarded<T>(work: impl FnOnce() -> T) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|_| Error::Other("an internal error while reading the store".into()))
}

fn set_aside(store: &Store, lock: &StoreLock, spoiled: Vec<(SnapshotId, String)>) -> Result<()> {
    for (id, reason) in spoiled {
        let entry = store.find(&id)?;
        store.quarantine(lock, &entry, &reason)?;
    }
    Ok(())
}

fn choose(store: &Store, lock: &StoreLock, discard: Vec<(SnapshotId, String)>) -> Result<ResumeDecision> {
    last_worker::await_end(store, lock)?;
    let before: BTreeSet<String> = store.quarantined()?.into_iter().map(|file| file.name).collect();
    set_aside(store, lock, discard)?;
    // Nothing trains while a resume is chosen.
    let chosen = store.choose_resume(lock, processors(), &mut |line| warn!("{line}"))?;
    if chosen.is_none() {
        let lost = store.quarantined()?.len();
        if lost > 0 {
            warn!("no snapshot is left to go on from, {lost} lie in quarantine: training restarts from step 0");
        }
    }
    let next_seq = store.next_seq()?;
    let new = store.quarantined()?.into_iter().filter(|file| !before.contains(&file.name));
    let quarantined = new.map(|file| (layout::quarantined_id(&file.name), file.reason)).collect();
    let resume = chosen.and_then(|chosen| {
        let manifest = chosen.entry.manifest?;
        Some(ResumePoint {
            id: chosen.entry.id,
            path: chosen.entry.path,
            step: manifest.train.step,
            created_at: manifest.created_at,
            why: chosen.why,
            train: manifest.train,
        })
    });
    Ok(ResumeDecision { resume, next_seq, quarantined })
}

fn read_back(store: &Store, lock: &StoreLock, id: &SnapshotId, threads: usize) -> ReadBack {
    let began = Instant::now();
    let entry = match store.find(id) {
        Ok(entry) => entry,
        Err(Error::NotFound(_)) => return ReadBack::Gone,
        Err(e) => return ReadBack::Unknown { reason: e.to_string() },
    };
    // A resume may have read it back already.
    let verified = match entry.state {
        SnapshotState::Verified => Ok(()),
        _ => store.verify(&entry, threads, &NoProgress).map(drop),
    };
    match (verified, &entry.manifest) {
        (Ok(()), Some(manifest)) => ReadBack::Verified {
            step: manifest.train.step,
            bytes: entry.bytes,
            raw_bytes: manifest.raw_bytes,
            healthy: manifest.healthy,
            val_loss: entry.val_loss(),
            created_at: manifest.created_at,
            took: began.elapsed(),
        },
        (Ok(()), None) => ReadBack::Unknown { reason: "its manifest cannot be read".into() },
        (Err(Error::Damaged { reason, .. }), _) => match store.quarantine(lock, &entry, &reason) {
            Ok(_) => ReadBack::Quarantined { reason },
            Err(e) => ReadBack::Unknown { reason: format!("{reason}; and {e}") },
        },
        (Err(e), _) => ReadBack::Unknown { reason: e.to_string() },
    }
}

/// Reads back what an earlier session committed and did not live to verify: unverified, it would stay for ever.
fn catch_up(store: &Store, lock: &StoreLock, sure_up_to: u64) {
    let Ok(entries) = store.entries() else { return };
    let is_left = |e: &&SnapshotEntry| e.own && e.state == SnapshotState::Committed && e.step() <= sure_up_to;
    for entry in entries.iter().filter(is_left) {
        match guarded(|| read_back(store, lock, &entry.id, 1)) {
            Ok(ReadBack::Quarantined { reason }) => warn!("{} is damaged ({reason}): moved to quarantine", entry.id),
            Ok(_) => debug!(id = %entry.id, "read back an older snapshot"),
            Err(e) => warn!("{e}"),
        }
    }
}

fn rotate(store: &Store, lock: &StoreLock, retention: &RetentionPolicy) {
    match guarded(|| store.prune(lock, retention, Timestamp::now())).and_then(|verdicts| verdicts) {
        Ok(verdicts) => {
            for verdict in verdicts.iter().filter(|verdict| !verdict.keeps()) {
                debug!(id = %verdict.id, "rotated out {}", verdict.id);
            }
        }
        Err(e) => warn!("old snapshots stay where they are: {e}"),
    }
}
