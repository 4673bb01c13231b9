//! Retention: which snapshots stay, and why.
//!
//! Invariant: [`plan`] is a pure function that never gives up the newest two healthy verified snapshots, the best
//! (where `keep_best` asks for it), a pinned one, one that is not verified yet, or one of another run.
//! Deliberately not here: deleting (rotate).

use std::collections::HashSet;
use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::ids::SnapshotId;
use crate::text::ByteSize;

/// `[retention]` of the job file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RetentionPolicy {
    /// The newest so many stay; two always do.
    pub keep_last: usize,
    /// So many with the lowest validation loss stay.
    pub keep_best: usize,
    /// Those whose step is a multiple of it stay.
    pub keep_every_steps: Option<u64>,
    /// The newest of each of the last so many hours stays.
    pub keep_hourly: usize,
    /// The newest of each of the last so many days stays.
    pub keep_daily: usize,
    /// What the files may take in all; rules that do not bind give way.
    pub max_bytes: Option<ByteSize>,
}

impl Default for RetentionPolicy {
    fn default() -> RetentionPolicy {
        RetentionPolicy {
            keep_last: 3,
            keep_best: 1,
            keep_every_steps: None,
            keep_hourly: 0,
            keep_daily: 0,
            max_bytes: None,
        }
    }
}

/// What retention knows of a snapshot.
#[derive(Clone, Debug)]
pub struct SnapshotFacts {
    /// Which one.
    pub id: SnapshotId,
    /// Of the store's own run.
    pub own: bool,
    /// Its place in the run.
    pub seq: u64,
    /// Steps completed.
    pub step: u64,
    /// When it was committed.
    pub created_at: Timestamp,
    /// Size of its file.
    pub bytes: u64,
    /// It was read back since it was written.
    pub verified: bool,
    /// Its parameters and its loss are finite.
    pub healthy: bool,
    /// Validation loss of exactly this state, where it was measured.
    pub val_loss: Option<f64>,
    /// A user keeps it.
    pub pinned: bool,
}

/// What becomes of one snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetentionVerdict {
    /// Which one.
    pub id: SnapshotId,
    /// Size of its file.
    pub bytes: u64,
    /// Why it is kept, those that bind first; empty where nothing keeps it.
    pub reasons: Vec<KeepReason>,
}

impl RetentionVerdict {
    /// Whether it stays.
    pub fn keeps(&self) -> bool {
        !self.reasons.is_empty()
    }

    /// Why it stays, or goes, in words.
    pub fn texts(&self) -> Vec<String> {
        if self.keeps() { self.reasons.iter().map(KeepReason::to_string).collect() } else { vec![UNKEPT.to_owned()] }
    }
}

/// Why a snapshot is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeepReason {
    /// The user pinned it.
    Pinned,
    /// It was not read back yet.
    Unverified,
    /// It belongs to another run than the store.
    OtherRun,
    /// The newest healthy verified one.
    Latest,
    /// The one to fall back to.
    LatestButOne,
    /// Among the newest `keep_last`.
    AmongLast(usize),
    /// It has the lowest validation loss.
    Best,
    /// Among the `keep_best` with the lowest validation loss.
    AmongBest(usize),
    /// Its step is a multiple of `keep_every_steps`.
    StepMultiple(u64),
    /// The newest of one of the last `keep_hourly` hours.
    Hourly,
    /// The newest of one of the last `keep_daily` days.
    Daily,
    /// The newest unhealthy one.
    PostMortem,
}

impl KeepReason {
    /// Whether it holds against everything; the others give way to `max_bytes`.
    pub fn binds(&self) -> bool {
        use KeepReason::{Best, Latest, LatestButOne, OtherRun, Pinned, Unverified};
        matches!(self, Pinned | Unverified | OtherRun | Latest | LatestButOne | Best)
    }
}

