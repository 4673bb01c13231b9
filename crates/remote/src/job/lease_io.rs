//! The lease at a store, read and written.
//!
//! Where the store swaps, `lease.json` is the lease, and `epochs/` keeps what it replaced. Where it does not, the file
//! of an epoch is created once, and its owner's signs of life lie beside it.
//!
//! Invariant: a write is `Done` only where the store said so; all else is for the machine to find out.

use std::time::Duration;

use super::error::Result;
use super::place::{RemoteJob, json};
use crate::layout::{JobObject, Prefix};
use crate::objects::{Created, ObjectVersion, Swapped};
use crate::protocol::WriteOutcome;
use crate::records::LeaseRecord;

/// The lease and its version; none where nobody has owned the job.
pub async fn read_lease(job: &RemoteJob) -> Result<Option<(LeaseRecord, ObjectVersion)>> {
    if job.storage().abilities().swap {
        return job.read(&JobObject::Lease).await;
    }
    let newest = job.list(Prefix::Epochs).await?.into_iter().filter_map(|(object, _)| match object {
        JobObject::Epoch(epoch) => Some(epoch),
        _ => None,
    });
    let Some(epoch) = newest.max() else { return Ok(None) };
    match job.read(&JobObject::Beat(epoch)).await {
        Ok(Some(beat)) => Ok(Some(beat)),
        // Where a file is not replaced in one step, its owner may be writing it just now.
        _ => job.read(&JobObject::Epoch(epoch)).await,
    }
}

/// Takes the job: `record` in the place of `before`.
pub async fn claim(
    job: &RemoteJob,
    record: &LeaseRecord,
    before: Option<(&LeaseRecord, &ObjectVersion)>,
    patience: Duration,
) -> WriteOutcome<ObjectVersion> {
    let claim = async {
        let storage = job.storage();
        if !storage.abilities().swap {
            return created(storage.create(&JobObject::Epoch(record.epoch).name(), json(record)?).await);
        }
        let Some((before, version)) = before else {
            return created(storage.create(&JobObject::Lease.name(), json(record)?).await);
        };
        // What is replaced must be known to those who order markers: its base.
        if !job.create(&JobObject::Epoch(before.epoch), before).await? {
            job.read::<LeaseRecord>(&JobObject::Epoch(before.epoch)).await?;
        }
        swapped(storage.swap(&JobObject::Lease.name(), version, json(record)?).await)
    };
    within(patience, claim).await
}

/// Shows that the owner lives, or that it has left.
pub async fn renew(
    job: &RemoteJob,
    record: &LeaseRecord,
    version: &ObjectVersion,
    patience: Duration,
) -> WriteOutcome<ObjectVersion> {
    let renew = async {
        let storage = job.storage();
        if storage.abilities().swap {
            return swapped(storage.swap(&JobObject::Lease.name(), version, json(record)?).await);
        }
        let version = storage.put(&JobObject::Beat(record.epoch).name(), json(record)?).await?;
        // Written first, looked for then: whoever comes later has seen the sign of life.
        let is_taken = |(object, _): &(JobObject, u64)| matches!(object, JobObject::Epoch(e) if *e > record.epoch);
        let taken = job.list(Prefix::Epochs).await?.iter().any(is_taken);
        Ok(if taken { WriteOutcome::Refused } else { WriteOutcome::Done(version) })
    };
    within(patience, renew).await
}

fn created(outcome: crate::Result<Created>) -> Result<WriteOutcome<ObjectVersion>> {
    Ok(match outcome? {
        Created::Created(version) => WriteOutcome::Done(version),
        Created::AlreadyThere => WriteOutcome::Refused,
    })
}

fn swapped(outcome: crate::Result<Swapped>) -> Result<WriteOutcome<ObjectVersion>> {
    Ok(match outcome? {
        Swapped::Swapped(version) => WriteOutcome::Done(version),
        Swapped::Changed => WriteOutcome::Refused,
    })
}

async fn within(
    patience: Duration,
    write: impl Future<Output = Result<WriteOutcome<ObjectVersion>>>,
) -> WriteOutcome<ObjectVersion> {
    match tokio::time::timeout(patience, write).await {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(_)) | Err(_) => WriteOutcome::Unknown,
    }
}
