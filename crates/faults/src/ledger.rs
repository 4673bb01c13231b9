//! What was promised, and whether the store keeps it.
//!
//! Invariant: promises are taken from announcements, and what is found is read with nothing but the reader and compared
//! with states that are made anew. Nothing here asks the store's own bookkeeping what it should hold.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use ckptd_core::ids::{RunId, SnapshotId};
use ckptd_core::store::{SnapshotReader, layout};
use serde::{Deserialize, Serialize};

use crate::{drive, states};

/// An announcement. One with a participle ("saving") comes before the deed, one in the past after it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "ack", rename_all = "snake_case")]
pub enum Ack {
    Started {
        run: RunId,
    },
    /// A start could not read this one now.
    PassedOver {
        seq: u64,
    },
    Resumed {
        seq: Option<u64>,
    },
    Saving {
        seq: u64,
    },
    Committed {
        seq: u64,
        id: SnapshotId,
    },
    Verifying {
        seq: u64,
    },
    Verified {
        seq: u64,
    },
    Pinned {
        seq: u64,
        id: SnapshotId,
    },
    Unpinning {
        seq: u64,
    },
    Discarding {
        seq: u64,
    },
    Discarded {
        seq: u64,
        id: SnapshotId,
    },
    /// Damaged from outside; the hash of its bytes since then.
    Damaged {
        seq: u64,
        id: SnapshotId,
        hash: String,
    },
    Rotating {
        seqs: Vec<u64>,
    },
    Rotated,
    Failed {
        doing: String,
        seq: Option<u64>,
        error: String,
    },
    Ended,
}

/// All that was announced about a store.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    seed: u64,
    run: Option<RunId>,
    committed: BTreeMap<u64, SnapshotId>,
    failed: BTreeSet<u64>,
    maybe_verified: BTreeSet<u64>,
    verified: BTreeSet<u64>,
    pinned: BTreeMap<u64, SnapshotId>,
    leaving: BTreeSet<u64>,
    discarded: BTreeMap<u64, SnapshotId>,
    damaged: BTreeMap<u64, (SnapshotId, String)>,
    passed_over: BTreeSet<u64>,
    broken: Vec<String>,
    pub errors: Vec<String>,
}

impl Ledger {
    pub fn new(seed: u64) -> Ledger {
        Ledger { seed, ..Ledger::default() }
    }

