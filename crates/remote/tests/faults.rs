//! What is told, and what is true, when requests meet faults on their way: through a proxy that breaks them on purpose.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod stores;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use ckptd_core::ids::RunId;
use ckptd_remote::job::RemoteJob;
use ckptd_remote::{
    ConfirmedStorage, Created, ErrorKind, ObjectStorage, Outcome, PartReceipt, RemoteSettings, Swapped, open,
};
use ckptd_testkit::random::SeededRandom;
use ckptd_testkit::servers::{Crc64, Fault, FaultProxy, ObjectServer, Rule};
use futures_util::StreamExt;
use stores::name;

const STALL: Duration = Duration::from_millis(700);
const PART_BYTES: u64 = 5 << 20;
const ERROR_IN_200: &str = "<Error><Code>InternalError</Code><Message>We encountered an error.</Message></Error>";

/// A store behind a proxy.
struct Faulty {
    server: ObjectServer,
    proxy: FaultProxy,
    storage: Arc<dyn ObjectStorage>,
    confirmed: ConfirmedStorage,
}

async fn faulty() -> Faulty {
    let server = ObjectServer::start();
    let proxy = FaultProxy::start(&server.url());
    let settings = RemoteSettings { stall: STALL, ..stores::s3_settings(&proxy.url()) };
    let storage = open(&"s3://bucket/job".parse().unwrap(), &settings).await.unwrap();
    Faulty { server, proxy, confirmed: ConfirmedStorage::new(Arc::clone(&storage)), storage }
}

fn body(text: &str) -> Bytes {
    Bytes::from(text.to_owned())
}

impl Faulty {
    /// What the server has under `at`.
    fn truth(&self, at: &str) -> Option<String> {
        let stored = self.server.state().get(&format!("bucket/job/{at}"));
        stored.map(|stored| String::from_utf8(stored.body.concat()).unwrap())
    }

