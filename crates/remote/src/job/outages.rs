//! A remote that does not work for an hour of simulated time, under a session that goes on: told once, with what to do,
//! and caught up with when it is over.
#![allow(clippy::unwrap_used)]

use std::ops::{ControlFlow, Range};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use ckptd_core::store::{RetentionPolicy, StoreLock};
use ckptd_testkit::small;

use super::companions::CompanionSource;
use super::owner::{JobOwner, OwnerSettings, TTL, now};
use super::place::RemoteJob;
use super::replica::{ReplicaNews, ReplicaTask, ReplicatorSettings};
use super::replication::Replication;
use super::send::CheckDepth;
use super::survey::Survey;
use crate::errors::{ErrorKind, Operation, Result};
use crate::memory::MemoryStorage;
use crate::names::ObjectName;
use crate::objects::{
    Abilities, Created, Head, Listed, Object, ObjectStorage, ObjectVersion, PartReceipt, RangeStream, Swapped, UploadId,
};

const SAVE_INTERVAL: Duration = Duration::from_secs(300);
/// The trouble begins with this snapshot, and is over an hour later.
const TROUBLE_AT: u64 = 4;
const TROUBLE_SAVES: u64 = 12;
const SAVES: u64 = TROUBLE_AT + TROUBLE_SAVES + 3;
/// No later than so long after the trouble everything is there.
const LONGEST_PAUSE: Duration = Duration::from_secs(125);

#[derive(Clone, Copy, Debug, PartialEq)]
enum Trouble {
    /// Every request comes to nothing, after a while.
    Down,
    /// Everything is refused.
    Refused(ErrorKind),
    /// What is written is refused.
    WritesRefused(ErrorKind),
    /// Snapshots are refused: there is room for small objects.
    LargeRefused(ErrorKind),
    /// Everything was removed, once.
    Emptied,
}

/// An object store in memory, and a way to it that may fail.
#[derive(Debug)]
struct Far {
    store: MemoryStorage,
    trouble: Arc<Mutex<Option<Trouble>>>,
}

impl Far {
    async fn way(&self, operation: Operation, written: Option<usize>) -> Result<()> {
        let trouble = *self.trouble.lock().unwrap();
        let kind = match (trouble, written) {
            (Some(Trouble::Down), _) => {
                tokio::time::sleep(Duration::from_secs(10)).await;
                ErrorKind::Unreachable
            }
            (Some(Trouble::Refused(kind)), _) | (Some(Trouble::WritesRefused(kind)), Some(_)) => kind,
            (Some(Trouble::LargeRefused(kind)), Some(4096..)) => kind,
            _ => return Ok(()),
        };
        Err(self.error(operation, None, kind, "it does not work today"))
    }
}

