//! A snapshot file that comes from elsewhere: written piece by piece, then committed as one that was taken here.
//!
//! Invariant: as in [`commit`](super::commit): the name under `snapshots/` appears by a rename, after the file's fsync
//! and before the folders'. The file is the very one that was announced, by the hash of its trailer; that its chunks
//! are whole is known when it has been read back. Deliberately not here: where the bytes come from.

use std::fs::File;
use std::path::PathBuf;
use std::time::Instant;

use super::commit::{Committed, publish};
use super::format::Hash;
use super::handle::Store;
use super::layout::{self, Folder};
use super::lock::StoreLock;
use super::outline::SnapshotOutline;
use super::peek::peek;
use crate::error::{Error, Result};
use crate::os::dir::Dir;
use crate::os::fs;

/// A file in `staging/` that becomes a snapshot. Dropped before that, it is removed.
#[derive(Debug)]
pub struct IncomingSnapshot<'a> {
    store: &'a Store,
    staging: Dir,
    part: String,
    path: PathBuf,
    file: File,
    bytes: u64,
    hash: Hash,
    began: Instant,
    published: bool,
}

impl Store {
    /// Begins to receive the snapshot with this outline.
    ///
    /// # Errors
    /// [`Error::NoSpace`] where the disk has no room for it.
    pub fn receive(&self, _lock: &StoreLock, outline: &SnapshotOutline) -> Result<IncomingSnapshot<'_>> {
        let manifest = outline.manifest();
        let staging = self.folder(Folder::Staging)?;
        let part = layout::staging_file(&layout::snapshot_id(manifest.train.step, Some(manifest.seq)));
        staging.remove(&part)?;
        let file = staging.create_file(&part)?;
        let incoming = IncomingSnapshot {
            store: self,
            path: staging.join(&part),
            staging,
            part,
            file,
            bytes: outline.file_bytes(),
            hash: outline.file_hash(),
            began: Instant::now(),
            published: false,
        };
        fs::preallocate(&incoming.file, incoming.bytes, &incoming.path)?;
        Ok(incoming)
    }
}

impl IncomingSnapshot<'_> {
    /// Writes a piece of the file; pieces may come in any order, from any thread.
    pub fn write_at(&self, bytes: &[u8], offset: u64) -> Result<()> {
        match offset.checked_add(bytes.len() as u64) {
            Some(end) if end <= self.bytes => fs::write_all_at(&self.file, bytes, offset, &self.path),
            _ => Err(Error::Other(format!("{}: more bytes came than were announced", self.path.display()))),
        }
    }

    /// Makes the file a snapshot of the store, durably.
    ///
    /// # Errors
    /// [`Error::Damaged`] where it is not the file that was announced; it is then not there.
    pub fn commit(mut self) -> Result<Committed> {
        fs::sync_file(&self.file, &self.path)?;
        let (manifest, hash) = peek(&self.path)?;
        if hash != self.hash {
            return Err(Error::damaged(&self.path, "is not the file that was announced"));
        }
        fs::forget_cached(&self.file);
        let (id, path) = publish(self.store, &self.staging, &self.part, &manifest)?;
        self.published = true;
        Ok(Committed {
            id,
            path,
            bytes: self.bytes,
            raw_bytes: manifest.raw_bytes,
            root: manifest.root,
            healthy: manifest.healthy,
            write_ms: self.began.elapsed().as_secs_f64() * 1e3,
        })
    }
}

impl Drop for IncomingSnapshot<'_> {
    fn drop(&mut self) {
        if !self.published {
            // What stays is removed by the next start.
            let _ = self.staging.remove(&self.part);
        }
    }
}
