//! An open store: its folders, the run that it belongs to, the lock.
//!
//! Invariant: everything is answered from what is on the disk now, never from memory.
//! Deliberately not here: what lies in the folders (catalogue), what becomes of it (rotate, quarantine, clean).

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::format::Manifest;
use super::layout::{self, Folder};
use super::lock::{self, LastSession, StoreLock};
use super::peek::peek;
use crate::error::{Error, Result};
use crate::ids::RunId;
use crate::os::dir::Dir;
use crate::os::fs;

/// An open store.
#[derive(Debug)]
pub struct Store {
    pub(super) dir: Dir,
}

#[derive(Serialize, Deserialize)]
struct RunRecord {
    run_id: RunId,
}

impl Store {
    /// Opens the store at `path`, and makes what is missing of its folders (0700).
    pub fn create(path: &Path) -> Result<Store> {
        let store = Store { dir: Dir::create(path)? };
        for folder in Folder::ALL {
            match store.dir.make_dir(folder.name()) {
                // A store of an earlier release on a full disk: its snapshots come first.
                Err(Error::NoSpace { .. }) if folder == Folder::History => {}
                made => made?,
            }
        }
        store.dir.sync()?;
        Ok(store)
    }

    /// Opens the store at `path`, which must be there; it may be read-only.
    pub fn open(path: &Path) -> Result<Store> {
        if !fs::is_dir(&path.join(Folder::Snapshots.name())) {
            return Err(Error::NotFound(format!(
                "{} is no ckptd store: it has no folder {:?}",
                path.display(),
                Folder::Snapshots.name()
            )));
        }
        Ok(Store { dir: Dir::open(path)? })
    }

    /// Where the store is.
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
    pub(super) fn files(&self, folder: Folder) -> Result<Vec<String>> {
        self.dir.open_dir(folder.name())?.map_or(Ok(Vec::new()), |dir| dir.files())
    }

    /// Takes the store for this process and the children that it starts. `holder` says who that is.
    pub fn lock(&self, holder: &str) -> Result<StoreLock> {
        StoreLock::take(&self.dir, holder)
    }

    /// What became of the session that had the store last.
    pub fn last_session(&self) -> Result<LastSession> {
        LastSession::read(&self.dir)
    }

    /// The processes that have a lock file open, its worker's included, as far as this process may see them.
    pub fn lock_holders(&self) -> Vec<u32> {
        let mut holders = lock::holders(&self.dir);
        holders.extend(self.worker_holder().ok().flatten());
        holders.sort_unstable();
        holders.dedup();
        holders
    }

    /// The training that the store belongs to; `None` in an empty store.
    pub fn run_id(&self) -> Result<Option<RunId>> {
        match self.dir.read_small(layout::RUN, 4096)? {
            Some(bytes) => match serde_json::from_slice::<RunRecord>(&bytes) {
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

    /// Makes the store that of a run, durably.
    pub fn set_run_id(&self, _lock: &StoreLock, run_id: impl Into<RunId>) -> Result<()> {
        let json = serde_json::to_vec(&RunRecord { run_id: run_id.into() })
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
        Ok(ours.map(|name| peek(&folder.join(name)).ok().map(|(manifest, _)| manifest)).collect())
    }
}
