//! Folders to try things in, and programs to try them on.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

/// A folder on a real disk, gone with the campaign.
pub fn on_disk() -> Result<tempfile::TempDir> {
    tempfile::Builder::new().prefix("ckptd-chaos-").tempdir().context("making a folder to try things in")
}

/// A folder in memory where there is one: for campaigns that ask nothing of the disk.
pub fn in_memory() -> Result<tempfile::TempDir> {
    match tempfile::Builder::new().prefix("ckptd-chaos-").tempdir_in("/dev/shm") {
        Ok(folder) => Ok(folder),
        Err(_) => on_disk(),
    }
}

/// `ckptd` or `ckptd-gpt2`, which one build lays beside this program.
pub fn program(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe().context("finding this program")?;
    let found = own.with_file_name(name);
    ensure!(found.exists(), "{} is missing; `make build` makes it", found.display());
    Ok(found)
}
