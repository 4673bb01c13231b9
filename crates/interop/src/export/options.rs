//! What an export is asked for.

use std::path::PathBuf;

use serde::Serialize;

use ckptd_core::config::Config;
use ckptd_core::dtype::DType;
use ckptd_core::error::{Error, Result};
use ckptd_core::os::process::processors;

use crate::bundle::BundleKind;
use crate::export_record;
use crate::output::{OutputKind, OverwriteRule};

/// What a snapshot becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ExportFormat {
    /// A Hugging Face folder.
    Hf,
    /// A `.pt` file of PyTorch.
    Pt,
    /// A safetensors file.
    Safetensors,
    /// A checkpoint folder of transformers' Trainer, with the optimiser's state.
    Trainer,
    /// A folder of `torch.distributed.checkpoint`.
    Dcp,
    /// A GGUF file: the weights and the tokenizer.
    Gguf,
    /// `ckpt.pt` as nanoGPT saves it, with the optimiser's state.
    Nanogpt,
    /// The folder with the optimiser's state, as a zip archive.
    Zip,
    /// The folder with the optimiser's state, as a tar archive under zstd.
    #[serde(rename = "tar.zst")]
    TarZst,
}

impl ExportFormat {
    /// The kind of bundle that this is, if it is one.
    pub fn bundle(self) -> Option<BundleKind> {
        match self {
            ExportFormat::Zip => Some(BundleKind::Zip),
            ExportFormat::TarZst => Some(BundleKind::TarZst),
            _ => None,
        }
    }

    /// Whether it is one file or a folder.
    pub fn kind(self) -> OutputKind {
        match self {
            ExportFormat::Hf | ExportFormat::Trainer | ExportFormat::Dcp => OutputKind::Folder,
            _ => OutputKind::File,
        }
    }

    /// Whether it always has the optimiser's state.
    pub fn has_optimizer(self) -> bool {
        self.bundle().is_some() || matches!(self, ExportFormat::Trainer | ExportFormat::Nanogpt)
    }
}

/// What to export, and how.
#[derive(Clone, Debug)]
pub struct ExportOptions {
    /// What to write.
    pub format: ExportFormat,
    /// The optimiser's state too, and what transformers' Trainer resumes from. Bundles always have it.
    pub with_optimizer: bool,
    /// Another float type for the model's tensors (F32, BF16, F16).
    pub dtype: Option<DType>,
    /// Hf: largest weights file.
    pub max_shard_bytes: u64,
    /// Replace what is there.
    pub force: bool,
    /// The job that the snapshot is of: it goes with the optimiser's state, and has hyper-parameters that the snapshot
    /// does not name.
    pub job: Option<Config>,
    /// The tokens that the job trains on, too.
    pub with_data: bool,
    /// The store whose history goes with a bundle.
    pub history_of: Option<PathBuf>,
    /// Threads that read and decode.
    pub threads: usize,
}

/// As transformers' `save_pretrained` has it.
pub const MAX_SHARD_BYTES: u64 = 50_000_000_000;

impl ExportOptions {
    /// The model alone as `format`, on all processors.
    pub fn new(format: ExportFormat) -> ExportOptions {
        ExportOptions {
            format,
            with_optimizer: false,
            dtype: None,
            max_shard_bytes: MAX_SHARD_BYTES,
            force: false,
            job: None,
            with_data: false,
            history_of: None,
            threads: processors(),
        }
    }

    /// Whether and where something at the target is replaced.
    pub fn overwrite(&self) -> OverwriteRule {
        OverwriteRule::forced(self.force, export_record::foreign)
    }

    /// # Errors
    /// [`Error::Config`] where options do not go together.
    pub fn check(&self) -> Result<()> {
        let (format, bundle) = (self.format, self.format.bundle().is_some());
        if format.has_optimizer() && self.dtype.is_some_and(|dtype| dtype != DType::F32) {
            return Err(Error::Config(
                "a bundle, a Trainer checkpoint and nanoGPT's ckpt.pt hold the exact state; --dtype goes with hf, pt, \
                 safetensors, dcp and gguf"
                    .into(),
            ));
        }
        if self.with_optimizer && format == ExportFormat::Gguf {
            return Err(Error::Config("GGUF holds weights alone; --with-optimizer goes with the other formats".into()));
        }
        let folder = format == ExportFormat::Trainer || self.with_optimizer && format == ExportFormat::Hf;
        if self.with_data && !bundle && !folder {
            return Err(Error::Config(
                "--with-data goes with bundles, with --format trainer, and with --format hf --with-optimizer".into(),
            ));
        }
        if self.max_shard_bytes == 0 {
            return Err(Error::Config("--max-shard-size must be positive".into()));
        }
        Ok(())
    }
}
