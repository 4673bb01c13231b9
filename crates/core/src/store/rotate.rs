//! Rotation: what the retention policy does not keep is deleted, and what a user pinned stays.
//!
//! Invariant: only [`Store::apply`] deletes snapshots, and only what a plan says.
//! Deliberately not here: which snapshots stay, and why (retain).

use jiff::Timestamp;

use super::catalogue::{SnapshotEntry, SnapshotState};
use super::handle::Store;
use super::layout::{self, Folder};
use super::lock::StoreLock;
use super::retain::{self, RetentionPolicy, RetentionVerdict, SnapshotFacts};
use crate::error::{Error, Result};

/// Which snapshots a rotation deletes. Only [`Store::plan`] makes one.
#[derive(Debug)]
pub struct RotationPlan {
    verdicts: Vec<RetentionVerdict>,
}

impl RotationPlan {
    /// One per snapshot whose manifest can be read, newest first.
    pub fn verdicts(&self) -> &[RetentionVerdict] {
        &self.verdicts
    }

    /// The verdicts, for those who only show them.
    pub fn into_verdicts(self) -> Vec<RetentionVerdict> {
        self.verdicts
    }
}

impl Store {
    /// What the policy keeps and deletes, as of now. Needs no lock as long as it is only shown.
    pub fn plan(&self, policy: &RetentionPolicy, now: Timestamp) -> Result<RotationPlan> {
        let facts: Vec<SnapshotFacts> = self.entries()?.iter().filter_map(fact).collect();
        Ok(RotationPlan { verdicts: retain::plan(&facts, policy, now) })
    }

    /// Plans and applies the plan, which is returned.
    pub fn prune(&self, lock: &StoreLock, policy: &RetentionPolicy, now: Timestamp) -> Result<Vec<RetentionVerdict>> {
        self.apply(lock, self.plan(policy, now)?)
    }

    /// Deletes what the plan does not keep; the lock has been held since before it was made. Returns its verdicts.
    pub fn apply(&self, _lock: &StoreLock, plan: RotationPlan) -> Result<Vec<RetentionVerdict>> {
        let (snapshots, receipts) = (self.folder(Folder::Snapshots)?, self.folder(Folder::Receipts)?);
        for verdict in plan.verdicts.iter().filter(|v| !v.keeps()) {
            snapshots.remove(&layout::snapshot_file(&verdict.id))?;
            receipts.remove(&layout::receipt_file(&verdict.id))?;
        }
        if plan.verdicts.iter().any(|v| !v.keeps()) {
            snapshots.sync()?;
        }
        Ok(plan.verdicts)
    }

    /// Keeps a snapshot whatever the policy says, until it is unpinned. Needs no lock.
    pub fn pin(&self, entry: &SnapshotEntry) -> Result<()> {
        self.require_own_file(entry)?;
        self.folder(Folder::Pins)?.write_durably(layout::pin_file(&entry.id), b"")
    }

    /// Leaves a snapshot to the policy again. Needs no lock.
    pub fn unpin(&self, entry: &SnapshotEntry) -> Result<()> {
        self.require_own_file(entry)?;
        let pins = self.folder(Folder::Pins)?;
        pins.remove(layout::pin_file(&entry.id))?;
        pins.sync()
    }

    fn require_own_file(&self, entry: &SnapshotEntry) -> Result<()> {
        let ours = self.folder(Folder::Snapshots)?.join(&layout::snapshot_file(&entry.id));
        if ours != entry.path {
            let (path, store) = (entry.path.display(), self.path().display());
            return Err(Error::NotFound(format!("{path} is not in the store {store}")));
        }
        Ok(())
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
