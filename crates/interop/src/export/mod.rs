//! A snapshot becomes what others load: a Hugging Face folder, a `.pt` file, a safetensors file, a bundle.
//!
//! Reading order: [`source`] (the snapshot), [`folder`] (Hugging Face), [`torch`] (`.pt` and the optimiser's state),
//! [`single`] (safetensors), bundles (in [`crate::bundle`]).
//!
//! Invariant: what is written appears whole, by a rename, or not at all; every tensor's bytes are those that were
//! saved unless another float type was asked for. Deliberately not here: the command line.

pub mod folder;
mod hyper;
mod job;
pub mod single;
pub mod source;
pub mod torch;

use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::Serialize;

use crate::{bundle, output};
use ckptd_core::config::Config;
use ckptd_core::dtype::DType;
use ckptd_core::error::{Error, Result};
use ckptd_core::ids::StateRoot;
use ckptd_core::os::process::processors;
use ckptd_core::progress::ProgressSink;

use source::Source;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    Hf,
    Pt,
    Safetensors,
    Zip,
    #[serde(rename = "tar.zst")]
    TarZst,
}

#[derive(Clone, Debug)]
pub struct Options {
    pub format: Format,
    /// The optimiser's state too, and what transformers' Trainer resumes from. Bundles always have it.
    pub with_optimizer: bool,
    /// Another float type for the model's tensors (F32, BF16, F16).
    pub dtype: Option<DType>,
    /// Hf: largest weights file.
    pub max_shard_bytes: u64,
    pub force: bool,
    /// The job that the snapshot is of: it goes with the optimiser's state, and has hyper-parameters that the snapshot
    /// does not name.
    pub job: Option<Config>,
    /// The tokens that the job trains on, too.
    pub with_data: bool,
    pub threads: usize,
}

/// As transformers' `save_pretrained` has it.
pub const MAX_SHARD_BYTES: u64 = 50_000_000_000;

impl Options {
    pub fn new(format: Format) -> Options {
        Options {
            format,
            with_optimizer: false,
            dtype: None,
            max_shard_bytes: MAX_SHARD_BYTES,
            force: false,
            job: None,
            with_data: false,
            threads: processors(),
        }
    }
}

/// What was written.
#[derive(Clone, Debug, Serialize)]
pub struct Exported {
    pub path: PathBuf,
    pub format: Format,
    pub step: u64,
    pub root: StateRoot,
    /// Bytes of the tensors that were exported.
    pub tensor_bytes: u64,
    /// Bytes of all files before packing (S_raw), and what was written (S_packed for a bundle).
    pub raw_bytes: u64,
    pub bytes: u64,
    /// `bytes / raw_bytes`.
    pub r: f64,
    pub seconds: f64,
}

/// Exports the snapshot file at `snapshot` to `out`.
pub fn export(snapshot: &Path, out: &Path, options: &Options, progress: &dyn ProgressSink) -> Result<Exported> {
    let began = Instant::now();
    check(out, options)?;
    let source = Source::open(snapshot, options.threads)?;
    let (tensor_bytes, raw_bytes) = match options.format {
        Format::Hf => output::folder(out, options.force, |dir| folder::write(&source, dir, options, progress))?,
        Format::Pt => {
            (output::file(out, options.force, |file| torch::write(&source, file, out, options, progress))?, 0)
        }
        Format::Safetensors => {
            (output::file(out, options.force, |file| single::write(&source, file, out, options, progress))?, 0)
        }
        Format::Zip | Format::TarZst => bundle(&source, out, options, progress)?,
    };
    let written = std::fs::symlink_metadata(out).map_err(|e| Error::io("looking at", out, e))?;
    let bytes = if written.is_dir() { raw_bytes } else { written.len() };
    let raw_bytes = if raw_bytes == 0 { bytes } else { raw_bytes };
    Ok(Exported {
        path: std::path::absolute(out).unwrap_or_else(|_| out.to_path_buf()),
        format: options.format,
        step: source.manifest().train.step,
        root: source.manifest().root.clone(),
        tensor_bytes,
        raw_bytes,
        bytes,
        r: bytes as f64 / raw_bytes.max(1) as f64,
        seconds: began.elapsed().as_secs_f64(),
    })
}

fn check(out: &Path, options: &Options) -> Result<()> {
    output::check(out, options.force)?;
    let bundle = matches!(options.format, Format::Zip | Format::TarZst);
    if bundle && options.dtype.is_some_and(|dtype| dtype != DType::F32) {
        return Err(Error::Config("a bundle holds the exact state; --dtype goes with hf, pt and safetensors".into()));
    }
    if options.with_data && !bundle && !(options.with_optimizer && options.format == Format::Hf) {
        return Err(Error::Config("--with-data goes with bundles, and with --format hf --with-optimizer".into()));
    }
    if options.max_shard_bytes == 0 {
        return Err(Error::Config("--max-shard-size must be positive".into()));
    }
    Ok(())
}

/// The folder with the optimiser, written beside the target, packed, and removed again. Returns the bytes of its tensors
/// and of its files.
fn bundle(source: &Source, out: &Path, options: &Options, progress: &dyn ProgressSink) -> Result<(u64, u64)> {
    let options = Options { with_optimizer: true, ..options.clone() };
    let scratch = output::Scratch::beside(out)?;
    let sizes = folder::write(source, scratch.path(), &options, progress)?;
    let kind = if options.format == Format::Zip { bundle::Kind::Zip } else { bundle::Kind::TarZst };
    output::file(out, options.force, |file| bundle::pack(scratch.path(), file, out, kind, progress))?;
    Ok(sizes)
}
