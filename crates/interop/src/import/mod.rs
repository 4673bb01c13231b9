//! What others wrote becomes a snapshot: Hugging Face folders, Trainer checkpoints, `.pt` and safetensors files,
//! bundles, snapshots from elsewhere.
//!
//! Reading order: [`load`] recognises the source and reads it ([`parts`]: tensors, names, dtypes; [`optimizer`]: the
//! moments and step of PyTorch's optimisers); [`assemble`] makes the snapshot, exactly the one that was exported where
//! the source says which that was; [`import`] commits it to a new store.
//!
//! Invariant: a source that claims to be an exported snapshot is that to the last bit, or is refused; any other source
//! is a state that a fresh training could have. Deliberately not here: the command line.

mod assemble;
mod optimizer;
mod parts;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use serde::Serialize;

pub use assemble::{Fresh, Loaded};

use crate::limits::ReadLimits;
use crate::{bundle, output};
use ckptd_core::error::{Error, Result};
use ckptd_core::ids::{RunId, SnapshotId, StateRoot};
use ckptd_core::os::process::processors;
use ckptd_core::progress::ProgressSink;
use ckptd_core::store::{CommitOptions, Store, commit};

#[derive(Clone, Debug)]
pub struct Options {
    /// What the optimiser keeps, for a source without its state.
    pub fresh: Fresh,
    /// A model folder or config.json, for a source without one.
    pub model: Option<PathBuf>,
    pub level: u8,
    pub threads: usize,
    pub limits: ReadLimits,
    /// Set by a signal to call the import off.
    pub cancel: Arc<AtomicBool>,
}

impl Default for Options {
    fn default() -> Options {
        let threads = processors();
        Options {
            fresh: Fresh::AdamW,
            model: None,
            level: 1,
            threads,
            limits: ReadLimits::default(),
            cancel: Arc::default(),
        }
    }
}

/// What an import came to.
#[derive(Clone, Debug, Serialize)]
pub struct Imported {
    pub id: SnapshotId,
    pub path: PathBuf,
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

/// Reads the source at `from`. A bundle is unpacked beside `target` for as long as the result lives.
pub fn load(
    from: &Path,
    target: &Path,
    model: Option<&Path>,
    limits: &ReadLimits,
    progress: &dyn ProgressSink,
) -> Result<Loaded> {
    let mut scratch = None;
    let mut parts = match parts::kind(from, limits)? {
        parts::Kind::Folder => parts::folder(from, limits)?,
        parts::Kind::Torch => parts::torch(from, limits)?,
        parts::Kind::Safetensors => parts::safetensors(from, limits)?,
        parts::Kind::Snapshot => parts::snapshot(from, limits)?,
        parts::Kind::Bundle => {
            let folder = output::Scratch::beside(target)?;
            bundle::unpack_into(from, folder.path(), false, limits, progress)?;
            let parts = parts::folder(folder.path(), limits).map_err(|e| within(e, folder.path(), from))?;
            scratch = Some(folder);
            parts
        }
    };
    if let Some(model) = model {
        parts.add_companions(model)?;
    }
    assemble::assemble(parts, from, scratch, progress)
}

/// An error about a bundle's unpacked file as one about the bundle, which is what the user knows.
fn within(error: Error, folder: &Path, bundle: &Path) -> Error {
    let said = error.to_string().replace(&folder.display().to_string(), &bundle.display().to_string());
    match error {
        Error::NotFound(_) => Error::NotFound(said),
        Error::Mismatch { path, reason } => match path.strip_prefix(folder) {
            Ok(name) => Error::Mismatch { path: bundle.join(name), reason },
            Err(_) => Error::Mismatch { path, reason },
        },
        _ => Error::Other(said),
    }
}

/// Whether a snapshot file lies at `path`.
pub fn is_snapshot(path: &Path) -> Result<bool> {
    Ok(path.is_file() && parts::kind(path, &ReadLimits::default())? == parts::Kind::Snapshot)
}

/// Imports `from` into the store at `store`, which must hold no snapshots yet.
pub fn import(from: &Path, store: &Path, options: &Options, progress: &dyn ProgressSink) -> Result<Imported> {
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
    result.map(|imported| Imported { seconds: began.elapsed().as_secs_f64(), ..imported })
}

fn into_store(from: &Path, path: &Path, options: &Options, progress: &dyn ProgressSink) -> Result<Imported> {
    let store = Store::create(path)?;
    let _lock = store.lock("ckptd import")?;
    if let Some(newest) = store.entries()?.first() {
        return Err(Error::Other(format!(
            "the store {} holds snapshots already (the newest is {}); import into another folder",
            path.display(),
            newest.id
        )));
    }
    let mut loaded = load(from, path, options.model.as_deref(), &options.limits, progress)?;
    loaded.complete(options.fresh)?;
    let Loaded { snapshot, state, exact, notes, .. } = &loaded;
    let run_id = match state {
        Some(state) => state.run_id.clone(),
        None => RunId::random()?,
    };
    let commit_options = CommitOptions {
        parent: state.as_ref().and_then(|state| state.parent.clone()),
        level: options.level,
        threads: options.threads,
        cancel: Arc::clone(&options.cancel),
        ..CommitOptions::new(&run_id, state.as_ref().map_or(1, |state| state.seq))
    };
    progress.begin("writing the snapshot", 0);
    let step = snapshot.train.step;
    let committed = commit(&store, snapshot.clone(), &commit_options)?;
    store.set_run_id(&run_id)?;
    progress.begin("verifying", committed.bytes);
    let entry = store.find(&committed.id)?;
    store.verify(&entry, options.threads, progress)?;
    Ok(Imported {
        id: committed.id,
        path: committed.path,
        step,
        root: committed.root,
        exact: *exact,
        raw_bytes: committed.raw_bytes,
        bytes: committed.bytes,
        notes: notes.clone(),
        seconds: 0.0,
    })
}
