//! Verification: a snapshot is read back from the device, every byte of it.
//!
//! Invariant: only a file that was read whole, matched its hashes and did not change meanwhile gets a receipt.
//! Deliberately not here: what becomes of a file that fails (quarantine).

use std::io::ErrorKind;
use std::path::Path;

use super::catalogue::SnapshotEntry;
use super::handle::Store;
use super::layout::{self, Folder};
use super::read::SnapshotReader;
use super::receipt::Receipt;
use crate::error::{Error, Result};
use crate::os::stamp::FileStamp;
use crate::progress::ProgressSink;

/// Reads `path` back in full; `progress` advances by encoded bytes, and may call it off.
pub fn read_back(path: &Path, threads: usize, progress: &dyn ProgressSink) -> Result<SnapshotReader> {
    let reader = SnapshotReader::open_past_cache(path)?;
    reader.check_all(threads, progress)?;
    Ok(reader)
}

impl Store {
    /// Reads a snapshot back from the device, every byte of it, and writes the receipt. Needs no lock.
    pub fn verify(&self, entry: &SnapshotEntry, threads: usize, progress: &dyn ProgressSink) -> Result<Receipt> {
        let snapshots = self.folder(Folder::Snapshots)?;
        let name = layout::snapshot_file(&entry.id);
        let gone = || Error::NotFound(format!("{} is gone", entry.path.display()));
        let before = snapshots.stat(&name)?.ok_or_else(gone)?;
        let reader = read_back(&entry.path, threads, progress)?;
        // The receipt is for the file that was read: what changes during the reading gets none.
        let receipt = Receipt::new(&reader, &FileStamp::from(&before));
        let after = snapshots.stat(&name)?.ok_or_else(gone)?;
        if !receipt.covers(&FileStamp::from(&after), &reader.file_hash()) {
            return Err(Error::Other(format!(
                "{} was changed while it was read; verify it again",
                entry.path.display()
            )));
        }
        if let Some(receipts) = self.dir.open_dir(Folder::Receipts.name())? {
            match receipt.write(&receipts, &entry.id) {
                // On a read-only or full disk, and by a reader, the verification stands and is not remembered.
                Err(Error::NoSpace { .. }) => {}
                Err(Error::Io { source, .. }) if is_read_only(&source) => {}
                other => other?,
            }
        }
        Ok(receipt)
    }
}

/// Whether nothing may be written there by this process.
fn is_read_only(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::ReadOnlyFilesystem | ErrorKind::PermissionDenied)
}
