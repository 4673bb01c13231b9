//! Whether a store keeps what was promised.
//!
//! Invariant: what is found is read with nothing but the reader and compared with states that are made anew. Nothing
//! here asks the store's own bookkeeping what it should hold.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use ckptd_core::error::Error;
use ckptd_core::os::dir::Dir;
use ckptd_core::store::{SnapshotReader, layout};
use ckptd_history::reader::{HistoryItem, TrainingHistory};
use ckptd_history::record::HistoryRecord;

use crate::announce::StoreAck;
use crate::promises::Promises;
use crate::{drive, states};

/// What became of saves that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailedSaves {
    MustBeAbsent,
    MayBeThere,
}

/// What follows on a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AfterCheck {
    Nothing,
    SaveOnceMore,
}

impl Promises {
    /// Looks at the store as it lies there, starts on it twice, and goes on as asked. Returns what is broken.
    pub fn check(&self, store: &Path, failed: FailedSaves, then: AfterCheck) -> Vec<String> {
        let mut broken = self.broken.clone();
        self.check_files(store, failed, &mut broken);
        let mut first = None;
        for again in [false, true] {
            let mut after = self.clone();
            after.broken.clear();
            match drive::recover(store, self.seed) {
                Ok(chosen) => {
                    after.check_resume(chosen);
                    if *first.get_or_insert(chosen) != chosen {
                        broken.push(format!("a second start chose {chosen:?} and not {first:?} again"));
                    }
                }
                Err(e) => broken.push(format!("a start {}fails: {e}", if again { "after a start " } else { "" })),
            }
            broken.append(&mut after.broken);
            if !is_empty(&store.join("staging")) {
                broken.push("staging/ is not empty after a start".into());
            }
            self.check_files(store, failed, &mut broken);
        }
        if then == AfterCheck::SaveOnceMore {
            self.check_next(store, &mut broken);
        }
        broken.dedup();
        broken
    }

    /// One more round, which nothing may hinder.
    fn check_next(&self, store: &Path, broken: &mut Vec<String>) {
        let mut after = self.clone();
        after.broken.clear();
        after.errors.clear();
        let mut saved = None;
        drive::session(store, self.seed, 1, &mut |ack| {
            if let StoreAck::Committed { seq, .. } = &ack {
                saved = Some(*seq);
            }
            after.note(&ack);
        });
        if saved.is_none() {
            broken.push(format!("nothing can be saved any more: {:?}", after.errors));
        }
        after.check_files(store, FailedSaves::MayBeThere, broken);
        broken.append(&mut after.broken);
    }

    /// Every file under `snapshots/` is whole and what was saved, and everything that was promised is there.
    fn check_files(&self, store: &Path, failed: FailedSaves, broken: &mut Vec<String>) {
        let mut present = BTreeSet::new();
        for name in names(&store.join("snapshots")) {
            let path = store.join("snapshots").join(&name);
            let Some(id) = layout::parse_snapshot_file(&name) else {
                broken.push(format!("snapshots/{name} is no snapshot"));
                continue;
            };
            if self.damaged.values().any(|(damaged, hash)| *damaged == id && file_hash(&path).as_ref() == Some(hash)) {
                continue;
            }
            match whole(&path, self.seed) {
                Ok(seq) => present.insert(seq),
                Err(what) => {
                    broken.push(format!("snapshots/{name} {what}"));
                    continue;
                }
            };
        }
        for seq in self.committed.keys().filter(|s| !self.leaving.contains(s) && !self.damaged.contains_key(s)) {
            if !present.contains(seq) {
                broken.push(format!("snapshot {seq} was announced as durable and is gone"));
            }
        }
        for seq in self.failed.iter().filter(|seq| failed == FailedSaves::MustBeAbsent && present.contains(seq)) {
            broken.push(format!("snapshot {seq} is there though its save failed"));
        }
        for id in self.pinned.values().filter(|id| !store.join("pins").join(layout::pin_file(id)).exists()) {
            broken.push(format!("the pin of {id} is gone"));
        }
        if self.run.is_some() && !store.join(layout::RUN).exists() {
            broken.push("the store no longer knows its run".into());
        }
        self.check_quarantine(store, broken);
        if let Err(what) = self.check_history(&store.join("history")) {
            broken.push(format!("the history {what}"));
        }
    }

