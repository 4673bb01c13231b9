//! Storms: a snapshot goes up and comes down while three of ten requests meet a fault, over HTTP.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail};
use ckptd_core::progress::NoProgress;
use ckptd_core::store::{Store, StoreLock};
use ckptd_remote::job::fetch::fetch_file;
use ckptd_remote::job::prepare::marker;
use ckptd_remote::job::rate::RateLimit;
use ckptd_remote::job::send::{CheckDepth, KeepNothing, SendOptions, send};
use ckptd_remote::job::{JobError, RemoteJob};
use ckptd_remote::layout::{ContentHash, JobObject};
use ckptd_remote::records::{Marker, Nonce};
use ckptd_remote::secrets::Environment;
use ckptd_remote::settings::{Digest, Retries};
use ckptd_remote::{ConfirmedStorage, ObjectStorage, RemoteSettings, open};
use ckptd_testkit::servers::{Fault, FaultProxy, ObjectServer};

use super::machine::ReplicaMachine;
use crate::campaign::{CampaignScratch, FaultRow, guarded};

/// Rows of a snapshot of 200 MB, and of one for a quick look.
const ROWS: usize = 436_000;
const FEW_ROWS: usize = 44_000;
/// Of the marker: at three faults in ten requests they are never used up.
const TRIES: u32 = 50;
/// Of a thousand requests.
const SHARES: [(u64, Fault); 4] =
    [(170, Fault::Status(503, "")), (70, Fault::Reset), (50, Fault::LostAnswer), (10, Fault::Stall)];

/// Three storms, or a small one. A point is a request that met a fault.
pub fn run(below: &Path, seed: u64, short: bool) -> Result<Vec<FaultRow>> {
    let (storms, rows) = if short { (1, FEW_ROWS) } else { (3, ROWS) };
    let mut row = FaultRow::new(&format!("replication, storm of 30 % faults over {} MB", rows * 459 / 1_000_000), seed);
    let scratch = CampaignScratch::new(below);
    let folder = scratch.empty()?;
    let path = ReplicaMachine::new(folder, 0)?.save(rows)?.path;
    for storm in seed..seed + storms {
        let mut faults = 0;
        let broken = guarded(|| match one(folder, &path, storm) {
            Ok(met) => {
                faults = met;
                Vec::new()
            }
            Err(e) => vec![format!("{e:#}")],
        });
        row.point(|| format!("storm {storm}"), broken);
        row.points += faults.saturating_sub(1);
    }
    Ok(vec![row])
}

/// Sends, commits and fetches; returns how many requests met a fault.
fn one(folder: &Path, path: &Path, seed: u64) -> Result<u64> {
    let server = ObjectServer::start();
    let proxy = FaultProxy::start(&server.url());
    let store = Store::create(&folder.join(format!("fetched-{seed}")))?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let fetched = runtime.block_on(async {
        let storage = open(&"s3://bucket/job".parse()?, &settings(&proxy.url())).await?;
        let job = RemoteJob::new(storage.clone());
        proxy.storm(seed, SHARES);
        let marker = persistently(|| upload(&storage, path)).await?;
        let lock = StoreLock::inherited();
        let fetch = || fetch_file(&job, &marker, (&store, &lock), &NoProgress);
        Ok::<_, anyhow::Error>(persistently(fetch).await?.path)
    })?;
    let (requests, faults) = proxy.counts();
    if std::fs::read(&fetched)? != std::fs::read(path)? {
        bail!("what was fetched is not what was sent");
    }
    if faults * 5 < requests {
        bail!("only {faults} of {requests} requests met a fault");
    }
    drop(store);
    std::fs::remove_dir_all(folder.join(format!("fetched-{seed}")))?;
    Ok(faults)
}

async fn upload(storage: &Arc<dyn ObjectStorage>, path: &Path) -> ckptd_remote::job::Result<Marker> {
    let job = &RemoteJob::new(storage.clone());
    let rate = RateLimit::new(None);
    let options = SendOptions { rate: &rate, keeper: &KeepNothing, depth: CheckDepth::Whole, sent: &|_| {} };
    let checked = send(job, path, &options).await?;
    let (manifest, hash) = ckptd_core::store::peek::peek(path)?;
    let marker = marker(&manifest, ContentHash::from(hash), path, (1, Nonce("storm".into()), checked))?;
    let (name, body) = (JobObject::Commit(marker.name()).name(), serde_json::to_vec(&marker).unwrap_or_default());
    let confirmed = ConfirmedStorage::new(storage.clone());
    // As the owner of a job does: until it is there.
    for _ in 0..TRIES {
        if confirmed.create(&name, body.clone().into()).await.is_mine() {
            return Ok(marker);
        }
    }
    Err(JobError::other(format!("the marker was not written in {TRIES} tries")))
}

/// Does it until it is done, as a session does.
async fn persistently<T, F: Future<Output = ckptd_remote::job::Result<T>>>(
    work: impl Fn() -> F,
) -> Result<T, JobError> {
    loop {
        match work().await {
            Err(error) if error.is_worth_retrying() => {}
            outcome => return outcome,
        }
    }
}

/// Soon told.
fn settings(endpoint: &str) -> RemoteSettings {
    let first_wait = Duration::from_millis(10);
    let retries = |max| Retries { max, within: Duration::from_secs(20), first_wait };
    let environment = Environment::of([("AWS_ACCESS_KEY_ID", "test"), ("AWS_SECRET_ACCESS_KEY", "test")]);
    RemoteSettings {
        endpoint: Some(endpoint.to_owned()),
        digest: Some(Digest::Crc64Nvme),
        stall: Duration::from_millis(700),
        data_retries: retries(6),
        control_retries: retries(3),
        ..RemoteSettings::of(environment)
    }
}
