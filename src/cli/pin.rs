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
    output::text(&format!("{} is pinned\n", entry.id))?;
    Ok(exit_code::DONE)
}

pub(super) fn unpin(UnpinArgs { args }: &UnpinArgs) -> Result<u8> {
    let target = CommandTarget::open(&args.target)?;
    let (entry, _) = target.choose(&args.snapshot, false)?;
    target.store.unpin(&entry)?;
    output::text(&format!("{} is not pinned any more\n", entry.id))?;
    Ok(exit_code::DONE)
}
