//! What `ckptd remote check` looks at besides what a session's beginning needs ([`super::probe`]): uploads in parts,
//! digests, what becomes of parts that nobody completes, how long an answer takes, and how far this machine's clock is
//! off.

use std::time::{Duration, Instant};

use bytes::Bytes;

use ckptd_core::text::rough_duration;

use super::error::{JobError, Result};
use super::place::RemoteJob;
use super::probe::{ProbeOutcome, probe};
use crate::names::ObjectName;
use crate::objects::PartsRule;
use crate::records::Nonce;

const PART: &[u8] = b"a part of ckptd remote check";
/// Answers of which the fastest counts.
const ROUND_TRIPS: usize = 5;
/// S3 refuses requests whose time is 15 minutes off.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(300);

/// One line.
#[derive(Debug)]
pub struct CheckupRow {
    /// For people: "upload in parts".
    pub what: &'static str,
    /// How long it took, where that says something.
    pub took: Option<Duration>,
    /// What came of it.
    pub outcome: ProbeOutcome,
    /// What was found, or what to do, where it works all the same.
    pub note: Option<String>,
}

/// Tries everything. A thing that fails is a row, and no error.
pub async fn checkup(job: &RemoteJob) -> Result<Vec<CheckupRow>> {
    let tried = probe(job).await?;
    let mut rows: Vec<CheckupRow> = tried
        .into_iter()
        .map(|row| CheckupRow { what: row.what, took: Some(row.took), outcome: row.outcome, note: None })
        .collect();
    let nonce = Nonce::random()?;
    let scratch = ObjectName::new(format!("check-{}", nonce.0)).map_err(|e| JobError::other(e.to_string()))?;
    rows.push(timed("upload in parts", in_parts(job, &scratch)).await);
    rows.push(timed("abort of an upload", aborted(job, &scratch)).await);
    rows.push(timed("digests", digests(job, &scratch)).await);
    rows.push(timed("parts that nobody completes", leftovers(job)).await);
    rows.push(round_trip(job, &scratch).await);
    rows.push(clock(job));
    Ok(rows)
}

async fn timed(what: &'static str, work: impl Future<Output = Result<Option<String>>>) -> CheckupRow {
    let began = Instant::now();
    let (outcome, note) = match work.await {
        Ok(note) => (ProbeOutcome::Works, note),
        Err(error) => (ProbeOutcome::Failed(error), None),
    };
    CheckupRow { what, took: Some(began.elapsed()), outcome, note }
}

async fn in_parts(job: &RemoteJob, scratch: &ObjectName) -> Result<Option<String>> {
    let storage = job.storage();
    let upload = storage.begin_upload(scratch, PART.len() as u64).await?;
    let sent = async {
        let part = storage.upload_part(scratch, &upload, 0, PART.len() as u64, Bytes::from_static(PART)).await?;
        storage.complete_upload(scratch, &upload, &[part]).await?;
        let found = storage.get(scratch, 1 << 10).await?;
        Ok::<_, JobError>(found.is_some_and(|found| found.body == PART))
    };
    let sent = sent.await;
    if sent.is_err() {
        // The error that led here says more than one of this removal.
        let _ = storage.abort_upload(scratch, &upload).await;
    }
    let is_whole = sent?;
    storage.delete(scratch).await?;
    if is_whole {
        return Ok(None);
    }
    Err(JobError::other(format!("{}: what was sent in parts is not what is read", job.place())))
}

async fn aborted(job: &RemoteJob, scratch: &ObjectName) -> Result<Option<String>> {
    let upload = job.storage().begin_upload(scratch, PART.len() as u64).await?;
    job.storage().abort_upload(scratch, &upload).await?;
    Ok(None)
}

async fn digests(job: &RemoteJob, scratch: &ObjectName) -> Result<Option<String>> {
    let is_compared = job.storage().abilities().digests && job.storage().checks_digests(scratch).await?;
    Ok(Some(if is_compared {
        "the store refuses what was changed on its way: snapshots need not be read back".into()
    } else {
        "none is compared: each snapshot is read back whole, which costs what the store asks for reading".into()
    }))
}

async fn leftovers(job: &RemoteJob) -> Result<Option<String>> {
    Ok(Some(match job.storage().parts_rule().await? {
        PartsRule::Swept => "the next owner of the job removes them".into(),
        PartsRule::Dropped { days } => format!("they go after {days} days"),
        PartsRule::Missing { remedy } => {
            format!(
                "no rule removes them, and they are paid for; the next owner of the job removes those it finds; \
                 {remedy}"
            )
        }
        PartsRule::NotShown { remedy } => format!("whether a rule removes them cannot be seen: {remedy}"),
    }))
}

async fn round_trip(job: &RemoteJob, scratch: &ObjectName) -> CheckupRow {
    let mut fastest: Option<Duration> = None;
    for _ in 0..ROUND_TRIPS {
        let began = Instant::now();
        if let Err(error) = job.storage().head(scratch).await {
            let outcome = ProbeOutcome::Failed(error.into());
            return CheckupRow { what: "round trip", took: None, outcome, note: None };
        }
        let took = began.elapsed();
        fastest = Some(fastest.map_or(took, |fastest| fastest.min(took)));
    }
    let note = Some(format!("the fastest of {ROUND_TRIPS} answers"));
    CheckupRow { what: "round trip", took: fastest, outcome: ProbeOutcome::Works, note }
}

/// How far this machine's clock is off, for stores that sign requests.
fn clock(job: &RemoteJob) -> CheckupRow {
    let row = |outcome, note| CheckupRow { what: "clock", took: None, outcome, note };
    let Some(seconds) = job.storage().clock_offset_s() else {
        return row(ProbeOutcome::Works, Some("nothing there depends on it".into()));
    };
    let off = Duration::from_secs(seconds.unsigned_abs());
    let is = if seconds > 0 { "ahead of" } else { "behind" };
    if off < CLOCK_TOLERANCE {
        let note =
            if off.is_zero() { "as the store's".into() } else { format!("{} {is} the store's", rough_duration(off)) };
        return row(ProbeOutcome::Works, Some(note));
    }
    let what = format!("this machine's clock is {} {is} the store's; set it (timedatectl)", rough_duration(off));
    row(ProbeOutcome::Failed(JobError::other(what)), None)
}
