//! What was promised: announcements, and which of them are unlawful.
//!
//! Invariant: promises are taken from announcements alone. Deliberately not here: whether the store keeps them (judge).

use std::collections::{BTreeMap, BTreeSet};

use ckptd_core::ids::{RunId, SnapshotId};

use crate::announce::StoreAck;
use crate::states;

/// All that was announced about a store.
#[derive(Clone, Debug, Default)]
pub struct Promises {
    pub seed: u64,
    pub run: Option<RunId>,
    pub committed: BTreeMap<u64, SnapshotId>,
    pub failed: BTreeSet<u64>,
    maybe_verified: BTreeSet<u64>,
    verified: BTreeSet<u64>,
    pub pinned: BTreeMap<u64, SnapshotId>,
    pub leaving: BTreeSet<u64>,
    pub discarded: BTreeMap<u64, SnapshotId>,
    pub damaged: BTreeMap<u64, (SnapshotId, String)>,
    passed_over: BTreeSet<u64>,
    pub kept: BTreeSet<u64>,
    pub broken: Vec<String>,
    pub errors: Vec<String>,
}

impl Promises {
    pub fn new(seed: u64) -> Promises {
        Promises { seed, ..Promises::default() }
    }

    pub fn of<'a>(seed: u64, acks: impl IntoIterator<Item = &'a StoreAck>) -> Promises {
        let mut promises = Promises::new(seed);
        acks.into_iter().for_each(|ack| promises.note(ack));
        promises
    }

    pub fn note(&mut self, ack: &StoreAck) {
        match ack {
            StoreAck::Started { run } => {
                if self.run.as_ref().is_some_and(|known| known != run) {
                    self.broken.push(format!("the run became {run}"));
                }
                self.run = Some(run.clone());
            }
            StoreAck::Resumed { seq } => {
                self.check_resume(*seq);
                self.passed_over.clear();
                self.maybe_verified.extend(seq);
            }
            StoreAck::PassedOver { seq } => {
                self.passed_over.insert(*seq);
            }
            StoreAck::Saving { seq } => {
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
            StoreAck::Committed { seq, id } => {
                self.committed.insert(*seq, id.clone());
            }
            StoreAck::Kept { seq } => {
                self.kept.insert(*seq);
            }
            StoreAck::Verifying { seq } => {
                self.maybe_verified.insert(*seq);
            }
            StoreAck::Verified { seq } => {
                self.verified.insert(*seq);
            }
            StoreAck::Pinned { seq, id } => {
                self.pinned.insert(*seq, id.clone());
            }
            StoreAck::Unpinning { seq } => {
                self.pinned.remove(seq);
            }
            StoreAck::Discarding { seq } => {
                self.leaving.insert(*seq);
            }
            StoreAck::Discarded { seq, id } => {
                self.discarded.insert(*seq, id.clone());
            }
            StoreAck::Damaged { seq, id, hash } => {
                self.damaged.insert(*seq, (id.clone(), hash.clone()));
            }
            StoreAck::Rotating { seqs } => {
                self.check_rotation(seqs);
                self.leaving.extend(seqs);
            }
            StoreAck::Failed { seq, error, .. } => {
                self.failed.extend(seq);
                self.errors.push(error.clone());
            }
            StoreAck::Rotated | StoreAck::Ended => {}
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
    pub fn check_resume(&mut self, seq: Option<u64>) {
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
}
