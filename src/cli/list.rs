//! `ckptd list`

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::Serialize;

use super::target::CommandTarget;
use super::{exit_code, output, remote_list};
use ckptd_core::error::Result;
use ckptd_core::ids::{RunId, SnapshotId, StateRoot};
use ckptd_core::store::{LastSession, QuarantinedFile, SnapshotEntry, layout};

/// Show the snapshots, newest first, with their state and why each is kept.
#[derive(clap::Args)]
pub(super) struct ListArgs {
    /// The store's folder, or the job file.
    #[arg(value_name = "STORE|CONFIG")]
    target: PathBuf,
    /// The argument is a remote's URL, or a job file whose [remote] url is meant.
    #[arg(long)]
    remote: bool,
    #[arg(long)]
    json: bool,
}

/// One snapshot in `--json`; the names are a contract. What cannot be read is null.
#[derive(Serialize)]
struct ListRow {
    id: SnapshotId,
    run: Option<RunId>,
    seq: Option<u64>,
    step: Option<u64>,
    path: PathBuf,
    bytes: u64,
    raw_bytes: Option<u64>,
    ratio: Option<f64>,
    created_at: Option<Timestamp>,
    /// "verified", "committed" (not read back yet), "damaged", "unreadable", "newer" or "quarantined".
    state: &'static str,
    healthy: Option<bool>,
    root: Option<StateRoot>,
    train_loss: Option<f64>,
    val_loss: Option<f64>,
    kept_because: Vec<String>,
    /// What is wrong with it; null where nothing is.
    problem: Option<String>,
}

pub(super) fn execute(args: &ListArgs) -> Result<u8> {
    if args.remote {
        return remote_list::list(&args.target, args.json);
    }
    let target = CommandTarget::open(&args.target)?;
    if let Some(problem) = &target.problem {
        output::complain(&format!("warning: {problem}"));
    }
    let rows = rows(&target)?;
    if args.json {
        output::json(&rows)?;
    } else if rows.is_empty() {
        output::text("no snapshots yet\n")?;
    } else {
        let is_next = !matches!(target.store.last_session()?, LastSession::Running { .. });
        output::text(&table(&rows, is_next))?;
    }
    Ok(exit_code::DONE)
}

fn rows(target: &CommandTarget) -> Result<Vec<ListRow>> {
    let plan = target.store.plan(&target.retention(), Timestamp::now())?;
    let mut reasons: HashMap<SnapshotId, Vec<String>> =
        plan.verdicts().iter().filter(|v| v.keeps()).map(|v| (v.id.clone(), v.texts())).collect();
    let mut rows: Vec<ListRow> = Vec::new();
    for entry in target.store.entries()? {
        let kept_because = reasons.remove(&entry.id).unwrap_or_default();
        rows.push(of_entry(entry, kept_because));
    }
    rows.extend(target.store.quarantined()?.into_iter().map(of_quarantined));
    Ok(rows)
}

fn of_entry(entry: SnapshotEntry, kept_because: Vec<String>) -> ListRow {
    let (state, problem) = entry.state.told();
    let manifest = entry.manifest.as_ref();
    let finite = |loss: Option<f64>| loss.filter(|loss| loss.is_finite());
    ListRow {
        run: manifest.map(|m| m.run_id.clone()),
        seq: manifest.map(|m| m.seq),
        step: manifest.map(|m| m.train.step).or_else(|| layout::step_of(&entry.id)),
        raw_bytes: manifest.map(|m| m.raw_bytes),
        ratio: manifest.map(|m| output::ratio(m.raw_bytes, entry.bytes)),
        created_at: manifest.map(|m| m.created_at),
        healthy: manifest.map(|m| m.healthy),
        root: manifest.map(|m| m.root.clone()),
        train_loss: manifest.and_then(|m| finite(m.metrics.train_loss)),
        val_loss: finite(entry.val_loss()),
        path: absolute(&entry.path),
        bytes: entry.bytes,
        id: entry.id,
        state,
        kept_because,
        problem,
    }
}

fn of_quarantined(file: QuarantinedFile) -> ListRow {
    let id = layout::quarantined_id(&file.name);
    ListRow {
        run: None,
        seq: None,
        step: layout::step_of(&id),
        raw_bytes: None,
        ratio: None,
        created_at: None,
        healthy: None,
        root: None,
        train_loss: None,
        val_loss: None,
        path: absolute(&file.path),
        bytes: file.bytes,
        id,
        state: "quarantined",
        kept_because: Vec::new(),
        problem: Some(file.reason),
    }
}

fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf())
}

/// `is_next`: no job runs, so that the next run looks at what is not verified.
fn table(rows: &[ListRow], is_next: bool) -> String {
    let figure = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.4}"));
    let cells: Vec<Vec<String>> = rows
        .iter()
        .enumerate()
        .map(|(at, row)| {
            let checked =
                if at == 0 && is_next && row.state == "committed" { "; the next run checks it first" } else { "" };
            vec![
                row.step.map_or_else(|| row.id.to_string(), |step| step.to_string()),
                match row.healthy {
                    Some(false) => format!("{}, unhealthy", row.state),
                    _ => row.state.to_owned(),
                },
                output::size(row.bytes),
                row.raw_bytes.map_or_else(|| "-".to_owned(), |raw_bytes| output::percent(row.bytes, raw_bytes)),
                figure(row.train_loss),
                figure(row.val_loss),
                row.created_at.map_or_else(|| "-".to_owned(), local_time),
                match (&row.problem, row.kept_because.as_slice()) {
                    (Some(problem), _) => problem.clone(),
                    (None, []) => "nothing keeps it".to_owned(),
                    (None, reasons) => reasons.join(", ") + checked,
                },
            ]
        })
        .collect();
    let head = ["STEP", "STATE", "SIZE", "OF RAW", "LOSS", "VAL LOSS", "CREATED", "KEPT BECAUSE, OR PROBLEM"];
    output::table(&head, &cells)
}

fn local_time(at: Timestamp) -> String {
    at.to_zoned_datetime(jiff::tz::TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S").to_string()
}
