//! The catalogue: the snapshots of a store.
//!
//! Invariant: listings are read from the disk each time. One that races a rotation is repeated, so that it never shows
//! half of one. Deliberately not here: which one a name means (choice), files in quarantine (quarantine).

use std::path::{Path, PathBuf};

use super::format::Manifest;
use super::handle::Store;
use super::layout::{self, Folder};
use super::peek::peek;
use super::receipt::Receipt;
use crate::error::{Error, Result};
use crate::ids::SnapshotId;
use crate::os::dir::Dir;
use crate::os::fs;
use crate::os::stamp::FileStamp;

/// A file in `snapshots/` (or, through [`Store::find`], elsewhere).
#[derive(Clone, Debug)]
pub struct SnapshotEntry {
    /// Its name without the suffix.
    pub id: SnapshotId,
    /// Where the file is.
    pub path: PathBuf,
    /// Size of the file.
    pub bytes: u64,
    /// What is known of it.
    pub state: SnapshotState,
    /// A user keeps it, whatever the policy says.
    pub pinned: bool,
    /// Belongs to the store's run.
    pub own: bool,
    /// `None` where it cannot be read.
    pub manifest: Option<Manifest>,
}

/// What is known of a snapshot without reading its tensors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SnapshotState {
    /// Whole and durable, not read back yet.
    Committed,
    /// Read back, and not changed since.
    Verified,
    /// Not even its manifest is whole.
    Damaged(String),
    /// The system could not read it: that says nothing about the file.
    Unreadable(String),
    /// Of a later format version, which this release cannot judge.
    Newer(u64),
}

impl SnapshotState {
    /// The word for it in listings, and what is wrong.
    pub fn told(&self) -> (&'static str, Option<String>) {
        match self {
            SnapshotState::Verified => ("verified", None),
            SnapshotState::Committed => ("committed", None),
            // Its next verification or resume moves it aside.
            SnapshotState::Damaged(reason) => ("damaged", Some(reason.clone())),
            SnapshotState::Unreadable(reason) => ("unreadable", Some(reason.clone())),
            SnapshotState::Newer(version) => {
                ("newer", Some(format!("written by a newer ckptd (snapshot format {version})")))
            }
        }
    }
}

/// Listings of a store whose snapshots vanish each time; a rotation takes far longer than a listing.
const MAX_LISTINGS: usize = 20;

impl SnapshotEntry {
    /// Steps completed; 0 where the manifest cannot be read.
    pub fn step(&self) -> u64 {
        self.manifest.as_ref().map_or(0, |m| m.train.step)
    }

    /// Its place among the snapshots of its run; 0 where the manifest cannot be read.
    pub fn seq(&self) -> u64 {
        self.manifest.as_ref().map_or(0, |m| m.seq)
    }

    /// Every parameter and the loss are finite; false where the manifest cannot be read.
    pub fn healthy(&self) -> bool {
        self.manifest.as_ref().is_some_and(|m| m.healthy)
    }

    /// The validation loss, where it is of exactly this state.
    pub fn val_loss(&self) -> Option<f64> {
        let manifest = self.manifest.as_ref()?;
        manifest.metrics.val_loss.filter(|_| manifest.metrics.val_step == Some(manifest.train.step))
    }
}

impl Store {
    /// All snapshots, newest first: the store's run by sequence number, then others, then those that cannot be read.
    pub fn entries(&self) -> Result<Vec<SnapshotEntry>> {
        let run_id = self.run_id()?;
        let pins: Vec<SnapshotId> = self.files(Folder::Pins)?.into_iter().map(SnapshotId::from).collect();
        let mut entries = self.list()?;
        for entry in &mut entries {
            entry.own = entry.manifest.as_ref().is_some_and(|m| Some(&m.run_id) == run_id.as_ref());
            entry.pinned = pins.contains(&entry.id);
        }
        let order = |e: &SnapshotEntry| {
            (
                e.own,
                e.manifest.is_some(),
                e.manifest.as_ref().filter(|_| !e.own).map(|m| m.created_at),
                e.seq(),
                e.id.clone(),
            )
        };
        entries.sort_by_cached_key(|e| std::cmp::Reverse(order(e)));
        Ok(entries)
    }

    /// The snapshots, in no order. During a rotation one listing can meet the successor before it is verified, and the
    /// older snapshot after it is gone. So a listing during which a file went is repeated.
    fn list(&self) -> Result<Vec<SnapshotEntry>> {
        let snapshots = self.folder(Folder::Snapshots)?;
        let receipts = self.dir.open_dir(Folder::Receipts.name())?;
        let mut listings = 0;
        loop {
            listings += 1;
            let mut gone = false;
            let mut entries = Vec::new();
            for name in snapshots.files()? {
                let Some(id) = layout::parse_snapshot_file(&name) else { continue };
                let found =
                    snapshots.stat(&name)?.map(|stat| entry(snapshots.join(&name), id, &stat, receipts.as_ref()));
                match found {
                    Some(entry) if entry.state == SnapshotState::Verified || snapshots.stat(&name)?.is_some() => {
                        entries.push(entry)
                    }
                    _ => gone = true,
                }
            }
            if !gone || listings == MAX_LISTINGS {
                return Ok(entries);
            }
        }
    }
}

fn entry(path: PathBuf, id: SnapshotId, stat: &rustix::fs::Stat, receipts: Option<&Dir>) -> SnapshotEntry {
    let (state, manifest) = match peek(&path) {
        Err(Error::Damaged { reason, .. }) => (SnapshotState::Damaged(reason), None),
        Err(Error::Newer { version, .. }) => (SnapshotState::Newer(version), None),
        Err(e) => (SnapshotState::Unreadable(e.to_string()), None),
        Ok((manifest, file_hash)) => {
            let receipt = receipts.and_then(|dir| Receipt::read(dir, &id));
            let covered =
                receipt.is_some_and(|r| r.covers(&FileStamp::from(stat), &file_hash) && r.root == manifest.root);
            (if covered { SnapshotState::Verified } else { SnapshotState::Committed }, Some(manifest))
        }
    };
    SnapshotEntry { id, path, bytes: stat.st_size as u64, state, pinned: false, own: false, manifest }
}

/// A snapshot that lies anywhere, by its path.
pub(super) fn entry_at(path: &Path) -> Result<SnapshotEntry> {
    let path = std::path::absolute(path).map_err(|e| Error::io("resolving", path, e))?;
    let (manifest, _) = peek(&path)?;
    let bytes = fs::length(&fs::open_path(&path)?, &path)?;
    let id = path.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default().into();
    Ok(SnapshotEntry {
        id,
        path,
        bytes,
        state: SnapshotState::Committed,
        pinned: false,
        own: false,
        manifest: Some(manifest),
    })
}
