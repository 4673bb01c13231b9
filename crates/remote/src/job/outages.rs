//! A remote that does not work for an hour of simulated time, under a session that goes on: told once, with what to do,
//! and caught up with when it is over.
#![allow(clippy::unwrap_used)]

use std::ops::{ControlFlow, Range};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ckptd_core::store::{RetentionPolicy, StoreLock};
use ckptd_testkit::small;

use super::companions::CompanionSource;
use super::owner::{JobOwner, OwnerSettings, TTL, now};
use super::place::RemoteJob;
use super::replica::{ReplicaNews, ReplicaTask, ReplicatorSettings};
use super::replication::Replication;
use super::send::CheckDepth;
use super::survey::Survey;
use crate::behind::{Behind, Passage, Request};
use crate::errors::{ErrorKind, Result};
use crate::memory::MemoryStorage;
use crate::objects::ObjectStorage;

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

/// What is wrong with the way to the store now, if anything is.
#[derive(Clone, Debug, Default)]
struct Weather(Arc<Mutex<Option<Trouble>>>);

impl Passage for Weather {
    async fn pass<T: Send>(
        &self,
        store: &MemoryStorage,
        request: Request,
        work: impl Future<Output = Result<T>> + Send,
    ) -> Result<T> {
        let trouble = *self.0.lock().unwrap();
        let kind = match (trouble, request.written) {
            (Some(Trouble::Down), _) => {
                tokio::time::sleep(Duration::from_secs(10)).await;
                ErrorKind::Unreachable
            }
            (Some(Trouble::Refused(kind)), _) | (Some(Trouble::WritesRefused(kind)), Some(_)) => kind,
            (Some(Trouble::LargeRefused(kind)), Some(4096..)) => kind,
            _ => return work.await,
        };
        Err(store.error(request.operation, None, kind, "it does not work today"))
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
    let weather = Weather::default();
    let far = Behind { store: store_there.clone(), passage: weather.clone() };
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
                *weather.0.lock().unwrap() = Some(trouble);
                if trouble == Trouble::Emptied {
                    for listed in store_there.list("").await.unwrap() {
                        store_there.delete(&listed.name).await.unwrap();
                    }
                }
            }
            if step == TROUBLE_AT + TROUBLE_SAVES {
                wrong.end = now();
                *weather.0.lock().unwrap() = None;
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
