//! The store: one folder a job, and in it whole, durable, verified snapshots.
//!
//! Reading order: [`layout`] (names), [`format`] (the file), [`codec`] (a chunk), [`commit`] (over `write`), [`read`],
//! [`verify`], `catalogue`, `resume`, [`retain`], [`lock`]; [`fs`] is below all of them, and [`seam`] below that.
//!
//! Invariant: whatever is asked of a store is answered from what is on the disk now, never from memory. Order comes
//! from (run, sequence number) in the manifests. Damaged files are moved aside, not deleted; only [`Store::prune`]
//! deletes snapshots.

mod catalogue;
pub mod commit;
pub mod format;
pub mod layout;
pub mod lock;
pub mod read;
pub mod records;
mod resume;
pub mod retain;
pub mod verify;

use std::path::Path;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

pub use crate::os::block_writer::BlockWriter;
pub use catalogue::{QuarantinedFile, SnapshotEntry, SnapshotState};
pub use commit::{CommitHandle, CommitOptions, CommitPace, Committed, commit};
pub use format::Manifest;
pub use lock::{LastSession, SessionEnding, StoreLock};
pub use read::SnapshotReader;
pub use records::Record;
pub use resume::ResumeChoice;
pub use retain::{RetentionPolicy, RetentionVerdict};
pub use verify::Receipt;

use crate::error::{Error, Result};
use crate::os::fs::{self, Dir};
use layout::Folder;

/// An open store.
#[derive(Debug)]
pub struct Store {
    dir: Dir,
}

#[derive(Serialize, Deserialize)]
struct Run {
    run_id: String,
}

impl Store {
    /// Opens the store at `path`, and makes what is missing of its folders (0700).
    pub fn create(path: &Path) -> Result<Store> {
        let store = Store { dir: Dir::create(path)? };
        for folder in Folder::ALL {
            store.dir.make_dir(folder.name())?;
        }
        store.dir.sync()?;
        Ok(store)
    }

