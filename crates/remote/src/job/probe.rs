//! Whether a store does what a job needs of it, tried on an object of its own that goes again.
//!
//! Deliberately not here: races. A store that checks a condition and then writes passes.

use std::time::{Duration, Instant};

use bytes::Bytes;

use ckptd_core::error::Error;

use super::error::{JobError, Result};
use super::place::RemoteJob;
use crate::names::ObjectName;
use crate::objects::{Created, ObjectVersion, Swapped};
use crate::records::Nonce;

const BODY: &[u8] = b"ckptd remote check";

/// One thing that was tried.
#[derive(Debug)]
pub struct ProbeRow {
    /// For people: "create refuses what is there".
    pub what: &'static str,
    /// How long the store took.
    pub took: Duration,
    /// What came of it.
    pub outcome: ProbeOutcome,
}

/// What came of a trial.
#[derive(Debug)]
pub enum ProbeOutcome {
    /// As it should be.
    Works,
    /// The store takes what it should refuse: it cannot keep two machines apart.
    Ignored,
    /// It failed.
    Failed(JobError),
}

/// That a store cannot keep two machines apart, and what to do.
pub fn cannot_fence(place: &str) -> String {
    format!(
        "{place} ignores the conditions of a write: it cannot keep two machines apart; set [remote] lease = \"none\" \
         if only one machine ever runs this job, or take another store (docs/remote.md)"
    )
}

/// Tries each thing that a job needs.
pub async fn probe(job: &RemoteJob) -> Result<Vec<ProbeRow>> {
    let scratch = scratch_name()?;
    let mut rows = Vec::new();
    let mut row = |what, began: Instant, outcome: Result<ProbeOutcome>| {
        let outcome = outcome.unwrap_or_else(ProbeOutcome::Failed);
        rows.push(ProbeRow { what, took: began.elapsed(), outcome });
    };
    let began = Instant::now();
    row("create", began, created(job, &scratch).await);
    let began = Instant::now();
    row("create refuses what is there", began, created_again(job, &scratch).await);
    let began = Instant::now();
    let (read, version) = match read(job, &scratch).await {
        Ok(version) => (Ok(ProbeOutcome::Works), Some(version)),
        Err(error) => (Err(error), None),
    };
    row("read", began, read);
    if let (true, Some(version)) = (job.storage().abilities().swap, version) {
        let began = Instant::now();
        row("swap", began, swapped(job, &scratch, &version).await);
        let began = Instant::now();
        row("swap refuses another version", began, swapped_stale(job, &scratch, &version).await);
    }
    let began = Instant::now();
    row("range", began, ranged(job, &scratch).await);
    let began = Instant::now();
    row("list", began, listed(job, &scratch).await);
    let began = Instant::now();
    row("delete", began, deleted(job, &scratch).await);
    Ok(rows)
}

/// Fails where the store does not do what a job with an owner needs.
pub async fn require_fencing(job: &RemoteJob) -> Result<()> {
    for row in probe(job).await? {
        match row.outcome {
            ProbeOutcome::Works => {}
            ProbeOutcome::Ignored => return Err(Error::Config(cannot_fence(job.place())).into()),
            ProbeOutcome::Failed(error) => return Err(error),
        }
    }
    Ok(())
}

/// The name of an object that is only there to try something with: no name of a job, so that whatever stays of it is
/// nobody's.
pub(super) fn scratch_name() -> Result<ObjectName> {
    let nonce = Nonce::random()?;
    ObjectName::new(format!("check-{}", nonce.0)).map_err(|e| JobError::other(e.to_string()))
}

fn refused(is_refused: bool) -> ProbeOutcome {
    if is_refused { ProbeOutcome::Works } else { ProbeOutcome::Ignored }
}

fn expected(is_as_expected: bool, else_what: &str, job: &RemoteJob) -> Result<ProbeOutcome> {
    if is_as_expected {
        return Ok(ProbeOutcome::Works);
    }
    Err(JobError::other(format!("{}: {else_what}", job.place())))
}

async fn created(job: &RemoteJob, scratch: &ObjectName) -> Result<ProbeOutcome> {
    // What came of it is seen by reading.
    job.storage().create(scratch, Bytes::from_static(BODY)).await?;
    Ok(ProbeOutcome::Works)
}

async fn created_again(job: &RemoteJob, scratch: &ObjectName) -> Result<ProbeOutcome> {
    let again = job.storage().create(scratch, Bytes::from_static(b"another")).await?;
    Ok(refused(again == Created::AlreadyThere))
}

async fn read(job: &RemoteJob, scratch: &ObjectName) -> Result<ObjectVersion> {
    let found = job.storage().get(scratch, 1 << 10).await?;
    // Where a condition was ignored, it is the other text.
    match found.filter(|found| found.body == BODY || found.body == "another") {
        Some(found) => Ok(found.version),
        None => Err(JobError::other(format!("{}: what was written is not what is read", job.place()))),
    }
}

async fn swapped(job: &RemoteJob, scratch: &ObjectName, version: &ObjectVersion) -> Result<ProbeOutcome> {
    let swapped = job.storage().swap(scratch, version, Bytes::from_static(b"swapped!")).await?;
    expected(swapped != Swapped::Changed, "a swap of the version that is there is refused", job)
}

async fn swapped_stale(job: &RemoteJob, scratch: &ObjectName, version: &ObjectVersion) -> Result<ProbeOutcome> {
    let stale = job.storage().swap(scratch, version, Bytes::from_static(b"stale")).await?;
    Ok(refused(stale == Swapped::Changed))
}

async fn ranged(job: &RemoteJob, scratch: &ObjectName) -> Result<ProbeOutcome> {
    let bytes = job.storage().get_range(scratch, 2..4).await?;
    expected(bytes.len() == 2, "a range has another length than was asked for", job)
}

async fn listed(job: &RemoteJob, scratch: &ObjectName) -> Result<ProbeOutcome> {
    let listed = job.storage().list("").await?;
    expected(listed.iter().any(|listed| listed.name == *scratch), "what was written is not listed", job)
}

async fn deleted(job: &RemoteJob, scratch: &ObjectName) -> Result<ProbeOutcome> {
    job.storage().delete(scratch).await?;
    let head = job.storage().head(scratch).await?;
    expected(head.is_none(), "what was deleted is still there", job)
}
