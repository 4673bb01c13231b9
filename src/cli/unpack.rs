//! `ckptd unpack`

use std::path::{Path, PathBuf};

use super::console::Console;
use super::{exit_code, output};
use ckptd_core::error::Result;
use ckptd_interop::export_record::ExportRecord;
use ckptd_interop::limits::ReadLimits;
use ckptd_interop::output::OverwriteRule;
use ckptd_interop::{bundle, export_record, names};

/// Unpack a zip or tar.zst bundle into a folder, and hold every file against the bundle's own hashes.
#[derive(clap::Args)]
pub(super) struct UnpackArgs {
    bundle: PathBuf,
    /// The folder to make.
    out: PathBuf,
    /// Replace what is there, where an export or unpack has written all of it.
    #[arg(long)]
    force: bool,
    #[arg(long)]
    json: bool,
}

pub(super) fn execute(args: &UnpackArgs) -> Result<u8> {
    let overwrite = OverwriteRule::forced(args.force, export_record::foreign);
    let console = Console::start()?;
    let unpacked = bundle::unpack(&args.bundle, &args.out, overwrite, &ReadLimits::default(), &console)?;
    drop(console);
    if args.json {
        output::json(&unpacked)?;
        return Ok(exit_code::DONE);
    }
    let (raw, packed) = (output::size(unpacked.raw_bytes), output::size(unpacked.bytes));
    let proof = if unpacked.verified {
        "every file is what was packed"
    } else {
        "the bundle has no hashes of its files; only its checksums were checked"
    };
    let next = next(&unpacked.path)?;
    let note = bundle::passed_over_note(&unpacked.passed_over);
    let note = note.map_or(String::new(), |note| format!("  note: {note}\n"));
    output::text(&format!(
        "unpacked {} files to {}: {proof}; S_raw {raw}, S_packed {packed}, r = {:.4} in {:.1} s\n{note}{next}",
        unpacked.files,
        unpacked.path.display(),
        unpacked.r,
        unpacked.seconds
    ))?;
    Ok(exit_code::DONE)
}

/// The command that goes on with what was unpacked to `folder`, where that is the state of a training.
fn next(folder: &Path) -> Result<String> {
    let folder_text = folder.display();
    Ok(match (folder.join(names::JOB).exists(), ExportRecord::read(folder)?) {
        (true, Some(record)) => {
            format!("next: ckptd run {folder_text}/{} goes on from step {}\n", names::JOB, record.train.step)
        }
        (false, Some(record)) => {
            format!("next: ckptd import --from {folder_text} STORE goes on from step {}\n", record.train.step)
        }
        (_, None) => String::new(),
    })
}
