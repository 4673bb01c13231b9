//! Which folder or file is meant by the path of a source: the newest whole checkpoint of a Trainer's output folder, the
//! snapshot of a hub's cache that its `main` names, the one variant of the weights.
//!
//! Invariant: what was passed over is told; a name that is read from a file stays within the folder.

use std::path::{Path, PathBuf};

use crate::foreign;
use crate::limits::ReadLimits;
use crate::mapped::read_small;
use crate::names::{self, CONFIG, OPTIMIZER, TRAINER_STATE};
use crate::torch_pt::PtFile;
use crate::{adapter, dcp, hf};
use ckptd_core::error::{Error, Result};
use ckptd_core::store::format::plain_name;

const MAX_REFERENCE_BYTES: u64 = 256;

/// A source's own place.
pub struct SourcePlace {
    pub path: PathBuf,
    /// What was chosen and what was passed over.
    pub notes: Vec<String>,
}

/// Where the source at `from` lies.
///
/// # Errors
/// [`Error::Malformed`] for a folder that is known and not read, with the command that makes something of it;
/// [`Error::NotFound`] for one that holds no model, with what is in it.
pub(super) fn find(from: &Path, limits: &ReadLimits) -> Result<SourcePlace> {
    let place = locate(from, limits)?;
    if adapter::is_adapter(&place.path) {
        return Err(Error::malformed(&place.path, foreign::adapter(&place.path)));
    }
    Ok(place)
}

/// Where the source at `from` lies, if that is an adapter of PEFT.
pub fn find_adapter(from: &Path, limits: &ReadLimits) -> Option<SourcePlace> {
    // What is wrong with any other source is told when it is read.
    locate(from, limits).ok().filter(|place| adapter::is_adapter(&place.path))
}

fn locate(from: &Path, limits: &ReadLimits) -> Result<SourcePlace> {
    let here = |path: &Path| SourcePlace { path: path.to_path_buf(), notes: Vec::new() };
    if !from.is_dir() || is_source(from) || adapter::is_adapter(from) {
        return Ok(here(from));
    }
    if let Some(known) = foreign::by_folder(from) {
        return Err(Error::malformed(from, known));
    }
    if let Some(found) = cached(from)? {
        let notes = vec![format!("taken from the hub's cache: {}", found.display())];
        return Ok(SourcePlace { path: found, notes });
    }
    match newest_checkpoint(from, limits)? {
        Some(place) => Ok(place),
        None if from.join(CONFIG).exists() => Ok(here(from)),
        None => Err(nothing(from)),
    }
}

/// Whether the folder itself holds weights: a model, a checkpoint, a folder of torch.distributed.checkpoint.
fn is_source(dir: &Path) -> bool {
    dir.join(dcp::METADATA).exists() || hf::has_weights(dir) || dir.join(names::RECORD).exists()
}

/// The snapshot of a hub's cache (`models--<owner>--<name>`) that `refs/main` names, or the only one there is.
fn cached(from: &Path) -> Result<Option<PathBuf>> {
    let snapshots = from.join("snapshots");
    if !snapshots.is_dir() {
        return Ok(None);
    }
    let main = from.join("refs/main");
    if main.is_file() {
        let text = read_small(&main, MAX_REFERENCE_BYTES)?;
        let hash = std::str::from_utf8(&text).unwrap_or_default().trim();
        if !plain_name(hash) {
            return Err(Error::malformed(&main, format!("{hash:?} is not the name of a snapshot")));
        }
        let found = snapshots.join(hash);
        if found.is_dir() {
            return Ok(Some(found));
        }
        return Err(Error::NotFound(format!(
            "{} names the snapshot {hash}, which is not in {}; download it again",
            main.display(),
            snapshots.display()
        )));
    }
    match folders(&snapshots)?.as_slice() {
        [one] => Ok(Some(one.clone())),
        [] => Ok(None),
        [first, ..] => Err(Error::NotFound(format!(
            "{} has several snapshots and no refs/main; name one, such as {}",
            from.display(),
            first.display()
        ))),
    }
}

/// The newest checkpoint of a Trainer's output folder that is whole.
fn newest_checkpoint(from: &Path, limits: &ReadLimits) -> Result<Option<SourcePlace>> {
    let mut found: Vec<(u64, PathBuf)> =
        folders(from)?.into_iter().filter_map(|path| Some((names::checkpoint_step(&path)?, path))).collect();
    found.sort_by_key(|(step, _)| std::cmp::Reverse(*step));
    let (mut notes, mut last) = (Vec::new(), None);
    for (_, path) in found {
        match is_whole(&path, limits) {
            Ok(()) => {
                notes.insert(0, format!("taken from its newest whole checkpoint, {}", path.display()));
                return Ok(Some(SourcePlace { path, notes }));
            }
            Err(why) => {
                notes.push(format!("{} was passed over: {why}", path.display()));
                last = Some(why);
            }
        }
    }
    // With no whole one, the oldest says why.
    last.map_or(Ok(None), Err)
}

/// Opens what a checkpoint consists of: a save that was interrupted left it in parts.
fn is_whole(dir: &Path, limits: &ReadLimits) -> Result<()> {
    if adapter::is_adapter(dir) {
        return adapter::tensors(dir, limits).map(drop);
    }
    hf::open(dir, limits)?;
    let optimizer = dir.join(OPTIMIZER);
    if optimizer.exists() {
        PtFile::open(&optimizer, limits)?;
        let state = dir.join(TRAINER_STATE);
        if !state.exists() {
            return Err(Error::NotFound(format!("{} is missing", state.display())));
        }
    }
    Ok(())
}

/// Nothing is known of the folder: what is in it that could be meant.
fn nothing(from: &Path) -> Error {
    let names = std::fs::read_dir(from).into_iter().flatten().flatten().map(|entry| entry.path());
    let could = |path: &PathBuf| {
        let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
        path.is_file() && ["pt", "pth", "ckpt", "bin", "safetensors", "gguf", "npz", "ot"].contains(&extension)
    };
    let mut files: Vec<PathBuf> = names.filter(could).collect();
    files.sort();
    match files.last() {
        Some(file) => Error::NotFound(format!(
            "{} is no model folder; a file in it may be meant: `ckptd import --from {} STORE`",
            from.display(),
            foreign::quoted(file)
        )),
        None => Error::NotFound(format!(
            "{} has no {CONFIG}; a Hugging Face model folder holds {CONFIG} and model.safetensors",
            from.display()
        )),
    }
}

fn folders(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(dir).map_err(|e| Error::io("reading folder", dir, e))?;
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(|e| Error::io("reading folder", dir, e))?.path();
        if path.is_dir() {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}
