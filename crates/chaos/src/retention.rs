//! RetentionPolicy against a model: random lives of a store (save, verify well or badly, pin, crash, another config),
//! and after every rotation, also one that a crash cut short, the question what is left.
//!
//! Invariant of the model, written down without retention's own rules: what is pinned, not verified, or of another run
//! stays; the two newest healthy verified states stay; so does the one of the lowest validation loss, where the policy
//! keeps a best one.

use ckptd_core::os::process::processors;
use ckptd_core::store::RetentionPolicy;
use ckptd_core::store::retain::{SnapshotFacts, plan};
use ckptd_core::text::TextValue;
use jiff::Timestamp;

use crate::row::{CampaignRow, CampaignTally};
use ckptd_testkit::random::SeededRandom;

/// Operations of one life.
const LENGTH: u64 = 24;

pub fn campaign(lives: u64, seed: u64) -> CampaignRow {
    let threads = processors() as u64;
    let mut tally = CampaignTally::new("retention", seed);
    std::thread::scope(|scope| {
        let parts: Vec<_> = (0..threads)
            .map(|thread| scope.spawn(move || part((thread..lives).step_by(threads as usize), seed)))
            .collect();
        for part in parts {
            match part.join() {
                Ok(part) => tally.add(part),
                Err(_) => tally.violation("the plan panicked"),
            }
        }
    });
    tally.row()
}

fn part(lives: impl Iterator<Item = u64>, seed: u64) -> CampaignTally {
    let mut tally = CampaignTally::new("retention", seed);
    for number in lives {
        let mut life = StoreLife::new(SeededRandom::new(seed ^ number.wrapping_mul(0xd134_2543_de82_ef95)));
        let mut history = Vec::new();
        for _ in 0..LENGTH {
            history.push(life.step());
            if let Some(what) = life.broken.take() {
                tally.violation(format!("life {number}: {what}, after {history:?}"));
                break;
            }
        }
        tally.tried((&history, life.facts.iter().map(|f| f.seq).collect::<Vec<_>>()));
    }
    tally
}

#[derive(Debug, Hash)]
#[allow(dead_code)] // the fields are read by `Debug`, when a life is told
enum StoreOperation {
    Save(u64),
    Verified(u64),
    Refuted(u64),
    Pin(u64),
    Unpin(u64),
    ReceiptLost(u64),
    Copied(u64),
    Policy,
    ClockSet(i64),
    Rotate,
    RotateCutShort(usize),
    Nothing,
}

struct StoreLife {
    random: SeededRandom,
    facts: Vec<SnapshotFacts>,
    policy: RetentionPolicy,
    seq: u64,
    copies: u64,
    step: u64,
    now: i64,
    broken: Option<String>,
}

impl StoreLife {
    fn new(mut random: SeededRandom) -> StoreLife {
        let policy = policy(&mut random);
        StoreLife { random, facts: Vec::new(), policy, seq: 0, copies: 0, step: 0, now: 1_000_000, broken: None }
    }

    fn step(&mut self) -> StoreOperation {
        self.now += self.random.below(4000) as i64;
        match self.random.below(20) {
            0..6 => self.save(),
            6..10 => self.with_one(|f| !f.verified, |fact, _| fact.verified = true, StoreOperation::Verified),
            10 => self.refute(),
            11 => self.with_one(|f| !f.pinned, |fact, _| fact.pinned = true, StoreOperation::Pin),
            12 => self.with_one(|f| f.pinned, |fact, _| fact.pinned = false, StoreOperation::Unpin),
            // A crash between a rename and its receipt, or a store that was copied without them.
            13 => self.with_one(|f| f.verified, |fact, _| fact.verified = false, StoreOperation::ReceiptLost),
            14 => self.copy(),
            15 => {
                self.policy = policy(&mut self.random);
                StoreOperation::Policy
            }
            16 => {
                self.now = self.random.below(2_000_000) as i64;
                StoreOperation::ClockSet(self.now)
            }
            17 => self.rotate(true),
            _ => self.rotate(false),
        }
    }

    fn save(&mut self) -> StoreOperation {
        self.seq += 1;
        // Steps go back when a run falls back.
        self.step = if self.random.one_in(8) { self.step / 2 } else { self.step + 1 + self.random.below(20) };
        let val_loss = match self.random.below(4) {
            0 => Some(self.random.below(100) as f64 / 10.0),
            1 if self.random.one_in(4) => Some(f64::NAN),
            _ => None,
        };
        self.facts.push(SnapshotFacts {
            id: format!("s{}", self.seq).into(),
            own: !self.random.one_in(12),
            seq: self.seq,
            step: self.step,
            created_at: Timestamp::from_second(self.now).unwrap_or_default(),
            bytes: 1 + self.random.below(1000),
            verified: false,
            healthy: !self.random.one_in(10),
            val_loss,
            pinned: false,
        });
        StoreOperation::Save(self.seq)
    }

