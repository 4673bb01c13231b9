//! What the replicating thread does: snapshots sent one after the other, retention, the lease.
//!
//! Invariant: what is reported of a snapshot is what the remote holds. Deliberately not here: the thread itself
//! (`replicator`).

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::mpsc::UnboundedReceiver;

use ckptd_core::error::Error;
use ckptd_core::store::peek::peek;
use ckptd_core::store::{Record, Store, StoreLock};

use super::error::{JobError, Result};
use super::leftovers;
use super::local::{LocalHistory, newest_unsent};
use super::owner::{JobOwner, now};
use super::prepare::{Beginning, Meanwhile, adopt_run, marker};
use super::probe::require_fencing;
use super::rate::RateLimit;
use super::replica::{ReplicaNews, ReplicaTask, ReplicatorSettings};
use super::replication_history::{HistoryRoute, HistoryState, HistoryWork, history_sent};
use super::retention;
use super::send::{ProgressKeeper, SendOptions, UploadProgress, send};
use super::sent_once::SentOnce;
use super::survey::Survey;
use super::troubles::{Concern, Troubles};
use crate::layout::{ContentHash, MarkerName};
use crate::protocol::LeaseNews;
use crate::records::Marker;

/// Pauses between tries of what failed.
const FIRST_PAUSE: Duration = Duration::from_secs(2);
const LONGEST_PAUSE: Duration = Duration::from_secs(120);

/// What is under way.
type Work = Pin<Box<dyn Future<Output = WorkDone>>>;

enum WorkDone {
    Sent(Box<SentSnapshot>),
    /// The newest snapshot here, where it is not there.
    Looked(Result<Option<PathBuf>>),
    Retained(Result<BTreeMap<MarkerName, Marker>>),
}

/// What came of a snapshot that was to be sent.
struct SentSnapshot {
    path: PathBuf,
    began: Duration,
    outcome: Result<Marker>,
    once: SentOnce,
}

pub(super) struct Replication<'a> {
    pub(super) owner: JobOwner,
    settings: ReplicatorSettings,
    rate: Arc<RateLimit>,
    keeper: Arc<StoreKeeper>,
    store: Arc<Store>,
    lock: Arc<StoreLock>,
    pub(super) report: &'a (dyn Fn(ReplicaNews) -> ControlFlow<()> + Send + Sync),
    /// Until when markers may be taken away, in milliseconds of [`now`].
    pub(super) write_until: Arc<AtomicU64>,
    /// Markers that were read: they never change.
    pub(super) known: BTreeMap<MarkerName, Marker>,
    waiting: Option<PathBuf>,
    pub(super) failures: u32,
    pub(super) not_before: Duration,
    pub(super) troubles: Troubles,
    /// The job became this process's in the middle of the session: what is there may be less than what was sent.
    pub(super) looks: bool,
    pub(super) once: SentOnce,
    pub(super) history: HistoryState,
}