    pub fn of<'a>(seed: u64, acks: impl IntoIterator<Item = &'a Ack>) -> Ledger {
        let mut ledger = Ledger::new(seed);
        acks.into_iter().for_each(|ack| ledger.note(ack));
        ledger
    }

    pub fn note(&mut self, ack: &Ack) {
        match ack {
            Ack::Started { run } => {
                if self.run.as_ref().is_some_and(|known| known != run) {
                    self.broken.push(format!("the run became {run}"));
                }
                self.run = Some(run.clone());
            }
            Ack::Resumed { seq } => {
                self.check_resume(*seq);
                self.passed_over.clear();
                self.maybe_verified.extend(seq);
            }
            Ack::PassedOver { seq } => {
                self.passed_over.insert(*seq);
            }
            Ack::Saving { seq } => {
                if self.committed.contains_key(seq) && !self.leaving.contains(seq) {
                    self.broken.push(format!("sequence number {seq} is used twice"));
                }
                self.failed.remove(seq);
                if self.leaving.remove(seq) {
                    self.committed.remove(seq);
                    self.maybe_verified.remove(seq);
                    self.verified.remove(seq);
                }
            }
            Ack::Committed { seq, id } => {
                self.committed.insert(*seq, id.clone());
            }
            Ack::Verifying { seq } => {
                self.maybe_verified.insert(*seq);
            }
            Ack::Verified { seq } => {
                self.verified.insert(*seq);
            }
            Ack::Pinned { seq, id } => {
                self.pinned.insert(*seq, id.clone());
            }
            Ack::Unpinning { seq } => {
                self.pinned.remove(seq);
            }
            Ack::Discarding { seq } => {
                self.leaving.insert(*seq);
            }
            Ack::Discarded { seq, id } => {
                self.discarded.insert(*seq, id.clone());
            }
            Ack::Damaged { seq, id, hash } => {
                self.damaged.insert(*seq, (id.clone(), hash.clone()));
            }
            Ack::Rotating { seqs } => {
                self.check_rotation(seqs);
                self.leaving.extend(seqs);
            }
            Ack::Failed { seq, error, .. } => {
                self.failed.extend(seq);
                self.errors.push(error.clone());
            }
            Ack::Rotated | Ack::Ended => {}
        }
    }

    /// Whether a rotation that deletes `seqs` is lawful.
    fn check_rotation(&mut self, seqs: &[u64]) {
        let stays = |seq: &&u64| !seqs.contains(seq) && !self.leaving.contains(seq) && !self.damaged.contains_key(seq);
        let good: Vec<u64> =
            self.maybe_verified.iter().filter(stays).copied().filter(|s| states::healthy(*s)).collect();
        for &seq in seqs {
            let mut broken = |what: &str| self.broken.push(format!("rotation deletes snapshot {seq}, {what}"));
            if self.pinned.contains_key(&seq) {
                broken("which is pinned");
            }
            if !self.maybe_verified.contains(&seq) {
                broken("which was never read back");
            }
            if states::healthy(seq) && good.iter().filter(|&&newer| newer > seq).count() < 2 {
                broken("and fewer than two newer verified ones stay");
            }
            let loss = |seq: u64| states::val_loss(self.seed, seq);
            let better = |mine: f64| good.iter().filter_map(|&s| loss(s)).any(|theirs| theirs <= mine);
            if states::healthy(seq) && loss(seq).is_some_and(|mine| !better(mine)) {
                broken("which is the best");
            }
        }
    }

    /// What a start must find: the newest that was announced as verified and did not leave, or a newer one.
    fn check_resume(&mut self, seq: Option<u64>) {
        let stays = |seq: &&u64| {
            !self.leaving.contains(seq) && !self.damaged.contains_key(seq) && !self.passed_over.contains(seq)
        };
        let newest = self.verified.iter().filter(stays).filter(|s| states::healthy(**s)).max();
        if newest.is_some_and(|newest| seq.is_none_or(|seq| seq < *newest)) {
            self.broken.push(format!("resume chose {seq:?} though {newest:?} was verified"));
        }
        if seq.is_some_and(|seq| self.damaged.contains_key(&seq)) {
            self.broken.push(format!("resume chose {seq:?}, which is damaged"));
        }
        if seq.is_some_and(|seq| !states::healthy(seq)) {
            self.broken.push(format!("resume chose {seq:?}, which is unhealthy"));
        }
    }

    /// Looks at the store as it lies there, starts on it twice, and (with `go_on`) saves once more. Returns what is
    /// broken. `strict`: what failed to be saved must be absent.
    pub fn check(&self, store: &Path, strict: bool, go_on: bool) -> Vec<String> {
        let mut broken = self.broken.clone();
        self.check_files(store, strict, &mut broken);
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
            self.check_files(store, strict, &mut broken);
        }
        if go_on {
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
            if let Ack::Committed { seq, .. } = &ack {
                saved = Some(*seq);
            }
            after.note(&ack);
        });
        if saved.is_none() {
            broken.push(format!("nothing can be saved any more: {:?}", after.errors));
        }
        after.check_files(store, false, broken);
        broken.append(&mut after.broken);
    }

    /// Every file under `snapshots/` is whole and what was saved, and everything that was promised is there.
    fn check_files(&self, store: &Path, strict: bool, broken: &mut Vec<String>) {
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
        for seq in self.failed.iter().filter(|seq| strict && present.contains(seq)) {
            broken.push(format!("snapshot {seq} is there though its save failed"));
        }
        for id in self.pinned.values().filter(|id| !store.join("pins").join(layout::pin_file(id)).exists()) {
            broken.push(format!("the pin of {id} is gone"));
        }
        if self.run.is_some() && !store.join(layout::RUN).exists() {
            broken.push("the store no longer knows its run".into());
        }
        self.check_quarantine(store, broken);
    }

    /// What was set aside or damaged is kept: in `quarantine/`, or still where it was.
    fn check_quarantine(&self, store: &Path, broken: &mut Vec<String>) {
        let aside: Vec<_> = names(&store.join("quarantine")).iter().map(|n| store.join("quarantine").join(n)).collect();
        for (seq, id) in &self.discarded {
            let file = layout::snapshot_file(id);
            let kept = |path: &&std::path::PathBuf| {
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
    match states::equal(&read, &states::snapshot(seed, seq)) {
        true => Ok(seq),
        false => Err(format!("holds other bytes than were saved as {seq}")),
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

fn is_empty(folder: &Path) -> bool {
    names(folder).is_empty()
}