impl fmt::Display for KeepReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KeepReason::Pinned => f.write_str("pinned"),
            KeepReason::Unverified => f.write_str("not verified yet"),
            KeepReason::OtherRun => f.write_str("of another run"),
            KeepReason::Latest => f.write_str("latest"),
            KeepReason::LatestButOne => f.write_str("latest but one"),
            KeepReason::AmongLast(count) => write!(f, "among the last {count}"),
            KeepReason::Best => f.write_str("best validation loss"),
            KeepReason::AmongBest(count) => write!(f, "among the best {count}"),
            KeepReason::StepMultiple(every) => write!(f, "step is a multiple of {every}"),
            KeepReason::Hourly => f.write_str("newest of its hour"),
            KeepReason::Daily => f.write_str("newest of its day"),
            KeepReason::PostMortem => f.write_str("newest unhealthy one, for post-mortem"),
        }
    }
}

/// Said of a snapshot that goes.
const UNKEPT: &str = "no rule keeps it";
/// Smallest number of healthy verified snapshots that ever stay.
const ALWAYS: usize = 2;
const HOUR_SECONDS: i64 = 3600;
const DAY_SECONDS: i64 = 24 * HOUR_SECONDS;

/// One verdict per snapshot, newest first.
pub fn plan(facts: &[SnapshotFacts], policy: &RetentionPolicy, now: Timestamp) -> Vec<RetentionVerdict> {
    let mut facts: Vec<&SnapshotFacts> = facts.iter().collect();
    facts.sort_by_key(|f| std::cmp::Reverse((f.own, f.seq, f.step)));
    let mut reasons: Vec<Vec<KeepReason>> = facts.iter().map(|fact| protections(fact)).collect();
    let candidates: Vec<usize> =
        (0..facts.len()).filter(|&i| facts[i].own && facts[i].verified && facts[i].healthy).collect();
    // A copy of a snapshot under another name has its number, and is no second one to fall back to.
    let mut numbers: Vec<u64> = candidates.iter().map(|&i| facts[i].seq).collect();
    numbers.dedup();
    for &i in &candidates {
        let place = numbers.iter().position(|&seq| seq == facts[i].seq).unwrap_or(0);
        match place {
            0 => reasons[i].push(KeepReason::Latest),
            _ if place < ALWAYS => reasons[i].push(KeepReason::LatestButOne),
            _ if place < policy.keep_last => reasons[i].push(KeepReason::AmongLast(policy.keep_last)),
            _ => {}
        }
    }
    for (place, i) in best(&facts, &candidates).into_iter().take(policy.keep_best).enumerate() {
        match place {
            0 => reasons[i].push(KeepReason::Best),
            _ => reasons[i].push(KeepReason::AmongBest(policy.keep_best)),
        }
    }
    for &i in &candidates {
        if let Some(every) = policy.keep_every_steps.filter(|&n| n > 0 && facts[i].step.is_multiple_of(n)) {
            reasons[i].push(KeepReason::StepMultiple(every));
        }
    }
    let periods =
        [(HOUR_SECONDS, policy.keep_hourly, KeepReason::Hourly), (DAY_SECONDS, policy.keep_daily, KeepReason::Daily)];
    for (seconds, keep, reason) in periods {
        newest_per_period(&facts, &candidates, seconds, keep, now).for_each(|i| reasons[i].push(reason));
    }
    if let Some(i) = (0..facts.len()).find(|&i| facts[i].own && facts[i].verified && !facts[i].healthy) {
        reasons[i].push(KeepReason::PostMortem);
    }
    if let Some(max) = policy.max_bytes {
        cap(&facts, &mut reasons, max.0);
    }
    let verdict = |(fact, mut reasons): (&&SnapshotFacts, Vec<KeepReason>)| {
        reasons.sort_by_key(|reason| !reason.binds());
        RetentionVerdict { id: fact.id.clone(), bytes: fact.bytes, reasons }
    };
    facts.iter().zip(reasons).map(verdict).collect()
}