    /// Every row that was announced is in the history, and every row in it is what was written, once and in order.
    fn check_history(&self, folder: &Path) -> Result<(), String> {
        if self.kept.is_empty() && !folder.exists() {
            return Ok(());
        }
        let read = |e: Error| format!("cannot be read: {e}");
        let history = TrainingHistory::read_folder(&Dir::open(folder).map_err(read)?, 0).map_err(read)?;
        let (mut rows, mut problems) = (Vec::new(), Vec::new());
        let take = &mut |item: HistoryItem| {
            if let HistoryRecord::Step(row) = item.record {
                rows.push(row);
            }
            Ok(())
        };
        history.each(take, &mut |problem| problems.push(problem)).map_err(read)?;
        if let Some(row) = rows.iter().find(|row| **row != states::row(self.seed, row.step / states::step_of(1))) {
            return Err(format!("holds a row that nobody wrote: {row:?}"));
        }
        if !rows.is_sorted_by(|one, next| one.step < next.step) {
            return Err(format!("is out of order: {:?}", rows.iter().map(|row| row.step).collect::<Vec<_>>()));
        }
        match self.kept.iter().find(|seq| !rows.iter().any(|row| row.step == states::step_of(**seq))) {
            Some(seq) => Err(format!("lacks the row of {seq}: {problems:?}, {:?}", history.problems)),
            None => Ok(()),
        }
    }

    /// What was set aside or damaged is kept: in `quarantine/`, or still where it was.
    fn check_quarantine(&self, store: &Path, broken: &mut Vec<String>) {
        let aside: Vec<_> = names(&store.join("quarantine")).iter().map(|n| store.join("quarantine").join(n)).collect();
        for (seq, id) in &self.discarded {
            let file = layout::snapshot_file(id);
            let kept = |path: &&PathBuf| {
                path.file_name().is_some_and(|n| n.to_string_lossy().starts_with(&file))
                    && whole(path, self.seed) == Ok(*seq)
            };
            if !aside.iter().any(|path| kept(&path)) {
                broken.push(format!("{id} was quarantined and is not in quarantine/"));
            }
        }
        for (id, hash) in self.damaged.values() {
            let snapshots = store.join("snapshots").join(layout::snapshot_file(id));
            if !aside.iter().chain([&snapshots]).any(|path| file_hash(path).as_ref() == Some(hash)) {
                broken.push(format!("the damaged {id} was deleted"));
            }
        }
    }
}

/// The sequence number of a snapshot that is whole and equals what was saved under that number.
fn whole(path: &Path, seed: u64) -> Result<u64, String> {
    let reader = SnapshotReader::open(path).map_err(|e| format!("is not whole: {e}"))?;
    let read = reader.read_snapshot().map_err(|e| format!("is not whole: {e}"))?;
    let seq = reader.manifest().seq;
    if states::equal(&read, &states::snapshot(seed, seq)) {
        Ok(seq)
    } else {
        Err(format!("holds other bytes than were saved as {seq}"))
    }
}

fn file_hash(path: &Path) -> Option<String> {
    Some(blake3::hash(&std::fs::read(path).ok()?).to_hex().to_string())
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// Whether the history of the store ends with half a batch.
pub fn history_is_torn(store: &Path) -> bool {
    let read = Dir::open(&store.join("history")).and_then(|folder| TrainingHistory::read_folder(&folder, 0));
    read.is_ok_and(|history| history.torn_bytes > 0)
}

fn is_empty(folder: &Path) -> bool {
    names(folder).is_empty()
}
