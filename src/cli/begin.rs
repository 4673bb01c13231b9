//! What comes before a job's first session: the files that it begins with, and a training that goes on from elsewhere.
//!
//! Invariant: a job whose model carries the state of a ckptd training goes on with that state, or ends with the command
//! to give; it does not start over at step 0 without a word. Deliberately not here: the session itself (training).

use std::path::Path;

use tracing::{info, warn};

use super::console::Console;
use super::remote::with_job;
use crate::training::remote::RemotePlace;
use crate::training::settings_change;
use ckptd_core::config::Config;
use ckptd_core::error::{Error, Result};
use ckptd_core::snapshot::Role;
use ckptd_core::store::Store;
use ckptd_interop::export_record::ExportRecord;
use ckptd_interop::import::{self, ImportOptions};
use ckptd_interop::names;

/// What the command line says about a job that begins.
#[derive(Clone, Copy, Debug)]
pub(super) struct BeginOptions {
    /// Only the weights of `[model] from` count.
    pub weights_only: bool,
    /// Other settings than those of the state are accepted.
    pub accept_changes: bool,
}

/// Whether the session may begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Beginning {
    Ready,
    /// A signal came first; nothing was left behind.
    Interrupted,
}

/// Readies the job at `path`, where `text` stands, for a session. A store that holds snapshots is ready.
pub(super) fn prepare(config: &Config, text: &str, path: &Path, options: BeginOptions) -> Result<Beginning> {
    if !is_empty(&config.job.store)? {
        return Ok(Beginning::Ready);
    }
    if let Some(place) = RemotePlace::of(&config.remote)
        && with_job(place, async |job| job.run_id().await)?.is_some()
    {
        // The session fetches the newest snapshot there, which has all but the data.
        return Ok(Beginning::Ready);
    }
    // A worker of one's own may find its data otherwise.
    if config.worker.is_builtin() {
        config.check_files(text, path)?;
    }
    let Some(from) = config.model.from.as_deref() else { return Ok(Beginning::Ready) };
    let Some(record) = ExportRecord::read(from)? else {
        if from.join(names::OPTIMIZER).exists() || from.join(names::TRAINER_STATE).exists() {
            warn!(
                "{} is a Trainer's checkpoint: this training begins at step 0 with its weights alone; to go on with \
                 its optimiser: ckptd import --from {} {}",
                from.display(),
                from.display(),
                path.display()
            );
        }
        return Ok(Beginning::Ready);
    };
    let step = record.train.step;
    let kept = record.tensors.iter().any(|tensor| !matches!(tensor.meta.role, Role::Param | Role::Buffer));
    if options.weights_only || (kept && !from.join(names::OPTIMIZER).exists()) {
        info!("beginning at step 0 with the weights of step {step} of the training in {}", from.display());
        return Ok(Beginning::Ready);
    }
    let differences = settings_change::differences(config, &record.train.settings);
    if !differences.is_empty() && !options.accept_changes {
        return Err(other_settings(from, step, &differences, path));
    }
    go_on(config, from, step)
}

/// Whether nothing was ever saved at `path`.
fn is_empty(path: &Path) -> Result<bool> {
    if !path.exists() {
        return Ok(true);
    }
    match Store::open(path) {
        Ok(store) => Ok(store.entries()?.is_empty() && store.quarantined()?.is_empty()),
        // What is no store yet becomes one.
        Err(Error::NotFound(_)) => Ok(true),
        Err(error) => Err(error),
    }
}

/// Imports the state in `from` into the job's store.
fn go_on(config: &Config, from: &Path, step: u64) -> Result<Beginning> {
    info!("the store is empty and {} holds step {step} of a training: going on with it", from.display());
    let console = Console::start()?;
    let options =
        ImportOptions { level: config.snapshot.level, cancel: console.cancelled(), ..ImportOptions::default() };
    let imported = import::import(from, &config.job.store, &options, &console);
    let cancelled = console.cancelled().load(std::sync::atomic::Ordering::Relaxed);
    drop(console);
    match imported {
        Err(error) if cancelled => {
            info!("{error}");
            Ok(Beginning::Interrupted)
        }
        Err(error) => Err(error),
        Ok(imported) => {
            info!("imported {} (the exported snapshot, bit for bit)", imported.id);
            imported.notes.iter().for_each(|note| info!("note: {note}"));
            Ok(Beginning::Ready)
        }
    }
}

fn other_settings(from: &Path, step: u64, differences: &[String], path: &Path) -> Error {
    let list = settings_change::list(differences);
    let (from, path) = (from.display(), path.display());
    Error::Config(format!(
        "{path}: [model] from = {from} holds step {step} of a training with other settings ({list}). Put them \
         back, go on with the new ones: ckptd run --accept-changes {path}, or begin anew with its weights: ckptd run \
         --weights-only {path}"
    ))
}