#[async_trait]
impl ObjectStorage for Far {
    fn place(&self) -> &str {
        self.store.place()
    }
    fn abilities(&self) -> Abilities {
        self.store.abilities()
    }
    async fn create(&self, name: &ObjectName, body: Bytes) -> Result<Created> {
        self.way(Operation::Create, Some(body.len())).await?;
        self.store.create(name, body).await
    }
    async fn swap(&self, name: &ObjectName, expected: &ObjectVersion, body: Bytes) -> Result<Swapped> {
        self.way(Operation::Swap, Some(body.len())).await?;
        self.store.swap(name, expected, body).await
    }
    async fn put(&self, name: &ObjectName, body: Bytes) -> Result<ObjectVersion> {
        self.way(Operation::Put, Some(body.len())).await?;
        self.store.put(name, body).await
    }
    async fn get(&self, name: &ObjectName, max_bytes: u64) -> Result<Option<Object>> {
        self.way(Operation::Get, None).await?;
        self.store.get(name, max_bytes).await
    }
    async fn read_range(&self, name: &ObjectName, range: Range<u64>) -> Result<RangeStream> {
        self.way(Operation::GetRange, None).await?;
        self.store.read_range(name, range).await
    }
    async fn head(&self, name: &ObjectName) -> Result<Option<Head>> {
        self.way(Operation::Head, None).await?;
        self.store.head(name).await
    }
    async fn list(&self, prefix: &str) -> Result<Vec<Listed>> {
        self.way(Operation::List, None).await?;
        self.store.list(prefix).await
    }
    async fn delete(&self, name: &ObjectName) -> Result<()> {
        self.way(Operation::Delete, Some(0)).await?;
        self.store.delete(name).await
    }
    async fn begin_upload(&self, name: &ObjectName, part_bytes: u64) -> Result<UploadId> {
        self.way(Operation::BeginUpload, Some(0)).await?;
        self.store.begin_upload(name, part_bytes).await
    }
    async fn upload_part(
        &self,
        name: &ObjectName,
        upload: &UploadId,
        index: u32,
        part_bytes: u64,
        body: Bytes,
    ) -> Result<PartReceipt> {
        self.way(Operation::UploadPart, Some(body.len())).await?;
        self.store.upload_part(name, upload, index, part_bytes, body).await
    }
    async fn complete_upload(
        &self,
        name: &ObjectName,
        upload: &UploadId,
        parts: &[PartReceipt],
    ) -> Result<ObjectVersion> {
        self.way(Operation::CompleteUpload, Some(0)).await?;
        self.store.complete_upload(name, upload, parts).await
    }
    async fn abort_upload(&self, name: &ObjectName, upload: &UploadId) -> Result<()> {
        self.way(Operation::AbortUpload, Some(0)).await?;
        self.store.abort_upload(name, upload).await
    }
    async fn sweep(&self, idle: Duration) -> Result<u64> {
        self.store.sweep(idle).await
    }
    async fn checks_digests(&self, scratch: &ObjectName) -> Result<bool> {
        self.way(Operation::Put, Some(0)).await?;
        self.store.checks_digests(scratch).await
    }
}

/// What a session said, and when.
type Said = Vec<(Duration, String)>;

fn words(news: &ReplicaNews) -> String {
    match news {
        ReplicaNews::Trouble { problem, is_news: true } => format!("TROUBLE {problem}"),
        ReplicaNews::Trouble { problem, .. } => format!("again {problem}"),
        ReplicaNews::Works => "WORKS".into(),
        ReplicaNews::Warned(line) => format!("WARNED {line}"),
        ReplicaNews::Told(line) => line.clone(),
        ReplicaNews::Committed { marker, .. } => format!("step {} epoch {}", marker.step, marker.epoch),
        other => format!("{other:?}"),
    }
}

/// A session of [`SAVES`] snapshots under whose middle there is an hour of `trouble`; what it said, and when that began
/// and ended.
async fn session(trouble: Trouble, store_there: MemoryStorage) -> (Said, Range<Duration>) {
    let (_folder, store) = small::store();
    let store = Arc::new(store);
    let now_wrong = Arc::new(Mutex::new(None));
    let far = Far { store: store_there.clone(), trouble: Arc::clone(&now_wrong) };
    let owner = OwnerSettings { ttl: TTL, fenced: true, take_over: false, who: "test".into() };
    let settings = ReplicatorSettings {
        owner: owner.clone(),
        depth: CheckDepth::Auto,
        max_rate: None,
        retention: RetentionPolicy::default(),
        job: None,
        companions: CompanionSource::none(),
    };
    let said = Mutex::new(Said::new());
    let report = |news: ReplicaNews| {
        said.lock().unwrap().push((now(), words(&news)));
        ControlFlow::Continue(())
    };
    let owner = JobOwner::new(RemoteJob::new(Arc::new(far)), owner).unwrap();
    let mut work = Replication::new(owner, settings, (store.clone(), Arc::new(StoreLock::inherited())), &report);
    assert!(work.begin().await.unwrap().is_none());
    let (tasks, mut queue) = tokio::sync::mpsc::unbounded_channel();
    let mut wrong = Duration::ZERO..Duration::ZERO;
    let training = async {
        for step in 1..=SAVES {
            if step == TROUBLE_AT {
                wrong.start = now();
                *now_wrong.lock().unwrap() = Some(trouble);
                if trouble == Trouble::Emptied {
                    for listed in store_there.list("").await.unwrap() {
                        store_there.delete(&listed.name).await.unwrap();
                    }
                }
            }
            if step == TROUBLE_AT + TROUBLE_SAVES {
                wrong.end = now();
                *now_wrong.lock().unwrap() = None;
            }
            tasks.send(ReplicaTask::Send(small::save_verified(&store, step, step).path)).unwrap();
            tokio::time::sleep(SAVE_INTERVAL).await;
        }
        tasks.send(ReplicaTask::Finish).unwrap();
    };
    tokio::join!(work.run(&mut queue), training);
    (said.into_inner().unwrap(), wrong)
}

