//! Which snapshot a name means, and what is passed over for it.
//!
//! Invariant: a name that means the newest or the best never hides a file that may be newer, or better, than the one
//! that it gives: such a file is returned beside it, with the reason. Deliberately not here: what is done about it.

use std::path::Path;

use super::catalogue::{SnapshotEntry, SnapshotState, entry_at};
use super::handle::Store;
use super::layout::{self, Folder};
use super::receipt::Receipt;
use crate::error::{Error, Result};

/// What a name means.
#[derive(Clone, Debug)]
pub struct SnapshotChoice {
    /// The snapshot.
    pub entry: SnapshotEntry,
    /// What may be newer than it (or, for `best`, better) and was not taken; those that cannot be read first, then the
    /// newest.
    pub passed_over: Vec<PassedOver>,
}

/// A snapshot that was not taken.
#[derive(Clone, Debug)]
pub struct PassedOver {
    /// The snapshot.
    pub entry: SnapshotEntry,
    /// Why, as a clause: "it is damaged: ...".
    pub reason: String,
}

impl Store {
    /// `latest` (healthy, of the store's run, verified before committed), `best`, a step, an id, or a file's path; and
    /// what that passes over.
    pub fn choose(&self, spec: impl AsRef<str>) -> Result<SnapshotChoice> {
        let spec = spec.as_ref();
        let entries = self.entries()?;
        match spec {
            "latest" => self.latest(&entries),
            "best" => self.best(&entries),
            _ => self.named(spec, &entries),
        }
    }

    /// The snapshot of [`Store::choose`] alone, for callers to whom a name is one that they were given.
    pub fn find(&self, spec: impl AsRef<str>) -> Result<SnapshotEntry> {
        Ok(self.choose(spec)?.entry)
    }

    fn latest(&self, entries: &[SnapshotEntry]) -> Result<SnapshotChoice> {
        let good = || entries.iter().filter(|e| e.own && e.healthy());
        let verified = good().find(|e| e.state == SnapshotState::Verified);
        let latest = verified.or_else(|| good().next()).ok_or_else(|| self.none("healthy snapshot", entries))?;
        self.require_readable_since(latest, entries)?;
        let passed_over = entries.iter().filter(|e| self.may_be_newer(e, latest));
        Ok(SnapshotChoice { entry: latest.clone(), passed_over: self.passed_over(passed_over) })
    }

    fn best(&self, entries: &[SnapshotEntry]) -> Result<SnapshotChoice> {
        let good = entries.iter().filter(|e| e.own && e.healthy());
        let best = good
            .filter_map(|e| Some((e.val_loss().filter(|l| l.is_finite())?, e)))
            .min_by(|a, b| a.0.total_cmp(&b.0))
            .map(|(_, e)| e.clone())
            .ok_or_else(|| self.none("snapshot with a validation loss (see [train] eval_every)", entries))?;
        // How good a file is that cannot be read is not known.
        Ok(SnapshotChoice { entry: best, passed_over: self.passed_over(entries.iter().filter(is_broken)) })
    }

    fn named(&self, spec: &str, entries: &[SnapshotEntry]) -> Result<SnapshotChoice> {
        let step = spec.parse::<u64>().ok();
        let alone = |entry: SnapshotEntry| SnapshotChoice { entry, passed_over: Vec::new() };
        if let Some(entry) = entries.iter().find(|e| e.id == spec) {
            return Ok(alone(entry.clone()));
        }
        // Of a file that cannot be read only its name says the step.
        let of_step = |e: &&SnapshotEntry| step.is_some() && step == e.manifest.as_ref().map(|m| m.train.step);
        let may_be_of_step = |e: &&SnapshotEntry| step.is_some() && is_broken(e) && step == layout::step_of(&e.id);
        if let Some(entry) = entries.iter().find(of_step) {
            let passed_over = entries.iter().filter(may_be_of_step).filter(|e| self.may_be_newer(e, entry));
            return Ok(SnapshotChoice { entry: entry.clone(), passed_over: self.passed_over(passed_over) });
        }
        if let Some(entry) = entries.iter().find(may_be_of_step) {
            return Ok(alone(entry.clone()));
        }
        match Path::new(spec) {
            path if step.is_none() && path.is_file() => entry_at(path).map(alone),
            _ => Err(Error::NotFound(format!(
                "the store {} has no snapshot {spec:?}; `ckptd list` shows what is there",
                self.path().display()
            ))),
        }
    }

