//! What every store does, whatever is behind it.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod stores;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use ckptd_remote::folder::{self, CreateBy};
use ckptd_remote::{Created, ErrorKind, MemoryStorage, ObjectStorage, ObjectVersion, Swapped, UploadId};
use ckptd_testkit::random::SeededRandom;
use ckptd_testkit::servers::{self, ObjectServer};
use stores::name;

const WRITERS: u64 = 8;
const ROUNDS: u64 = 200;

/// The whole suite. `rounds`: how often eight writers race, where the server is known to be right.
async fn conforms(storage: Arc<dyn ObjectStorage>, rounds: u64) {
    tells_that_uploads_are_gone(&*storage).await;
    conforms_but_for_gone_uploads(storage, rounds).await;
}

async fn conforms_but_for_gone_uploads(storage: Arc<dyn ObjectStorage>, rounds: u64) {
    let abilities = storage.abilities();
    creates_once(&*storage).await;
    writes_and_reads(&*storage).await;
    reads_ranges(&*storage).await;
    lists_what_is_there(&*storage).await;
    deletes_what_is_there_or_not(&*storage).await;
    uploads_in_parts(&*storage).await;
    one_of_many_creates(&storage, rounds).await;
    if abilities.swap {
        swaps_by_version(&*storage).await;
        one_of_many_swaps(&storage, rounds).await;
    } else {
        let refused = storage.swap(&name("any"), &ObjectVersion("1".into()), Bytes::new()).await.unwrap_err();
        assert_eq!(refused.kind, ErrorKind::Unsupported);
    }
    if abilities.sweeps {
        sweeps_what_was_left(&*storage).await;
    }
}

fn body(text: &str) -> Bytes {
    Bytes::from(text.to_owned())
}

async fn text(storage: &dyn ObjectStorage, at: &str) -> Option<String> {
    let object = storage.get(&name(at), 1 << 20).await.unwrap();
    object.map(|object| String::from_utf8(object.body.to_vec()).unwrap())
}

async fn creates_once(storage: &dyn ObjectStorage) {
    let run = name("run.json");
    assert!(matches!(storage.create(&run, body("one")).await.unwrap(), Created::Created(_)));
    assert_eq!(storage.create(&run, body("two")).await.unwrap(), Created::AlreadyThere);
    assert_eq!(text(storage, "run.json").await.as_deref(), Some("one"));
}

async fn writes_and_reads(storage: &dyn ObjectStorage) {
    assert_eq!(text(storage, "nothing/here").await, None);
    assert_eq!(storage.head(&name("nothing/here")).await.unwrap(), None);
    let first = storage.put(&name("a/b/c.json"), body("first")).await.unwrap();
    let second = storage.put(&name("a/b/c.json"), body("second")).await.unwrap();
    assert_ne!(first, second);
    let read = storage.get(&name("a/b/c.json"), 6).await.unwrap().unwrap();
    assert_eq!((read.body, read.version), (body("second"), second));
    let head = storage.head(&name("a/b/c.json")).await.unwrap().unwrap();
    assert_eq!(head.bytes, 6);
    let large = storage.get(&name("a/b/c.json"), 5).await.unwrap_err();
    assert_eq!(large.kind, ErrorKind::TooLarge, "{large}");
    storage.put(&name("empty"), Bytes::new()).await.unwrap();
    assert_eq!(text(storage, "empty").await.as_deref(), Some(""));
}