/// What protects a snapshot from every rule.
fn protections(fact: &SnapshotFacts) -> Vec<KeepReason> {
    let all = [
        (fact.pinned, KeepReason::Pinned),
        (!fact.verified, KeepReason::Unverified),
        (!fact.own, KeepReason::OtherRun),
    ];
    all.into_iter().filter_map(|(holds, reason)| holds.then_some(reason)).collect()
}

/// Candidates with a validation loss, lowest first; of equals the newest.
fn best(facts: &[&SnapshotFacts], candidates: &[usize]) -> Vec<usize> {
    let mut measured: Vec<(f64, usize)> =
        candidates.iter().filter_map(|&i| Some((facts[i].val_loss.filter(|l| l.is_finite())?, i))).collect();
    measured.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    measured.into_iter().map(|(_, i)| i).collect()
}

/// The newest of each of the last `keep` periods of `seconds`.
fn newest_per_period(
    facts: &[&SnapshotFacts],
    candidates: &[usize],
    seconds: i64,
    keep: usize,
    now: Timestamp,
) -> impl Iterator<Item = usize> {
    let mut seen = HashSet::new();
    candidates.iter().copied().filter(move |&i| {
        let age = now.as_second().div_euclid(seconds) - facts[i].created_at.as_second().div_euclid(seconds);
        // A clock that was set back makes an age negative: such a snapshot counts as of the newest period.
        age.max(0) < keep as i64 && seen.insert(age.max(0))
    })
}