impl<'a> Replication<'a> {
    pub(super) fn new(
        owner: JobOwner,
        settings: ReplicatorSettings,
        (store, lock): (Arc<Store>, Arc<StoreLock>),
        report: &'a (dyn Fn(ReplicaNews) -> ControlFlow<()> + Send + Sync),
    ) -> Replication<'a> {
        Replication {
            owner,
            rate: Arc::new(RateLimit::new(settings.max_rate)),
            keeper: Arc::new(StoreKeeper { store: store.clone(), lock: lock.clone() }),
            settings,
            store,
            lock,
            report,
            write_until: Arc::default(),
            known: BTreeMap::new(),
            waiting: None,
            failures: 0,
            not_before: Duration::ZERO,
            troubles: Troubles::default(),
            looks: false,
            once: SentOnce::default(),
            history: HistoryState::default(),
        }
    }

    /// Before the first step: the store becomes as new as the remote, and the job this process's.
    pub(super) async fn begin(&mut self) -> Result<Option<JobError>> {
        let report = self.report;
        let (store, lock) = (self.store.clone(), self.lock.clone());
        if self.settings.owner.fenced
            && let Err(error) = require_fencing(self.owner.job()).await
        {
            return self.without_remote(error);
        }
        if let Err(error) = adopt_run(self.owner.job(), &store, &lock).await {
            return self.without_remote(error);
        }
        let warned = |line: String| {
            let _ = report(ReplicaNews::Warned(line));
        };
        let told = |line: String| {
            let _ = report(ReplicaNews::Told(line));
        };
        let companions = self.settings.companions.clone();
        let mut prepare = Beginning {
            store: &store,
            lock: &lock,
            warned: &warned,
            told: &told,
            companions: &companions,
            has_history: false,
        };
        let mut told = |news: LeaseNews| {
            if let LeaseNews::Waiting(holder, ttl) = news {
                let (place, ttl) = (holder.text(), ckptd_core::text::rough_duration(ttl));
                let flow = report(ReplicaNews::Told(format!(
                    "{place} owns the job: waiting for it to be free, which it is after {ttl} without a sign of life"
                )));
                return if flow.is_break() { Err(Error::Other("called off".into())) } else { Ok(()) };
            }
            Ok(())
        };
        match self.owner.acquire(&mut prepare, &mut told).await {
            Ok(_) => {
                if prepare.has_history {
                    self.history.knows_all();
                }
                self.owns()?;
                self.catch_up().await;
                Ok(None)
            }
            Err(error) => self.without_remote(error),
        }
    }

    /// Tells what is there; what the last session could not send goes first.
    async fn catch_up(&mut self) {
        let found = async {
            let survey = Survey::of(self.owner.job()).await?;
            let unsent = newest_unsent(&self.store, &survey)?;
            let newest = match survey.in_order().first() {
                Some(name) => survey.marker(self.owner.job(), name).await?,
                None => None,
            };
            Ok((unsent, newest))
        };
        match found.await {
            Ok((unsent, newest)) => {
                self.waiting = unsent.map(|entry| entry.path);
                if let Some(newest) = newest {
                    let _ = (self.report)(ReplicaNews::Found(Box::new(newest)));
                }
            }
            Err(error) => self.tell_trouble(Concern::Sending, &error),
        }
        let own = self.keeper.load().filter(|kept| kept.place == self.owner.job().place()).map(|kept| kept.file_hash);
        if let Err(error) = leftovers::clear(self.owner.job(), own.as_ref()).await {
            let _ = (self.report)(ReplicaNews::Warned(format!("parts of earlier uploads were not removed: {error}")));
        }
    }

    /// A store that holds something may go on without its remote for now.
    fn without_remote(&mut self, error: JobError) -> Result<Option<JobError>> {
        let has_snapshot = self.store.entries()?.iter().any(|entry| entry.own && entry.healthy());
        if !error.is_worth_retrying() || !has_snapshot {
            return Err(error);
        }
        self.tell_trouble(Concern::Lease, &error);
        Ok(Some(error))
    }

    /// Remembers what this store has come to own.
    pub(super) fn owns(&mut self) -> Result<()> {
        let Some(record) = self.owner.record() else { return Ok(()) };
        let mut history = LocalHistory::read(&self.store)?;
        if history.owned.last() != Some(&(record.epoch, record.base)) {
            history.owned.push((record.epoch, record.base));
            history.write(&self.store, &self.lock)?;
        }
        Ok(())
    }

    pub(super) async fn run(&mut self, queue: &mut UnboundedReceiver<ReplicaTask>) {
        let mut finishing = false;
        let mut work: Option<Work> = None;
        let mut history = None;
        let mut retain = false;
        loop {
            if work.is_none() {
                work = self.next_look().or_else(|| self.next_send());
            }
            if work.is_none() && retain && self.owner.may_write() {
                (work, retain) = (Some(self.retain()), false);
            }
            let is_idle = work.is_none() && self.waiting.is_none() && !self.looks && !self.owner.is_committing();
            if finishing && is_idle {
                self.history.ends();
            }
            if history.is_none() {
                history = self.next_history();
            }
            if self.owner.is_over() || finishing && is_idle && history.is_none() {
                break;
            }
            let idle = self.owner.idle().max(Duration::from_millis(1));
            tokio::select! {
                task = queue.recv(), if !finishing => match task {
                    Some(ReplicaTask::Send(path)) => self.waiting = Some(path),
                    Some(ReplicaTask::Finish) | None => finishing = true,
                },
                done = finished(&mut work), if work.is_some() => {
                    work = None;
                    retain |= self.done(done).await;
                }
                done = history_sent(&mut history), if history.is_some() => {
                    history = None;
                    if let Some(line) = self.history.done(done) {
                        let _ = (self.report)(ReplicaNews::Warned(line));
                    }
                }
                () = tokio::time::sleep(idle) => {}
            }
            let mut prepare = Meanwhile { store: self.store.clone(), lost: None };
            let news = self.owner.tick(&mut prepare).await;
            retain |= self.heard(news, Duration::ZERO);
            self.note_lease();
            if let Some(lost) = prepare.lost {
                let _ = (self.report)(ReplicaNews::Lost(lost));
                break;
            }
        }
        self.owner.leave(self.settings.owner.ttl / 4).await;
    }

    /// Begins to send what of the history has grown, beside everything else.
    fn next_history(&mut self) -> Option<HistoryWork> {
        let epoch = self.owner.epoch().filter(|_| self.owner.may_write())?;
        let (job, store, rate) = (self.owner.job(), &self.store, &self.rate);
        self.history.next(&HistoryRoute { job, store, rate, epoch, write_until: &self.write_until })
    }

    /// Begins to find out whether the newest snapshot here is there, where that may not be so.
    fn next_look(&mut self) -> Option<Work> {
        self.owner.epoch().filter(|_| self.looks && now() >= self.not_before)?;
        self.looks = false;
        let (job, store) = (self.owner.job().clone(), self.store.clone());
        Some(Box::pin(async move {
            let look = async { newest_unsent(&store, &Survey::of(&job).await?) };
            WorkDone::Looked(look.await.map(|unsent| unsent.map(|entry| entry.path)))
        }))
    }

    /// Begins to send the snapshot that waits.
    fn next_send(&mut self) -> Option<Work> {
        let epoch = self.owner.epoch()?;
        if now() < self.not_before {
            return None;
        }
        let path = self.waiting.take()?;
        let (job, nonce) = (self.owner.job().clone(), self.owner.nonce().clone());
        let (rate, keeper, settings) = (self.rate.clone(), self.keeper.clone(), self.settings.clone());
        let mut once = self.once.clone();
        Some(Box::pin(async move {
            let began = now();
            let options = SendOptions { rate: &rate, keeper: &*keeper, depth: settings.depth, sent: &|_| {} };
            let outcome = async {
                let (manifest, hash) = peek(&path)?;
                once.send(&job, &settings, &manifest, &options).await?;
                let checked = send(&job, &path, &options).await?;
                let marker = marker(&manifest, ContentHash::from(hash), &path, (epoch, nonce, checked))?;
                Ok(Marker { blobs: once.blobs(), ..marker })
            };
            let outcome = outcome.await;
            WorkDone::Sent(Box::new(SentSnapshot { path, began, outcome, once }))
        }))
    }

    /// Whether retention is due.
    async fn done(&mut self, done: WorkDone) -> bool {
        let sent = match done {
            WorkDone::Sent(sent) => *sent,
            WorkDone::Looked(Ok(unsent)) => {
                self.waiting = self.waiting.take().or(unsent);
                return false;
            }
            WorkDone::Looked(Err(error)) => {
                self.looks = true;
                self.put_off(&error);
                return false;
            }
            WorkDone::Retained(Ok(known)) => {
                self.known = known;
                self.works(Concern::Retention);
                return false;
            }
            WorkDone::Retained(Err(error)) => {
                self.tell_trouble(Concern::Retention, &error);
                return false;
            }
        };
        let SentSnapshot { path, began, outcome, once } = sent;
        self.once = once;
        if let Some(what) = self.once.complaint.take() {
            let _ = (self.report)(ReplicaNews::Warned(what));
        }
        match outcome {
            Ok(marker) => {
                self.failures = 0;
                self.known.insert(marker.name(), marker.clone());
                let mut prepare = Meanwhile { store: self.store.clone(), lost: None };
                let news = self.owner.commit(marker, &mut prepare).await;
                self.heard(news, now() - began)
            }
            // Rotated out meanwhile: a newer one is on its way.
            Err(_) if !path.exists() => false,
            Err(error) => {
                self.put_off(&error);
                self.waiting.get_or_insert(path);
                false
            }
        }
    }

    /// What failed is tried again later, and later each time.
    fn put_off(&mut self, error: &JobError) {
        self.tell_trouble(Concern::Sending, error);
        self.failures += 1;
        let pause = FIRST_PAUSE.saturating_mul(1 << self.failures.min(7)).min(LONGEST_PAUSE);
        self.not_before = now() + pause;
    }

    /// Takes away what the policy does not keep.
    fn retain(&self) -> Work {
        let (job, policy, known) = (self.owner.job().clone(), self.settings.retention.clone(), self.known.clone());
        let (epoch, until) = (self.owner.epoch().unwrap_or(0), self.write_until.clone());
        Box::pin(async move {
            let may_write = || (now().as_millis() as u64) < until.load(Ordering::Relaxed);
            WorkDone::Retained(
                async {
                    let survey = Survey::of(&job).await?;
                    let known = retention::read_markers(&job, &survey, &known).await?;
                    let at = Timestamp::now();
                    let verdicts = retention::plan(&survey, &known, &BTreeSet::new(), &policy, at);
                    retention::take_away(&job, &verdicts, epoch, may_write).await?;
                    retention::remove_data(&job, at, may_write).await?;
                    Ok(known)
                }
                .await,
            )
        })
    }
}

async fn finished(work: &mut Option<Work>) -> WorkDone {
    match work {
        Some(work) => work.await,
        None => std::future::pending().await,
    }
}

/// Keeps the progress of an upload in the store.
struct StoreKeeper {
    store: Arc<Store>,
    lock: Arc<StoreLock>,
}

impl ProgressKeeper for StoreKeeper {
    fn load(&self) -> Option<UploadProgress> {
        self.store.read_record::<Option<UploadProgress>>(Record::Upload).ok().flatten().flatten()
    }

    fn keep(&self, progress: Option<&UploadProgress>) {
        // What is not kept is sent again.
        let _ = self.store.write_record(&self.lock, Record::Upload, &progress);
    }
}
