//! A store's snapshots at a remote, on an object store in memory: sent, checked, fetched, given up, owned by one.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use ckptd_core::progress::NoProgress;
use ckptd_core::store::{RetentionPolicy, Store, StoreLock};
use ckptd_history::reader::TrainingHistory;
use ckptd_history::record::{HistoryEvent, HistoryRecord, StepRow, TimedEvent};
use ckptd_history::writer::HistoryWriter;
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

#[tokio::test]
async fn what_was_sent_is_fetched_the_same_and_counts_as_verified_only_after_it_was_read_back() {
    let (_folder, here) = small::store();
    let saved = small::save_verified(&here, 10, 1);
    let job = job(&MemoryStorage::new());
    let sent = send_as(&job, &saved.path, 1, CheckDepth::Whole).await.unwrap();
    assert_eq!((sent.checked, sent.step, &sent.root), (Checked::Whole, 10, &saved.root));
    let (_folder, there) = small::store();
    let survey = Survey::of(&job).await.unwrap();
    let fetched = fetch_newest(&job, &survey, (&there, &lock()), |_| true, &NoProgress, &mut |_| {}).await;
    let fetched = fetched.unwrap().unwrap();
    assert_eq!(std::fs::read(&fetched.committed.path).unwrap(), std::fs::read(&saved.path).unwrap());
    let entry = there.find("10").unwrap();
    assert_eq!(entry.state, ckptd_core::store::SnapshotState::Committed);
    there.verify(&entry, 1, &NoProgress).unwrap();
    assert!(std::fs::read_dir(there.path().join("staging")).unwrap().next().is_none());
}

#[tokio::test]
async fn a_damaged_file_at_the_remote_is_sent_again_before_its_marker_and_at_a_fetch_the_next_older_one_is_taken() {
    let (_folder, here) = small::store();
    let (older, newer) = (small::save_verified(&here, 10, 1), small::save_verified(&here, 20, 2));
    let storage = MemoryStorage::new();
    let job = job(&storage);
    send_as(&job, &older.path, 1, CheckDepth::Whole).await.unwrap();
    let marker = send_as(&job, &newer.path, 1, CheckDepth::Whole).await.unwrap();
    // Every place in the file: head, chunks, table, manifest, trailer.
    let whole = std::fs::read(&newer.path).unwrap();
    let data = JobObject::Data(marker.file_hash.clone()).name();
    for at in (0..whole.len()).step_by(whole.len() / 23) {
        let mut damaged = whole.clone();
        damaged[at] ^= 4;
        storage.put(&data, damaged.clone().into()).await.unwrap();
        send_as(&job, &newer.path, 1, CheckDepth::Whole).await.unwrap();
        assert_eq!(storage.get(&data, u64::MAX).await.unwrap().unwrap().body, whole, "byte {at}");
        storage.put(&data, damaged.into()).await.unwrap();
        let (_folder, there) = small::store();
        let survey = Survey::of(&job).await.unwrap();
        let mut told = Vec::new();
        let mut tell = |line| told.push(line);
        let fetched = fetch_newest(&job, &survey, (&there, &lock()), |_| true, &NoProgress, &mut tell).await.unwrap();
        assert_eq!(fetched.unwrap().marker.step, 10);
        assert!(told.len() == 1 && told[0].contains("passed over"), "{told:?}");
        assert!(there.find("20").is_err());
    }
    storage.delete(&data).await.unwrap();
    let (_folder, there) = small::store();
    let survey = Survey::of(&job).await.unwrap();
    let fetched = fetch_newest(&job, &survey, (&there, &lock()), |_| true, &NoProgress, &mut |_| {}).await.unwrap();
    assert_eq!(fetched.unwrap().marker.step, 10);
}

#[tokio::test]
async fn what_rotted_here_since_it_was_verified_is_not_sent_even_where_the_store_confirms_what_it_got() {
    let (_folder, here) = small::store();
    let saved = small::save_verified(&here, 10, 1);
    let whole = std::fs::read(&saved.path).unwrap();
    let storage = MemoryStorage::new();
    let job = job(&storage);
    let mut rotten = whole.clone();
    rotten[whole.len() / 3] ^= 1;
    std::fs::write(&saved.path, rotten).unwrap();
    let error = send_as(&job, &saved.path, 1, CheckDepth::Auto).await.unwrap_err().to_string();
    assert!(error.contains("does not match its hash") && error.contains("step-000000000010"), "{error}");
    assert!(storage.list("").await.unwrap().is_empty());
    std::fs::write(&saved.path, whole).unwrap();
    assert_eq!(send_as(&job, &saved.path, 1, CheckDepth::Auto).await.unwrap().checked, Checked::Digests);
}

