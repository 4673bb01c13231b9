//! `ckptd list --remote`, `ckptd verify --remote` and `ckptd prune --remote`

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Instant;

use jiff::Timestamp;
use serde::Serialize;

use super::console::Console;
use super::remote::{RemoteRow, RemoteTarget, own, with_job};
use super::remote_job::AsItIs;
use super::{exit_code, output};
use ckptd_core::error::{Error, Result};
use ckptd_core::progress::ProgressSink;
use ckptd_core::store::RetentionPolicy;
use ckptd_remote::job::fetch::require_agreement;
use ckptd_remote::job::remote_file::RemoteFile;
use ckptd_remote::job::retention::{RemoteVerdict, plan, read_markers, remove_data, take_away};
use ckptd_remote::job::{self, RemoteJob, Survey};
use ckptd_remote::records::Marker;

pub(super) fn list(target: &Path, as_json: bool) -> Result<u8> {
    let target = RemoteTarget::of(target)?;
    let policy = target.remote.as_ref().map(|remote| remote.retention()).unwrap_or_default();
    let rows = with_job(&target, async |job| {
        let verdicts = verdicts(&job, &policy).await?;
        let row = |v: &RemoteVerdict| RemoteRow::of(&job, &v.marker, v.orphan, v.reasons.clone());
        Ok(verdicts.iter().map(row).collect::<Vec<_>>())
    })?;
    output::show(as_json, &rows, |rows| if rows.is_empty() { "no snapshots yet\n".into() } else { table(rows) })?;
    Ok(exit_code::DONE)
}

async fn verdicts(job: &RemoteJob, policy: &RetentionPolicy) -> job::Result<Vec<RemoteVerdict>> {
    let survey = Survey::of(job).await?;
    let markers = read_markers(job, &survey, &BTreeMap::new()).await?;
    Ok(plan(&survey, &markers, &BTreeSet::new(), policy, Timestamp::now()))
}

fn table(rows: &[RemoteRow]) -> String {
    let cells = |row: &RemoteRow| {
        let mut state = row.state.to_owned();
        if !row.healthy {
            state += ", unhealthy";
        }
        vec![
            row.step.to_string(),
            format!("{}.{}", row.epoch, row.seq),
            state,
            output::size(row.bytes),
            row.val_loss.map_or_else(|| "-".to_owned(), |loss| format!("{loss:.4}")),
            match (row.orphan, row.kept_because.as_slice()) {
                (true, _) => "orphan: another machine went on from before it".to_owned(),
                (false, []) => "nothing keeps it".to_owned(),
                (false, reasons) => reasons.join(", "),
            },
        ]
    };
    output::table(
        &["STEP", "PLACE", "STATE", "SIZE", "VAL LOSS", "KEPT BECAUSE"],
        &rows.iter().map(cells).collect::<Vec<_>>(),
    )
}

/// One snapshot that was read back.
#[derive(Serialize)]
struct RemoteVerified {
    step: u64,
    epoch: u64,
    seq: u64,
    bytes: u64,
    verified: bool,
    /// "verified", "sampled" or "damaged".
    state: &'static str,
    reason: Option<String>,
    root: String,
    seconds: f64,
}

/// Reads snapshots back, all of them or, of each, a share of its chunks.
pub(super) fn verify(target: &Path, share: Option<f64>, as_json: bool) -> Result<u8> {
    if let Some(share) = share.filter(|share| !(*share > 0.0 && *share < 1.0)) {
        return Err(Error::Config(format!("--share {share}: must be above 0 and below 1")));
    }
    let target = RemoteTarget::of(target)?;
    let console = Console::start()?;
    let rows = with_job(&target, async |job| {
        let survey = Survey::of(&job).await?;
        let mut rows = Vec::new();
        for marker in read_markers(&job, &survey, &BTreeMap::new()).await?.values().rev() {
            let row = judge(&job, marker, share, &console).await?;
            if !as_json {
                console.around(|| output::text(&describe(&row)))?;
            }
            rows.push(row);
        }
        Ok(rows)
    })?;
    drop(console);
    if as_json {
        output::json(&rows)?;
    } else if rows.is_empty() {
        output::text("no snapshots yet\n")?;
    }
    Ok(if rows.iter().all(|row| row.reason.is_none()) { exit_code::DONE } else { exit_code::CHECK_FAILED })
}

