//! Resume: which snapshot a training goes on from.
//!
//! Invariant: a training goes on from the newest snapshot of its run that is healthy and was read back whole. What is
//! passed over or quarantined on the way is logged. Deliberately not here: loading it (read).

use super::catalogue::{SnapshotEntry, SnapshotState};
use super::format;
use super::handle::Store;
use super::lock::StoreLock;
use crate::error::{Error, Result};
use crate::ids::SnapshotId;
use crate::progress::NoProgress;

/// The snapshot to resume from, and why this one.
#[derive(Clone, Debug)]
pub struct ResumeChoice {
    /// The snapshot.
    pub entry: SnapshotEntry,
    /// Why it was chosen, for the log.
    pub why: String,
}

impl Store {
    /// The newest healthy snapshot of the run that is verified or verifies now. Those that fail are quarantined, those
    /// that are unhealthy passed over; `log` is told.
    pub fn choose_resume(
        &self,
        lock: &StoreLock,
        threads: usize,
        log: &mut dyn FnMut(String),
    ) -> Result<Option<ResumeChoice>> {
        let mut passed_over = Vec::new();
        let mut unreadable = None;
        let (broken, entries): (Vec<SnapshotEntry>, Vec<SnapshotEntry>) =
            self.entries()?.into_iter().partition(|e| e.manifest.is_none());
        // How new a snapshot without a manifest is cannot be known: these come first. A name proves nothing.
        for entry in broken.into_iter().chain(entries) {
            let reason = match &entry.state {
                SnapshotState::Damaged(reason) => reason.clone(),
                SnapshotState::Unreadable(reason) => {
                    log(format!("{} cannot be read ({reason}): passed over", entry.id));
                    passed_over.push(entry.id.clone());
                    unreadable = Some(reason.clone());
                    continue;
                }
                // To go on from an older one would fork the training that a later release has continued.
                SnapshotState::Newer(version) => {
                    return Err(Error::Newer { path: entry.path, version: *version, known: format::VERSION });
                }
                _ if !entry.own => continue,
                _ if !entry.healthy() => {
                    log(format!("{} is unhealthy (its parameters or loss are not finite): passed over", entry.id));
                    passed_over.push(entry.id.clone());
                    continue;
                }
                SnapshotState::Verified => return Ok(Some(chosen(entry, &passed_over))),
                SnapshotState::Committed => match self.verify(&entry, threads, &NoProgress) {
                    Ok(_) => {
                        return Ok(Some(chosen(
                            SnapshotEntry { state: SnapshotState::Verified, ..entry },
                            &passed_over,
                        )));
                    }
                    Err(Error::Damaged { reason, .. }) => reason,
                    Err(e) => {
                        log(format!("{} cannot be verified ({e}): passed over", entry.id));
                        passed_over.push(entry.id.clone());
                        unreadable = Some(e.to_string());
                        continue;
                    }
                },
            };
            let aside = self.quarantine(lock, &entry, &reason)?;
            log(format!("{} is damaged ({reason}): moved to {}", entry.id, aside.display()));
            passed_over.push(entry.id.clone());
        }
        match unreadable {
            // The snapshots may be whole: starting from step 0 beside them would lose the training.
            Some(reason) => Err(Error::Other(format!(
                "no snapshot in {} can be read now ({reason}); see to the disk and the permissions, then run again",
                self.path().display()
            ))),
            None => Ok(None),
        }
    }
}

fn chosen(entry: SnapshotEntry, passed_over: &[SnapshotId]) -> ResumeChoice {
    let names: Vec<&str> = passed_over.iter().map(SnapshotId::as_str).collect();
    let why = match passed_over {
        [] => "the newest verified snapshot".to_owned(),
        _ => format!("the newest verified snapshot after {} could not be used", names.join(", ")),
    };
    ResumeChoice { entry, why }
}
