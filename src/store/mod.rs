//! The store: one folder a job, and in it whole, durable, verified snapshots.
//!
//! Reading order: [`layout`] (names), [`format`] (the file), [`codec`] (a chunk), [`commit`] (over `write`), [`read`],
//! [`verify`], `resume`, [`retain`], [`lock`]; [`fs`] is below all of them, and [`seam`] below that.
//!
//! Invariant: whatever is asked of a store is answered from what is on the disk now, never from memory. Order comes
//! from (run, sequence number) in the manifests. Damaged files are moved aside, not deleted; only [`Store::prune`]
//! deletes snapshots.

pub mod codec;
pub mod commit;
pub mod format;
pub mod fs;
mod job;
pub mod layout;
mod ledger;
pub mod lock;
pub mod read;
mod resume;
pub mod retain;
pub mod seam;
pub mod verify;
mod write;

use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

pub use commit::{CommitOptions, Committed, Control, Pace, commit};
pub use format::Manifest;
pub use lock::{Ending, LastSession, Lock};
pub use read::Reader;
pub use resume::Chosen;
pub use retain::Verdict;
pub use verify::Receipt;
pub use write::BlockWriter;

use crate::config::Retention;
use crate::error::{Error, Result};
use fs::Dir;
use layout::Folder;

/// An open store.
#[derive(Debug)]
pub struct Store {
    dir: Dir,
}

/// A file in `snapshots/` (or, through [`Store::find`], elsewhere).
#[derive(Clone, Debug)]
pub struct Entry {
    pub id: String,
    pub path: PathBuf,
    pub bytes: u64,
    pub state: State,
    pub pinned: bool,
    /// Belongs to the store's run.
    pub own: bool,
    /// `None` where it cannot be read.
    pub manifest: Option<Manifest>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
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

/// A file in `quarantine/`.
#[derive(Clone, Debug)]
pub struct Quarantined {
    pub name: String,
    pub path: PathBuf,
    pub bytes: u64,
    pub reason: String,
}

#[derive(Serialize, Deserialize)]
struct Run {
    run_id: String,
}

/// Looks at a store whose snapshots vanish each time; a rotation takes far longer than a look.
const MOST_LOOKS: usize = 20;

impl Entry {
    /// Steps completed; 0 where the manifest cannot be read.
    pub fn step(&self) -> u64 {
        self.manifest.as_ref().map_or(0, |m| m.train.step)
    }