async fn judge(job: &RemoteJob, marker: &Marker, share: Option<f64>, console: &Console) -> job::Result<RemoteVerified> {
    let began = Instant::now();
    console.begin(&format!("step {}", marker.step), marker.bytes);
    let read = async {
        let file = RemoteFile::open(job, &marker.file_hash).await?;
        require_agreement(job, marker, &file)?;
        // Every so many chunks, so that the share is spread over the file.
        let every = share.map_or(1, |share| (1.0 / share).round().max(1.0) as usize);
        file.read(|index| index % every == 0, |bytes, _| console.advance(bytes.len() as u64)).await
    };
    let reason = match read.await {
        Ok(()) => None,
        Err(error) if error.is_of_the_file() => Some(error.to_string()),
        Err(error) => return Err(error),
    };
    let state = match (&reason, share) {
        (Some(_), _) => "damaged",
        (None, Some(_)) => "sampled",
        (None, None) => "verified",
    };
    Ok(RemoteVerified {
        step: marker.step,
        epoch: marker.epoch,
        seq: marker.seq,
        bytes: marker.bytes,
        verified: state == "verified",
        state,
        reason,
        root: marker.root.to_string(),
        seconds: (began.elapsed().as_secs_f64() * 1e3).round() / 1e3,
    })
}

fn describe(row: &RemoteVerified) -> String {
    match &row.reason {
        None => format!("step {}: {}, {} in {:.1} s\n", row.step, row.state, output::size(row.bytes), row.seconds),
        Some(reason) => format!("step {}: {}: {reason}\n", row.step, row.state),
    }
}

/// Applies, or shows, what the policy of `[remote]` keeps.
pub(super) fn prune(target: &Path, dry_run: bool, as_json: bool) -> Result<u8> {
    let target = RemoteTarget::of(target)?;
    let Some(remote) = &target.remote else {
        return Err(Error::Config(format!("{}: its policy is not known; give the job file instead", target.url)));
    };
    let policy = remote.retention();
    let rows = with_job(&target, async |job| {
        if dry_run {
            return Ok(rows_of(&job, &verdicts(&job, &policy).await?));
        }
        let mut owner = own(job.clone(), "ckptd prune", &mut AsItIs, Some(remote)).await?;
        let outcome = async {
            let verdicts = verdicts(&job, &policy).await?;
            let epoch = owner.epoch().unwrap_or(0);
            take_away(&job, &verdicts, epoch, || owner.may_write()).await?;
            remove_data(&job, Timestamp::now(), || owner.may_write()).await?;
            Ok(rows_of(&job, &verdicts))
        };
        let outcome = outcome.await;
        owner.leave(std::time::Duration::from_secs(15)).await;
        outcome
    })?;
    let deletes = if dry_run { "would delete" } else { "deleted" };
    output::show(as_json, &rows, |rows| {
        let cells = |row: &RemoteRow| {
            let keeps = !row.kept_because.is_empty();
            let because = if keeps { row.kept_because.join(", ") } else { "no rule keeps it".to_owned() };
            let what = if keeps { "keep".to_owned() } else { deletes.to_owned() };
            vec![what, row.step.to_string(), output::size(row.bytes), because]
        };
        output::table(&["", "STEP", "SIZE", "BECAUSE"], &rows.iter().map(cells).collect::<Vec<_>>())
    })?;
    Ok(exit_code::DONE)
}

fn rows_of(job: &RemoteJob, verdicts: &[RemoteVerdict]) -> Vec<RemoteRow> {
    verdicts.iter().map(|v| RemoteRow::of(job, &v.marker, v.orphan, v.reasons.clone())).collect()
}
