//! The history of a training at its remote.

use ckptd_history::travel::MAX_PART_BYTES;
use ckptd_testkit::curve::{curve, keep_session};

use super::*;

#[test]
fn the_history_goes_with_the_markers_and_a_job_that_comes_back_has_one_curve_with_what_was_lost_marked() {
    for storage in [MemoryStorage::new(), MemoryStorage::without_swap()] {
        let (_folder, one) = small::store();
        let one = Arc::new(one);
        let (replicator, news) = replicate(&storage, &one, "one");
        wait(&news, began);
        keep_session(&one, 1000, 0, 10).unwrap();
        replicator.give(ReplicaTask::Send(small::save_verified(&one, 10, 1).path));
        wait(&news, committed);
        // What came after the last marker goes at the end.
        keep_session(&one, 2000, 10, 14).unwrap();
        finish(&replicator);
        let folder = tempfile::tempdir().unwrap();
        let other = Arc::new(Store::create(&folder.path().join("store")).unwrap());
        let (replicator, news) = replicate(&storage, &other, "other");
        wait(&news, began);
        assert_eq!(curve(&other).unwrap(), ((1..=14).collect(), 0));
        keep_session(&other, 3000, 10, 30).unwrap();
        replicator.give(ReplicaTask::Send(small::save_verified(&other, 30, 3).path));
        wait(&news, committed);
        finish(&replicator);
        // Steps that only the first machine knows, and then the job comes back.
        keep_session(&one, 2500, 10, 19).unwrap();
        let (replicator, news) = replicate(&storage, &one, "one");
        wait(&news, began);
        finish(&replicator);
        assert_eq!(curve(&one).unwrap(), ((1..=30).collect(), 13));
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
    keep_session(&store, 1000, 0, 10).unwrap();
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
    keep_session(&one, 1000, 0, 5).unwrap();
    let mut late = HistorySender::default();
    late.send(&job, &one, 1, &rate, || true).await.unwrap();
    keep_session(&one, 2000, 5, 12).unwrap();
    HistorySender::default().send(&job, &one, 2, &rate, || true).await.unwrap();
    let newest = storage.list("history/").await.unwrap();
    // The owner before sends what it had, and takes nothing away.
    let (_folder, stale) = small::store();
    keep_session(&stale, 1000, 0, 7).unwrap();
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
    assert_eq!((brought.unwrap().steps, curve(&store).unwrap()), (12, ((1..=12).collect(), 0)));
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
    assert!(curve(&store).unwrap().0.is_empty());
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

/// Such as one whose first session began while the remote was slow, or out of reach.
#[tokio::test]
async fn what_a_machine_has_not_taken_of_the_history_stays_there_in_its_place() {
    let storage = MemoryStorage::new();
    let (job, rate) = (job(&storage), RateLimit::new(None));
    let (_folder, one) = small::store();
    keep_session(&one, 1000, 0, 12).unwrap();
    HistorySender::default().send(&job, &one, 1, &rate, || true).await.unwrap();
    let (_folder, other) = small::store();
    keep_session(&other, 2000, 12, 20).unwrap();
    HistorySender::default().send(&job, &other, 2, &rate, || true).await.unwrap();
    // Nothing can be put before what it has.
    let brought = bring_history(&job, &other, &lock()).await.unwrap();
    assert!(brought.is_partial && brought.steps == 0, "{brought:?}");
    assert!(brought.problems[0].contains("this store has later ones already"), "{brought:?}");
    keep_session(&other, 3000, 20, 25).unwrap();
    HistorySender::default().send(&job, &other, 3, &rate, || true).await.unwrap();
    let (_folder, empty) = small::store();
    let brought = bring_history(&job, &empty, &lock()).await.unwrap();
    assert!(!brought.is_partial && brought.problems.is_empty(), "{brought:?}");
    assert_eq!((brought.steps, curve(&empty).unwrap()), (25, ((1..=25).collect(), 0)));
    // What has all of it is all that is needed.
    keep_session(&empty, 4000, 25, 30).unwrap();
    let mut sender = HistorySender::default();
    sender.knows_all();
    sender.send(&job, &empty, 4, &rate, || true).await.unwrap();
    let (_folder, next) = small::store();
    assert_eq!(bring_history(&job, &next, &lock()).await.unwrap().steps, 30);
    assert_eq!(curve(&next).unwrap(), ((1..=30).collect(), 0));
    let lists = job.list(Prefix::History).await.unwrap();
    assert_eq!(lists.iter().filter(|(object, _)| matches!(object, JobObject::History(_))).count(), 1);
    // Of what cannot be read here, the only copy may be there.
    keep_session(&next, 5000, 30, 35).unwrap();
    let files = std::fs::read_dir(next.path().join("history")).unwrap().map(|entry| entry.unwrap().path());
    let oldest = std::fs::File::options().write(true).open(files.min().unwrap()).unwrap();
    oldest.set_len(MAX_PART_BYTES + 1).unwrap();
    let mut sender = HistorySender::default();
    sender.knows_all();
    sender.send(&job, &next, 5, &rate, || true).await.unwrap();
    let (_folder, last) = small::store();
    bring_history(&job, &last, &lock()).await.unwrap();
    assert!(curve(&last).unwrap().0.starts_with(&(1..=30).collect::<Vec<u64>>()));
}
