//! A store's snapshots at a remote, on an object store in memory: sent, checked, fetched, given up, owned by one.
#![allow(clippy::unwrap_used)]

mod histories;
mod sending;
mod sessions;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use ckptd_core::progress::NoProgress;
use ckptd_core::store::{RetentionPolicy, Store, StoreLock};
use ckptd_remote::job::companions::{Companion, CompanionBody, CompanionSource, fetch_companion};
use ckptd_remote::job::fetch::fetch_newest;
use ckptd_remote::job::history::{HistorySender, bring_history};
use ckptd_remote::job::local::agree;
use ckptd_remote::job::owner::OwnerSettings;
use ckptd_remote::job::prepare::marker;
use ckptd_remote::job::rate::RateLimit;
use ckptd_remote::job::replicator::{ReplicaNews, ReplicaTask, Replicator, ReplicatorSettings};
use ckptd_remote::job::send::{CheckDepth, KeepNothing, SendOptions, send};
use ckptd_remote::job::{JobError, RemoteJob, Survey, retention};
use ckptd_remote::layout::{ContentHash, HistoryName, JobObject, Prefix};
use ckptd_remote::records::{Checked, JobRecord, LeaseRecord, Marker, Nonce, UploadRecord, VERSION};
use ckptd_remote::{MemoryStorage, ObjectStorage};
use ckptd_testkit::small;

fn job(storage: &MemoryStorage) -> RemoteJob {
    RemoteJob::new(Arc::new(storage.clone()))
}

fn lock() -> StoreLock {
    StoreLock::inherited()
}

async fn send_as(job: &RemoteJob, path: &Path, epoch: u64, depth: CheckDepth) -> Result<Marker, JobError> {
    let rate = RateLimit::new(None);
    let options = SendOptions { rate: &rate, keeper: &KeepNothing, depth, sent: &|_| {} };
    let checked = send(job, path, &options).await?;
    let (manifest, hash) = ckptd_core::store::peek::peek(path)?;
    let nonce = Nonce("n".into());
    let marker = marker(&manifest, ContentHash::from(hash), path, (epoch, nonce, checked))?;
    job.create(&JobObject::Commit(marker.name()), &marker).await?;
    Ok(marker)
}

async fn note_epoch(job: &RemoteJob, epoch: u64, base: u64) {
    let record = LeaseRecord {
        epoch,
        nonce: Nonce("n".into()),
        counter: 0,
        base,
        released: true,
        ttl_ms: 1000,
        holder: ckptd_remote::holder::Holder::default(),
    };
    job.put(&JobObject::Epoch(epoch), &record).await.unwrap();
}

fn settings(who: &str) -> ReplicatorSettings {
    let owner = OwnerSettings { ttl: Duration::from_secs(2), fenced: true, take_over: false, who: who.into() };
    ReplicatorSettings {
        owner,
        depth: CheckDepth::Whole,
        max_rate: None,
        retention: RetentionPolicy::default(),
        job: Some(JobRecord { version: VERSION, config: serde_json::json!({ "who": who }) }),
        companions: CompanionSource::none(),
    }
}

/// Starts a replicator; its news come out of the channel.
fn replicate_as(
    storage: &MemoryStorage,
    store: &Arc<Store>,
    settings: ReplicatorSettings,
) -> (Replicator, mpsc::Receiver<ReplicaNews>) {
    let (to, news) = mpsc::channel();
    let (to, job) = (Mutex::new(to), job(storage));
    let report = move |news| {
        let _ = to.lock().unwrap().send(news);
        std::ops::ControlFlow::Continue(())
    };
    let open = async move { Ok(job) };
    let replicator = Replicator::start(open, (store.clone(), Arc::new(lock())), settings, report).unwrap();
    (replicator, news)
}

fn replicate(storage: &MemoryStorage, store: &Arc<Store>, who: &str) -> (Replicator, mpsc::Receiver<ReplicaNews>) {
    replicate_as(storage, store, settings(who))
}

fn wait<T>(news: &mpsc::Receiver<ReplicaNews>, wanted: impl Fn(ReplicaNews) -> Option<T>) -> T {
    loop {
        let what = news.recv_timeout(Duration::from_secs(60)).unwrap();
        if let Some(found) = wanted(what) {
            return found;
        }
    }
}

fn began(news: ReplicaNews) -> Option<()> {
    match news {
        ReplicaNews::Began(began) => {
            assert!(began.unwrap().is_none());
            Some(())
        }
        _ => None,
    }
}

fn committed(news: ReplicaNews) -> Option<Marker> {
    match news {
        ReplicaNews::Committed { marker, .. } => Some(*marker),
        _ => None,
    }
}

fn finish(replicator: &Replicator) {
    replicator.give(ReplicaTask::Finish);
    replicator.join(Duration::from_secs(60));
}
