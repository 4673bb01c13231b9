//! `ckptd push`

use std::path::PathBuf;

use serde::Serialize;

use super::console::Console;
use super::remote::{own, with_job};
use super::target::CommandTarget;
use super::{exit_code, output};
use crate::training::remote::depth;
use ckptd_core::error::{Error, Result};
use ckptd_core::os::process::processors;
use ckptd_core::progress::ProgressSink;
use ckptd_core::store::{SnapshotEntry, SnapshotState, Store};
use ckptd_remote::job::history::HistorySender;
use ckptd_remote::job::local::{LocalHistory, file_hash, place_of};
use ckptd_remote::job::owner::Prepare;
use ckptd_remote::job::prepare::marker;
use ckptd_remote::job::rate::RateLimit;
use ckptd_remote::job::send::{CheckDepth, KeepNothing, SendOptions, send};
use ckptd_remote::job::{self, JobError, RemoteJob, Survey};

/// Send verified snapshots of a store to a remote, and check them there.
#[derive(clap::Args)]
pub(super) struct PushArgs {
    /// The store's folder, or the job file, whose [remote] verify then says how it is checked.
    #[arg(value_name = "STORE|CONFIG")]
    target: PathBuf,
    /// The job's own place at the remote: s3://bucket/job, file:///folder and so on.
    url: String,
    /// latest, best, a step number or an id.
    #[arg(value_name = "SNAPSHOT", default_value = "latest")]
    snapshot: String,
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Pushed {
    place: String,
    epoch: u64,
    seq: u64,
    step: u64,
    root: String,
    bytes: u64,
    /// "verified".
    state: &'static str,
    #[serde(skip)]
    told: Option<String>,
}

pub(super) fn execute(args: &PushArgs) -> Result<u8> {
    let target = CommandTarget::open(&args.target)?;
    let lock = target.store.lock("ckptd push")?;
    let console = Console::start()?;
    let entry = target.store.find(&args.snapshot)?;
    if !entry.own || !entry.healthy() {
        return Err(Error::Other(format!("{} is not a healthy snapshot of the store's own training", entry.id)));
    }
    if entry.state != SnapshotState::Verified {
        console.begin(entry.id.as_str(), entry.bytes);
        target.store.verify(&entry, processors(), &console)?;
    }
    // A store alone knows the job that ran in it last, which may have been another one's wish.
    let verify = target.config.as_ref().filter(|_| !args.target.is_dir()).map(|config| config.remote.verify);
    let depth = verify.map_or(CheckDepth::Auto, depth);
    let pushed = with_job(&args.url, async |job| push(job, (&target.store, &lock), &entry, (depth, &console)).await)?;
    drop(console);
    pushed.told.iter().for_each(|line| output::complain(&format!("ckptd: {line}")));
    output::show(args.json, &pushed, |pushed| {
        format!("step {} is {} at {}, {}\n", pushed.step, pushed.state, pushed.place, output::size(pushed.bytes))
    })?;
    Ok(exit_code::DONE)
}

async fn push(
    job: RemoteJob,
    (store, lock): (&Store, &ckptd_core::store::StoreLock),
    entry: &SnapshotEntry,
    (depth, console): (CheckDepth, &Console),
) -> job::Result<Pushed> {
    let run_id = store.run_id()?.ok_or_else(|| JobError::other("the store has no training yet"))?;
    job.claim_run(&run_id).await?;
    let mut prepare = StoreIsNewest { store };
    let mut owner = own(job.clone(), "ckptd push", &mut prepare, None).await?;
    let outcome = async {
        if let Some(record) = owner.record() {
            let mut history = LocalHistory::read(store)?;
            history.owned.push((record.epoch, record.base));
            history.write(store, lock)?;
        }
        let rate = RateLimit::new(None);
        console.begin(&format!("sending step {}", entry.step()), entry.bytes);
        let sent = |bytes| drop(console.advance(bytes));
        let options = SendOptions { rate: &rate, keeper: &KeepNothing, depth, sent: &sent };
        // The lease is kept while the file travels.
        let sending = send(&job, &entry.path, &options);
        tokio::pin!(sending);
        let checked = loop {
            tokio::select! {
                checked = &mut sending => break checked?,
                () = tokio::time::sleep(owner.idle()) => drop(owner.tick(&mut prepare).await),
            }
            console.advance(0)?;
        };
        let epoch = owner.epoch().ok_or_else(|| JobError::other("another process took the job over meanwhile"))?;
        let manifest = entry.manifest.as_ref().ok_or_else(|| JobError::other("the manifest cannot be read"))?;
        let marker = marker(manifest, file_hash(entry)?, &entry.path, (epoch, owner.nonce().clone(), checked))?;
        let name = marker.name();
        let mut news = owner.commit(marker.clone(), &mut prepare).await;
        while owner.is_committing() && !owner.is_over() {
            tokio::time::sleep(owner.idle()).await;
            news.extend(owner.tick(&mut prepare).await);
        }
        if !news.contains(&ckptd_remote::protocol::LeaseNews::Committed(name)) {
            return Err(JobError::other(format!("{}: another process owns the job", job.place())));
        }
        let history = HistorySender::default().send(&job, store, epoch, &rate, || owner.may_write()).await;
        Ok(Pushed {
            told: history.err().map(|error| format!("the history of the training was not sent: {error}")),
            place: job.place().to_owned(),
            epoch,
            seq: marker.seq,
            step: marker.step,
            root: marker.root.to_string(),
            bytes: marker.bytes,
            state: checked.name(),
        })
    };
    let outcome = outcome.await;
    owner.leave(std::time::Duration::from_secs(15)).await;
    outcome
}

/// A store is sent where the remote holds nothing that is newer.
struct StoreIsNewest<'a> {
    store: &'a Store,
}

#[async_trait::async_trait]
impl Prepare for StoreIsNewest<'_> {
    async fn prepare(&mut self, job: &RemoteJob) -> job::Result<(u64, u64)> {
        let survey = Survey::of(job).await?;
        let history = LocalHistory::read(self.store)?;
        let entries = self.store.entries()?;
        let newest = entries.iter().find(|entry| entry.own && entry.healthy());
        let here = newest.map(|entry| place_of(entry, &history, &survey)).transpose()?.unwrap_or((0, 0));
        if let (Some(there), Some(_)) = (survey.in_order().first(), newest)
            && (survey.fence.is_orphan(here.0, here.1) || (there.epoch, there.seq) > here)
        {
            return Err(JobError::other(format!(
                "{} holds a newer snapshot (epoch {}, number {}) than the store {}; `ckptd fetch {} {}` brings it \
                 here",
                job.place(),
                there.epoch,
                there.seq,
                self.store.path().display(),
                job.place(),
                self.store.path().display()
            )));
        }
        Ok((here.1, survey.newest_epoch))
    }
}