async fn reads_ranges(storage: &dyn ObjectStorage) {
    let at = name("ranges.bin");
    let whole: Bytes = (0..3_000_000_u32).map(|i| (i % 251) as u8).collect::<Vec<_>>().into();
    storage.put(&at, whole.clone()).await.unwrap();
    for range in [0..1, 0..whole.len(), 1_234_567..2_345_678, whole.len() - 1..whole.len(), 5..5] {
        let read = storage.get_range(&at, range.start as u64..range.end as u64).await.unwrap();
        assert_eq!(read, whole.slice(range.clone()), "{range:?}");
    }
    let end = whole.len() as u64;
    for beyond in [end - 5..end + 5, end + 5..end + 10] {
        let refused = storage.get_range(&at, beyond.clone()).await.unwrap_err();
        assert_eq!(refused.kind, ErrorKind::BadAnswer, "{beyond:?}: {refused}");
    }
    let missing = storage.get_range(&name("nothing"), 0..5).await.unwrap_err();
    assert_eq!(missing.kind, ErrorKind::NotThere, "{missing}");
}

async fn lists_what_is_there(storage: &dyn ObjectStorage) {
    for number in (0..25).rev() {
        storage.put(&name(&format!("commits/{number:012}.json")), body("x")).await.unwrap();
    }
    storage.put(&name("commits-of-others/1"), body("x")).await.unwrap();
    storage.put(&name("commits/deep/er/1"), body("xyz")).await.unwrap();
    let listed = storage.list("commits/").await.unwrap();
    let names: Vec<&str> = listed.iter().map(|entry| entry.name.as_str()).collect();
    assert_eq!((names.len(), names[0], names[24]), (26, "commits/000000000000.json", "commits/000000000024.json"));
    assert_eq!((names[25], listed[25].bytes), ("commits/deep/er/1", 3));
    assert!(names.is_sorted());
    let all = storage.list("").await.unwrap();
    assert!(all.len() > 27 && all.is_sorted() && all.iter().any(|entry| entry.name.as_str() == "commits-of-others/1"));
    assert_eq!(storage.list("nothing-here/").await.unwrap(), []);
}

async fn deletes_what_is_there_or_not(storage: &dyn ObjectStorage) {
    storage.put(&name("gone.json"), body("x")).await.unwrap();
    storage.delete(&name("gone.json")).await.unwrap();
    assert_eq!(text(storage, "gone.json").await, None);
    storage.delete(&name("gone.json")).await.unwrap();
    storage.delete(&name("never/was.json")).await.unwrap();
}

async fn uploads_in_parts(storage: &dyn ObjectStorage) {
    let part_bytes = storage.abilities().min_part_bytes.max(1 << 20);
    let mut random = SeededRandom::new(7);
    let mut part =
        |bytes: u64| Bytes::from((0..bytes / 8).flat_map(|_| random.next().to_le_bytes()).collect::<Vec<u8>>());
    let parts = [part(part_bytes), part(part_bytes), part(800)];
    let at = name("data/whole.ckpt");
    storage.put(&at, body("an older one")).await.unwrap();
    let upload = storage.begin_upload(&at, part_bytes).await.unwrap();
    let mut receipts = Vec::new();
    for index in [2, 0, 1, 0] {
        let sent = storage.upload_part(&at, &upload, index, part_bytes, parts[index as usize].clone()).await.unwrap();
        receipts.retain(|receipt: &ckptd_remote::PartReceipt| receipt.index != index);
        receipts.push(sent);
    }
    receipts.sort_by_key(|receipt| receipt.index);
    assert_eq!(text(storage, "data/whole.ckpt").await.as_deref(), Some("an older one"));
    let refused = storage.complete_upload(&at, &upload, &receipts[1..]).await.unwrap_err();
    assert!(matches!(refused.kind, ErrorKind::Refused | ErrorKind::NoUpload), "{refused}");
    storage.complete_upload(&at, &upload, &receipts).await.unwrap();
    let whole = storage.get_range(&at, 0..2 * part_bytes + 800).await.unwrap();
    assert!(whole == parts.concat());
    assert_eq!(storage.head(&at).await.unwrap().unwrap().bytes, 2 * part_bytes + 800);
    let listed = storage.list("data/").await.unwrap();
    assert_eq!((listed.len(), listed[0].bytes), (1, 2 * part_bytes + 800));
}

