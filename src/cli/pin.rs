//! `ckptd pin` and `ckptd unpin`

use std::path::PathBuf;

use super::target::CommandTarget;
use super::{exit_code, output};
use ckptd_core::error::Result;

/// Keep a snapshot against the retention policy.
#[derive(clap::Args)]
pub(super) struct PinArgs {
    #[command(flatten)]
    args: SnapshotArgs,
}

/// Leave a pinned snapshot to the retention policy again.
#[derive(clap::Args)]
pub(super) struct UnpinArgs {
    #[command(flatten)]
    args: SnapshotArgs,
}

#[derive(clap::Args)]
struct SnapshotArgs {
    /// The store's folder, or the job file.
    #[arg(value_name = "STORE|CONFIG")]
    target: PathBuf,
    /// latest, best, a step number or a file.
    snapshot: String,
}

pub(super) fn pin(PinArgs { args }: &PinArgs) -> Result<u8> {
    let target = CommandTarget::open(&args.target)?;
    let (entry, _) = target.choose(&args.snapshot, false)?;
    target.store.pin(&entry)?;
    let already = if entry.pinned { " already" } else { "" };
    output::text(&format!("{} is pinned{already}\n", entry.id))?;
    Ok(exit_code::DONE)
}

pub(super) fn unpin(UnpinArgs { args }: &UnpinArgs) -> Result<u8> {
    let target = CommandTarget::open(&args.target)?;
    let (entry, _) = target.choose(&args.snapshot, false)?;
    target.store.unpin(&entry)?;
    let said = if entry.pinned { "is not pinned any more" } else { "was not pinned" };
    output::text(&format!("{} {said}\n", entry.id))?;
    Ok(exit_code::DONE)
}