#[tokio::test]
async fn the_newer_of_store_and_remote_is_gone_on_from_and_an_abandoned_branch_is_set_aside() {
    let (_folder, one) = small::store();
    let (_folder, other) = small::store();
    let job = job(&MemoryStorage::new());
    note_epoch(&job, 1, 0).await;
    for (step, seq) in [(10, 1), (20, 2)] {
        send_as(&job, &small::save_verified(&one, step, seq).path, 1, CheckDepth::Whole).await.unwrap();
    }
    ckptd_remote::job::local::LocalHistory { owned: vec![(1, 0)], fetched: vec![] }.write(&one, &lock()).unwrap();
    // What is here is newer than what is there.
    small::save_verified(&one, 30, 3);
    small::save_verified(&one, 40, 4);
    let agreed = agree(&job, (&one, &lock()), 1, &NoProgress, &mut |_| {}).await.unwrap();
    assert!(agreed.base == 4 && agreed.fetched.is_none(), "{agreed:?}");
    // Another machine has nothing, and goes on from step 20 under epoch 2.
    let agreed = agree(&job, (&other, &lock()), 1, &NoProgress, &mut |_| {}).await.unwrap();
    assert!(agreed.base == 2 && agreed.newest_epoch == 1, "{agreed:?}");
    note_epoch(&job, 2, 2).await;
    send_as(&job, &small::save_verified(&other, 25, 3).path, 2, CheckDepth::Whole).await.unwrap();
    // The first one comes back: its steps 30 and 40 are another history now.
    let mut told = Vec::new();
    let agreed = agree(&job, (&one, &lock()), 1, &NoProgress, &mut |line| told.push(line)).await.unwrap();
    assert!(agreed.base == 3 && agreed.fetched.unwrap().marker.step == 25, "{told:?}");
    let aside: Vec<String> = one.quarantined().unwrap().into_iter().map(|file| file.name).collect();
    assert_eq!(aside, ["step-000000000040.ckpt", "step-000000000030.ckpt"]);
    assert_eq!(one.next_seq().unwrap(), 5, "numbers are never used twice");
    let again = agree(&job, (&one, &lock()), 1, &NoProgress, &mut |_| {}).await.unwrap();
    assert!(again.base == 3 && again.fetched.is_none());
}