    async fn create(&self, fault: Fault, at: &str) -> Result<Created, ErrorKind> {
        self.proxy.set([Rule::once("PUT", at, fault)]);
        self.storage.create(&name(at), body("mine")).await.map_err(|e| e.kind)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_create_whose_answer_is_lost_is_an_error_and_confirmed_mine() {
    let faulty = faulty().await;
    for (at, fault) in [("e/1", Fault::LostAnswer), ("e/2", Fault::AppliedThen(503))] {
        let told = faulty.create(fault.clone(), at).await;
        assert!(!matches!(told, Ok(Created::Created(_))), "{told:?}");
        assert_eq!(faulty.truth(at).as_deref(), Some("mine"));
        let again = format!("{at}-again");
        faulty.proxy.set([Rule::once("PUT", &again, fault)]);
        let outcome = faulty.confirmed.create(&name(&again), body("mine too")).await;
        assert!(outcome.is_mine(), "{outcome:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_request_that_is_lost_does_not_end_a_job_that_begins() {
    let faulty = faulty().await;
    faulty.proxy.set([Rule::once("PUT", "run.json", Fault::Reset)]);
    let (job, run_id) = (RemoteJob::new(Arc::clone(&faulty.storage)), RunId::random().unwrap());
    job.claim_run(&run_id).await.unwrap();
    assert_eq!(job.run_id().await.unwrap(), Some(run_id));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_where_nothing_was_stored_is_confirmed_not_there() {
    let faulty = faulty().await;
    // "A conflicting conditional operation is under way, try again."
    let conflict = Fault::Status(409, "<Error><Code>ConditionalRequestConflict</Code></Error>");
    assert_eq!(faulty.create(conflict.clone(), "e/3").await, Ok(Created::AlreadyThere));
    assert_eq!(faulty.truth("e/3"), None);
    faulty.proxy.set([Rule::always("PUT", "e/4", conflict)]);
    assert!(matches!(faulty.confirmed.create(&name("e/4"), body("mine")).await, Outcome::NotThere(_)));
    faulty.proxy.set([]);
    assert!(faulty.confirmed.create(&name("e/4"), body("mine")).await.is_mine());
    // One that another try does not help says so, and is not taken for a lost request.
    let quota = Fault::Status(403, "<Error><Code>QuotaExceeded</Code></Error>");
    faulty.proxy.set([Rule::always("PUT", "e/6", quota)]);
    let refused = faulty.confirmed.create(&name("e/6"), body("mine")).await;
    let Outcome::NotThere(Some(error)) = &refused else { panic!("{refused:?}") };
    assert!(error.to_string().contains("QuotaExceeded") && error.kind == ErrorKind::NoSpace, "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_another_wrote_is_never_confirmed_mine() {
    let faulty = faulty().await;
    let version = faulty.storage.put(&name("lease.json"), body("theirs")).await.unwrap();
    for fault in [None, Some(Fault::AppliedThen(503)), Some(Fault::LostAnswer), Some(Fault::Reset)] {
        faulty.proxy.set(fault.clone().map(|fault| Rule::always("PUT", "lease", fault)));
        let created = faulty.confirmed.create(&name("lease.json"), body("mine")).await;
        assert!(matches!(&created, Outcome::Other(Some(object)) if object.body == "theirs"), "{fault:?}: {created:?}");
        let stale = ckptd_remote::ObjectVersion("\"stale\"".into());
        let swapped = faulty.confirmed.swap(&name("lease.json"), &stale, body("mine")).await;
        assert!(matches!(&swapped, Outcome::Other(Some(object)) if object.body == "theirs"), "{fault:?}: {swapped:?}");
    }
    faulty.proxy.set([Rule::always("PUT", "lease", Fault::Reset)]);
    let unchanged = faulty.confirmed.swap(&name("lease.json"), &version, body("mine")).await;
    assert!(matches!(unchanged, Outcome::NotThere(_)), "{unchanged:?}");
    faulty.proxy.set([Rule::always("", "lease", Fault::Reset)]);
    let unknown = faulty.confirmed.swap(&name("lease.json"), &version, body("mine")).await;
    assert!(matches!(&unknown, Outcome::Unknown(e) if e.is_worth_retrying()), "{unknown:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_swap_whose_answer_is_lost_or_turned_is_confirmed_mine() {
    let faulty = faulty().await;
    let mut version = faulty.storage.put(&name("lease.json"), body("0")).await.unwrap();
    for (count, fault) in [(1, Fault::LostAnswer), (2, Fault::AppliedThen(503)), (3, Fault::AppliedThen(500))] {
        faulty.proxy.set([Rule::once("PUT", "lease", fault)]);
        let outcome = faulty.confirmed.swap(&name("lease.json"), &version, body(&count.to_string())).await;
        let Outcome::Mine(now) = outcome else { panic!("{outcome:?}") };
        version = now;
        assert_eq!(faulty.truth("lease.json"), Some(count.to_string()));
    }
    faulty.proxy.set([Rule::once("PUT", "lease", Fault::Status(409, ""))]);
    let told = faulty.storage.swap(&name("lease.json"), &version, body("4")).await.unwrap();
    assert!(matches!(told, Swapped::Swapped(_)), "a conflict is tried again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_was_given_up_may_land_later() {
    let faulty = faulty().await;
    faulty.proxy.set([Rule::once("PUT", "e/5", Fault::Late(STALL * 5))]);
    let outcome = faulty.confirmed.create(&name("e/5"), body("mine")).await;
    assert!(matches!(outcome, Outcome::NotThere(_)), "{outcome:?}");
    while faulty.truth("e/5").is_none() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(faulty.confirmed.create(&name("e/5"), body("mine")).await.is_mine());
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_writes_are_tried_again() {
    let faulty = faulty().await;
    let busy = |status| Fault::Status(status, "");
    for fault in [Fault::Reset, Fault::LostAnswer, Fault::Stall, busy(429), busy(503), busy(500), Fault::CloseAfter] {
        faulty.proxy.set([Rule::once("PUT", "plain", fault.clone())]);
        faulty.storage.put(&name("plain"), body("now")).await.unwrap_or_else(|e| panic!("{fault:?}: {e}"));
        faulty.storage.put(&name("plain"), body("now")).await.unwrap_or_else(|e| panic!("{fault:?}: {e}"));
    }
    faulty.proxy.set([Rule::always("PUT", "plain", busy(503))]);
    let told = faulty.storage.put(&name("plain"), body("never")).await.unwrap_err();
    assert_eq!(told.kind, ErrorKind::Unreachable, "{told}");
    assert!(told.to_string().contains("503"), "{told}");
    assert_eq!(faulty.truth("plain").as_deref(), Some("now"));
}

/// Random bytes.
fn noise(seed: u64, bytes: u64) -> Bytes {
    let mut random = SeededRandom::new(seed);
    (0..bytes / 8).flat_map(|_| random.next().to_le_bytes()).collect::<Vec<u8>>().into()
}

/// Uploads `whole`, four parts at a time, each until the store has it.
async fn upload(faulty: &Faulty, at: &str, whole: &Bytes) -> Outcome<ckptd_remote::Head> {
    let (storage, at) = (&faulty.storage, name(at));
    let upload = persistently(|| storage.begin_upload(&at, PART_BYTES)).await;
    let parts = whole.len().div_ceil(PART_BYTES as usize) as u32;
    let receipts: Vec<PartReceipt> = futures_util::stream::iter(0..parts)
        .map(|index| {
            let (at, upload) = (&at, &upload);
            let start = index as usize * PART_BYTES as usize;
            let part = whole.slice(start..whole.len().min(start + PART_BYTES as usize));
            async move { persistently(|| storage.upload_part(at, upload, index, PART_BYTES, part.clone())).await }
        })
        .buffered(4)
        .collect()
        .await;
    faulty.confirmed.complete_upload(&at, &upload, &receipts, whole.len() as u64).await
}

async fn persistently<T, F: Future<Output = ckptd_remote::Result<T>>>(mut work: impl FnMut() -> F) -> T {
    loop {
        match work().await {
            Ok(it) => return it,
            Err(e) => assert!(e.is_worth_retrying(), "{e}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn parts_are_sent_again() {
    let faulty = faulty().await;
    let whole = noise(1, 3 * PART_BYTES + 8);
    let faults = [Fault::Reset, Fault::Stall, Fault::LostAnswer, Fault::Status(503, "")];
    for (number, fault) in faults.into_iter().enumerate() {
        faulty.proxy.set([Rule { times: 2, ..Rule::once("PUT", "partNumber", fault.clone()) }]);
        let at = format!("data/{number}");
        assert!(upload(&faulty, &at, &whole).await.is_mine(), "{fault:?}");
        assert!(faulty.storage.get_range(&name(&at), 0..whole.len() as u64).await.unwrap() == whole, "{fault:?}");
        assert_eq!(faulty.proxy.counts().1, 2);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_completed_upload_is_found_whatever_is_told() {
    let faulty = faulty().await;
    let whole = noise(2, 2 * PART_BYTES);
    for (number, fault) in
        [Fault::Status(200, ERROR_IN_200), Fault::LostAnswer, Fault::AppliedThen(500)].into_iter().enumerate()
    {
        faulty.proxy.set([Rule::once("POST", "uploadId", fault.clone())]);
        let outcome = upload(&faulty, &format!("data/{number}"), &whole).await;
        assert!(outcome.is_mine(), "{fault:?}: {outcome:?}");
    }
    faulty.proxy.set([Rule::always("POST", "uploadId", Fault::Status(200, ERROR_IN_200))]);
    let outcome = upload(&faulty, "data/never", &whole).await;
    assert!(matches!(outcome, Outcome::NotThere(_)), "{outcome:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_begin_whose_answer_is_lost_leaves_an_upload_behind() {
    let faulty = faulty().await;
    faulty.proxy.set([Rule::once("POST", "uploads", Fault::LostAnswer)]);
    assert!(upload(&faulty, "data/1", &noise(3, PART_BYTES)).await.is_mine());
    assert_eq!(faulty.server.state().open_uploads(), 1, "which only a lifecycle rule removes");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bit_flipped_on_the_way_up_is_refused_where_the_store_compares_digests() {
    let faulty = faulty().await;
    let (at, part) = (name("data/1"), noise(4, 1 << 20));
    let upload = faulty.storage.begin_upload(&at, PART_BYTES).await.unwrap();
    assert!(faulty.storage.checks_digests(&name("probe/1")).await.unwrap());
    faulty.proxy.set([Rule::once("PUT", "partNumber", Fault::FlipRequest)]);
    let told = faulty.storage.upload_part(&at, &upload, 0, PART_BYTES, part.clone()).await.unwrap_err();
    assert!(told.to_string().contains("BadDigest"), "{told}");

    faulty.server.set(|behaviour| behaviour.checks_digests = false);
    assert!(!faulty.storage.checks_digests(&name("probe/1")).await.unwrap());
    assert_eq!(faulty.truth("probe/1"), None, "what the probe wrote is removed");
    faulty.proxy.set([Rule::once("PUT", "partNumber", Fault::FlipRequest)]);
    let sent = faulty.storage.upload_part(&at, &upload, 0, PART_BYTES, part.clone()).await.unwrap();
    faulty.storage.complete_upload(&at, &upload, &[sent]).await.unwrap();
    let read = faulty.storage.get_range(&at, 0..1 << 20).await.unwrap();
    assert!(read != part, "nobody noticed: only reading back does");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_goes_on_where_it_broke_off() {
    let faulty = faulty().await;
    let whole = noise(5, 4 << 20);
    faulty.storage.put(&name("data/1"), whole.clone()).await.unwrap();
    let faults = [Fault::Cut(1 << 20), Fault::Reset, Fault::StallAfter(1 << 20), Fault::Stall, Fault::Status(503, "")];
    for fault in faults {
        faulty.proxy.set([Rule::once("GET", "data/1", fault.clone())]);
        let read = faulty.storage.get_range(&name("data/1"), 100..4 << 20).await;
        assert!(read.unwrap_or_else(|e| panic!("{fault:?}: {e}")) == whole.slice(100..), "{fault:?}");
        assert_eq!(faulty.proxy.counts().1, 1, "{fault:?}");
    }
    faulty.proxy.set([Rule::once("GET", "data/1", Fault::FlipAnswer)]);
    let read = faulty.storage.get_range(&name("data/1"), 0..4 << 20).await.unwrap();
    assert!(read != whole, "HTTP knows no digest: the chunks' hashes must find it");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cheaper_digest_is_used_only_where_the_store_was_seen_to_compare_it() {
    // A store that refuses all bodies with a digest that it does not know refuses the changed one, too: no proof.
    for (crc64, cheaper) in [(Crc64::Compared, 1), (Crc64::Ignored, 0), (Crc64::Refused, 0)] {
        let server = ObjectServer::start();
        server.set(|behaviour| behaviour.crc64 = crc64);
        let settings = RemoteSettings { digest: None, ..stores::s3_settings(&server.url()) };
        let storage = open(&"s3://bucket/job".parse().unwrap(), &settings).await.unwrap();
        let at = name("data/1");
        let upload = storage.begin_upload(&at, PART_BYTES).await.unwrap();
        let send = |index| storage.upload_part(&at, &upload, index, PART_BYTES, body("a part"));
        send(0).await.unwrap();
        assert_eq!(server.counts().get("part with crc64"), None, "{crc64:?}: nothing was seen yet");
        assert!(storage.checks_digests(&name("check-1")).await.unwrap(), "{crc64:?}: by the signature, if not by this");
        send(1).await.unwrap();
        assert_eq!(server.counts().get("part with crc64").copied().unwrap_or(0), cheaper, "{crc64:?}");
        assert_eq!(storage.list("").await.unwrap(), [], "{crc64:?}: what was tried is gone");
        // A store that ceases to compare is not trusted any more.
        server.set(|behaviour| behaviour.checks_digests = false);
        assert!(!storage.checks_digests(&name("check-2")).await.unwrap());
        send(2).await.unwrap();
        assert_eq!(server.counts().get("part with crc64").copied().unwrap_or(0), cheaper, "{crc64:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_answer_is_no_stalled_one() {
    let faulty = faulty().await;
    let whole = noise(6, 1 << 20);
    faulty.storage.put(&name("data/1"), whole.clone()).await.unwrap();
    // 16 pieces, a tenth of a second each: longer than the stall, and never still for as long.
    faulty.proxy.set([Rule::once("GET", "data/1", Fault::Slow(1 << 16))]);
    assert!(faulty.storage.get_range(&name("data/1"), 0..1 << 20).await.unwrap() == whole);
    assert_eq!(faulty.proxy.counts(), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn half_a_list_is_an_error() {
    let faulty = faulty().await;
    faulty.server.set(|behaviour| behaviour.page = 10);
    for number in 0..30 {
        faulty.storage.put(&name(&format!("commits/{number:02}")), body("x")).await.unwrap();
    }
    let endless = "<ListBucketResult><IsTruncated>true</IsTruncated></ListBucketResult>";
    let answers = [(403, ""), (200, ERROR_IN_200), (200, ""), (200, endless)];
    let answers = answers.into_iter().map(|(status, text)| Fault::Status(status, text));
    for fault in answers.chain([Fault::Cut(300)]) {
        faulty.proxy.set([Rule { after: 1, ..Rule::always("GET", "list-type", fault.clone()) }]);
        let told = faulty.storage.list("commits/").await;
        assert!(told.is_err(), "{fault:?}: {told:?}");
    }
    faulty.proxy.set([]);
    assert_eq!(faulty.storage.list("commits/").await.unwrap().len(), 30);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_clock_is_told_as_such() {
    let faulty = faulty().await;
    for (ahead, told) in [(1200, "20 minutes, behind"), (-3 * 3600, "3 hours, ahead")] {
        faulty.server.set(|behaviour| behaviour.clock_ahead_s = ahead);
        let error = faulty.storage.get(&name("lease.json"), 100).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::ClockOff, "{error}");
        assert!(error.to_string().contains(told) && error.to_string().contains("timedatectl"), "{error}");
        assert!((faulty.storage.clock_offset_s().unwrap() + ahead).abs() <= 2);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_are_told_by_what_to_do_about_them() {
    let faulty = faulty().await;
    for (code, kind) in [
        ("ExpiredToken", ErrorKind::Denied),
        ("AccessDenied", ErrorKind::Denied),
        ("NoSuchBucket", ErrorKind::NoBucket),
        ("SlowDown", ErrorKind::Unreachable),
    ] {
        faulty.server.set(|behaviour| behaviour.denies_with = Some(code));
        let error = faulty.storage.put(&name("x"), body("x")).await.unwrap_err();
        assert_eq!(error.kind, kind, "{error}");
        assert!(error.to_string().contains(code) && error.is_worth_retrying(), "{error}");
    }
    faulty.server.set(|behaviour| behaviour.denies_with = None);
    faulty.server.set(|behaviour| behaviour.max_bytes = 10);
    let error = faulty.storage.put(&name("x"), body("eleven bytes")).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::NoSpace, "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn storms_of_faults_change_nothing() {
    let faulty = faulty().await;
    let whole = noise(7, 200 << 20);
    for seed in 1..=3 {
        let rarely = [(170, Fault::Status(503, "")), (70, Fault::Reset), (50, Fault::LostAnswer), (10, Fault::Stall)];
        faulty.proxy.storm(seed, rarely);
        let at = format!("data/{seed}");
        let outcome = upload(&faulty, &at, &whole).await;
        assert!(outcome.is_mine(), "{outcome:?}");
        let (storage, at) = (&faulty.storage, name(&at));
        let reads = futures_util::stream::iter((0..whole.len() as u64).step_by(8 << 20)).map(|start| {
            let range = start..(start + (8 << 20)).min(whole.len() as u64);
            let at = &at;
            async move { persistently(|| storage.get_range(at, range.clone())).await }
        });
        let read: Vec<Bytes> = reads.buffered(4).collect().await;
        let (requests, faults) = faulty.proxy.counts();
        assert!(read.concat() == whole, "seed {seed}");
        assert!(faults * 5 > requests, "{faults} faults in {requests} requests");
        faulty.server.state().clear();
    }
}
