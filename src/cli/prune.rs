//! `ckptd prune`

use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::Serialize;

use super::target::CommandTarget;
use super::{exit_code, output, remote_list};
use ckptd_core::error::{Error, Result};
use ckptd_core::ids::SnapshotId;
use ckptd_core::store::RetentionVerdict;

/// Delete what the retention policy does not keep; with --dry-run, show what that would be.
#[derive(clap::Args)]
pub(super) struct PruneArgs {
    /// The store's folder (whose policy is the last run's), or the job file.
    #[arg(value_name = "STORE|CONFIG")]
    target: PathBuf,
    /// The argument is a remote's URL, or a job file whose [remote] url is meant.
    #[arg(long)]
    remote: bool,
    /// Only show the plan.
    #[arg(long)]
    dry_run: bool,
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct PruneRow<'a> {
    id: &'a SnapshotId,
    bytes: u64,
    keep: bool,
    reasons: Vec<String>,
}

pub(super) fn execute(args: &PruneArgs) -> Result<u8> {
    if args.remote {
        return remote_list::prune(&args.target, args.dry_run, args.json);
    }
    let target = CommandTarget::open(&args.target)?.up_to_date()?;
    let Some(retention) = target.config.as_ref().map(|config| &config.retention) else {
        return Err(Error::Other(format!(
            "no job has run in {}, so that its retention policy is not known; give the job file instead",
            target.store.path().display()
        )));
    };
    let plan = if args.dry_run {
        target.store.plan(retention, Timestamp::now())?.into_verdicts()
    } else {
        let lock = target.store.lock("ckptd prune").map_err(|error| rotates_itself(error, &args.target))?;
        target.store.prune(&lock, retention, Timestamp::now())?
    };
    if args.json {
        let rows = plan.iter().map(|v| PruneRow { id: &v.id, bytes: v.bytes, keep: v.keeps(), reasons: v.texts() });
        output::json(&rows.collect::<Vec<_>>())?;
    } else {
        output::text(&describe(&plan, args.dry_run))?;
    }
    Ok(exit_code::DONE)
}

/// A running job holds its store.
fn rotates_itself(error: Error, target: &Path) -> Error {
    match error {
        Error::Locked { pid, alive: true, .. } => Error::Other(format!(
            "process {pid} runs the job of {} and rotates by itself; change [retention] in its job file, which it \
             takes over at once, or stop it first",
            target.display()
        )),
        other => other,
    }
}

fn describe(plan: &[RetentionVerdict], dry_run: bool) -> String {
    let deletes = if dry_run { "would delete" } else { "deleted" };
    let rows: Vec<Vec<String>> = plan
        .iter()
        .map(|v| {
            let what = if v.keeps() { "keep" } else { deletes };
            vec![what.to_owned(), v.id.to_string(), output::size(v.bytes), v.texts().join(", ")]
        })
        .collect();
    let gone: Vec<u64> = plan.iter().filter(|v| !v.keeps()).map(|v| v.bytes).collect();
    let total = output::size(gone.iter().sum());
    let table = output::table(&["", "SNAPSHOT", "SIZE", "BECAUSE"], &rows);
    format!("{table}{deletes} {} of {} snapshots, {total}\n", gone.len(), plan.len())
}