#[tokio::test]
async fn retention_takes_the_marker_first_and_the_data_an_hour_later_and_a_late_marker_keeps_its_data() {
    let (_folder, here) = small::store();
    let job = job(&MemoryStorage::new());
    note_epoch(&job, 1, 0).await;
    for seq in 1..=6 {
        // Sampled ones do not count.
        let depth = if seq == 5 { CheckDepth::Share(0.5) } else { CheckDepth::Whole };
        send_as(&job, &small::save_verified(&here, seq * 10, seq).path, 1, depth).await.unwrap();
    }
    let policy = RetentionPolicy { keep_last: 2, keep_best: 0, ..RetentionPolicy::default() };
    let now = jiff::Timestamp::now();
    let survey = Survey::of(&job).await.unwrap();
    let markers = retention::read_markers(&job, &survey, &BTreeMap::new()).await.unwrap();
    let verdicts = retention::plan(&survey, &markers, &BTreeSet::new(), &policy, now);
    let kept: Vec<u64> = verdicts.iter().filter(|v| v.keeps()).map(|v| v.marker.seq).collect();
    assert_eq!(kept, [6, 5, 4], "two verified ones stay, and the sampled one is none of them");
    assert_eq!(retention::take_away(&job, &verdicts, 1, || false).await.unwrap(), 0, "not without the lease");
    assert_eq!(retention::take_away(&job, &verdicts, 1, || true).await.unwrap(), 3);
    let job = &job;
    let count_of = |prefix| async move { job.list(prefix).await.unwrap().len() };
    assert_eq!((count_of(Prefix::Commits).await, count_of(Prefix::Data).await), (3, 6));
    assert_eq!(retention::remove_data(job, now, || true).await.unwrap(), 0, "not within the hour");
    // A marker that was given up lands now, and is taken away again before its data.
    let late = verdicts.iter().find(|v| v.marker.seq == 2).unwrap().marker.clone();
    job.create(&JobObject::Commit(late.name()), &late).await.unwrap();
    let later = now + jiff::SignedDuration::from_hours(2);
    assert!(retention::remove_data(job, later, || true).await.unwrap() > 0);
    assert_eq!((count_of(Prefix::Commits).await, count_of(Prefix::Data).await), (4, 4));
    assert_eq!(count_of(Prefix::Trash).await, 0);
    let survey = Survey::of(job).await.unwrap();
    for name in &survey.markers {
        let marker = job.marker(name).await.unwrap().unwrap();
        let data = JobObject::Data(marker.file_hash).name();
        assert!(job.storage().head(&data).await.unwrap().is_some(), "{name} has no data");
    }
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

#[test]
fn a_session_replicates_and_another_machine_goes_on_when_it_has_left() {
    for storage in [MemoryStorage::new(), MemoryStorage::without_swap()] {
        let (_folder, one) = small::store();
        let one = Arc::new(one);
        let (replicator, news) = replicate(&storage, &one, "one");
        wait(&news, began);
        replicator.give(ReplicaTask::Send(small::save_verified(&one, 10, 1).path));
        assert_eq!(wait(&news, committed).step, 10);
        let second = small::save_verified(&one, 20, 2);
        replicator.give(ReplicaTask::Send(second.path));
        replicator.give(ReplicaTask::Finish);
        replicator.join(Duration::from_secs(60));
        let marker = wait(&news, committed);
        assert_eq!((marker.step, marker.epoch, &marker.root), (20, 1, &second.root));
        // An empty store, with nothing but the remote.
        let folder = tempfile::tempdir().unwrap();
        let other = Arc::new(Store::create(&folder.path().join("store")).unwrap());
        let (replicator, news) = replicate(&storage, &other, "other");
        wait(&news, began);
        assert_eq!(other.run_id().unwrap(), one.run_id().unwrap());
        assert_eq!(other.find("20").unwrap().manifest.unwrap().root, second.root);
        replicator.give(ReplicaTask::Send(small::save_verified(&other, 30, 3).path));
        assert_eq!(wait(&news, committed).epoch, 2);
        drop(replicator);
    }
}

#[test]
fn what_the_last_session_could_not_send_goes_first_and_is_the_same_snapshot_here_and_there() {
    for storage in [MemoryStorage::new(), MemoryStorage::without_swap()] {
        let (_folder, store) = small::store();
        let store = Arc::new(store);
        small::save_verified(&store, 10, 1);
        let (replicator, news) = replicate(&storage, &store, "one");
        wait(&news, began);
        assert_eq!(wait(&news, committed).step, 10);
        replicator.give(ReplicaTask::Finish);
        replicator.join(Duration::from_secs(60));
        let (replicator, news) = replicate(&storage, &store, "two");
        let told = wait(&news, |news| match news {
            ReplicaNews::Told(line) if line.contains("fetched") => Some(Some(line)),
            ReplicaNews::Began(began) => began.map(|_| Some(None)).unwrap(),
            _ => None,
        });
        assert_eq!(told, None, "what is here is as new as what is there");
        replicator.give(ReplicaTask::Send(small::save_verified(&store, 20, 2).path));
        let marker = wait(&news, committed);
        assert_eq!((marker.step, marker.epoch), (20, 2), "nothing is sent twice");
    }
}

#[tokio::test]
async fn parts_that_a_killed_machine_left_behind_are_removed_by_the_next_owner() {
    let (_folder, store) = small::store();
    let (storage, store) = (MemoryStorage::new(), Arc::new(store));
    let job = job(&storage);
    let hash = ContentHash::from([7; 32]);
    let (record, data) = (JobObject::Upload(hash.clone()), JobObject::Data(hash).name());
    let upload = storage.begin_upload(&data, 4).await.unwrap();
    job.put(&record, &UploadRecord { upload_id: upload.0.clone(), bytes: 8, part_bytes: 4 }).await.unwrap();
    let (replicator, news) = replicate(&storage, &store, "one");
    wait(&news, began);
    replicator.give(ReplicaTask::Finish);
    replicator.join(Duration::from_secs(60));
    assert!(job.list(Prefix::Uploads).await.unwrap().is_empty());
    assert!(storage.upload_part(&data, &upload, 0, 4, "abcd".into()).await.is_err(), "its parts are gone");
}

/// A session whose snapshots need a file besides.
fn replicate_with(storage: &MemoryStorage, store: &Arc<Store>, file: &Path) -> Marker {
    let body = [CompanionBody::File(file.to_path_buf()), CompanionBody::Text("{}".into())];
    let names = ["tokens.bin", "tokens.bin.json"];
    let companions: Vec<Companion> =
        names.into_iter().zip(body).map(|(name, body)| Companion { name: name.into(), body }).collect();
    let companions = CompanionSource::new(move |_| Ok(companions.clone()));
    let (replicator, news) = replicate_as(storage, store, ReplicatorSettings { companions, ..settings("one") });
    wait(&news, began);
    let seq = store.entries().unwrap().len() as u64 + 1;
    replicator.give(ReplicaTask::Send(small::save_verified(store, 10 * seq, seq).path));
    let marker = wait(&news, committed);
    replicator.give(ReplicaTask::Finish);
    replicator.join(Duration::from_secs(60));
    marker
}

#[tokio::test]
async fn a_file_beside_snapshots_is_sent_once_checked_and_fetched_whole_or_not_at_all() {
    let (folder, store) = small::store();
    let (storage, store) = (MemoryStorage::new(), Arc::new(store));
    // More than goes in one request.
    let file = folder.path().join("ids");
    std::fs::write(&file, (0..9 << 20).map(|i: u32| (i / 7) as u8).collect::<Vec<u8>>()).unwrap();
    let marker = replicate_with(&storage, &store, &file);
    let job = job(&storage);
    assert_eq!(job.job_record().await.unwrap().unwrap().config["who"], "one");
    let [ids, _] = &marker.blobs[..] else { panic!("{marker:?}") };
    let fetched = folder.path().join("fetched");
    fetch_companion(&job, ids, &fetched, &NoProgress).await.unwrap();
    assert_eq!(std::fs::read(&fetched).unwrap(), std::fs::read(&file).unwrap());
    // The next session finds it there.
    let version = storage.head(&JobObject::Blob(ids.hash.clone()).name()).await.unwrap().unwrap().version;
    let next = replicate_with(&storage, &store, &file);
    assert_eq!((next.epoch, &next.blobs), (2, &marker.blobs));
    let head = storage.head(&JobObject::Blob(ids.hash.clone()).name()).await.unwrap().unwrap();
    assert_eq!(head.version, version);
    // One flipped bit.
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[8 << 20] ^= 1;
    storage.put(&JobObject::Blob(ids.hash.clone()).name(), bytes.into()).await.unwrap();
    std::fs::remove_file(&fetched).unwrap();
    let error = fetch_companion(&job, ids, &fetched, &NoProgress).await.unwrap_err();
    assert!(error.to_string().contains("is not what its name says"), "{error}");
    assert!(!fetched.exists() && std::fs::read_dir(folder.path()).unwrap().count() == 2, "nothing half is left");
}

#[test]
fn an_owner_that_is_cut_off_loses_the_job_and_is_told() {
    for storage in [MemoryStorage::new(), MemoryStorage::without_swap()] {
        let (_folder, one) = small::store();
        let one = Arc::new(one);
        let (replicator, news) = replicate(&storage, &one, "one");
        wait(&news, began);
        replicator.give(ReplicaTask::Send(small::save_verified(&one, 10, 1).path));
        wait(&news, committed);
        // Somebody takes the job over by hand.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let job = job(&storage);
            let mut settings = settings("other").owner;
            settings.take_over = true;
            let mut owner = ckptd_remote::job::owner::JobOwner::new(job, settings).unwrap();
            assert_eq!(owner.acquire(&mut From(1), &mut |_| Ok(())).await.unwrap(), 2);
        });
        let told = wait(&news, |news| match news {
            ReplicaNews::Lost(told) => Some(told),
            _ => None,
        });
        assert!(told.contains("(other) owns memory://test now"), "{told}");
        replicator.join(Duration::from_secs(60));
    }
}

