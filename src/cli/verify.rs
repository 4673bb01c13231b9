//! `ckptd verify`

use std::path::PathBuf;
use std::time::Instant;

use serde::Serialize;

use super::console::Console;
use super::target::CommandTarget;
use super::{exit_code, output, remote_list};
use ckptd_core::error::{Error, Result};
use ckptd_core::ids::{SnapshotId, StateRoot};
use ckptd_core::os::process::processors;
use ckptd_core::progress::ProgressSink;
use ckptd_core::store::verify::read_back;
use ckptd_core::store::{PassedOver, SnapshotChoice, SnapshotEntry, Store};

/// Read snapshots back from the disk, every byte, and say which are damaged (exit code 1).
#[derive(clap::Args)]
pub(super) struct VerifyArgs {
    /// The store's folder, or the job file.
    #[arg(value_name = "STORE|CONFIG")]
    target: PathBuf,
    /// latest, best, a step number or a file; all of them if none is named. What latest or best passes over because it
    /// is damaged fails.
    #[arg(value_name = "SNAPSHOT")]
    snapshots: Vec<String>,
    /// The argument is a remote's URL, or a job file whose [remote] url is meant.
    #[arg(long, conflicts_with = "snapshots")]
    remote: bool,
    /// With --remote: read back only this share of each snapshot, such as 0.05; it is then called sampled.
    #[arg(long, requires = "remote")]
    share: Option<f64>,
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct VerifyRow {
    id: SnapshotId,
    path: PathBuf,
    bytes: u64,
    verified: bool,
    /// Why it is not.
    reason: Option<String>,
    /// In a word, for people.
    #[serde(skip)]
    verdict: &'static str,
    root: Option<StateRoot>,
    seconds: f64,
}

pub(super) fn execute(args: &VerifyArgs) -> Result<u8> {
    if args.remote {
        return remote_list::verify(&args.target, args.share, args.json);
    }
    let target = CommandTarget::open(&args.target)?;
    let console = Console::start()?;
    let mut rows = Vec::new();
    if args.snapshots.is_empty() {
        for entry in target.store.entries()? {
            match judge(&target.store, &entry, &console) {
                // Rotation was faster.
                Err(Error::NotFound(_)) => {}
                row => rows.push(shown(row?, args.json, &console)?),
            }
        }
    }
    for spec in &args.snapshots {
        for candidate in candidates(&target.store, spec)? {
            let row = shown(judge(&target.store, &candidate.entry, &console)?, args.json, &console)?;
            let is_found = row.verified && candidate.is_eligible;
            rows.push(row);
            if is_found {
                break;
            }
        }
    }
    drop(console);
    if args.json {
        output::json(&rows)?;
    } else if rows.is_empty() {
        output::text("no snapshots yet\n")?;
    }
    Ok(if rows.iter().all(|row| row.verified) { exit_code::DONE } else { exit_code::CHECK_FAILED })
}

/// A snapshot that a name may mean, as long as none before it was found to be whole.
struct Candidate {
    entry: SnapshotEntry,
    /// Where it is whole, it is what the name means.
    is_eligible: bool,
}

/// What `spec` means, behind everything that it would pass over unless that is whole: damage is not passed over here.
fn candidates(store: &Store, spec: &str) -> Result<Vec<Candidate>> {
    let SnapshotChoice { entry, passed_over } = store.choose(spec)?;
    // Whether values are finite is not what is asked here.
    let (unhealthy, judged): (Vec<PassedOver>, Vec<PassedOver>) =
        passed_over.into_iter().partition(|passed| passed.entry.manifest.is_some() && !passed.entry.healthy());
    for PassedOver { entry: passed, reason } in unhealthy {
        output::complain(&format!("warning: {spec} is not {}: {reason}", passed.id));
    }
    let newer = judged
        .into_iter()
        .map(|passed| Candidate { is_eligible: passed.entry.manifest.is_some(), entry: passed.entry });
    Ok(newer.chain([Candidate { entry, is_eligible: true }]).collect())
}

/// Shows a row to people, as soon as it is there.
fn shown(row: VerifyRow, as_json: bool, console: &Console) -> Result<VerifyRow> {
    console.advance(0)?;
    if !as_json {
        console.around(|| output::text(&describe(&row)))?;
    }
    Ok(row)
}

fn judge(store: &Store, entry: &SnapshotEntry, console: &Console) -> Result<VerifyRow> {
    let began = Instant::now();
    console.begin(entry.id.as_str(), entry.bytes);
    let threads = processors();
    let inside = entry.path.parent().is_some_and(|folder| folder.parent() == Some(store.path()));
    // A file from elsewhere is read back all the same, but no receipt in this store speaks of it.
    let root = if inside {
        store.verify(entry, threads, console).map(|receipt| receipt.root)
    } else {
        read_back(&entry.path, threads, console).map(|reader| reader.manifest().root.clone())
    };
    let (root, reason, verdict) = match root {
        Ok(root) => (Some(root), None, "verified"),
        Err(Error::NotFound(what)) => return Err(Error::NotFound(what)),
        Err(Error::Damaged { reason, .. }) => (None, Some(reason), "damaged"),
        Err(e) => (None, Some(e.to_string()), "not verified"),
    };
    Ok(VerifyRow {
        id: entry.id.clone(),
        path: std::path::absolute(&entry.path).unwrap_or_else(|_| entry.path.clone()),
        bytes: entry.bytes,
        verified: reason.is_none(),
        reason,
        verdict,
        root,
        seconds: (began.elapsed().as_secs_f64() * 1e3).round() / 1e3,
    })
}

fn describe(row: &VerifyRow) -> String {
    match &row.reason {
        None => format!("{}: {}, {} in {:.1} s\n", row.id, row.verdict, output::size(row.bytes), row.seconds),
        Some(reason) => format!("{}: {}: {reason}\n", row.id, row.verdict),
    }
}
