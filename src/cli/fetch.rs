//! `ckptd fetch`

use std::path::PathBuf;

use serde::Serialize;

use super::console::Console;
use super::remote::{local_path, with_job};
use super::{exit_code, output};
use ckptd_core::error::Result;
use ckptd_core::ids::SnapshotId;
use ckptd_core::os::process::processors;
use ckptd_core::store::{Store, StoreLock};
use ckptd_remote::job::history::bring_history;
use ckptd_remote::job::local::agree;
use ckptd_remote::job::prepare::adopt_run;
use ckptd_remote::job::{self, RemoteJob};

/// Bring the newest verified snapshot of a remote into a store on this machine, unless what is there is newer.
#[derive(clap::Args)]
pub(super) struct FetchArgs {
    /// The job's own place at the remote, or a job file with a [remote] url.
    #[arg(value_name = "URL|CONFIG")]
    remote: PathBuf,
    /// The store's folder; made where it is missing.
    store: PathBuf,
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct FetchedRow {
    place: String,
    store: PathBuf,
    /// Whether something came; else the store was as new already.
    fetched: bool,
    id: Option<SnapshotId>,
    step: u64,
    bytes: u64,
    root: Option<String>,
    #[serde(skip)]
    told: Vec<String>,
}

pub(super) fn execute(args: &FetchArgs) -> Result<u8> {
    let target = super::remote::RemoteTarget::of(&args.remote)?;
    let store = Store::create(&local_path(&args.store)?)?;
    let lock = store.lock("ckptd fetch")?;
    let console = Console::start()?;
    let row = with_job(&target, async |job| fetch(job, (&store, &lock), &console).await)?;
    drop(console);
    row.told.iter().for_each(|line| output::complain(&format!("ckptd: {line}")));
    output::show(args.json, &row, |row| match row.fetched {
        true => format!("step {} is in {}, verified, {}\n", row.step, row.store.display(), output::size(row.bytes)),
        false if row.id.is_none() => format!("no snapshot is at {}\n", row.place),
        false => format!("{} is as new as {} already: step {}\n", row.store.display(), row.place, row.step),
    })?;
    Ok(if row.id.is_some() { exit_code::DONE } else { exit_code::CHECK_FAILED })
}

async fn fetch(job: RemoteJob, (store, lock): (&Store, &StoreLock), console: &Console) -> job::Result<FetchedRow> {
    let mut told = Vec::new();
    if job.run_id().await?.is_some() {
        adopt_run(&job, store, lock).await?;
    }
    let agreed = agree(&job, (store, lock), processors(), console, &mut |line| told.push(line)).await?;
    match bring_history(&job, store, lock).await {
        Ok(brought) => told.extend(brought.problems),
        Err(error) => told.push(format!("the history of earlier sessions is not all here: {error}")),
    }
    // What came is read back from the disk before it is called verified.
    let chosen = store.choose_resume(lock, processors(), &mut |line| told.push(line))?.map(|choice| choice.entry);
    Ok(FetchedRow {
        place: job.place().to_owned(),
        store: store.path().to_path_buf(),
        fetched: agreed.fetched.is_some(),
        step: chosen.as_ref().map_or(0, |entry| entry.step()),
        bytes: chosen.as_ref().map_or(0, |entry| entry.bytes),
        root: chosen.as_ref().and_then(|entry| Some(entry.manifest.as_ref()?.root.to_string())),
        id: chosen.map(|entry| entry.id),
        told,
    })
}
