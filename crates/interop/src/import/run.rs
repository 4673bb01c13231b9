//! One import from its source to a verified snapshot in a new store.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use serde::Serialize;

use super::assemble::LoadedSource;
use super::load::load;
use super::options::{FreshOptimizer, ImportOptions, LoadOptions};
use ckptd_core::error::{Error, Result};
use ckptd_core::ids::{RunId, SnapshotId, StateRoot};
use ckptd_core::progress::ProgressSink;
use ckptd_core::store::{CommitHandle, CommitOptions, Store, StoreLock, commit};
use ckptd_history::travel;

/// What an import came to.
#[derive(Clone, Debug, Serialize)]
pub struct ImportReport {
    pub id: SnapshotId,
    pub path: PathBuf,
    /// The folder or file that was read, which may lie within the one that was named.
    pub from: PathBuf,
    pub step: u64,
    pub root: StateRoot,
    /// The snapshot is the one that was exported, bit for bit: same root.
    pub exact: bool,
    pub raw_bytes: u64,
    pub bytes: u64,
    /// What the user should know, such as the settings that go with the optimiser's state.
    pub notes: Vec<String>,
    pub seconds: f64,
}

/// Imports `from` into the store at `store`, which must hold no snapshots yet.
pub fn import(from: &Path, store: &Path, options: &ImportOptions, progress: &dyn ProgressSink) -> Result<ImportReport> {
    let began = Instant::now();
    if !from.exists() {
        return Err(Error::NotFound(format!(
            "{} is not there; give a model folder, a .pt or safetensors file, or a bundle",
            from.display()
        )));
    }
    let made = !store.exists();
    let result = into_store(from, store, options, progress);
    if result.is_err() && made {
        // This call has made the folder, and nothing of use is in it. The error that led here says more than one of
        // this removal.
        let _ = std::fs::remove_dir_all(store);
    }
    result.map(|imported| ImportReport { seconds: began.elapsed().as_secs_f64(), ..imported })
}

fn into_store(from: &Path, path: &Path, options: &ImportOptions, progress: &dyn ProgressSink) -> Result<ImportReport> {
    let store = Store::create(path)?;
    let lock = store.lock("ckptd import")?;
    if let Some(newest) = store.entries()?.first() {
        return Err(Error::Other(format!(
            "the store {} holds snapshots already (the newest is {}); import into another folder",
            path.display(),
            newest.id
        )));
    }
    let load_options = LoadOptions {
        target: Some(path),
        model: options.model.as_deref(),
        optimizer: options.optimizer,
        weights_only: options.weights_only,
        mixed_steps: options.mixed_steps,
        limits: &options.limits,
    };
    let mut loaded = load(from, &load_options, progress)?;
    loaded.complete(options.optimizer.unwrap_or(FreshOptimizer::AdamW))?;
    let LoadedSource { snapshot, state, exact, history, notes, .. } = &loaded;
    let run_id = match state {
        Some(state) => state.run_id.clone(),
        None => RunId::random()?,
    };
    let commit_options = CommitOptions {
        parent: state.as_ref().and_then(|state| state.parent.clone()),
        level: options.level,
        threads: options.threads,
        // The very state that was saved then.
        created_at: state.as_ref().filter(|_| *exact).map(|state| state.created_at),
        handle: Arc::new(CommitHandle::cancelled_by(Arc::clone(&options.cancel))),
        ..CommitOptions::new(&run_id, state.as_ref().map_or(1, |state| state.seq))
    };
    progress.begin("writing the snapshot", 0);
    let step = snapshot.train.step;
    let committed = commit(&store, &lock, snapshot.clone(), &commit_options)?;
    store.set_run_id(&lock, &run_id)?;
    progress.begin("verifying", committed.bytes);
    let entry = store.find(&committed.id)?;
    store.verify(&entry, options.threads, progress)?;
    let mut notes = notes.clone();
    if let Some(history) = history {
        notes.extend(take_history(history, (&store, &lock)));
    }
    Ok(ImportReport {
        id: committed.id,
        path: committed.path,
        from: loaded.from.clone(),
        step,
        root: committed.root,
        exact: *exact,
        raw_bytes: committed.raw_bytes,
        bytes: committed.bytes,
        notes,
        seconds: 0.0,
    })
}

/// Takes the history that came with the state; what is wrong with it is noted, since the state is here.
fn take_history(path: &Path, (store, lock): (&Store, &StoreLock)) -> Vec<String> {
    match travel::take_file(path, (store, lock), jiff::Timestamp::now().as_millisecond()) {
        Ok(taken) => taken.problems,
        Err(error) => vec![format!("the history that came with it is not all here: {error}")],
    }
}
