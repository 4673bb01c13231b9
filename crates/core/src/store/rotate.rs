//! Rotation: what the retention policy does not keep is deleted, and what a user pinned stays.
//!
//! Invariant: only [`Store::apply`] deletes snapshots, and only what a plan says.
//! Deliberately not here: which snapshots stay, and why (retain).

use jiff::Timestamp;

use super::catalogue::{SnapshotEntry, SnapshotState};
use super::handle::Store;
use super::layout::{self, Folder};
use super::retain::{self, RetentionPolicy, RetentionVerdict, SnapshotFacts};
use crate::error::{Error, Result};

impl Store {
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

    pub fn pin(&self, entry: &SnapshotEntry) -> Result<()> {
        self.require_own_file(entry)?;
        self.folder(Folder::Pins)?.write_durably(layout::pin_file(&entry.id), b"")
    }

    pub fn unpin(&self, entry: &SnapshotEntry) -> Result<()> {
        self.require_own_file(entry)?;
        let pins = self.folder(Folder::Pins)?;
        pins.remove(layout::pin_file(&entry.id))?;
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
}

fn fact(entry: &SnapshotEntry) -> Option<SnapshotFacts> {
    let manifest = entry.manifest.as_ref()?;
    Some(SnapshotFacts {
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
