//! One export from its options to what lies at the target.

use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::Serialize;

use super::folder::WrittenFolder;
use super::options::{ExportFormat, ExportOptions};
use super::source::{ExportSource, exported_dtype};
use super::{dcp, folder, gguf, nanogpt, safetensors, torch, trainer};
use crate::bundle::{self, BundleKind};
use crate::output;
use ckptd_core::error::{Error, Result};
use ckptd_core::ids::StateRoot;
use ckptd_core::progress::ProgressSink;
use ckptd_core::snapshot::TensorMeta;

/// What was written.
#[derive(Clone, Debug, Serialize)]
pub struct ExportReport {
    /// Where it lies, as an absolute path.
    pub path: PathBuf,
    /// What it is.
    pub format: ExportFormat,
    /// The snapshot's step.
    pub step: u64,
    /// The snapshot's root.
    pub root: StateRoot,
    /// Bytes of the tensors that were exported.
    pub tensor_bytes: u64,
    /// Bytes of all files before packing (S_raw).
    pub raw_bytes: u64,
    /// Bytes of what was written (S_packed for a bundle).
    pub bytes: u64,
    /// `bytes / raw_bytes`.
    pub r: f64,
    /// How long it took.
    pub seconds: f64,
    /// What of the history could not be read, and so is not in the bundle, in sentences.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub history_lacks: Vec<String>,
}

/// Exports the snapshot file at `snapshot` to `out`.
///
/// # Errors
/// [`Error::Config`] for options that do not go together, and those of reading the snapshot and writing `out`; then
/// nothing is left at `out` that was not there before.
pub fn export(
    snapshot: &Path,
    out: &Path,
    options: &ExportOptions,
    progress: &dyn ProgressSink,
) -> Result<ExportReport> {
    let began = Instant::now();
    let overwrite = options.overwrite();
    options.check()?;
    output::check_name(out)?;
    let source = ExportSource::open(snapshot, options.threads)?;
    let in_trainers_folder = (options.format == ExportFormat::Trainer)
        .then(|| trainer::checkpoint_folder(out, source.manifest().train.step))
        .transpose()?;
    let out = in_trainers_folder.as_deref().unwrap_or(out);
    output::check(out, options.format.kind(), overwrite)?;
    output::check_room(out, least_bytes(&source, options))?;
    let mut history_lacks = Vec::new();
    let mut packed = |kind| {
        let written = bundle(&source, out, kind, options, progress)?;
        let sizes = written.sizes();
        history_lacks = written.history_lacks;
        Ok::<_, Error>(sizes)
    };
    let (tensor_bytes, raw_bytes) = match options.format {
        ExportFormat::Hf => {
            output::folder(out, overwrite, |dir| folder::write(&source, dir, options, progress))?.sizes()
        }
        ExportFormat::Pt => {
            (output::file(out, overwrite, |file| torch::write(&source, file, out, options, progress))?, 0)
        }
        ExportFormat::Safetensors => {
            (output::file(out, overwrite, |file| safetensors::write(&source, file, out, options, progress))?, 0)
        }
        ExportFormat::Trainer => {
            let options = ExportOptions { with_optimizer: true, ..options.clone() };
            let written = output::folder(out, overwrite, |dir| folder::write(&source, dir, &options, progress))?;
            trainer::order_times(out)?;
            written.sizes()
        }
        ExportFormat::Dcp => output::folder(out, overwrite, |dir| dcp::write(&source, dir, options, progress))?,
        ExportFormat::Gguf => {
            (output::file(out, overwrite, |file| gguf::write(&source, file, out, options, progress))?, 0)
        }
        ExportFormat::Nanogpt => {
            (output::file(out, overwrite, |file| nanogpt::write(&source, file, out, options, progress))?, 0)
        }
        ExportFormat::Zip => packed(BundleKind::Zip)?,
        ExportFormat::TarZst => packed(BundleKind::TarZst)?,
    };
    let written = std::fs::symlink_metadata(out).map_err(|e| Error::io("looking at", out, e))?;
    let bytes = if written.is_dir() { raw_bytes } else { written.len() };
    let raw_bytes = if raw_bytes == 0 { bytes } else { raw_bytes };
    Ok(ExportReport {
        path: std::path::absolute(out).unwrap_or_else(|_| out.to_path_buf()),
        format: options.format,
        step: source.manifest().train.step,
        root: source.manifest().root.clone(),
        tensor_bytes,
        raw_bytes,
        bytes,
        r: bytes as f64 / raw_bytes.max(1) as f64,
        seconds: began.elapsed().as_secs_f64(),
        history_lacks,
    })
}

/// Bytes that the export takes in any case: those of its tensors, before a bundle is packed.
fn least_bytes(source: &ExportSource, options: &ExportOptions) -> u64 {
    let model = source.model().into_iter();
    let model = model.map(|meta| meta.elements().unwrap_or(0) * exported_dtype(meta, options.dtype).size() as u64);
    let with_optimizer = options.with_optimizer || options.format.has_optimizer();
    let moments = if with_optimizer { source.moments().len() as u64 } else { 0 };
    let params: u64 = source.params().into_iter().filter_map(TensorMeta::bytes).sum();
    model.sum::<u64>() + moments * params
}

/// The folder with the optimiser, written beside the target, packed, and removed again. Returns what was in it.
fn bundle(
    source: &ExportSource,
    out: &Path,
    kind: BundleKind,
    options: &ExportOptions,
    progress: &dyn ProgressSink,
) -> Result<WrittenFolder> {
    let options = ExportOptions { with_optimizer: true, ..options.clone() };
    let scratch = output::ScratchFolder::beside(out)?;
    let written = folder::write(source, scratch.path(), &options, progress)?;
    output::file(out, options.overwrite(), |file| bundle::pack(scratch.path(), file, out, kind, progress))?;
    Ok(written)
}
