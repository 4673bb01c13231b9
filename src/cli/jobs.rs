//! `ckptd jobs`

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;

use super::target::CommandTarget;
use super::{exit_code, output, status};
use crate::daemon::report::StatusReport;
use ckptd_core::error::Result;
use ckptd_core::os::process::holders_of_named;
use ckptd_core::store::layout;
use ckptd_core::text::rough_duration;

/// List the jobs that run on this machine, as far as this user may see them.
#[derive(clap::Args)]
pub(super) struct JobsArgs {
    #[arg(long)]
    json: bool,
}

/// One job in `--json`; the names are a contract. What is not known is null.
#[derive(Serialize)]
struct JobRow {
    job: String,
    store: PathBuf,
    /// Processes that hold the store.
    pids: Vec<u32>,
    /// As in `ckptd status --json`; null where it does not say.
    state: Option<&'static str>,
    step: Option<u64>,
    total_steps: Option<u64>,
    last_verified: Option<LastVerified>,
    /// Until the session ends, and until the training does.
    session_seconds_left: Option<f64>,
    seconds_to_finish: Option<f64>,
    problem: Option<String>,
}

#[derive(Serialize)]
struct LastVerified {
    step: u64,
    age_seconds: f64,
}

pub(super) fn execute(args: &JobsArgs) -> Result<u8> {
    // A job holds the lock of its store, and so does its worker.
    let mut stores: BTreeMap<PathBuf, Vec<u32>> = BTreeMap::new();
    for (pid, lock) in holders_of_named(layout::LOCK) {
        let store = lock.parent().map(Path::to_path_buf).unwrap_or_default();
        let pids = stores.entry(store).or_default();
        if !pids.contains(&pid) {
            pids.push(pid);
        }
    }
    let rows: Vec<JobRow> = stores.into_iter().map(|(store, pids)| row(store, pids)).collect();
    if args.json {
        output::json(&rows)?;
    } else if rows.is_empty() {
        output::text("no job runs on this machine\n")?;
    } else {
        output::text(&table(&rows))?;
    }
    Ok(exit_code::DONE)
}

fn row(store: PathBuf, pids: Vec<u32>) -> JobRow {
    let found = CommandTarget::open(&store).and_then(|target| Ok((status::report(&target)?, target)));
    let (report, target): (StatusReport, CommandTarget) = match found {
        Ok(found) => found,
        Err(error) => return unknown(store, pids, error.to_string()),
    };
    JobRow {
        job: target.name(),
        last_verified: last_verified(&target),
        state: Some(report.state.name()),
        step: Some(report.step),
        total_steps: report.total_steps,
        session_seconds_left: report.session.seconds_left,
        seconds_to_finish: report.seconds_to_finish,
        problem: report.problem,
        store,
        pids,
    }
}

fn unknown(store: PathBuf, pids: Vec<u32>, problem: String) -> JobRow {
    let job = store.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    JobRow {
        job,
        store,
        pids,
        state: None,
        step: None,
        total_steps: None,
        last_verified: None,
        session_seconds_left: None,
        seconds_to_finish: None,
        problem: Some(problem),
    }
}

/// The newest snapshot that a resume can count on.
fn last_verified(target: &CommandTarget) -> Option<LastVerified> {
    let entries = target.store.entries().ok()?;
    let is_good = |state: &ckptd_core::store::SnapshotState| *state == ckptd_core::store::SnapshotState::Verified;
    let newest = entries.iter().find(|entry| entry.own && entry.healthy() && is_good(&entry.state))?;
    let age = Timestamp::now().duration_since(newest.manifest.as_ref()?.created_at);
    Some(LastVerified { step: newest.step(), age_seconds: (age.as_secs_f64() * 10.0).round().max(0.0) / 10.0 })
}

fn table(rows: &[JobRow]) -> String {
    let time = |seconds: f64| rough_duration(Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or_default());
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let cells: Vec<Vec<String>> = rows
        .iter()
        .map(|row| {
            let total = row.total_steps.map_or_else(String::new, |total| format!("/{total}"));
            let verified = row.last_verified.as_ref();
            vec![
                row.job.clone(),
                row.state.unwrap_or("unknown").to_owned(),
                or_dash(row.step.map(|step| format!("{step}{total}"))),
                or_dash(verified.map(|last| format!("step {}, {} ago", last.step, time(last.age_seconds)))),
                or_dash(row.session_seconds_left.map(time)),
                or_dash(row.seconds_to_finish.map(time)),
                row.store.display().to_string(),
                row.problem.clone().unwrap_or_default(),
            ]
        })
        .collect();
    output::table(&["JOB", "STATE", "STEP", "LAST VERIFIED", "SESSION LEFT", "DONE IN", "STORE", "PROBLEM"], &cells)
}