    /// Opens the store at `path`, which must be there; it may be read-only.
    pub fn open(path: &Path) -> Result<Store> {
        if !fs::is_folder(&path.join(Folder::Snapshots.name())) {
            return Err(Error::NotFound(format!(
                "{} is no ckptd store: it has no folder {:?}",
                path.display(),
                Folder::Snapshots.name()
            )));
        }
        Ok(Store { dir: Dir::open(path)? })
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// An open folder of the store.
    pub fn folder(&self, folder: Folder) -> Result<Dir> {
        let missing =
            || Error::NotFound(format!("the store {} has no folder {:?}", self.path().display(), folder.name()));
        self.dir.open_dir(folder.name())?.ok_or_else(missing)
    }

    /// Files of a folder; none where the folder is missing (a read-only or partly copied store).
    fn files(&self, folder: Folder) -> Result<Vec<String>> {
        self.dir.open_dir(folder.name())?.map_or(Ok(Vec::new()), |dir| dir.files())
    }

    /// Takes the store for this process and the children that it starts. `holder` says who that is.
    pub fn lock(&self, holder: &str) -> Result<StoreLock> {
        StoreLock::take(&self.dir, holder)
    }

    /// The training that the store belongs to; `None` in an empty store.
    pub fn run_id(&self) -> Result<Option<String>> {
        match self.dir.read_small(layout::RUN, 4096)? {
            Some(bytes) => match serde_json::from_slice::<Run>(&bytes) {
                Ok(run) => Ok(Some(run.run_id)),
                Err(e) => Err(Error::damaged(
                    self.dir.join(layout::RUN),
                    format!("{e}; delete it to take over the newest run"),
                )),
            },
            // Snapshots that were copied into a fresh store bring their run with them.
            None => Ok(self
                .manifests(Folder::Snapshots)?
                .into_iter()
                .flatten()
                .max_by_key(|m| (m.created_at, m.seq))
                .map(|m| m.run_id)),
        }
    }

    pub fn set_run_id(&self, run_id: &str) -> Result<()> {
        let json = serde_json::to_vec(&Run { run_id: run_id.into() })
            .map_err(|e| Error::Other(format!("writing {}: {e}", layout::RUN)))?;
        self.dir.write_durably(layout::RUN, &json)
    }

    /// A sequence number after every one that was used, quarantined snapshots included. Each of those that cannot be
    /// read now may have had one more.
    pub fn next_seq(&self) -> Result<u64> {
        let run_id = self.run_id()?;
        let both = self.manifests(Folder::Snapshots)?.into_iter().chain(self.manifests(Folder::Quarantine)?);
        let (read, unread): (Vec<_>, Vec<_>) = both.partition(Option::is_some);
        let used = read.into_iter().flatten().filter(|m| Some(&m.run_id) == run_id.as_ref()).map(|m| m.seq).max();
        Ok(used.unwrap_or(0) + 1 + unread.len() as u64)
    }

    /// Manifests of the snapshots in a folder, `None` for those that cannot be read.
    fn manifests(&self, folder: Folder) -> Result<Vec<Option<Manifest>>> {
        let files = self.files(folder)?;
        let folder = self.path().join(folder.name());
        let ours = files.iter().filter(|name| layout::parse_set_aside(name).is_some());
        Ok(ours.map(|name| read::peek(&folder.join(name)).ok().map(|(manifest, _)| manifest)).collect())
    }

    pub fn pin(&self, entry: &SnapshotEntry) -> Result<()> {
        self.require_own_file(entry)?;
        self.folder(Folder::Pins)?.write_durably(&entry.id, b"")
    }

    pub fn unpin(&self, entry: &SnapshotEntry) -> Result<()> {
        self.require_own_file(entry)?;
        let pins = self.folder(Folder::Pins)?;
        pins.remove(&entry.id)?;
        pins.sync()
    }

    fn require_own_file(&self, entry: &SnapshotEntry) -> Result<()> {
        let ours = self.folder(Folder::Snapshots)?.join(&layout::snapshot_file(&entry.id));
        match ours == entry.path {
            true => Ok(()),
            false => {
                Err(Error::NotFound(format!("{} does not lie in {}", entry.path.display(), self.path().display())))
            }
        }
    }

    /// What retention would keep and delete.
    pub fn plan(&self, policy: &RetentionPolicy, now: Timestamp) -> Result<Vec<RetentionVerdict>> {
        let facts: Vec<retain::SnapshotFacts> = self.entries()?.iter().filter_map(fact).collect();
        Ok(retain::plan(&facts, policy, now))
    }

    /// Plans and applies the plan; the caller holds the lock.
    pub fn prune(&self, policy: &RetentionPolicy, now: Timestamp) -> Result<Vec<RetentionVerdict>> {
        let plan = self.plan(policy, now)?;
        self.apply(&plan)?;
        Ok(plan)
    }

    /// Deletes what the plan does not keep; the caller has held the lock since before it was made.
    pub fn apply(&self, plan: &[RetentionVerdict]) -> Result<()> {
        let (snapshots, receipts) = (self.folder(Folder::Snapshots)?, self.folder(Folder::Receipts)?);
        for verdict in plan.iter().filter(|v| !v.keep) {
            snapshots.remove(&layout::snapshot_file(&verdict.id))?;
            receipts.remove(&layout::receipt_file(&verdict.id))?;
        }
        if plan.iter().any(|v| !v.keep) {
            snapshots.sync()?;
        }
        Ok(())
    }

    /// Removes what killed writers left; the caller holds the lock. Returns how many files that were.
    pub fn clean_staging(&self) -> Result<usize> {
        let staging = self.folder(Folder::Staging)?;
        let leftovers = staging.files()?;
        leftovers.iter().try_for_each(|name| staging.remove(name))?;
        Ok(leftovers.len() + self.clean_temporary()?)
    }

    /// Removes the halves of small files that killed processes left. Who still runs may be writing one without the lock.
    fn clean_temporary(&self) -> Result<usize> {
        let mut cleaned = 0;
        let below = [Folder::Quarantine, Folder::Receipts, Folder::Pins].map(|folder| self.dir.open_dir(folder.name()));
        for dir in below.into_iter().collect::<Result<Vec<_>>>()?.iter().flatten().chain([&self.dir]) {
            for name in dir.files()? {
                if layout::parse_temporary_file(&name).is_some_and(lock::is_over) {
                    dir.remove(&name)?;
                    cleaned += 1;
                }
            }
        }
        Ok(cleaned)
    }
}

fn fact(entry: &SnapshotEntry) -> Option<retain::SnapshotFacts> {
    let manifest = entry.manifest.as_ref()?;
    Some(retain::SnapshotFacts {
        id: entry.id.clone(),
        own: entry.own,
        seq: manifest.seq,
        step: manifest.train.step,
        created_at: manifest.created_at,
        bytes: entry.bytes,
        verified: entry.state == SnapshotState::Verified,
        healthy: manifest.healthy,
        val_loss: entry.val_loss(),
        pinned: entry.pinned,
    })
}
