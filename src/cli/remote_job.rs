//! `ckptd remote check` and `ckptd remote adopt`

use std::path::PathBuf;

use serde::Serialize;

use super::console::Console;
use super::remote::{RemoteTarget, own, with_job};
use super::{exit_code, output};
use ckptd_core::error::{Error, Result};
use ckptd_core::progress::ProgressSink;
use ckptd_remote::job::checkup::{CheckupRow, checkup};
use ckptd_remote::job::owner::Prepare;
use ckptd_remote::job::probe::{ProbeOutcome, cannot_fence};
use ckptd_remote::job::remote_file::RemoteFile;
use ckptd_remote::job::{self, JobError, RemoteJob, Survey};
use ckptd_remote::layout::{ContentHash, JobObject, Prefix};
use ckptd_remote::protocol::LeaseNews;
use ckptd_remote::records::{Checked, Marker, VERSION};

/// What concerns a remote as such.
#[derive(clap::Args)]
pub(super) struct RemoteArgs {
    #[command(subcommand)]
    command: RemoteCommand,
}

#[derive(clap::Subcommand)]
enum RemoteCommand {
    Check(CheckArgs),
    Adopt(AdoptArgs),
}

/// Try what ckptd needs of a remote: permissions, conditions, uploads in parts, digests, the rule for parts that nobody
/// completes, the clock, and how long an answer takes.
#[derive(clap::Args)]
struct CheckArgs {
    /// The job's own place at the remote, or a job file with a [remote] url.
    #[arg(value_name = "URL|CONFIG")]
    remote: PathBuf,
    #[arg(long)]
    json: bool,
}

/// Make new commit markers for snapshot files that have none, after reading them back whole: a copied remote becomes as
/// good as the original.
#[derive(clap::Args)]
struct AdoptArgs {
    /// The job's own place at the remote, or a job file with a [remote] url.
    #[arg(value_name = "URL|CONFIG")]
    remote: PathBuf,
    #[arg(long)]
    json: bool,
}

pub(super) fn execute(args: &RemoteArgs) -> Result<u8> {
    match &args.command {
        RemoteCommand::Check(args) => check(args),
        RemoteCommand::Adopt(args) => adopt(args),
    }
}

#[derive(Serialize)]
struct CheckRow {
    what: &'static str,
    ok: bool,
    /// Milliseconds; none where the time says nothing.
    took: Option<f64>,
    problem: Option<String>,
    /// What was found, or what to do, where it works all the same.
    note: Option<String>,
}

fn check(args: &CheckArgs) -> Result<u8> {
    let target = RemoteTarget::of(&args.remote)?;
    let rows = with_job(&target, async |job| {
        let rows = checkup(&job).await?;
        Ok(rows.into_iter().map(|tried| row(&job, tried)).collect::<Vec<_>>())
    })?;
    output::show(args.json, &rows, |rows| {
        let cell = |row: &CheckRow| {
            let verdict = if row.ok { "ok".to_owned() } else { "fails".to_owned() };
            let took = row.took.map(|took| format!("{took:.0} ms")).unwrap_or_default();
            let said = row.problem.as_ref().or(row.note.as_ref()).cloned().unwrap_or_default();
            vec![row.what.to_owned(), verdict, took, said]
        };
        output::table(&["WHAT", "", "TOOK", "FOUND"], &rows.iter().map(cell).collect::<Vec<_>>())
    })?;
    Ok(if rows.iter().all(|row| row.ok) { exit_code::DONE } else { exit_code::CHECK_FAILED })
}

/// What was tried, as a row.
fn row(job: &RemoteJob, row: CheckupRow) -> CheckRow {
    let problem = match row.outcome {
        ProbeOutcome::Works => None,
        ProbeOutcome::Ignored => Some(cannot_fence(job.place())),
        ProbeOutcome::Failed(error) => Some(error.to_string()),
    };
    let took = row.took.map(|took| (took.as_secs_f64() * 1e4).round() / 10.0);
    CheckRow { what: row.what, ok: problem.is_none(), took, problem, note: row.note }
}

#[derive(Serialize)]
struct AdoptRow {
    step: u64,
    seq: u64,
    file: String,
    /// "verified" where a marker was made.
    state: &'static str,
    problem: Option<String>,
}

