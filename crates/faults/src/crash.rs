//! Crash states: a session is recorded, every legal disk after a power loss is built, and a start is made on each.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::sync_channel;

use anyhow::Result;
use ckptd_core::os::process::processors;

use crate::announce::StoreAck;
use crate::campaign::{CampaignScratch, FaultRow, add, guarded};
use crate::disk::DiskState;
use crate::hooks::{CallRecording, DiskOp};
use crate::judge::{self, AfterCheck, FailedSaves};
use crate::power_loss::{CrashCandidate, CrashModel, DiskHistory};
use crate::promises::Promises;
use crate::{drive, prepare};

/// After so many starts one more snapshot is saved.
const GO_ON: u64 = 7;

/// How much is tried.
pub struct CrashEffort {
    pub rounds: u32,
    pub random: u64,
    /// Of so many distinct states one has the start on it recorded and crashed, too.
    pub crash_again: u64,
    /// Ends after the first violation.
    pub first: bool,
}

/// A recorded session, and what lay on the disk and was promised before it.
struct RecordedSession<'a> {
    seed: u64,
    base: DiskState,
    before: Vec<StoreAck>,
    ops: Vec<DiskOp>,
    below: &'a Path,
}

/// Rows for a store from its making on, and for one that starts on a crashed and damaged past.
pub fn run(below: &Path, seed: u64, effort: &CrashEffort) -> Result<Vec<FaultRow>> {
    let mut rows = Vec::new();
    for model in [CrashModel::Weak, CrashModel::Ordered] {
        let name = if model == CrashModel::Weak { "weak" } else { "ext4-like" };
        let row = Mutex::new(FaultRow { distinct: Some(0), ..FaultRow::new(&format!("crash states, {name}"), seed) });
        let again = Mutex::new(FaultRow { distinct: Some(0), ..FaultRow::new("crash states of the recovery", seed) });
        for past in [false, true] {
            let scratch = CampaignScratch::new(below);
            let store = scratch.empty()?.join("disk");
            std::fs::create_dir(&store)?;
            let mut before = Vec::new();
            if past {
                before = prepare::past(&store.join("store"), seed)?;
            }
            let base = DiskState::load(&store)?;
            let ops = CallRecording::of(|say| drive::session(&store.join("store"), seed, effort.rounds, say));
            let recorded = RecordedSession { seed, base, before, ops, below };
            recorded.try_all(&store, model, effort, &row, &again);
        }
        rows.push(row.into_inner().unwrap_or_else(|e| e.into_inner()));
        rows.push(again.into_inner().unwrap_or_else(|e| e.into_inner()));
    }
    Ok(rows)
}

