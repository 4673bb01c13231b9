//! The keeper: one thread that reads snapshots back, vouches for them, quarantines and rotates.
//!
//! Invariant: nothing is rotated out before its successor was read back here. One thread, so that no two of these
//! ever meet, and none of them holds up the event loop. Deliberately not here: how each is done (store).

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tracing::{debug, warn};

use crate::training::Input;
use crate::training::job::{JobEvent, ReadBack, Resume, ResumeDecision};
use ckptd_core::error::{Error, Result};
use ckptd_core::ids::SnapshotId;
use ckptd_core::os::process::processors;
use ckptd_core::progress::NoProgress;
use ckptd_core::store::RetentionPolicy;
use ckptd_core::store::{SnapshotState, Store, StoreLock};

pub enum Task {
    /// Quarantine `discard` (id, reason), then pick the snapshot to go on from.
    Choose {
        discard: Option<(SnapshotId, String)>,
    },
    Verify {
        id: SnapshotId,
        retention: RetentionPolicy,
        threads: usize,
    },
}

pub struct Keeper {
    /// `None` once it was told to finish.
    tasks: Option<mpsc::Sender<Task>>,
    /// Closed by the thread's end.
    end: mpsc::Receiver<()>,
}

impl Keeper {
    /// Starts the thread. It may end with the process in the middle of its work: each step of it is whole or absent.
    pub fn start(store: Arc<Store>, lock: Arc<StoreLock>, inputs: tokio::sync::mpsc::Sender<Input>) -> Result<Keeper> {
        let (tasks, queue) = mpsc::channel();
        let (ends, end) = mpsc::channel();
        std::thread::Builder::new()
            .name("keeper".into())
            .spawn(move || {
                keep(&store, &lock, &queue, &inputs);
                drop(ends);
            })
            .map_err(|e| Error::Other(format!("starting a thread: {e}")))?;
        Ok(Keeper { tasks: Some(tasks), end })
    }

    pub fn give(&self, task: Task) {
        // The thread ends only after this handle does.
        let _ = self.tasks.as_ref().map(|tasks| tasks.send(task));
    }

    /// Lets it complete what it does, for at most `timeout`.
    pub fn finish(&mut self, timeout: Duration) {
        self.tasks = None;
        let _ = self.end.recv_timeout(timeout);
    }
}

fn keep(store: &Store, lock: &StoreLock, queue: &mpsc::Receiver<Task>, inputs: &tokio::sync::mpsc::Sender<Input>) {
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
        let event = match task {
            Task::Choose { discard } => {
                JobEvent::Chosen(guarded(|| choose(store, lock, discard)).and_then(|chosen| chosen))
            }
            Task::Verify { id, retention, threads } => {
                let verdict = guarded(|| judge(store, lock, &id, threads))
                    .unwrap_or_else(|e| ReadBack::Unknown { reason: e.to_string() });
                let verified = matches!(verdict, ReadBack::Verified { .. });
                if inputs.blocking_send(Input::Job(JobEvent::Judged { id, verdict })).is_err() {
                    return;
                }
                if verified {
                    catch_up(store, lock);
                    rotate(store, lock, &retention);
                }
                continue;
            }
        };
        if inputs.blocking_send(Input::Job(event)).is_err() {
            return;
        }
    }
}

/// A bug in here must not leave the agent waiting for an answer that never comes.
fn guarded<T>(work: impl FnOnce() -> T) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|_| Error::Other("an internal error while reading the store".into()))
}

fn choose(store: &Store, lock: &StoreLock, discard: Option<(SnapshotId, String)>) -> Result<ResumeDecision> {
    if let Some((id, reason)) = discard {
        let entry = store.find(&id)?;
        store.quarantine(lock, &entry, &format!("the worker could not load it: {reason}"))?;
    }
    let chosen = store.choose_resume(lock, processors(), &mut |line| warn!("{line}"))?;
    if chosen.is_none() {
        let lost = store.quarantined()?.len();
        if lost > 0 {
            warn!("no snapshot is left to go on from, {lost} lie in quarantine: the training begins anew");
        }
    }
    let next_seq = store.next_seq()?;
    let resume = chosen.and_then(|chosen| {
        let manifest = chosen.entry.manifest?;
        Some(Resume {
            id: chosen.entry.id,
            path: chosen.entry.path,
            step: manifest.train.step,
            created_at: manifest.created_at,
            why: chosen.why,
            train: manifest.train,
        })
    });
    Ok(ResumeDecision { resume, next_seq })
}

/// Nothing trains while a resume is chosen.
fn judge(store: &Store, lock: &StoreLock, id: &SnapshotId, threads: usize) -> ReadBack {
    let began = Instant::now();
    let entry = match store.find(&id) {
        Ok(entry) => entry,
        Err(Error::NotFound(_)) => return ReadBack::Gone,
        Err(e) => return ReadBack::Unknown { reason: e.to_string() },
    };
    // A resume may have read it back already.
    let judged = match entry.state {
        SnapshotState::Verified => Ok(()),
        _ => store.verify(&entry, threads, &NoProgress).map(drop),
    };
    match (judged, &entry.manifest) {
        (Ok(()), Some(manifest)) => ReadBack::Verified {
            step: manifest.train.step,
            bytes: entry.bytes,
            raw_bytes: manifest.raw_bytes,
            healthy: manifest.healthy,
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
fn catch_up(store: &Store, lock: &StoreLock) {
    let Ok(entries) = store.entries() else { return };
    for entry in entries.iter().filter(|e| e.own && e.state == SnapshotState::Committed) {
        match guarded(|| judge(store, lock, &entry.id, 1)) {
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