    pub fn seq(&self) -> u64 {
        self.manifest.as_ref().map_or(0, |m| m.seq)
    }

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
    pub fn lock(&self, holder: &str) -> Result<Lock> {
        Lock::take(&self.dir, holder)
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

    /// All snapshots, newest first: the store's run by sequence number, then others, then those that cannot be read.
    pub fn entries(&self) -> Result<Vec<Entry>> {
        let run_id = self.run_id()?;
        let pins = self.files(Folder::Pins)?;
        let mut entries = self.look()?;
        for entry in &mut entries {
            entry.own = entry.manifest.as_ref().is_some_and(|m| Some(&m.run_id) == run_id.as_ref());
            entry.pinned = pins.contains(&entry.id);
        }
        let order = |e: &Entry| {
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

    /// What lies in `snapshots/`, in no order. A rotation meanwhile takes away what an earlier part of the look knew the
    /// successor of as not verified yet: half of one must not be seen, so the look begins again.
    fn look(&self) -> Result<Vec<Entry>> {
        let snapshots = self.folder(Folder::Snapshots)?;
        let receipts = self.dir.open_dir(Folder::Receipts.name())?;
        let mut looks = 0;
        loop {
            looks += 1;
            let mut gone = false;
            let mut entries = Vec::new();
            for name in snapshots.files()? {
                let Some(id) = layout::parse_snapshot_file(&name) else { continue };
                let found =
                    snapshots.stat(&name)?.map(|stat| entry(snapshots.join(&name), id, &stat, receipts.as_ref()));
                match found {
                    Some(entry) if entry.state == State::Verified || snapshots.stat(&name)?.is_some() => {
                        entries.push(entry)
                    }
                    _ => gone = true,
                }
            }
            if !gone || looks == MOST_LOOKS {
                return Ok(entries);
            }
        }
    }

    pub fn quarantined(&self) -> Result<Vec<Quarantined>> {
        let Some(dir) = self.dir.open_dir(Folder::Quarantine.name())? else { return Ok(Vec::new()) };
        let mut found = Vec::new();
        let ours = |name: &String| !name.ends_with(".txt") && layout::parse_temporary_file(name).is_none();
        for name in dir.files()?.into_iter().filter(ours) {
            let reason = dir.read_small(&layout::reason_file(&name), 64 << 10)?.unwrap_or_default();
            found.push(Quarantined {
                path: dir.join(&name),
                bytes: dir.stat(&name)?.map_or(0, |s| s.st_size as u64),
                reason: String::from_utf8_lossy(&reason).trim().to_owned(),
                name,
            });
        }
        found.sort_by(|a, b| b.name.cmp(&a.name));
        Ok(found)
    }

    /// `latest` (healthy, of the store's run, verified before committed), `best`, a step, an id, or a file's path.
    pub fn find(&self, spec: &str) -> Result<Entry> {
        let entries = self.entries()?;
        let none = |what: &str| Error::NotFound(format!("the store {} has no {what}", self.path().display()));
        let good = || entries.iter().filter(|e| e.own && e.healthy());
        match spec {
            "latest" => {
                let verified = good().find(|e| e.state == State::Verified);
                let latest = verified.or_else(|| good().next()).ok_or_else(|| none("healthy snapshot yet"))?;
                self.require_readable_since(latest, &entries)?;
                Ok(latest.clone())
            }
            "best" => good()
                .filter_map(|e| Some((e.val_loss().filter(|l| l.is_finite())?, e)))
                .min_by(|a, b| a.0.total_cmp(&b.0))
                .map(|(_, e)| e.clone())
                .ok_or_else(|| none("snapshot with a validation loss; see [train] eval_every")),
            _ => {
                let step = spec.parse::<u64>().ok();
                let named =
                    |e: &&Entry| e.id == spec || (step.is_some() && e.manifest.is_some() && step == Some(e.step()));
                if let Some(entry) = entries.iter().find(named) {
                    return Ok(entry.clone());
                }
                match Path::new(spec) {
                    path if step.is_none() && path.is_file() => entry_at(path),
                    _ => Err(none(&format!("snapshot {spec:?}; `ckptd list` shows what is there"))),
                }
            }
        }
    }

    /// An older snapshot must not pass for the latest because the disk does not answer for a newer one.
    fn require_readable_since(&self, latest: &Entry, entries: &[Entry]) -> Result<()> {
        let newer = |e: &&Entry| layout::step_of(&e.id).is_some_and(|step| step > latest.step());
        match entries.iter().filter(newer).find_map(|e| match &e.state {
            State::Unreadable(reason) => Some((e, reason)),
            _ => None,
        }) {
            Some((entry, reason)) => Err(Error::Other(format!(
                "{} may be newer than {} and cannot be read now ({reason}); see to the disk, or name the snapshot",
                entry.id, latest.id
            ))),
            None => Ok(()),
        }
    }

    pub fn pin(&self, entry: &Entry) -> Result<()> {
        self.require_own_file(entry)?;
        self.folder(Folder::Pins)?.write_durably(&entry.id, b"")
    }

    pub fn unpin(&self, entry: &Entry) -> Result<()> {
        self.require_own_file(entry)?;
        let pins = self.folder(Folder::Pins)?;
        pins.remove(&entry.id)?;
        pins.sync()
    }

    fn require_own_file(&self, entry: &Entry) -> Result<()> {
        let ours = self.folder(Folder::Snapshots)?.join(&layout::snapshot_file(&entry.id));
        match ours == entry.path {
            true => Ok(()),
            false => {
                Err(Error::NotFound(format!("{} does not lie in {}", entry.path.display(), self.path().display())))
            }
        }
    }

    /// What retention would keep and delete.
    pub fn plan(&self, policy: &Retention, now: Timestamp) -> Result<Vec<Verdict>> {
        let facts: Vec<retain::Fact> = self.entries()?.iter().filter_map(fact).collect();
        Ok(retain::plan(&facts, policy, now))
    }

    /// Plans and applies the plan; the caller holds the lock.
    pub fn prune(&self, policy: &Retention, now: Timestamp) -> Result<Vec<Verdict>> {
        let plan = self.plan(policy, now)?;
        self.apply(&plan)?;
        Ok(plan)
    }

    /// Deletes what the plan does not keep; the caller has held the lock since before it was made.
    pub fn apply(&self, plan: &[Verdict]) -> Result<()> {
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

fn fact(entry: &Entry) -> Option<retain::Fact> {
    let manifest = entry.manifest.as_ref()?;
    Some(retain::Fact {
        id: entry.id.clone(),
        own: entry.own,
        seq: manifest.seq,
        step: manifest.train.step,
        created_at: manifest.created_at,
        bytes: entry.bytes,
        verified: entry.state == State::Verified,
        healthy: manifest.healthy,
        val_loss: entry.val_loss(),
        pinned: entry.pinned,
    })
}

fn entry(path: PathBuf, id: &str, stat: &rustix::fs::Stat, receipts: Option<&Dir>) -> Entry {
    let (state, manifest) = match read::peek(&path) {
        Err(Error::Damaged { reason, .. }) => (State::Damaged(reason), None),
        Err(Error::Newer { version, .. }) => (State::Newer(version), None),
        Err(e) => (State::Unreadable(e.to_string()), None),
        Ok((manifest, file_hash)) => {
            let receipt = receipts.and_then(|dir| Receipt::read(dir, id));
            let covered = receipt.is_some_and(|r| r.covers(stat, &file_hash) && r.root == manifest.root);
            (if covered { State::Verified } else { State::Committed }, Some(manifest))
        }
    };
    Entry { id: id.to_owned(), path, bytes: stat.st_size as u64, state, pinned: false, own: false, manifest }
}

/// A snapshot that lies anywhere, by its path.
fn entry_at(path: &Path) -> Result<Entry> {
    let path = std::path::absolute(path).map_err(|e| Error::io("resolving", path, e))?;
    let (manifest, _) = read::peek(&path)?;
    let bytes = fs::length(&fs::open_path(&path)?, &path)?;
    let id = path.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
    Ok(Entry { id, path, bytes, state: State::Committed, pinned: false, own: false, manifest: Some(manifest) })
}