impl RecordedSession<'_> {
    fn try_all(
        &self,
        root: &Path,
        model: CrashModel,
        effort: &CrashEffort,
        row: &Mutex<FaultRow>,
        again: &Mutex<FaultRow>,
    ) {
        let history = DiskHistory::new(self.base.clone(), root, &self.ops, model);
        self.check_announcements(&history, row);
        let threads = processors();
        let (send, receive) = sync_channel::<CrashCandidate>(64);
        let receive = Mutex::new(receive);
        let tried = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    let scratch = CampaignScratch::new(self.below);
                    loop {
                        let next = receive.lock().unwrap_or_else(|e| e.into_inner()).recv();
                        let Ok(candidate) = next else { return };
                        let number = tried.fetch_add(1, Ordering::Relaxed);
                        let broken = guarded(|| self.check(&candidate, &scratch, number));
                        let what = || format!("{model:?}, after operation {} of {}", candidate.ops, self.ops.len());
                        note_distinct(row, what, broken);
                        if number % effort.crash_again == effort.crash_again - 1 {
                            self.crash_again(&candidate, model, again);
                        }
                    }
                });
            }
            let mut seen = HashSet::new();
            let mut candidates = 0;
            history.candidates(effort.random, self.seed, &mut |candidate| {
                let enough = effort.first && row.lock().unwrap_or_else(|e| e.into_inner()).violations > 0;
                if enough {
                    return;
                }
                candidates += 1;
                let promised = self.acks(candidate.ops).count();
                if seen.insert((candidate.disk.hash(), promised)) {
                    // The receivers leave only when this sender does.
                    let _ = send.send(candidate);
                }
            });
            drop(send);
            row.lock().unwrap_or_else(|e| e.into_inner()).points += candidates;
        });
    }

    /// When a deed is announced, every name that it moved is on the disk for certain.
    fn check_announcements(&self, history: &DiskHistory, row: &Mutex<FaultRow>) {
        for (i, op) in self.ops.iter().enumerate() {
            let DiskOp::Ack(
                ack @ (StoreAck::Committed { .. }
                | StoreAck::Pinned { .. }
                | StoreAck::Discarded { .. }
                | StoreAck::Verified { .. }),
            ) = op
            else {
                continue;
            };
            let pending = history.pending_rename(i).map(|name| format!("the rename of {name} is not durable yet"));
            add(row, || format!("when {ack:?} is announced"), pending.into_iter().collect());
        }
    }

    /// What had been announced after so many operations.
    fn acks(&self, ops: usize) -> impl Iterator<Item = &StoreAck> {
        let during = self.ops[..ops].iter().filter_map(|op| match op {
            DiskOp::Ack(ack) => Some(ack),
            _ => None,
        });
        self.before.iter().chain(during)
    }

    fn check(&self, candidate: &CrashCandidate, scratch: &CampaignScratch, number: u64) -> Vec<String> {
        match scratch.empty().and_then(|root| candidate.disk.lay_out(root).map(|()| root.join("store"))) {
            Ok(store) => {
                let promises = Promises::of(self.seed, self.acks(candidate.ops));
                // Behind half a batch the next one must not be lost.
                let goes_on = number.is_multiple_of(GO_ON) || judge::history_is_torn(&store);
                let then = if goes_on { AfterCheck::SaveOnceMore } else { AfterCheck::Nothing };
                promises.check(&store, FailedSaves::MayBeThere, then)
            }
            Err(e) => vec![format!("the state cannot be laid out: {e}")],
        }
    }

    /// The start on a crashed store crashes as well.
    fn crash_again(&self, candidate: &CrashCandidate, model: CrashModel, row: &Mutex<FaultRow>) {
        let scratch = CampaignScratch::new(self.below);
        let Ok(root) = scratch.empty().and_then(|root| candidate.disk.lay_out(root).map(|()| root.to_path_buf()))
        else {
            return;
        };
        let store = root.join("store");
        let before: Vec<StoreAck> = self.acks(candidate.ops).cloned().collect();
        let ops = CallRecording::of(|say| drive::session(&store, self.seed, 0, say));
        let recorded =
            RecordedSession { seed: self.seed, base: candidate.disk.clone(), before, ops, below: self.below };
        let history = DiskHistory::new(candidate.disk.clone(), &root, &recorded.ops, model);
        let (mut seen, mut candidates) = (HashSet::new(), 0);
        history.candidates(1, self.seed, &mut |second| {
            candidates += 1;
            if seen.insert((second.disk.hash(), recorded.acks(second.ops).count())) {
                let broken = guarded(|| recorded.check(&second, &scratch, 1));
                let what = || format!("{model:?}, after operation {}, then {}", candidate.ops, second.ops);
                note_distinct(row, what, broken);
            }
        });
        row.lock().unwrap_or_else(|e| e.into_inner()).points += candidates;
    }
}

fn note_distinct(row: &Mutex<FaultRow>, what: impl FnOnce() -> String, broken: Vec<String>) {
    let mut row = row.lock().unwrap_or_else(|e| e.into_inner());
    row.point(what, broken);
    // Counted as a candidate elsewhere.
    row.points -= 1;
    row.distinct = row.distinct.map(|n| n + 1);
}
