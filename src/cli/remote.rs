//! What commands on a job at a remote share: its address, a runtime, its rows.

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::training::remote::{RemotePlace, open};
use ckptd_core::config::{Config, RemoteSection};
use ckptd_core::error::{Error, Result};
use ckptd_remote::job::owner::{JobOwner, OwnerSettings, TTL};
use ckptd_remote::job::{self, RemoteJob};
use ckptd_remote::protocol::LeaseNews;
use ckptd_remote::records::Marker;

use super::output;

/// A job at a remote, as a command names it.
pub(super) struct RemoteTarget {
    pub url: String,
    /// Where a job file named it.
    pub remote: Option<RemoteSection>,
}

impl RemoteTarget {
    /// `target` is a URL, or a job file whose `[remote] url` is meant.
    pub(super) fn of(target: &Path) -> Result<RemoteTarget> {
        if let Some(url) = target.to_str().filter(|target| target.contains("://")) {
            return Ok(RemoteTarget { url: url.to_owned(), remote: None });
        }
        let config = Config::load(target)?;
        let none = || Error::Config(format!("{} has no [remote] url; give the URL instead", target.display()));
        let url = config.remote.url.clone().ok_or_else(none)?;
        Ok(RemoteTarget { url, remote: Some(config.remote) })
    }
}

impl From<&RemoteTarget> for RemotePlace {
    fn from(target: &RemoteTarget) -> RemotePlace {
        target.remote.as_ref().and_then(RemotePlace::of).unwrap_or_else(|| target.url.as_str().into())
    }
}

/// Does `work` on the job at `place`.
pub(super) fn with_job<T, F: Future<Output = job::Result<T>>>(
    place: impl Into<RemotePlace>,
    work: impl FnOnce(RemoteJob) -> F,
) -> Result<T> {
    waited_for(async { work(open(place.into()).await?).await })
}

/// What `work` comes to.
pub(super) fn waited_for<T>(work: impl Future<Output = job::Result<T>>) -> Result<T> {
    let starting = |e| Error::Other(format!("starting the event loop: {e}"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(starting)?;
    let outcome = runtime.block_on(work);
    runtime.shutdown_background();
    Ok(outcome?)
}

/// A process that owns the job for the time of a command. It waits for nobody: a session that runs goes first.
pub(super) async fn own(
    job: RemoteJob,
    who: &str,
    prepare: &mut dyn job::owner::Prepare,
    remote: Option<&RemoteSection>,
) -> job::Result<JobOwner> {
    let ttl = remote.map_or(TTL, |remote| match remote.lease {
        ckptd_core::config::Lease::Ttl(ttl) => ttl,
        ckptd_core::config::Lease::None => TTL,
    });
    let fenced = remote.is_none_or(|remote| remote.lease != ckptd_core::config::Lease::None);
    let settings = OwnerSettings { ttl, fenced, take_over: false, who: who.to_owned() };
    let place = job.place().to_owned();
    let mut owner = JobOwner::new(job, settings)?;
    owner
        .acquire(prepare, &mut |news| match news {
            LeaseNews::Waiting(holder, ttl) => {
                let ttl = ckptd_core::text::rough_duration(ttl);
                output::complain(&format!(
                    "{} owns {place}: waiting for it to be free, which it is after {ttl} without a sign of life",
                    holder.text()
                ));
                Ok(())
            }
            _ => Ok(()),
        })
        .await?;
    Ok(owner)
}

/// One snapshot at a remote in `--json`; the names are a contract.
#[derive(Serialize)]
pub(super) struct RemoteRow {
    pub place: String,
    pub epoch: u64,
    pub seq: u64,
    pub step: u64,
    pub file: String,
    pub bytes: u64,
    pub raw_bytes: u64,
    pub created_at: jiff::Timestamp,
    /// "verified" or "sampled".
    pub state: &'static str,
    pub healthy: bool,
    pub root: String,
    pub val_loss: Option<f64>,
    /// Another machine went on from before it: it is never chosen.
    pub orphan: bool,
    pub kept_because: Vec<String>,
}

impl RemoteRow {
    pub(super) fn of(job: &RemoteJob, marker: &Marker, orphan: bool, kept_because: Vec<String>) -> RemoteRow {
        let data = ckptd_remote::layout::JobObject::Data(marker.file_hash.clone());
        RemoteRow {
            place: job.place().to_owned(),
            epoch: marker.epoch,
            seq: marker.seq,
            step: marker.step,
            file: job.path_of(&data),
            bytes: marker.bytes,
            raw_bytes: marker.raw_bytes,
            created_at: marker.created_at,
            state: marker.checked.name(),
            healthy: marker.healthy,
            root: marker.root.to_string(),
            val_loss: marker.val_loss,
            orphan,
            kept_because,
        }
    }
}

/// Makes a local path of an argument that a shell may have left a `file://` in.
pub(super) fn local_path(path: &Path) -> Result<PathBuf> {
    match path.to_str() {
        Some(text) if text.contains("://") => {
            Err(Error::Config(format!("{text} is a remote, and a folder of this machine is wanted")))
        }
        _ => Ok(path.to_path_buf()),
    }
}