    fn with_one(
        &mut self,
        which: impl Fn(&SnapshotFacts) -> bool,
        change: impl Fn(&mut SnapshotFacts, &mut SeededRandom),
        operation: impl Fn(u64) -> StoreOperation,
    ) -> StoreOperation {
        let candidates: Vec<usize> = (0..self.facts.len()).filter(|&i| which(&self.facts[i])).collect();
        if candidates.is_empty() {
            return StoreOperation::Nothing;
        }
        let i = candidates[self.random.below(candidates.len() as u64) as usize];
        change(&mut self.facts[i], &mut self.random);
        operation(self.facts[i].seq)
    }

    /// A verification finds damage: the file leaves for the quarantine.
    fn refute(&mut self) -> StoreOperation {
        let Some(i) = self.facts.iter().rposition(|f| !f.verified) else { return StoreOperation::Nothing };
        StoreOperation::Refuted(self.facts.remove(i).seq)
    }

    /// Somebody copies a file within the store.
    fn copy(&mut self) -> StoreOperation {
        if self.facts.is_empty() {
            return StoreOperation::Nothing;
        }
        let fact = self.facts[self.random.below(self.facts.len() as u64) as usize].clone();
        let seq = fact.seq;
        self.copies += 1;
        self.facts.push(SnapshotFacts { id: format!("s{seq} copy {}", self.copies).into(), pinned: false, ..fact });
        StoreOperation::Copied(seq)
    }

    fn rotate(&mut self, cut_short: bool) -> StoreOperation {
        let plan = plan(&self.facts, &self.policy, Timestamp::from_second(self.now).unwrap_or_default());
        let mut doomed: Vec<&str> = plan.iter().filter(|v| !v.keeps()).map(|v| v.id.as_str()).collect();
        let done = if cut_short { self.random.below(doomed.len() as u64 + 1) as usize } else { doomed.len() };
        doomed.truncate(done);
        let (left, gone): (Vec<SnapshotFacts>, Vec<SnapshotFacts>) =
            self.facts.iter().cloned().partition(|f| !doomed.contains(&f.id.as_str()));
        self.broken = broken(&self.facts, &left, &gone, &self.policy);
        self.facts = left;
        if cut_short { StoreOperation::RotateCutShort(done) } else { StoreOperation::Rotate }
    }
}

fn policy(random: &mut SeededRandom) -> RetentionPolicy {
    RetentionPolicy {
        keep_last: 2 + random.below(4) as usize,
        keep_best: random.below(3) as usize,
        keep_every_steps: random.one_in(2).then(|| 1 + random.below(50)),
        keep_hourly: random.below(4) as usize,
        keep_daily: random.below(3) as usize,
        max_bytes: random.one_in(2).then(|| TextValue(random.below(4000))),
    }
}

/// What a rotation broke, if anything.
fn broken(
    before: &[SnapshotFacts],
    left: &[SnapshotFacts],
    gone: &[SnapshotFacts],
    policy: &RetentionPolicy,
) -> Option<String> {
    if let Some(fact) = gone.iter().find(|f| f.pinned || !f.verified || !f.own) {
        return Some(format!("{} was taken, which is pinned, unverified or of another run", fact.id));
    }
    let good = |facts: &[SnapshotFacts]| -> Vec<u64> {
        let mut numbers: Vec<u64> = facts.iter().filter(|f| f.own && f.verified && f.healthy).map(|f| f.seq).collect();
        numbers.sort_unstable_by(|a, b| b.cmp(a));
        numbers.dedup();
        numbers.truncate(2);
        numbers
    };
    if good(before) != good(left) {
        return Some(format!("the newest two verified were {:?} and are {:?}", good(before), good(left)));
    }
    let lowest = |facts: &[SnapshotFacts]| {
        let measured = facts.iter().filter(|f| f.own && f.verified && f.healthy).filter_map(|f| f.val_loss);
        measured.filter(|loss| loss.is_finite()).reduce(f64::min)
    };
    if policy.keep_best > 0 && lowest(before) != lowest(left) {
        return Some(format!("the lowest loss was {:?} and is {:?}", lowest(before), lowest(left)));
    }
    None
}
