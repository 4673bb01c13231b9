//! The lease at a store, read and written.
//!
//! Where the store swaps, `lease.json` is the lease, and `epochs/` keeps what it replaced. Where it does not, the file
//! of an epoch is created once, and its owner's signs of life lie beside it.
//!
//! Invariant: a write is `Done` only where the store said so; all else is for the machine to find out. What went wrong
//! comes beside it, for people.

use std::time::Duration;

use super::error::{JobError, Result};
use super::place::{RemoteJob, json};
use crate::errors::{ErrorKind, Operation};
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

/// What a write of the lease came to, and what went wrong.
pub type LeaseWritten = (WriteOutcome<ObjectVersion>, Option<JobError>);

/// Takes the job: `record` in the place of `before`.
pub async fn claim(
    job: &RemoteJob,
    record: &LeaseRecord,
    before: Option<(&LeaseRecord, &ObjectVersion)>,
    patience: Duration,
) -> LeaseWritten {
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
    within(job, patience, claim).await
}

/// Shows that the owner lives, or that it has left.
pub async fn renew(job: &RemoteJob, record: &LeaseRecord, version: &ObjectVersion, patience: Duration) -> LeaseWritten {
    let renew = async {
        let storage = job.storage();
        if storage.abilities().swap {
            return swapped(storage.swap(&JobObject::Lease.name(), version, json(record)?).await);
        }
        let version = storage.put(&JobObject::Beat(record.epoch).name(), json(record)?).await?;
        // Written first, looked for then: whoever comes later has seen the sign of life.
        let newest = job.list(Prefix::Epochs).await?.into_iter().filter_map(|(object, _)| match object {
            JobObject::Epoch(epoch) => Some(epoch),
            _ => None,
        });
        // Beyond this one: it was taken. None of them: the place was emptied.
        Ok(if newest.max() == Some(record.epoch) { WriteOutcome::Done(version) } else { WriteOutcome::Refused })
    };
    within(job, patience, renew).await
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
    job: &RemoteJob,
    patience: Duration,
    write: impl Future<Output = Result<WriteOutcome<ObjectVersion>>>,
) -> LeaseWritten {
    match tokio::time::timeout(patience, write).await {
        Ok(Ok(outcome)) => (outcome, None),
        Ok(Err(error)) => (WriteOutcome::Unknown, Some(error)),
        Err(_) => (WriteOutcome::Unknown, Some(no_answer(job, Operation::Swap, patience))),
    }
}

/// The lease is not waited for beyond the time in which it must be renewed.
pub(super) fn no_answer(job: &RemoteJob, operation: Operation, patience: Duration) -> JobError {
    let detail = format!("no answer within {:.1} s", patience.as_secs_f64());
    job.storage().error(operation, Some(&JobObject::Lease.name()), ErrorKind::Unreachable, &detail).into()
}
