//! `ckptd export`

use std::path::PathBuf;

use clap::ValueEnum;

use super::console::Console;
use super::target::{CommandTarget, WithPassedOver};
use super::{exit_code, output};
use ckptd_core::dtype::DType;
use ckptd_core::error::Result;
use ckptd_core::ids::SnapshotId;
use ckptd_core::text::ByteSize;
use ckptd_interop::export::{self, ExportFormat, ExportOptions, ExportReport};

/// Write a snapshot as what others load: a folder or file of another program, or a bundle to move it.
#[derive(clap::Args)]
pub(super) struct ExportArgs {
    /// The store's folder, or the job file.
    #[arg(value_name = "STORE|CONFIG")]
    target: PathBuf,
    /// latest, best, a step number or a file.
    snapshot: String,
    #[arg(long, value_enum)]
    format: FormatArg,
    /// The folder (hf, trainer, dcp) or file to write. Folders on the way to it are made.
    out: PathBuf,
    /// The optimiser's state too: Trainer and torch.optim resume from it. Bundles, trainer and nanogpt always have it.
    #[arg(long)]
    with_optimizer: bool,
    /// The tokens that the job trains on too, for a machine that does not have its texts. Goes with
    /// bundles, with trainer, and with hf and --with-optimizer.
    #[arg(long)]
    with_data: bool,
    /// Round the model's tensors to another float type.
    #[arg(long, value_enum)]
    dtype: Option<DTypeArg>,
    /// hf: largest weights file, such as 5GB; larger models are written in shards.
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    max_shard_size: Option<ByteSize>,
    /// Replace what is there, where an export has written all of it.
    #[arg(long)]
    force: bool,
    /// An error where latest or best passes over a snapshot that is newer, or that cannot be read.
    #[arg(long)]
    strict: bool,
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum FormatArg {
    Hf,
    Pt,
    Safetensors,
    /// A checkpoint folder that transformers' Trainer resumes from; OUT is its output folder.
    Trainer,
    /// A folder of torch.distributed.checkpoint.
    Dcp,
    Gguf,
    /// nanoGPT's ckpt.pt.
    Nanogpt,
    Zip,
    #[value(name = "tar.zst")]
    TarZst,
}

#[derive(Clone, Copy, ValueEnum)]
enum DTypeArg {
    F32,
    Bf16,
    F16,
}

pub(super) fn execute(args: &ExportArgs) -> Result<u8> {
    let target = CommandTarget::open(&args.target)?;
    let (entry, passed_over) = target.choose(&args.snapshot, args.strict)?;
    let format = match args.format {
        FormatArg::Hf => ExportFormat::Hf,
        FormatArg::Pt => ExportFormat::Pt,
        FormatArg::Safetensors => ExportFormat::Safetensors,
        FormatArg::Trainer => ExportFormat::Trainer,
        FormatArg::Dcp => ExportFormat::Dcp,
        FormatArg::Gguf => ExportFormat::Gguf,
        FormatArg::Nanogpt => ExportFormat::Nanogpt,
        FormatArg::Zip => ExportFormat::Zip,
        FormatArg::TarZst => ExportFormat::TarZst,
    };
    let dtype = args.dtype.map(|dtype| match dtype {
        DTypeArg::F32 => DType::F32,
        DTypeArg::Bf16 => DType::BF16,
        DTypeArg::F16 => DType::F16,
    });
    let options = ExportOptions {
        with_optimizer: args.with_optimizer,
        dtype,
        max_shard_bytes: args.max_shard_size.map_or(export::MAX_SHARD_BYTES, |size| size.0),
        force: args.force,
        job: target.config,
        with_data: args.with_data,
        ..ExportOptions::new(format)
    };
    let console = Console::start()?;
    let exported = export::export(&entry.path, &args.out, &options, &console)?;
    drop(console);
    let document = WithPassedOver { document: &exported, passed_over: &passed_over };
    output::show(args.json, &document, |_| describe(&entry.id, &exported))?;
    Ok(exit_code::DONE)
}

fn parse_size(text: &str) -> Result<ByteSize, String> {
    let size = text.parse::<bytesize::ByteSize>();
    size.map(|size| ckptd_core::text::TextValue(size.as_u64())).map_err(|e| format!("not a size such as 5GB: {e}"))
}

fn describe(id: &SnapshotId, exported: &ExportReport) -> String {
    let packed = match exported.format {
        ExportFormat::Zip | ExportFormat::TarZst => {
            let (raw, packed) = (output::size(exported.raw_bytes), output::size(exported.bytes));
            format!("; S_raw {raw}, S_packed {packed}, r = {:.4}", exported.r)
        }
        _ => format!("; {}", output::size(exported.bytes)),
    };
    format!("exported {id} to {}{packed} in {:.1} s\n", exported.path.display(), exported.seconds)
}
