//! A snapshot comes from a remote into the store on this machine.
//!
//! Invariant: the newest marker that counts is taken, and where its file fails the next older one, which is told. What
//! was fetched is committed as one that was taken here, and counts as verified only once it was read back from the
//! disk.

use ckptd_core::error::Error;
use ckptd_core::progress::ProgressSink;
use ckptd_core::store::{Committed, Store, StoreLock};

use super::error::Result;
use super::place::RemoteJob;
use super::remote_file::RemoteFile;
use super::survey::Survey;
use crate::layout::MarkerName;
use crate::records::Marker;

/// What was fetched, and from where in the history.
#[derive(Clone, Debug)]
pub struct Fetched {
    /// The marker.
    pub marker: Marker,
    /// The snapshot in the store here.
    pub committed: Committed,
}

/// Fetches the newest healthy snapshot that counts, of those that `wanted` names; none where there is none. `told` is
/// told of those that were passed over.
pub async fn fetch_newest(
    job: &RemoteJob,
    survey: &Survey,
    (store, lock): (&Store, &StoreLock),
    wanted: impl Fn(&MarkerName) -> bool,
    progress: &dyn ProgressSink,
    told: &mut (dyn FnMut(String) + Send),
) -> Result<Option<Fetched>> {
    let mut problem = None;
    for name in survey.in_order().into_iter().filter(wanted) {
        match fetch(job, survey, &name, (store, lock), progress).await {
            Ok(Some(fetched)) => return Ok(Some(fetched)),
            Ok(None) => {}
            // A marker that was in the trash may have lost its data since.
            Err(_) if survey.trashed.contains(&name) => {}
            Err(error) if error.is_of_the_file() => {
                told(format!("{error}: passed over for the next older one"));
                problem = Some(error);
            }
            Err(error) => return Err(error),
        }
    }
    match problem {
        None => Ok(None),
        Some(problem) => {
            Err(Error::Other(format!("no snapshot of {} could be fetched; the last: {problem}", job.place())).into())
        }
    }
}

/// Fetches one snapshot; none where its marker is gone, or it is not healthy.
async fn fetch(
    job: &RemoteJob,
    survey: &Survey,
    name: &MarkerName,
    (store, lock): (&Store, &StoreLock),
    progress: &dyn ProgressSink,
) -> Result<Option<Fetched>> {
    let Some(marker) = survey.marker(job, name).await?.filter(|marker| marker.healthy) else { return Ok(None) };
    let committed = fetch_file(job, &marker, (store, lock), progress).await?;
    Ok(Some(Fetched { marker, committed }))
}

/// Fetches the file of a marker into the store.
pub async fn fetch_file(
    job: &RemoteJob,
    marker: &Marker,
    (store, lock): (&Store, &StoreLock),
    progress: &dyn ProgressSink,
) -> Result<Committed> {
    let file = RemoteFile::open(job, &marker.file_hash).await?;
    require_agreement(job, marker, &file)?;
    progress.begin(&format!("fetching step {}", marker.step), file.outline().file_bytes());
    let incoming = store.receive(lock, file.outline())?;
    file.read_all(|bytes, offset| {
        incoming.write_at(bytes, offset)?;
        progress.advance(bytes.len() as u64)
    })
    .await?;
    Ok(incoming.commit()?)
}

/// A marker speaks of its file: of the same training, place and state.
pub fn require_agreement(job: &RemoteJob, marker: &Marker, file: &RemoteFile<'_>) -> Result<()> {
    let manifest = file.outline().manifest();
    let agrees = manifest.run_id == marker.run_id
        && manifest.seq == marker.seq
        && manifest.train.step == marker.step
        && manifest.root == marker.root
        && manifest.healthy == marker.healthy;
    if agrees {
        return Ok(());
    }
    let path = job.path_of(&crate::layout::JobObject::Commit(marker.name()));
    Err(Error::damaged(path, "does not say what its snapshot file says").into())
}
