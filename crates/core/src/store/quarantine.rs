//! Quarantine: damaged snapshots are moved aside, each with its reason in a text file beside it, and never deleted.
//!
//! Invariant: the reason is durable before the file moves, except on a full disk.
//! Deliberately not here: what counts as damaged (read, verify).

use std::path::PathBuf;

use super::catalogue::SnapshotEntry;
use super::handle::Store;
use super::layout::{self, Folder};
use super::lock::StoreLock;
use crate::error::{Error, Result};
use crate::os::temporary;

/// A file in `quarantine/`.
#[derive(Clone, Debug)]
pub struct QuarantinedFile {
    /// Its name in `quarantine/`.
    pub name: String,
    /// Where the file is.
    pub path: PathBuf,
    /// Size of the file.
    pub bytes: u64,
    /// Why it was quarantined; empty where that could not be written.
    pub reason: String,
}

impl Store {
    /// Moves a damaged snapshot aside, with the reason in a text file beside it. Returns where it lies now.
    pub fn quarantine(&self, _lock: &StoreLock, entry: &SnapshotEntry, reason: &str) -> Result<PathBuf> {
        let (snapshots, quarantine) = (self.folder(Folder::Snapshots)?, self.folder(Folder::Quarantine)?);
        let name = layout::snapshot_file(&entry.id);
        let taken = quarantine.files()?;
        let free = (0..).map(|n| layout::set_aside(&name, n)).find(|n| !taken.contains(n));
        let aside = free.unwrap_or_else(|| name.clone());
        match quarantine.write_durably(&layout::reason_file(&aside), format!("{reason}\n").as_bytes()) {
            // A full disk must not leave a damaged snapshot in the way of the whole ones.
            Err(Error::NoSpace { .. }) => {}
            other => other?,
        }
        snapshots.rename_new(&name, &quarantine, &aside)?;
        quarantine.sync()?;
        snapshots.sync()?;
        self.folder(Folder::Receipts)?.remove(&layout::receipt_file(&entry.id))?;
        Ok(quarantine.join(&aside))
    }

    /// The files in quarantine, the last name first.
    pub fn quarantined(&self) -> Result<Vec<QuarantinedFile>> {
        let Some(dir) = self.dir.open_dir(Folder::Quarantine.name())? else { return Ok(Vec::new()) };
        let mut found = Vec::new();
        let ours = |name: &String| !layout::is_reason_file(name) && temporary::parse_temporary_file(name).is_none();
        for name in dir.files()?.into_iter().filter(ours) {
            let reason = dir.read_small(&layout::reason_file(&name), 64 << 10)?.unwrap_or_default();
            found.push(QuarantinedFile {
                path: dir.join(&name),
                bytes: dir.stat(&name)?.map_or(0, |s| s.st_size as u64),
                reason: String::from_utf8_lossy(&reason).trim().to_owned(),
                name,
            });
        }
        found.sort_by(|a, b| b.name.cmp(&a.name));
        Ok(found)
    }
}