fn steps(said: &Said, between: Range<Duration>) -> Vec<u64> {
    let lines = said.iter().filter(|(at, _)| between.contains(at)).map(|(_, line)| line);
    let step = |line: &String| line.strip_prefix("step ")?.split(' ').next()?.parse().ok();
    lines.filter_map(step).collect()
}

async fn an_hour_of(trouble: Trouble, there: MemoryStorage, must_say: &str) {
    let (said, wrong) = session(trouble, there.clone()).await;
    let what = format!("{trouble:?}: {said:#?}");
    assert_eq!(wrong.end - wrong.start, SAVE_INTERVAL * TROUBLE_SAVES as u32, "{what}");
    let with = |start: &str| said.iter().filter(|(_, line)| line.starts_with(start)).collect::<Vec<_>>();
    let (told, works) = (with("TROUBLE"), with("WORKS"));
    assert!(told.len() == 1 && told[0].1.contains(must_say) && wrong.contains(&told[0].0), "{what}");
    assert!(told[0].0 - wrong.start < TTL, "{what}");
    assert!(works.len() == 1 && works[0].0 - wrong.end < LONGEST_PAUSE, "{what}");
    assert!(with("WARNED").is_empty(), "{what}");
    // Nothing is said to be there that is not, and the newest is soon.
    assert!(steps(&said, wrong.clone()).is_empty(), "{what}");
    let soon = steps(&said, wrong.end..wrong.end + LONGEST_PAUSE);
    assert_eq!(soon.last(), Some(&(TROUBLE_AT + TROUBLE_SAVES)), "{what}");
    assert_eq!(steps(&said, wrong.end..Duration::MAX).last(), Some(&SAVES), "{what}");
    // One owner, one history.
    let survey = Survey::of(&RemoteJob::new(Arc::new(there))).await.unwrap();
    assert!(survey.markers.iter().all(|marker| marker.epoch == 1), "{:?}", survey.markers);
    assert_eq!(survey.in_order().first().map(|marker| marker.seq), Some(SAVES));
}

#[tokio::test(start_paused = true)]
async fn an_hour_of_trouble_is_told_once_with_what_to_do_and_caught_up_with() {
    for there in [MemoryStorage::new, MemoryStorage::without_swap] {
        an_hour_of(Trouble::Down, there(), "see whether this machine's network").await;
        an_hour_of(Trouble::Refused(ErrorKind::Denied), there(), "check the credentials").await;
        an_hour_of(Trouble::Refused(ErrorKind::ClockOff), there(), "set this machine's clock").await;
        an_hour_of(Trouble::Refused(ErrorKind::NoBucket), there(), "create it").await;
        an_hour_of(Trouble::WritesRefused(ErrorKind::NoSpace), there(), "raise its quota").await;
        an_hour_of(Trouble::LargeRefused(ErrorKind::NoSpace), there(), "raise its quota").await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_remote_that_is_emptied_gets_the_newest_snapshot_again_at_once_and_that_is_told_once() {
    for there in [MemoryStorage::new(), MemoryStorage::without_swap()] {
        let (said, wrong) = session(Trouble::Emptied, there.clone()).await;
        let what = format!("{said:#?}");
        let warned: Vec<_> = said.iter().filter(|(_, line)| line.starts_with("WARNED")).collect();
        assert!(warned.len() == 1 && warned[0].1.contains("was emptied"), "{what}");
        assert!(!said.iter().any(|(_, line)| line.starts_with("TROUBLE")), "{what}");
        let soon = steps(&said, wrong.start..wrong.start + TTL);
        assert!(soon.contains(&TROUBLE_AT), "{what}");
        let survey = Survey::of(&RemoteJob::new(Arc::new(there))).await.unwrap();
        let newest = survey.in_order().first().map(|marker| (marker.epoch, marker.seq));
        assert_eq!(newest, Some((2, SAVES)), "{what}");
    }
}