/// Drops what only reasons that do not bind keep, oldest first, until the rest fits into `max` bytes.
fn cap(facts: &[&SnapshotFacts], reasons: &mut [Vec<KeepReason>], max: u64) {
    let mut total: u64 = facts.iter().zip(&*reasons).filter(|(_, r)| !r.is_empty()).map(|(fact, _)| fact.bytes).sum();
    for (fact, reasons) in facts.iter().zip(reasons).rev() {
        if total > max && !reasons.is_empty() && !reasons.iter().any(KeepReason::binds) {
            reasons.clear();
            total -= fact.bytes;
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::text::TextValue;
    use proptest::prelude::*;

    fn fact(seq: u64) -> SnapshotFacts {
        SnapshotFacts {
            id: format!("s{seq}").into(),
            own: true,
            seq,
            step: seq * 10,
            created_at: Timestamp::from_second(seq as i64 * 600).unwrap(),
            bytes: 100,
            verified: true,
            healthy: true,
            val_loss: None,
            pinned: false,
        }
    }

    fn kept(facts: &[SnapshotFacts], policy: &RetentionPolicy) -> Vec<u64> {
        let now = Timestamp::from_second(100_000).unwrap();
        plan(facts, policy, now).iter().filter(|v| v.keeps()).map(|v| v.id.as_str()[1..].parse().unwrap()).collect()
    }

    #[test]
    fn the_last_the_best_the_pinned_and_the_multiples_stay() {
        let mut facts: Vec<SnapshotFacts> = (1..=10).map(fact).collect();
        facts[2].val_loss = Some(1.0);
        facts[3].val_loss = Some(2.0);
        facts[0].pinned = true;
        let policy = RetentionPolicy { keep_every_steps: Some(50), ..RetentionPolicy::default() };
        assert_eq!(kept(&facts, &policy), [10, 9, 8, 5, 3, 1]);
    }

    #[test]
    fn the_order_follows_the_sequence_number_and_not_the_step_or_the_time() {
        let mut facts: Vec<SnapshotFacts> = (1..=5).map(fact).collect();
        // A run that went back after damage: newer snapshots have smaller steps, and the clock was set back.
        facts[4].step = 1;
        facts[4].created_at = Timestamp::from_second(0).unwrap();
        let policy = RetentionPolicy { keep_last: 2, keep_best: 0, ..RetentionPolicy::default() };
        assert_eq!(kept(&facts, &policy), [5, 4]);
    }

    #[test]
    fn a_copy_under_another_name_does_not_count_as_the_second_one_to_fall_back_to() {
        let mut facts: Vec<SnapshotFacts> = (1..=3).map(fact).collect();
        facts.push(SnapshotFacts { id: "s30".into(), ..fact(3) });
        let policy = RetentionPolicy { keep_last: 2, keep_best: 0, ..RetentionPolicy::default() };
        assert_eq!(kept(&facts, &policy), [3, 30, 2]);
    }

    #[test]
    fn max_bytes_gives_up_the_oldest_but_never_the_latest_two() {
        let facts: Vec<SnapshotFacts> = (1..=10).map(fact).collect();
        let policy = RetentionPolicy { keep_last: 6, max_bytes: Some(TextValue(350)), ..RetentionPolicy::default() };
        assert_eq!(kept(&facts, &policy), [10, 9, 8]);
        let policy = RetentionPolicy { max_bytes: Some(TextValue(1)), ..policy };
        assert_eq!(kept(&facts, &policy), [10, 9]);
    }

    #[test]
    fn of_each_hour_the_newest_stays() {
        let facts: Vec<SnapshotFacts> = (150..=166).map(fact).collect();
        let policy = RetentionPolicy { keep_last: 2, keep_best: 0, keep_hourly: 3, ..RetentionPolicy::default() };
        // 600 s apart, now at 100,000 s: hours begin at 97,200, 93,600, 90,000.
        assert_eq!(kept(&facts, &policy), [166, 165, 161, 155]);
    }

    fn any_fact() -> impl Strategy<Value = SnapshotFacts> {
        let loss = proptest::option::of(prop_oneof![-5.0..5.0f64, Just(f64::NAN)]);
        (0..1000u64, 0..100_000i64, any::<[bool; 3]>(), 0..10u8, loss).prop_map(|(step, at, flags, own, val_loss)| {
            SnapshotFacts {
                own: own > 0,
                step,
                created_at: Timestamp::from_second(at).unwrap(),
                verified: flags[0],
                healthy: flags[1],
                pinned: flags[2],
                val_loss,
                ..fact(0)
            }
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn under_every_policy_the_latest_two_the_best_and_the_pinned_stay(
            facts in proptest::collection::vec(any_fact(), 0..30),
            numbers in any::<[u8; 5]>(),
            max in proptest::option::of(0..3000u64),
        ) {
            let numbered =
                |(i, f): (usize, SnapshotFacts)| SnapshotFacts { id: format!("s{i}").into(), seq: i as u64, ..f };
            let facts: Vec<SnapshotFacts> = facts.into_iter().enumerate().map(numbered).collect();
            let policy = RetentionPolicy {
                keep_last: 2 + numbers[0] as usize % 5,
                keep_best: 1 + numbers[1] as usize % 3,
                keep_every_steps: (numbers[2] > 0).then_some(u64::from(numbers[2])),
                keep_hourly: numbers[3] as usize % 5,
                keep_daily: numbers[4] as usize % 5,
                max_bytes: max.map(TextValue),
            };
            let kept: HashSet<u64> = kept(&facts, &policy).into_iter().collect();
            for f in &facts {
                if f.pinned || !f.verified || !f.own {
                    prop_assert!(kept.contains(&f.seq));
                }
            }
            let good: Vec<&SnapshotFacts> = facts.iter().rev().filter(|f| f.own && f.verified && f.healthy).collect();
            for f in good.iter().take(2) {
                prop_assert!(kept.contains(&f.seq));
            }
            let lowest = good.iter().filter_map(|f| f.val_loss.filter(|l| l.is_finite())).reduce(f64::min);
            if let Some(lowest) = lowest {
                prop_assert!(good.iter().any(|f| f.val_loss == Some(lowest) && kept.contains(&f.seq)));
            }
        }
    }
}