async fn tells_that_uploads_are_gone(storage: &dyn ObjectStorage) {
    let at = name("data/aborted.ckpt");
    let upload = storage.begin_upload(&at, 1 << 20).await.unwrap();
    let sent = storage.upload_part(&at, &upload, 0, 1 << 20, body("part")).await.unwrap();
    storage.abort_upload(&at, &upload).await.unwrap();
    storage.abort_upload(&at, &upload).await.unwrap();
    if upload != UploadId(String::new()) {
        // Azure knows no uploads: its parts are dropped after a week.
        let gone = storage.upload_part(&at, &upload, 0, 1 << 20, body("part")).await.unwrap_err();
        assert_eq!(gone.kind, ErrorKind::NoUpload, "{gone}");
        let gone = storage.complete_upload(&at, &upload, &[sent]).await.unwrap_err();
        assert_eq!(gone.kind, ErrorKind::NoUpload, "{gone}");
    }
    assert_eq!(storage.head(&at).await.unwrap(), None);
}

async fn swaps_by_version(storage: &dyn ObjectStorage) {
    let at = name("lease.json");
    let first = storage.put(&at, body("1")).await.unwrap();
    let Swapped::Swapped(second) = storage.swap(&at, &first, body("2")).await.unwrap() else { panic!("not swapped") };
    assert_ne!(first, second);
    assert_eq!(storage.swap(&at, &first, body("3")).await.unwrap(), Swapped::Changed);
    assert_eq!(storage.get(&at, 100).await.unwrap().unwrap().version, second);
    assert_eq!(text(storage, "lease.json").await.as_deref(), Some("2"));
    storage.delete(&at).await.unwrap();
    assert_eq!(storage.swap(&at, &second, body("4")).await.unwrap(), Swapped::Changed);
    assert_eq!(text(storage, "lease.json").await, None);
}

async fn one_of_many_creates(storage: &Arc<dyn ObjectStorage>, rounds: u64) {
    for round in 0..rounds {
        let at = name(&format!("epochs/{round:012}"));
        let race = (0..WRITERS).map(|writer| {
            let (storage, at) = (Arc::clone(storage), at.clone());
            tokio::spawn(async move { storage.create(&at, body(&writer.to_string())).await.unwrap() })
        });
        let mut winners = Vec::new();
        for (writer, created) in futures_util::future::join_all(race).await.into_iter().enumerate() {
            winners.extend(matches!(created.unwrap(), Created::Created(_)).then(|| writer.to_string()));
        }
        assert_eq!(winners.len(), 1, "round {round}");
        assert_eq!(text(&**storage, at.as_str()).await, winners.pop(), "round {round}");
    }
}

async fn one_of_many_swaps(storage: &Arc<dyn ObjectStorage>, rounds: u64) {
    let at = name("raced.json");
    let mut version = storage.put(&at, body("start")).await.unwrap();
    for round in 0..rounds {
        let race = (0..WRITERS).map(|writer| {
            let (storage, at, version) = (Arc::clone(storage), at.clone(), version.clone());
            tokio::spawn(async move { storage.swap(&at, &version, body(&format!("{round}-{writer}"))).await.unwrap() })
        });
        let mut winners = Vec::new();
        for (writer, swapped) in futures_util::future::join_all(race).await.into_iter().enumerate() {
            if let Swapped::Swapped(version) = swapped.unwrap() {
                winners.push((format!("{round}-{writer}"), version));
            }
        }
        assert_eq!(winners.len(), 1, "round {round}");
        let (written, now) = winners.pop().unwrap();
        assert_eq!(text(&**storage, "raced.json").await, Some(written), "round {round}");
        version = now;
    }
}