struct From(u64);

#[async_trait::async_trait]
impl ckptd_remote::job::owner::Prepare for From {
    async fn prepare(&mut self, _job: &RemoteJob) -> ckptd_remote::job::Result<(u64, u64)> {
        Ok((self.0, 1))
    }
}

/// A session of `store` that goes on after step `from`, in its history.
fn keep_session(store: &Store, began_ms: i64, from: u64, to: u64) {
    let mut writer = HistoryWriter::open(store, &lock()).unwrap();
    let run = store.run_id().unwrap().map_or_else(String::new, String::from);
    let began = HistoryEvent::SessionStarted { run, total_steps: 100, version: "1".into() };
    for event in [began, HistoryEvent::Resumed { step: from, snapshot: None }] {
        writer.push(HistoryRecord::Event(TimedEvent { at_ms: began_ms, event }));
    }
    for step in from + 1..=to {
        let (at_ms, loss) = (began_ms + step as i64, 1.0 / step as f32);
        let row = StepRow { step, at_ms, loss, learning_rate: 1e-3, grad_norm: None, micros: 9, tokens: 4 };
        writer.push(HistoryRecord::Step(row));
    }
    writer.flush(0).unwrap();
}

/// (steps of the curve, how many were cut off)
fn curve(store: &Store) -> (Vec<u64>, usize) {
    let history = TrainingHistory::read(store).unwrap();
    assert!(history.problems.is_empty(), "{:?}", history.problems);
    let (mut steps, mut abandoned) = (Vec::new(), 0);
    let take = &mut |item: ckptd_history::reader::HistoryItem| {
        match item.record {
            HistoryRecord::Step(_) if item.is_abandoned => abandoned += 1,
            HistoryRecord::Step(row) => steps.push(row.step),
            HistoryRecord::Event(_) => {}
        }
        Ok(())
    };
    history.each(take, &mut |problem| panic!("{problem}")).unwrap();
    (steps, abandoned)
}

