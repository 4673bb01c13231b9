//! Sessions that replicate, one after the other or two at once.

use super::*;

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
