//! From a path to a snapshot in memory: what lies there is recognised, read, and assembled.

use std::path::{Path, PathBuf};

use super::assemble::{self, LoadedSource};
use super::containers;
use super::options::LoadOptions;
use super::parts::{self, SourceKind};
use super::places::{self, SourcePlace};
use crate::limits::ReadLimits;
use crate::output::ScratchFolder;
use crate::{bundle, dcp};
use ckptd_core::error::{Error, Result};
use ckptd_core::ids::RunId;
use ckptd_core::progress::ProgressSink;

/// Reads the source at `from`. A bundle is unpacked for as long as the result lives.
///
/// # Errors
/// Those of reading it, each with the file and the entry; see `parts` and `assemble`.
pub fn load(from: &Path, options: &LoadOptions<'_>, progress: &dyn ProgressSink) -> Result<LoadedSource> {
    let (limits, has_model) = (options.limits, options.model.is_some());
    let mut scratch = None;
    let SourcePlace { path, notes } = places::find(from, limits)?;
    let from = path.as_path();
    let mut parts = match parts::kind(from, limits)? {
        SourceKind::Folder => parts::folder(from, has_model, limits)?,
        SourceKind::Dcp => parts::torch_file(dcp::open(from, limits)?, from)?,
        SourceKind::Torch => parts::torch(from, limits)?,
        SourceKind::Npz => containers::npz(from, limits)?,
        SourceKind::Gguf => containers::gguf(from, limits)?,
        SourceKind::Llmc => containers::llmc(from)?,
        SourceKind::Safetensors => parts::safetensors(from, limits)?,
        SourceKind::Snapshot => parts::snapshot(from, limits)?,
        SourceKind::Bundle => {
            let folder = match options.target {
                Some(target) => ScratchFolder::beside(target)?,
                None => ScratchFolder::beside(&temporary()?)?,
            };
            let unpacked = bundle::unpack_into(from, folder.path(), limits, progress)?;
            let mut parts =
                parts::folder(folder.path(), has_model, limits).map_err(|e| within(e, folder.path(), from))?;
            parts.notes.extend(bundle::passed_over_note(&unpacked.passed_over));
            scratch = Some(folder);
            parts
        }
    };
    parts.notes.splice(0..0, notes);
    if let Some(model) = options.model {
        parts.add_companions(model)?;
    }
    assemble::assemble(parts, from, options, scratch, progress)
}

/// The model at `path`, with what its optimiser has kept where ckptd has that optimiser, for readers that go on from
/// nothing: comparisons, inference.
///
/// # Errors
/// As [`load`].
pub fn load_model(path: &Path, progress: &dyn ProgressSink) -> Result<LoadedSource> {
    let limits = ReadLimits::default();
    let options = LoadOptions { mixed_steps: true, ..LoadOptions::new(&limits) };
    load(path, &options, progress)
        .or_else(|whole| load(path, &LoadOptions { weights_only: true, ..options }, progress).map_err(|_| whole))
}

/// A name that is nobody else's in the folder for temporary files.
fn temporary() -> Result<PathBuf> {
    Ok(std::env::temp_dir().join(format!("ckptd-{}", RunId::random()?)))
}

/// An error about a bundle's unpacked file as one about the bundle, which is what the user knows.
fn within(error: Error, folder: &Path, bundle: &Path) -> Error {
    let said = error.to_string().replace(&folder.display().to_string(), &bundle.display().to_string());
    match error {
        Error::NotFound(_) => Error::NotFound(said),
        Error::Malformed { path, reason } => match path.strip_prefix(folder) {
            Ok(name) => Error::Malformed { path: bundle.join(name), reason },
            Err(_) => Error::Malformed { path, reason },
        },
        _ => Error::Other(said),
    }
}

/// Whether a snapshot file lies at `path`.
pub fn is_snapshot(path: &Path) -> Result<bool> {
    Ok(path.is_file() && parts::kind(path, &ReadLimits::default())? == SourceKind::Snapshot)
}
