//! Which snapshot a training goes on from: reading back, setting aside what is damaged, choosing.
//!
//! Invariant: a training goes on from the newest snapshot of its run that is healthy and was read back whole; what is passed
//! over or set aside is told. Deliberately not here: loading it (read).

use std::path::PathBuf;

use super::layout::{self, Folder};
use super::{Receipt, SnapshotEntry, SnapshotState, Store, format, verify};
use crate::error::{Error, Result};

/// The snapshot to resume from, and why this one.
#[derive(Clone, Debug)]
pub struct ResumeChoice {
    pub entry: SnapshotEntry,
    pub why: String,
}

impl Store {
    /// Reads a snapshot back from the device, every byte of it, and writes the receipt. Needs no lock.
    pub fn verify(
        &self,
        entry: &SnapshotEntry,
        threads: usize,
        progress: &(dyn Fn(u64) -> bool + Sync),
    ) -> Result<Receipt> {
        let snapshots = self.folder(Folder::Snapshots)?;
        let name = layout::snapshot_file(&entry.id);
        let gone = || Error::NotFound(format!("{} is gone", entry.path.display()));
        let before = snapshots.stat(&name)?.ok_or_else(gone)?;
        let reader = verify::read_back(&entry.path, threads, progress)?;
        // The receipt is for the file that was read: what changes during the reading gets none.
        let receipt = Receipt::new(&reader, &before);
        let after = snapshots.stat(&name)?.ok_or_else(gone)?;
        if !receipt.covers(&after, &reader.file_hash()) {
            return Err(Error::Other(format!(
                "{} was changed while it was read; verify it again",
                entry.path.display()
            )));
        }
        if let Some(receipts) = self.dir.open_dir(Folder::Receipts.name())? {
            match receipt.write(&receipts, &entry.id) {
                // On a read-only or full disk the verification stands, only nobody will remember it.
                Err(Error::NoSpace { .. }) => {}
                Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::ReadOnlyFilesystem => {}
                other => other?,
            }
        }
        Ok(receipt)
    }

    /// Moves a damaged snapshot aside, with the reason in a text file beside it. Returns where it lies now.
    pub fn quarantine(&self, entry: &SnapshotEntry, reason: &str) -> Result<PathBuf> {
        let (snapshots, quarantine) = (self.folder(Folder::Snapshots)?, self.folder(Folder::Quarantine)?);
        let name = layout::snapshot_file(&entry.id);
        let taken = quarantine.files()?;
        let free = (0..).map(|n| layout::set_aside(&name, n)).find(|n| !taken.contains(n));
        let aside = free.unwrap_or_else(|| name.clone());
        match quarantine.write_durably(&layout::reason_file(&aside), format!("{reason}\n").as_bytes()) {
            // A full disk must not leave a damaged snapshot in the way of the whole ones.
            Err(Error::NoSpace { .. }) => {}
            other => other?,
        }
        snapshots.rename_new(&name, &quarantine, &aside)?;
        quarantine.sync()?;
        snapshots.sync()?;
        self.folder(Folder::Receipts)?.remove(&layout::receipt_file(&entry.id))?;
        Ok(quarantine.join(&aside))
    }

    /// The newest healthy snapshot of the run that is verified or verifies now. Those that fail are quarantined, those
    /// that are unhealthy passed over; `log` is told.
    pub fn choose_resume(&self, threads: usize, log: &mut dyn FnMut(String)) -> Result<Option<ResumeChoice>> {
        let mut passed_over = Vec::new();
        let mut unreadable = None;
        let (broken, entries): (Vec<SnapshotEntry>, Vec<SnapshotEntry>) =
            self.entries()?.into_iter().partition(|e| e.manifest.is_none());
        // Without a manifest nobody knows how new these are: they come first, whatever their names say.
        for entry in broken.into_iter().chain(entries) {
            let reason = match &entry.state {
                SnapshotState::Damaged(reason) => reason.clone(),
                SnapshotState::Unreadable(reason) => {
                    log(format!("{} cannot be read ({reason}): passed over", entry.id));
                    passed_over.push(entry.id.clone());
                    unreadable = Some(reason.clone());
                    continue;
                }
                // To go on from an older one would fork the training behind the back of whoever wrote this.
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
                SnapshotState::Committed => match self.verify(&entry, threads, &|_| true) {
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
            let aside = self.quarantine(&entry, &reason)?;
            log(format!("{} is damaged ({reason}): moved to {}", entry.id, aside.display()));
            passed_over.push(entry.id.clone());
        }
        match unreadable {
            // To begin anew beside snapshots that may be whole would be the worst answer.
            Some(reason) => Err(Error::Other(format!(
                "no snapshot in {} can be read now ({reason}); see to the disk and the permissions, then run again",
                self.path().display()
            ))),
            None => Ok(None),
        }
    }
}

fn chosen(entry: SnapshotEntry, passed_over: &[String]) -> ResumeChoice {
    let why = match passed_over {
        [] => "the newest verified snapshot".to_owned(),
        _ => format!("the newest verified snapshot after {} could not be used", passed_over.join(", ")),
    };
    ResumeChoice { entry, why }
}
