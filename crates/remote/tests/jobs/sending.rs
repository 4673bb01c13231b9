//! Single snapshots: sent, checked, fetched, given up.

use super::*;

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