async fn sweeps_what_was_left(storage: &dyn ObjectStorage) {
    let at = name("data/left.ckpt");
    let upload = storage.begin_upload(&at, 1 << 20).await.unwrap();
    storage.upload_part(&at, &upload, 0, 1 << 20, body("part")).await.unwrap();
    assert_eq!(storage.sweep(Duration::from_secs(3600)).await.unwrap(), 0);
    let mut swept = 0;
    while swept == 0 {
        swept = storage.sweep(Duration::ZERO).await.unwrap();
    }
    let gone = storage.upload_part(&at, &upload, 1, 1 << 20, body("part")).await.unwrap_err();
    assert_eq!(gone.kind, ErrorKind::NoUpload, "{gone}");
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_conforms() {
    conforms(Arc::new(MemoryStorage::new()), ROUNDS).await;
    conforms(Arc::new(MemoryStorage::without_swap()), ROUNDS).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn s3_conforms() {
    let server = ObjectServer::start();
    server.set(|behaviour| behaviour.page = 10);
    conforms(stores::s3(&server.url(), "a/job").await, ROUNDS).await;
    conforms(stores::s3(&server.url(), "").await, 3).await;
    assert_eq!(server.state().open_uploads(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn google_conforms() {
    let server = ObjectServer::start();
    server.set(|behaviour| behaviour.page = 10);
    conforms(stores::google(&server, "a/job").await, ROUNDS).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_conforms() {
    let folder = tempfile::tempdir().unwrap();
    conforms(stores::folder(folder.path()).await, ROUNDS).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn folders_that_know_no_hard_links_conform() {
    for create_by in [CreateBy::RenameNew, CreateBy::Exclusive] {
        let path = tempfile::tempdir().unwrap();
        let storage = folder::open("file:///there".into(), path.path()).await.unwrap().limited_to(create_by);
        assert_eq!(storage.abilities().whole_creates, create_by == CreateBy::RenameNew);
        conforms(Arc::new(storage), 40).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sftp_conforms() {
    let Some(server) = servers::sftp_server() else { return };
    let folder = tempfile::tempdir().unwrap();
    conforms(stores::sftp(&server, folder.path()).await, ROUNDS).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn azurite_conforms() {
    let folder = tempfile::tempdir().unwrap();
    let Some(server) = servers::azurite(folder.path()) else { return };
    conforms(stores::azure(&server, "a/job").await, ROUNDS).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn moto_conforms_one_at_a_time() {
    let Some(server) = servers::moto() else { return };
    // Its conditions hold for one request at a time only, so nobody races here; a part of an upload that is gone makes
    // it fail with the status 500.
    conforms_but_for_gone_uploads(stores::moto(&server).await, 0).await;
}

/// A folder with so little room that it can be filled; it is given back in the end.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn new() -> Option<SmallDisk> {
        let disk = SmallDisk(tempfile::tempdir().unwrap());
        let mut mount = std::process::Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=512k", "none"]).arg(disk.0.path());
        mount.output().is_ok_and(|ended| ended.status.success()).then_some(disk)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg(self.0.path()).output();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_told_as_such_by_folders_and_behind_sftp_and_nothing_is_left_of_what_did_not_fit() {
    let Some(disk) = SmallDisk::new() else {
        eprintln!("no file system can be mounted here, and a full one is left out");
        return;
    };
    let mut storages = vec![stores::folder(disk.0.path()).await];
    if let Some(server) = ckptd_testkit::servers::sftp_server() {
        storages.push(stores::sftp(&server, disk.0.path()).await);
    }
    let (small, large) = (Bytes::from(vec![1; 300 << 10]), Bytes::from(vec![2; 1 << 20]));
    for storage in storages {
        for _ in 0..3 {
            let full = storage.put(&name("data/large"), large.clone()).await.unwrap_err();
            assert!(full.kind == ErrorKind::NoSpace && full.to_string().contains("raise its quota"), "{full}");
        }
        // What did not fit takes no room.
        storage.put(&name("data/small"), small.clone()).await.unwrap();
        storage.delete(&name("data/small")).await.unwrap();
    }
}