fn finish(replicator: &Replicator) {
    replicator.give(ReplicaTask::Finish);
    replicator.join(Duration::from_secs(60));
}

#[test]
fn the_history_goes_with_the_markers_and_a_job_that_comes_back_has_one_curve_with_what_was_lost_marked() {
    for storage in [MemoryStorage::new(), MemoryStorage::without_swap()] {
        let (_folder, one) = small::store();
        let one = Arc::new(one);
        let (replicator, news) = replicate(&storage, &one, "one");
        wait(&news, began);
        keep_session(&one, 1000, 0, 10);
        replicator.give(ReplicaTask::Send(small::save_verified(&one, 10, 1).path));
        wait(&news, committed);
        // What came after the last marker goes at the end.
        keep_session(&one, 2000, 10, 14);
        finish(&replicator);
        let folder = tempfile::tempdir().unwrap();
        let other = Arc::new(Store::create(&folder.path().join("store")).unwrap());
        let (replicator, news) = replicate(&storage, &other, "other");
        wait(&news, began);
        assert_eq!(curve(&other), ((1..=14).collect(), 0));
        keep_session(&other, 3000, 10, 30);
        replicator.give(ReplicaTask::Send(small::save_verified(&other, 30, 3).path));
        wait(&news, committed);
        finish(&replicator);
        // Steps that only the first machine knows, and then the job comes back.
        keep_session(&one, 2500, 10, 19);
        let (replicator, news) = replicate(&storage, &one, "one");
        wait(&news, began);
        finish(&replicator);
        assert_eq!(curve(&one), ((1..=30).collect(), 13));
        let objects = futures(job(&storage).list(Prefix::History));
        let lists = objects.iter().filter(|(object, _)| matches!(object, JobObject::History(_))).count();
        assert_eq!(lists, 1, "older ones are removed: {objects:?}");
    }
}