    /// An older snapshot must not pass for the latest because the disk does not answer for a newer one.
    fn require_readable_since(&self, latest: &SnapshotEntry, entries: &[SnapshotEntry]) -> Result<()> {
        let newer = |e: &&SnapshotEntry| layout::step_of(&e.id).is_some_and(|step| step > latest.step());
        match entries.iter().filter(newer).find_map(|e| match &e.state {
            SnapshotState::Unreadable(reason) => Some((e, reason)),
            _ => None,
        }) {
            Some((entry, reason)) => Err(Error::Other(format!(
                "{} may be newer than {} and cannot be read now ({reason}); see to the disk, or name the snapshot",
                entry.id, latest.id
            ))),
            None => Ok(()),
        }
    }

    /// Whether `entry` is of a later moment than `chosen`, as far as can be known: by its sequence number, and where it
    /// cannot be read by its name or by when it was read back.
    fn may_be_newer(&self, entry: &SnapshotEntry, chosen: &SnapshotEntry) -> bool {
        if entry.manifest.is_some() {
            return entry.own && entry.seq() > chosen.seq();
        }
        let verified_at = self.receipt(entry).map(|receipt| receipt.verified_at);
        let taken_at = chosen.manifest.as_ref().map(|manifest| manifest.created_at);
        layout::order_of(&entry.id) > layout::order_of(&chosen.id)
            || verified_at.zip(taken_at).is_some_and(|(verified, taken)| verified > taken)
    }

    fn receipt(&self, entry: &SnapshotEntry) -> Option<Receipt> {
        let receipts = self.dir.open_dir(Folder::Receipts.name()).ok()??;
        Receipt::read(&receipts, &entry.id)
    }

    fn passed_over<'a>(&self, entries: impl Iterator<Item = &'a SnapshotEntry>) -> Vec<PassedOver> {
        let with_reason = |entry: &SnapshotEntry| PassedOver { entry: entry.clone(), reason: self.reason(entry) };
        let mut passed_over: Vec<PassedOver> = entries.map(with_reason).collect();
        passed_over.sort_by_key(|passed| passed.entry.manifest.is_some());
        passed_over
    }

    /// Why a snapshot is not what a name means.
    fn reason(&self, entry: &SnapshotEntry) -> String {
        match &entry.state {
            SnapshotState::Damaged(reason) => format!("it is damaged: {reason}"),
            SnapshotState::Unreadable(reason) => format!("it cannot be read now: {reason}"),
            SnapshotState::Newer(version) => format!("a newer ckptd wrote it (snapshot format {version})"),
            _ if !entry.healthy() => "it is unhealthy: its parameters or its loss are not finite".to_owned(),
            _ if self.receipt(entry).is_some() => "it was changed after it had been verified".to_owned(),
            _ => "it is not verified yet".to_owned(),
        }
    }

    fn none(&self, what: &str, entries: &[SnapshotEntry]) -> Error {
        let broken: Vec<String> =
            entries.iter().filter(is_broken).map(|e| format!("; {}: {}", e.id, self.reason(e))).collect();
        Error::NotFound(format!("the store {} has no {what}{}", self.path().display(), broken.concat()))
    }
}

fn is_broken(entry: &&SnapshotEntry) -> bool {
    entry.manifest.is_none()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_order_of_two_files_of_one_step_follows_from_their_names() {
        let id = |step, seq| layout::snapshot_id(step, seq);
        assert!(layout::order_of(&id(30, None)) > layout::order_of(&id(20, Some(9))));
        assert!(layout::order_of(&id(30, Some(9))) > layout::order_of(&id(30, None)));
        assert!(layout::order_of(&id(30, Some(10))) > layout::order_of(&id(30, Some(9))));
    }
}
