//! Retention: which snapshots stay, and why.
//!
//! Invariant: [`plan`] is a pure function that never gives up the newest two healthy verified snapshots, the best
//! (where `keep_best` asks for it), a pinned one, one that is not verified yet, or one of another run. Deleting is somebody else's second step.

use std::collections::HashSet;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::ids::SnapshotId;
use crate::text::ByteSize;

/// `[retention]` of the job file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RetentionPolicy {
    pub keep_last: usize,
    pub keep_best: usize,
    pub keep_every_steps: Option<u64>,
    pub keep_hourly: usize,
    pub keep_daily: usize,
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
    pub id: SnapshotId,
    /// Of the store's own run.
    pub own: bool,
    pub seq: u64,
    pub step: u64,
    pub created_at: Timestamp,
    pub bytes: u64,
    pub verified: bool,
    pub healthy: bool,
    /// Validation loss of exactly this state, where it was measured.
    pub val_loss: Option<f64>,
    pub pinned: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetentionVerdict {
    pub id: SnapshotId,
    pub bytes: u64,
    pub keep: bool,
    /// Why it is kept, or why nothing keeps it.
    pub reasons: Vec<String>,
}

/// Smallest number of healthy verified snapshots that ever stay.
const ALWAYS: usize = 2;

/// A verdict for each fact, newest first.
pub fn plan(facts: &[SnapshotFacts], policy: &RetentionPolicy, now: Timestamp) -> Vec<RetentionVerdict> {
    let mut facts: Vec<&SnapshotFacts> = facts.iter().collect();
    facts.sort_by_key(|f| std::cmp::Reverse((f.own, f.seq, f.step)));
    // Reasons that hold against everything, and reasons that max_bytes may overrule.
    let mut firm: Vec<Vec<String>> = vec![Vec::new(); facts.len()];
    let mut soft: Vec<Vec<String>> = vec![Vec::new(); facts.len()];
    for (i, fact) in facts.iter().enumerate() {
        if fact.pinned {
            firm[i].push("pinned".into());
        }
        if !fact.verified {
            firm[i].push("not verified yet".into());
        }
        if !fact.own {
            firm[i].push("of another run".into());
        }
    }
    let candidates: Vec<usize> =
        (0..facts.len()).filter(|&i| facts[i].own && facts[i].verified && facts[i].healthy).collect();
    // A copy of a snapshot under another name has its number, and is no second one to fall back to.
    let mut numbers: Vec<u64> = candidates.iter().map(|&i| facts[i].seq).collect();
    numbers.dedup();
    for &i in &candidates {
        let place = numbers.iter().position(|&seq| seq == facts[i].seq).unwrap_or(0);
        match place {
            0 => firm[i].push("latest".into()),
            _ if place < ALWAYS => firm[i].push("latest but one".into()),
            _ if place < policy.keep_last => soft[i].push(format!("among the last {}", policy.keep_last)),
            _ => {}
        }
    }
    for (place, i) in best(&facts, &candidates).into_iter().take(policy.keep_best).enumerate() {
        match place {
            0 => firm[i].push("best validation loss".into()),
            _ => soft[i].push(format!("among the best {}", policy.keep_best)),
        }
    }
    for &i in &candidates {
        if let Some(every) = policy.keep_every_steps.filter(|&n| n > 0 && facts[i].step.is_multiple_of(n)) {
            soft[i].push(format!("step is a multiple of {every}"));
        }
    }
    by_time(&facts, &candidates, 3600, policy.keep_hourly, "hour", now, &mut soft);
    by_time(&facts, &candidates, 86400, policy.keep_daily, "day", now, &mut soft);
    if let Some(i) = (0..facts.len()).find(|&i| facts[i].own && facts[i].verified && !facts[i].healthy) {
        soft[i].push("newest unhealthy one, for post-mortem".into());
    }
    if let Some(max) = policy.max_bytes {
        cap(&facts, &firm, &mut soft, max.0);
    }
    let verdict = |(i, fact): (usize, &&SnapshotFacts)| {
        let mut reasons = std::mem::take(&mut firm[i]);
        reasons.append(&mut soft[i]);
        let keep = !reasons.is_empty();
        if !keep {
            reasons.push("no rule keeps it".into());
        }
        RetentionVerdict { id: fact.id.clone(), bytes: fact.bytes, keep, reasons }
    };
    facts.iter().enumerate().map(verdict).collect()
}

/// Candidates with a validation loss, lowest first; of equals the newest.
fn best(facts: &[&SnapshotFacts], candidates: &[usize]) -> Vec<usize> {
    let mut measured: Vec<(f64, usize)> =
        candidates.iter().filter_map(|&i| Some((facts[i].val_loss.filter(|l| l.is_finite())?, i))).collect();
    measured.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    measured.into_iter().map(|(_, i)| i).collect()
}

/// The newest of each of the last `keep` periods of `seconds`.
fn by_time(
    facts: &[&SnapshotFacts],
    candidates: &[usize],
    seconds: i64,
    keep: usize,
    name: &str,
    now: Timestamp,
    soft: &mut [Vec<String>],
) {
    let mut seen = HashSet::new();
    for &i in candidates {
        let age = now.as_second().div_euclid(seconds) - facts[i].created_at.as_second().div_euclid(seconds);
        // A clock that was set back makes an age negative: such a snapshot counts as of the newest period.
        if age.max(0) < keep as i64 && seen.insert(age.max(0)) {
            soft[i].push(format!("newest of its {name}"));
        }
    }
}

/// Takes the soft reasons away, oldest first, until the rest fits.
fn cap(facts: &[&SnapshotFacts], firm: &[Vec<String>], soft: &mut [Vec<String>], max: u64) {
    let mut total: u64 =
        (0..facts.len()).filter(|&i| !firm[i].is_empty() || !soft[i].is_empty()).map(|i| facts[i].bytes).sum();
    for i in (0..facts.len()).rev() {
        if total > max && firm[i].is_empty() && !soft[i].is_empty() {
            soft[i].clear();
            total -= facts[i].bytes;
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
        plan(facts, policy, now).iter().filter(|v| v.keep).map(|v| v.id.as_str()[1..].parse().unwrap()).collect()
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
        fn whatever_the_policy_the_latest_two_the_best_and_the_pinned_stay(
            facts in proptest::collection::vec(any_fact(), 0..30),
            numbers in any::<[u8; 5]>(),
            max in proptest::option::of(0..3000u64),
        ) {
            let facts: Vec<SnapshotFacts> = facts.into_iter().enumerate().map(|(i, f)| SnapshotFacts { id: format!("s{i}").into(), seq: i as u64, ..f }).collect();
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
