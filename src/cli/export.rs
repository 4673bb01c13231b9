//! `ckptd export`

use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::ValueEnum;
use serde::Serialize;

use super::console::Console;
use super::remote_bundle::BundleUrl;
use super::target::{CommandTarget, WithPassedOver};
use super::{exit_code, output};
use ckptd_core::dtype::DType;
use ckptd_core::error::{Error, Result};
use ckptd_core::ids::SnapshotId;
use ckptd_core::text::ByteSize;
use ckptd_interop::export::{self, ExportFormat, ExportOptions, ExportReport};
use ckptd_interop::output::ScratchFolder;

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
    /// The folder (hf, trainer, dcp) or file to write; folders on the way to it are made. A bundle may go to a remote:
    /// s3://bucket/folder/name, or gs, az, sftp and file.
    #[arg(value_name = "OUT|URL")]
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
    /// Replace what is there, where an export has written all of it; at a remote, a bundle.
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
        history_of: Some(target.store.path().to_owned()),
        ..ExportOptions::new(format)
    };
    let (exported, state) = match BundleUrl::of(&args.out)? {
        None => {
            let console = Console::start()?;
            (export::export(&entry.path, &args.out, &options, &console)?, None)
        }
        Some(url) => to_remote(&url, &entry.path, target.store.path(), &options)?,
    };
    for problem in &exported.history_lacks {
        output::complain(&format!("ckptd: {problem}; this part of the history is not in the bundle"));
    }
    let document = Exported { report: &exported, state };
    let document = WithPassedOver { document: &document, passed_over: &passed_over };
    output::show(args.json, &document, |_| describe(&entry.id, &exported, state))?;
    Ok(exit_code::DONE)
}

/// An export's document.
#[derive(Serialize)]
struct Exported<'a> {
    #[serde(flatten)]
    report: &'a ExportReport,
    /// "verified", of a bundle at a remote.
    #[serde(skip_serializing_if = "Option::is_none")]
    state: Option<&'static str>,
}

/// Packs beside the store's snapshots, sends, and checks what arrived.
fn to_remote(
    url: &BundleUrl,
    snapshot: &Path,
    store: &Path,
    options: &ExportOptions,
) -> Result<(ExportReport, Option<&'static str>)> {
    if !matches!(options.format, ExportFormat::Zip | ExportFormat::TarZst) {
        let what = "is a remote, which takes bundles: --format tar.zst or zip, or a path of this machine";
        return Err(Error::Config(format!("{} {what}", url.url)));
    }
    url.check_free(options.force)?;
    let console = Console::start()?;
    let scratch = ScratchFolder::beside(&store.join(url.name()))?;
    let packed = scratch.path().join(url.name());
    let began = Instant::now();
    let exported = export::export(snapshot, &packed, &ExportOptions { force: false, ..options.clone() }, &console)?;
    let checked = url.send(&packed, &console)?;
    let seconds = began.elapsed().as_secs_f64();
    Ok((ExportReport { path: PathBuf::from(&url.url), seconds, ..exported }, Some(checked.name())))
}

fn parse_size(text: &str) -> Result<ByteSize, String> {
    let size = text.parse::<bytesize::ByteSize>();
    size.map(|size| ckptd_core::text::TextValue(size.as_u64())).map_err(|e| format!("not a size such as 5GB: {e}"))
}

fn describe(id: &SnapshotId, exported: &ExportReport, state: Option<&str>) -> String {
    let packed = match exported.format {
        ExportFormat::Zip | ExportFormat::TarZst => {
            let (raw, packed) = (output::size(exported.raw_bytes), output::size(exported.bytes));
            format!("; S_raw {raw}, S_packed {packed}, r = {:.4}", exported.r)
        }
        _ => format!("; {}", output::size(exported.bytes)),
    };
    let state = state.map_or_else(String::new, |state| format!("; {state} there"));
    format!("exported {id} to {}{packed} in {:.1} s{state}\n", exported.path.display(), exported.seconds)
}
