//! A machine is killed before or after each of its requests: what an empty machine then finds is whole, and the newest.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use ckptd_core::progress::NoProgress;
use ckptd_core::store::{Committed, RetentionPolicy, Store, StoreLock};
use ckptd_testkit::small;
use jiff::Timestamp;
use tokio::sync::Notify;

use super::local::agree;
use super::owner::{JobOwner, OwnerSettings, Prepare};
use super::place::RemoteJob;
use super::prepare::{adopt_run, marker};
use super::rate::RateLimit;
use super::remote_file::RemoteFile;
use super::retention;
use super::send::{CheckDepth, KeepNothing, SendOptions, send};
use super::survey::Survey;
use crate::behind::{Behind, Passage, Request};
use crate::errors::Result;
use crate::layout::ContentHash;
use crate::memory::MemoryStorage;
use crate::protocol::LeaseNews;

/// When the machine dies: at its request number `at`, and whether that was carried out.
#[derive(Clone, Copy, Debug)]
struct Death {
    at: u64,
    carried_out: bool,
}

/// A machine on its way to its death.
#[derive(Debug)]
struct Mortal {
    death: Option<Death>,
    requests: AtomicU64,
    died: Notify,
}

impl Mortal {
    fn before(there: &MemoryStorage, death: Option<Death>) -> Arc<Behind<Mortal>> {
        let passage = Mortal { death, requests: AtomicU64::new(0), died: Notify::new() };
        Arc::new(Behind { store: there.clone(), passage })
    }
}

impl Passage for Mortal {
    async fn pass<T: Send>(
        &self,
        _store: &MemoryStorage,
        _request: Request,
        work: impl Future<Output = Result<T>> + Send,
    ) -> Result<T> {
        let number = self.requests.fetch_add(1, Ordering::Relaxed);
        match self.death {
            Some(Death { at, carried_out: false }) if at == number => {}
            Some(Death { at, carried_out: true }) if at == number => drop(work.await),
            _ => return work.await,
        }
        self.died.notify_one();
        std::future::pending().await
    }
}

/// Goes on from what is there, whatever that is.
struct Onward;

#[async_trait]
impl Prepare for Onward {
    async fn prepare(&mut self, job: &RemoteJob) -> super::error::Result<(u64, u64)> {
        let survey = Survey::of(job).await?;
        Ok((survey.in_order().first().map_or(0, |name| name.seq), survey.newest_epoch))
    }
}

/// Takes the job, commits `snapshots`, keeps the newest two, and leaves. `told` hears of each that is committed.
async fn session(job: RemoteJob, snapshots: &[Committed], mut told: impl FnMut(u64)) {
    let who = "a session".to_owned();
    let settings = OwnerSettings { ttl: Duration::from_secs(60), fenced: true, take_over: true, who };
    let mut owner = JobOwner::new(job.clone(), settings).unwrap();
    let epoch = owner.acquire(&mut Onward, &mut |_| Ok(())).await.unwrap();
    for snapshot in snapshots {
        let rate = RateLimit::new(None);
        let options = SendOptions { rate: &rate, keeper: &KeepNothing, depth: CheckDepth::Auto, sent: &|_| {} };
        let checked = send(&job, &snapshot.path, &options).await.unwrap();
        let (manifest, hash) = ckptd_core::store::peek::peek(&snapshot.path).unwrap();
        let place = (epoch, owner.nonce().clone(), checked);
        let marker = marker(&manifest, ContentHash::from(hash), &snapshot.path, place).unwrap();
        let (name, step) = (marker.name(), marker.step);
        let news = owner.commit(marker, &mut Onward).await;
        assert!(news.contains(&LeaseNews::Committed(name)), "{news:?}");
        told(step);
    }
    let survey = Survey::of(&job).await.unwrap();
    let markers = retention::read_markers(&job, &survey, &BTreeMap::new()).await.unwrap();
    let policy = RetentionPolicy { keep_last: 2, keep_best: 0, ..RetentionPolicy::default() };
    let now = Timestamp::now();
    let verdicts = retention::plan(&survey, &markers, &BTreeSet::new(), &policy, now);
    retention::take_away(&job, &verdicts, epoch, || owner.may_write()).await.unwrap();
    // As if an hour had passed: the second phase, too.
    let later = now.checked_add(jiff::SignedDuration::from_hours(2)).unwrap();
    retention::remove_data(&job, later, || owner.may_write()).await.unwrap();
    owner.leave(Duration::from_secs(15)).await;
}

/// An empty machine finds the newest marker's snapshot; returns its step, 0 for none.
async fn resume(there: &MemoryStorage) -> u64 {
    let job = RemoteJob::new(Arc::new(there.clone()));
    let survey = Survey::of(&job).await.unwrap();
    for name in &survey.markers {
        let marker = job.marker(name).await.unwrap().unwrap();
        RemoteFile::open(&job, &marker.file_hash).await.unwrap().read_all(|_, _| Ok(())).await.unwrap();
    }
    let folder = tempfile::tempdir().unwrap();
    let (store, lock) = (Store::create(&folder.path().join("store")).unwrap(), StoreLock::inherited());
    adopt_run(&job, &store, &lock).await.unwrap();
    let mut told = Vec::new();
    let agreed = agree(&job, (&store, &lock), 1, &NoProgress, &mut |line| told.push(line)).await.unwrap();
    assert!(told.is_empty(), "{told:?}");
    let newest = survey.in_order().first().map_or(0, |name| name.seq);
    assert_eq!(agreed.base, newest);
    agreed.fetched.map_or(0, |fetched| fetched.marker.step)
}

#[tokio::test]
async fn a_kill_at_any_request_loses_nothing_that_was_committed_and_leaves_nothing_half() {
    let (_folder, here) = small::store();
    let saved: Vec<Committed> = (1..=4).map(|seq| small::save_verified(&here, 10 * seq, seq)).collect();
    let mut points = 0;
    for swaps in [true, false] {
        let fresh = async || {
            let there = if swaps { MemoryStorage::new() } else { MemoryStorage::without_swap() };
            let job = RemoteJob::new(Arc::new(there.clone()));
            job.claim_run(&here.run_id().unwrap().unwrap()).await.unwrap();
            session(job, &saved[..1], |_| {}).await;
            there
        };
        let there = fresh().await;
        let alive = Mortal::before(&there, None);
        session(RemoteJob::new(alive.clone()), &saved[1..3], |_| {}).await;
        assert_eq!(resume(&there).await, 30);
        let requests = alive.passage.requests.load(Ordering::Relaxed);
        for at in 0..requests {
            for carried_out in [false, true] {
                let there = fresh().await;
                let mortal = Mortal::before(&there, Some(Death { at, carried_out }));
                let mut committed = 10;
                tokio::select! {
                    () = session(RemoteJob::new(mortal.clone()), &saved[1..3], |step| committed = step) => {}
                    () = mortal.passage.died.notified() => points += 1,
                }
                let found = resume(&there).await;
                assert!(found >= committed, "request {at}, carried out: {carried_out}: {found} after {committed}");
                // Whoever comes next goes on.
                session(RemoteJob::new(Arc::new(there.clone())), &saved[3..], |_| {}).await;
                assert_eq!(resume(&there).await, 40, "request {at}, carried out: {carried_out}");
            }
        }
    }
    assert!(points > 100, "{points}");
}