fn adopt(args: &AdoptArgs) -> Result<u8> {
    let target = RemoteTarget::of(&args.remote)?;
    let console = Console::start()?;
    let rows = with_job(&target, async |job| adopt_all(job, &target, &console).await)?;
    drop(console);
    output::show(args.json, &rows, |rows| {
        let line = |row: &AdoptRow| match &row.problem {
            None => format!("step {}: read back whole, and has a marker now\n", row.step),
            Some(problem) => format!("{problem}\n"),
        };
        let lines: String = rows.iter().map(line).collect();
        if lines.is_empty() { "every snapshot file has its marker\n".to_owned() } else { lines }
    })?;
    Ok(if rows.iter().all(|row| row.problem.is_none()) { exit_code::DONE } else { exit_code::CHECK_FAILED })
}

/// For a command that goes on from nothing: it only adds what belongs to what is there.
pub(super) struct AsItIs;

#[async_trait::async_trait]
impl Prepare for AsItIs {
    async fn prepare(&mut self, job: &RemoteJob) -> job::Result<(u64, u64)> {
        // Whatever counts goes on to count: this ownership goes on from before nothing.
        Ok((u64::MAX, Survey::of(job).await?.newest_epoch))
    }
}

async fn adopt_all(job: RemoteJob, target: &RemoteTarget, console: &Console) -> job::Result<Vec<AdoptRow>> {
    let survey = Survey::of(&job).await?;
    let is_named = |hash: &ContentHash| {
        survey.markers.iter().chain(&survey.trashed).any(|marker| marker.short_hash() == hash.short())
    };
    let data = job.list(Prefix::Data).await?;
    let alone: Vec<ContentHash> = data
        .into_iter()
        .filter_map(|(object, _)| match object {
            JobObject::Data(hash) if !is_named(&hash) => Some(hash),
            _ => None,
        })
        .collect();
    let mut rows = Vec::new();
    if alone.is_empty() {
        return Ok(rows);
    }
    let newest = survey.in_order().first().map(|marker| marker.seq);
    let mut owner = own(job.clone(), "ckptd remote adopt", &mut AsItIs, target.remote.as_ref()).await?;
    for hash in alone {
        let file = job.path_of(&JobObject::Data(hash.clone()));
        let mut row = AdoptRow { step: 0, seq: 0, file, state: "damaged", problem: None };
        match adopt_one(&job, &hash, newest, &mut owner, console).await {
            Ok(marker) => (row.step, row.seq, row.state) = (marker.step, marker.seq, "verified"),
            Err(error) if error.is_of_the_file() => row.problem = Some(error.to_string()),
            Err(error) => {
                owner.leave(std::time::Duration::from_secs(15)).await;
                return Err(error);
            }
        }
        rows.push(row);
    }
    owner.leave(std::time::Duration::from_secs(15)).await;
    Ok(rows)
}

async fn adopt_one(
    job: &RemoteJob,
    hash: &ContentHash,
    newest: Option<u64>,
    owner: &mut ckptd_remote::job::owner::JobOwner,
    console: &Console,
) -> job::Result<Marker> {
    let file = RemoteFile::open(job, hash).await?;
    let manifest = file.outline().manifest().clone();
    job.claim_run(&manifest.run_id).await?;
    // Under a new ownership it would come before what is newer.
    if newest.is_some_and(|newest| manifest.seq <= newest) {
        let step = manifest.train.step;
        let reason = format!("step {step} is older than what has a marker, and is left as it is");
        return Err(Error::mismatch(job.path_of(&JobObject::Data(hash.clone())), reason).into());
    }
    console.begin(&format!("reading step {}", manifest.train.step), file.outline().file_bytes());
    file.read(|_| true, |bytes, _| console.advance(bytes.len() as u64)).await?;
    owner.tick(&mut AsItIs).await;
    let epoch = owner.epoch().ok_or_else(|| JobError::other("another process took the job over meanwhile"))?;
    let val_loss = manifest.metrics.val_loss.filter(|_| manifest.metrics.val_step == Some(manifest.train.step));
    let marker = Marker {
        version: VERSION,
        nonce: owner.nonce().clone(),
        run_id: manifest.run_id,
        epoch,
        seq: manifest.seq,
        step: manifest.train.step,
        root: manifest.root,
        file_hash: hash.clone(),
        bytes: file.outline().file_bytes(),
        raw_bytes: manifest.raw_bytes,
        created_at: manifest.created_at,
        healthy: manifest.healthy,
        val_loss: val_loss.filter(|loss| loss.is_finite()),
        checked: Checked::Whole,
        blobs: Vec::new(),
    };
    let mut news = owner.commit(marker.clone(), &mut AsItIs).await;
    while owner.is_committing() && !owner.is_over() {
        tokio::time::sleep(owner.idle()).await;
        news.extend(owner.tick(&mut AsItIs).await);
    }
    if news.contains(&LeaseNews::Committed(marker.name())) {
        return Ok(marker);
    }
    Err(JobError::other(format!("{}: another process owns the job", job.place())))
}
