//! What an empty machine finds at a remote, and whether it is what was promised.
//!
//! Invariant: what must be found follows from what machines told and from the documents that are there, not from what
//! the code under test chooses.

use std::path::Path;
use std::sync::Arc;

use anyhow::Result;
use ckptd_remote::MemoryStorage;
use ckptd_remote::job::remote_file::RemoteFile;
use ckptd_remote::job::retention::read_markers;
use ckptd_remote::job::{RemoteJob, Survey};
use ckptd_remote::layout::{ContentHash, JobObject, Prefix};
use ckptd_remote::records::{LeaseRecord, Marker};
use ckptd_testkit::curve::curve;
use jiff::{SignedDuration, Timestamp};

use super::machine::{ReplicaMachine, SessionPlan, block_on};

/// What an empty machine must go on from.
#[derive(Clone, Copy, Debug)]
pub enum Expectation {
    /// The newest marker, which is of this step or a later one.
    Newest { at_least: u64 },
    /// This step, whatever markers there are.
    Exactly(u64),
}

/// Looks at what is there, has an empty machine go on from it, and another one from that. Returns what is broken. The
/// history may lack so many of the steps up to the newest marker, the last ones.
pub fn judge(there: &MemoryStorage, folder: &Path, expected: Expectation, may_lack: u64) -> Result<Vec<String>> {
    let mut broken = Vec::new();
    let scan = block_on(scan(there, &mut broken))??;
    let (least, step) = match expected {
        Expectation::Newest { at_least } => (at_least, scan.newest.as_ref().map_or(0, |marker| marker.step)),
        Expectation::Exactly(step) => (step, step),
    };
    if step < least {
        broken.push(format!("step {least} was said to be committed, and the newest marker is of step {step}"));
    }
    let first = ReplicaMachine::new(folder, 8)?;
    let told = first.session(Arc::new(there.clone()), &SessionPlan::saves(1))?;
    let Some(marker) = told.committed.last().filter(|_| told.began) else {
        broken.push(format!("an empty machine cannot go on: {:?}", told.troubles));
        return Ok(broken);
    };
    let found = first.newest_before(marker.seq)?;
    if found != step {
        broken.push(format!("an empty machine goes on from step {found}, not from step {step}"));
    }
    if marker.epoch <= scan.newest_epoch {
        broken.push(format!("it owns epoch {}, and epoch {} was there before", marker.epoch, scan.newest_epoch));
    }
    let second = ReplicaMachine::new(folder, 9)?;
    let told = second.session(Arc::new(there.clone()), &SessionPlan::saves(0))?;
    let found = second.newest_before(u64::MAX)?;
    if !told.began || found != marker.step {
        broken.push(format!("after it went on to step {}, the next one finds step {found}", marker.step));
    }
    broken.extend(
        judge_history((&first, &second), (step, marker.step), may_lack).unwrap_or_else(|e| vec![e.to_string()]),
    );
    Ok(broken)
}

/// `first` went on from `from` to `to`, and nothing failed: `second` has all of its curve.
fn judge_history(
    (first, second): (&ReplicaMachine, &ReplicaMachine),
    (from, to): (u64, u64),
    may_lack: u64,
) -> Result<Vec<String>> {
    let mut broken = Vec::new();
    let (one, two) = (curve(&first.store)?.0, curve(&second.store)?.0);
    if one != two {
        broken.push(format!("the history is of the steps {one:?} where it was written, and then of {two:?}"));
    }
    let kept = |step: &u64| *step <= from.saturating_sub(may_lack) || *step > from;
    let lacks: Vec<u64> = (1..=to).filter(kept).filter(|step| !one.contains(step)).collect();
    if !lacks.is_empty() {
        broken.push(format!("after it went on from step {from} to step {to}, the history lacks {lacks:?}"));
    }
    if !one.is_sorted() || one.last() != Some(&to) {
        broken.push(format!("a curve that ends at step {to} has the steps {one:?}"));
    }
    Ok(broken)
}

/// What the documents say.
struct RemoteScan {
    newest: Option<Marker>,
    /// The newest epoch that any of them names.
    newest_epoch: u64,
}

/// Every marker has its data, whole; what was taken away less than an hour ago has it, too.
async fn scan(there: &MemoryStorage, broken: &mut Vec<String>) -> Result<RemoteScan> {
    let job = RemoteJob::new(Arc::new(there.clone()));
    let survey = Survey::of(&job).await?;
    let markers = read_markers(&job, &survey, &Default::default()).await?;
    for (name, marker) in &markers {
        let whole = async { RemoteFile::open(&job, &marker.file_hash).await?.read_all(|_, _| Ok(())).await };
        if let Err(error) = whole.await {
            broken.push(format!("the marker {name} has no whole data: {error}"));
        }
        for blob in &marker.blobs {
            let found = job.storage().get(&JobObject::Blob(blob.hash.clone()).name(), blob.bytes).await?;
            if found.is_none_or(|found| ContentHash::from(*blake3::hash(&found.body).as_bytes()) != blob.hash) {
                broken.push(format!("{} of the marker {name} is not there", blob.name));
            }
        }
    }
    for (object, _) in job.list(Prefix::Trash).await? {
        let JobObject::Trash(name) = &object else { continue };
        let Some(record) = job.trashed(name).await? else { continue };
        let is_young = Timestamp::now().duration_since(record.at) < SignedDuration::from_mins(59);
        let data = JobObject::Data(record.marker.file_hash).name();
        if is_young && job.storage().head(&data).await?.is_none() {
            broken.push(format!("the data of {name} is gone, which was taken away a moment ago"));
        }
    }
    let lease = job.read::<LeaseRecord>(&JobObject::Lease).await?.map_or(0, |(lease, _)| lease.epoch);
    let mut epochs = vec![lease];
    for (object, _) in job.list(Prefix::Epochs).await? {
        epochs.extend(if let JobObject::Epoch(epoch) = object { Some(epoch) } else { None });
    }
    epochs.extend(markers.keys().map(|name| name.epoch));
    let newest = markers.into_values().max_by_key(|marker| (marker.epoch, marker.seq));
    Ok(RemoteScan { newest, newest_epoch: epochs.into_iter().max().unwrap_or(0) })
}

/// Whether a session that met a fault which passes did all that it was to do.
pub fn require_all(told: &super::machine::SessionReport, step: u64, broken: &mut Vec<String>) {
    if told.is_stuck {
        broken.push(format!("it never ended: {:?}", told.troubles));
    } else if !told.began || told.step() != step {
        broken.push(format!("it said that step {} is committed, not {step}: {:?}", told.step(), told.troubles));
    }
}
