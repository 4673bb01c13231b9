//! A machine with a store of its own, and its sessions: the replicating thread of the agent, and snapshots for it.
//!
//! Invariant: what a session is said to have committed is what the thread told, and nothing more.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use ckptd_core::progress::NoProgress;
use ckptd_core::store::{CommitOptions, Committed, RetentionPolicy, Store, StoreLock, commit};
use ckptd_remote::job::RemoteJob;
use ckptd_remote::job::companions::{Companion, CompanionBody, CompanionSource};
use ckptd_remote::job::owner::OwnerSettings;
use ckptd_remote::job::replicator::{ReplicaNews, ReplicaTask, Replicator, ReplicatorSettings};
use ckptd_remote::job::send::CheckDepth;
use ckptd_remote::records::{JobRecord, Marker, VERSION};
use ckptd_remote::{MemoryStorage, ObjectStorage};
use ckptd_testkit::curve::keep_session;
use ckptd_testkit::small;
use jiff::Timestamp;

/// Rows of a snapshot that goes in one request.
pub const SMALL: usize = 64;
/// Longest wait for the thread to say something.
const PATIENCE: Duration = Duration::from_secs(60);

/// A machine.
pub struct ReplicaMachine {
    pub store: Arc<Store>,
    /// Told apart from others by the steps of its snapshots.
    number: u64,
}

/// What a session does.
#[derive(Clone, Copy, Debug)]
pub struct SessionPlan {
    /// It saves so many small snapshots, each when the one before is committed.
    pub saves: u64,
    /// It waits until this one, which was saved before, is committed.
    pub awaited: Option<u64>,
    pub depth: CheckDepth,
}

impl SessionPlan {
    pub fn saves(saves: u64) -> SessionPlan {
        SessionPlan { saves, awaited: None, depth: CheckDepth::Auto }
    }
}

/// What a session told.
#[derive(Debug, Default)]
pub struct SessionReport {
    /// It began: the job is this machine's, or the store goes on without its remote.
    pub began: bool,
    pub committed: Vec<Marker>,
    pub troubles: Vec<String>,
    /// It never ended.
    pub is_stuck: bool,
}

impl SessionReport {
    /// Step of the newest snapshot that it said was committed; 0: none.
    pub fn step(&self) -> u64 {
        self.committed.last().map_or(0, |marker| marker.step)
    }
}

impl ReplicaMachine {
    /// An empty one; at most ten have their own numbers. Number 0 begins the training.
    pub fn new(folder: &Path, number: u64) -> Result<ReplicaMachine> {
        let store = Store::create(&folder.join(format!("machine-{number}")))?;
        if number == 0 {
            store.set_run_id(&StoreLock::inherited(), small::RUN)?;
        }
        Ok(ReplicaMachine { store: Arc::new(store), number })
    }

    /// Saves and verifies the next snapshot; the history has every step up to it.
    pub fn save(&self, rows: usize) -> Result<Committed> {
        let seq = self.store.next_seq()?;
        let step = 10 * seq + self.number;
        keep_session(&self.store, Timestamp::now().as_millisecond(), self.newest_before(u64::MAX)?, step)?;
        let snapshot = small::snapshot(step, rows);
        let committed = commit(&self.store, &StoreLock::inherited(), snapshot, &CommitOptions::new(small::RUN, seq))?;
        let entry = self.store.find(&committed.id)?;
        self.store.verify(&entry, 1, &NoProgress)?;
        Ok(committed)
    }

    /// Step of the newest snapshot here before the number `seq`; 0: none.
    pub fn newest_before(&self, seq: u64) -> Result<u64> {
        let entries = self.store.entries()?;
        let older = entries.into_iter().filter(|entry| entry.seq() < seq).filter_map(|entry| entry.manifest);
        Ok(older.max_by_key(|manifest| manifest.seq).map_or(0, |manifest| manifest.train.step))
    }

    /// A session beside the job at `storage`. Whoever owns the job loses it: its machine is gone.
    pub fn session(&self, storage: Arc<dyn ObjectStorage>, plan: &SessionPlan) -> Result<SessionReport> {
        let (to, news) = mpsc::channel();
        let to = Mutex::new(to);
        let report = move |news| {
            // Who does not listen any more has seen enough.
            let _ = to.lock().unwrap_or_else(PoisonError::into_inner).send(news);
            ControlFlow::Continue(())
        };
        let open = async move { Ok(RemoteJob::new(storage)) };
        let stores = (self.store.clone(), Arc::new(StoreLock::inherited()));
        let replicator = Replicator::start(open, stores, settings(plan.depth), report)?;
        let mut told = SessionReport::default();
        let mut saves = plan.saves;
        let mut next = |is_awaited: bool| -> Result<()> {
            match saves.checked_sub(1) {
                _ if !is_awaited => {}
                Some(left) => {
                    saves = left;
                    replicator.give(ReplicaTask::Send(self.save(SMALL)?.path));
                }
                None => replicator.give(ReplicaTask::Finish),
            }
            Ok(())
        };
        loop {
            match news.recv_timeout(PATIENCE) {
                Ok(ReplicaNews::Began(began)) => {
                    told.began = began.is_ok();
                    match began {
                        Ok(trouble) => told.troubles.extend(trouble.map(|error| error.to_string())),
                        Err(error) => told.troubles.push(error.to_string()),
                    }
                    next(told.began && plan.awaited.is_none())?;
                }
                Ok(ReplicaNews::Committed { marker, .. }) => {
                    let is_awaited = plan.awaited.is_none_or(|seq| seq == marker.seq);
                    told.committed.push(*marker);
                    next(is_awaited)?;
                }
                Ok(ReplicaNews::Trouble { problem, .. }) => told.troubles.push(problem),
                Ok(ReplicaNews::Lost(what)) => told.troubles.push(what),
                Ok(ReplicaNews::Warned(what)) => {
                    let is_given_up = what.contains("was not committed");
                    told.troubles.push(what);
                    next(is_given_up)?;
                }
                Ok(_) => {}
                Err(RecvTimeoutError::Disconnected) => return Ok(told),
                Err(RecvTimeoutError::Timeout) => {
                    told.is_stuck = true;
                    return Ok(told);
                }
            }
        }
    }
}

fn settings(depth: CheckDepth) -> ReplicatorSettings {
    let owner = OwnerSettings { ttl: Duration::from_secs(8), fenced: true, take_over: true, who: "a test".into() };
    ReplicatorSettings {
        owner,
        depth,
        max_rate: None,
        retention: RetentionPolicy { keep_last: 2, keep_best: 0, ..RetentionPolicy::default() },
        job: Some(JobRecord { version: VERSION, config: serde_json::json!({ "name": "a test" }) }),
        companions: CompanionSource::new(|_| {
            let body = CompanionBody::Text("what a machine needs besides".repeat(100));
            Ok(vec![Companion { name: "tokens.bin".into(), body }])
        }),
    }
}

/// A store that swaps, or one that only creates.
pub fn storage(swaps: bool) -> MemoryStorage {
    if swaps { MemoryStorage::new() } else { MemoryStorage::without_swap() }
}

/// Runs it to its end, on this thread.
pub fn block_on<T>(work: impl Future<Output = T>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    Ok(runtime.context("starting a runtime")?.block_on(work))
}
