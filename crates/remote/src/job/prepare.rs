//! What a machine does with its store before it owns a job, and what it writes of a snapshot.
//!
//! Invariant: a job and a store are of one training before anything goes from one to the other.

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;

use ckptd_core::error::Error;
use ckptd_core::ids::RunId;
use ckptd_core::os::process::processors;
use ckptd_core::progress::NoProgress;
use ckptd_core::store::{Manifest, Store, StoreLock};

use super::companions::CompanionSource;
use super::error::{JobError, Result};
use super::history::bring_history;
use super::local::{LocalHistory, agree, place_of};
use super::owner::Prepare;
use super::place::RemoteJob;
use super::survey::Survey;
use crate::layout::ContentHash;
use crate::records::{Checked, Marker, Nonce, VERSION};

/// That another process owns the job now, for people.
pub fn lost_to(holder: &str, place: &str) -> String {
    format!(
        "{holder} owns {place} now, and goes on with this training: this machine stops. What it has saved since stays \
         in its store; `ckptd run --take-over` takes the job back"
    )
}

/// A store without a run becomes that of the job's; a job without a run becomes the store's when it is claimed.
pub async fn adopt_run(job: &RemoteJob, store: &Store, lock: &StoreLock) -> Result<()> {
    match (job.run_id().await?, store.run_id()?) {
        (Some(there), None) => Ok(store.set_run_id(lock, &there)?),
        (_, Some(here)) => job.claim_run(&here).await,
        (None, None) => {
            let run_id = RunId::random()?;
            store.set_run_id(lock, &run_id)?;
            job.claim_run(&run_id).await
        }
    }
}

/// The marker of the snapshot file at `path`.
pub fn marker(
    manifest: &Manifest,
    file_hash: ContentHash,
    path: &Path,
    (epoch, nonce, checked): (u64, Nonce, Checked),
) -> ckptd_core::Result<Marker> {
    let bytes = std::fs::metadata(path).map_err(|e| Error::io("reading the attributes of", path, e))?.len();
    let val_loss = manifest.metrics.val_loss.filter(|_| manifest.metrics.val_step == Some(manifest.train.step));
    Ok(Marker {
        version: VERSION,
        nonce,
        run_id: manifest.run_id.clone(),
        epoch,
        seq: manifest.seq,
        step: manifest.train.step,
        root: manifest.root.clone(),
        file_hash,
        bytes,
        raw_bytes: manifest.raw_bytes,
        created_at: manifest.created_at,
        healthy: manifest.healthy,
        val_loss: val_loss.filter(|loss| loss.is_finite()),
        checked,
        blobs: Vec::new(),
    })
}

/// Before a session: the newer of store and remote is what the training goes on from.
pub struct Beginning<'a> {
    /// The store here.
    pub store: &'a Store,
    /// It is held.
    pub lock: &'a StoreLock,
    /// Hears what is passed over or moved aside.
    pub warned: &'a (dyn Fn(String) + Send + Sync),
    /// Hears what was fetched.
    pub told: &'a (dyn Fn(String) + Send + Sync),
    /// What snapshots need besides.
    pub companions: &'a CompanionSource,
    /// Whether all of the history that is there is here, too.
    pub has_history: bool,
}

impl Beginning<'_> {
    /// Takes what this machine lacks of the history; the training goes on without it, too.
    async fn bring_history(&mut self, job: &RemoteJob) {
        self.has_history = false;
        match bring_history(job, self.store, self.lock).await {
            Ok(brought) => {
                self.has_history = !brought.is_partial;
                if brought.steps > 0 {
                    (self.told)(format!("fetched the history of {} steps from {}", brought.steps, job.place()));
                }
                brought.problems.into_iter().for_each(|problem| (self.warned)(problem));
            }
            Err(error) => (self.warned)(format!("the history of earlier sessions is not all here: {error}")),
        }
    }

    /// Fetches what the newest snapshot here needs besides, where this machine lacks it.
    async fn bring(&self, job: &RemoteJob) -> Result<()> {
        let newest = self.store.entries()?.into_iter().find(|entry| entry.own && entry.healthy());
        let Some(manifest) = newest.and_then(|entry| entry.manifest) else { return Ok(()) };
        match self.companions.bring(job, &manifest).await {
            Ok(brought) => {
                brought.iter().for_each(|path| {
                    (self.told)(format!("fetched {} from {}", path.display(), job.place()));
                });
                Ok(())
            }
            // The training may have its data elsewhere.
            Err(error) if error.is_of_the_file() => {
                (self.warned)(error.to_string());
                Ok(())
            }
            Err(error) => Err(error),
        }
    }
}

#[async_trait]
impl Prepare for Beginning<'_> {
    async fn prepare(&mut self, job: &RemoteJob) -> Result<(u64, u64)> {
        let warned = self.warned;
        let mut warn = |line: String| warned(line);
        let agreed = agree(job, (self.store, self.lock), processors(), &NoProgress, &mut warn).await?;
        if let Some(fetched) = &agreed.fetched {
            let (step, bytes) = (fetched.marker.step, fetched.committed.bytes);
            let size = bytesize::ByteSize(bytes);
            (self.told)(format!("fetched step {step} from {}: {size}", job.place()));
        }
        self.bring(job).await?;
        self.bring_history(job).await;
        Ok((agreed.base, agreed.newest_epoch))
    }
}

/// While a training runs: it goes on from what it is at, unless another machine went on from before.
pub struct Meanwhile {
    /// The store here.
    pub store: Arc<Store>,
    /// That another machine went on, in words.
    pub lost: Option<String>,
}

#[async_trait]
impl Prepare for Meanwhile {
    async fn prepare(&mut self, job: &RemoteJob) -> Result<(u64, u64)> {
        if let Some(here) = self.store.run_id()? {
            job.claim_run(&here).await?;
        }
        let survey = Survey::of(job).await?;
        let history = LocalHistory::read(&self.store)?;
        let entries = self.store.entries()?;
        let newest = entries.iter().find(|entry| entry.own && entry.healthy());
        let place = newest.map(|entry| place_of(entry, &history, &survey)).transpose()?.unwrap_or((0, 0));
        let there = survey.in_order().first().map(|name| (name.epoch, name.seq));
        if survey.fence.is_orphan(place.0, place.1) || there.is_some_and(|there| there > place) {
            let holder = survey.owner.as_ref().map_or_else(|| "another process".into(), |owner| owner.holder.text());
            self.lost = Some(lost_to(&holder, job.place()));
            return Err(JobError::other("another machine went on with this training"));
        }
        Ok((place.1, survey.newest_epoch))
    }
}