#[test]
fn a_history_that_cannot_be_sent_costs_no_snapshot_and_is_told_once() {
    let (folder, store) = small::store();
    let (store, place) = (Arc::new(store), folder.path().join("drive"));
    std::fs::create_dir(&place).unwrap();
    // Nothing can be put below it.
    std::fs::write(place.join("history"), "").unwrap();
    let url: ckptd_remote::RemoteUrl = format!("file://{}", place.display()).parse().unwrap();
    let (to, news) = mpsc::channel();
    let to = Mutex::new(to);
    let report = move |news| {
        let _ = to.lock().unwrap().send(news);
        std::ops::ControlFlow::Continue(())
    };
    let open =
        async move { Ok(RemoteJob::new(ckptd_remote::open(&url, &ckptd_remote::RemoteSettings::of_process()).await?)) };
    let replicator = Replicator::start(open, (store.clone(), Arc::new(lock())), settings("one"), report).unwrap();
    wait(&news, began);
    keep_session(&store, 1000, 0, 10);
    let not_sent = |news| match news {
        ReplicaNews::Warned(line) if line.contains("the history of the training is not replicated") => Some(line),
        _ => None,
    };
    replicator.give(ReplicaTask::Send(small::save_verified(&store, 10, 1).path));
    assert_eq!(wait(&news, committed).step, 10);
    assert!(wait(&news, not_sent).contains("history"));
    replicator.give(ReplicaTask::Send(small::save_verified(&store, 20, 2).path));
    assert_eq!(wait(&news, committed).step, 20);
    std::fs::remove_file(place.join("history")).unwrap();
    replicator.give(ReplicaTask::Send(small::save_verified(&store, 30, 3).path));
    assert_eq!(wait(&news, committed).step, 30);
    finish(&replicator);
    assert!(news.try_iter().filter_map(not_sent).next().is_none(), "it is told once");
    assert!(std::fs::read_dir(place.join("history")).unwrap().count() >= 2, "it comes when it can");
}

/// What a future of the store in memory comes to.
fn futures<T>(future: impl Future<Output = Result<T, JobError>>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future).unwrap()
}

#[tokio::test]
async fn a_late_history_replaces_no_newer_one_and_what_is_damaged_there_costs_its_part_alone() {
    let (_folder, one) = small::store();
    let storage = MemoryStorage::new();
    let (job, rate) = (job(&storage), RateLimit::new(None));
    small::save_verified(&one, 10, 1);
    keep_session(&one, 1000, 0, 5);
    let mut late = HistorySender::default();
    late.send(&job, &one, 1, &rate, || true).await.unwrap();
    keep_session(&one, 2000, 5, 12);
    HistorySender::default().send(&job, &one, 2, &rate, || true).await.unwrap();
    let newest = storage.list("history/").await.unwrap();
    // The owner before sends what it had, and takes nothing away.
    let (_folder, stale) = small::store();
    keep_session(&stale, 1000, 0, 7);
    late.send(&job, &stale, 1, &rate, || true).await.unwrap();
    let names = storage.list("history/").await.unwrap();
    assert!(newest.iter().all(|object| names.contains(object)), "{names:?}");
    let machine = async || {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::create(&folder.path().join("store")).unwrap();
        store.set_run_id(&lock(), small::RUN).unwrap();
        let brought = bring_history(&job, &store, &lock()).await;
        (folder, store, brought)
    };
    let (_folder, store, brought) = machine().await;
    assert_eq!((brought.unwrap().steps, curve(&store)), (12, ((1..=12).collect(), 0)));
    // Nothing has grown: nothing is sent.
    let again = bring_history(&job, &store, &lock()).await.unwrap();
    assert_eq!(again, ckptd_history::travel::TakenHistory::default());
    let parts = job.list(Prefix::History).await.unwrap();
    for (object, _) in parts.iter().filter(|(object, _)| matches!(object, JobObject::HistoryPart(_))) {
        storage.put(&object.name(), "rotten".into()).await.unwrap();
    }
    let (_folder, store, brought) = machine().await;
    let problems = brought.unwrap().problems;
    assert!(problems[0].contains("history/") && problems[0].contains("is not what was sent there"), "{problems:?}");
    assert!(curve(&store).0.is_empty());
    // The next session of the owner finds a part by its name alone, and a list without its part is told of.
    for (object, _) in parts.iter().filter(|(object, _)| matches!(object, JobObject::HistoryPart(_))) {
        storage.delete(&object.name()).await.unwrap();
    }
    let error = machine().await.2.unwrap_err().to_string();
    let list = JobObject::History(HistoryName { epoch: 2, number: 1 }).path();
    assert!(error.contains(&list) && error.contains("names parts that are not there"), "{error}");
    HistorySender::default().send(&job, &one, 2, &rate, || true).await.unwrap();
    assert_eq!(machine().await.2.unwrap().steps, 12);
}
