//! Random schedules of the lease's machine: three processes, writes that are lost, late, doubled and misreported, and
//! clocks that know nothing of each other.

use std::sync::Mutex;

use ckptd_remote::protocol::schedules::{StoreKind, play};
use ckptd_testkit::random::SeededRandom;

use crate::campaign::{FaultRow, add, each, guarded};

pub fn run(seed: u64, short: bool) -> Vec<FaultRow> {
    let row = Mutex::new(FaultRow::new("replication, schedules of the lease", seed));
    each(if short { 1_000 } else { 10_000 }, |i| {
        let kind = if i % 2 == 0 { StoreKind::Swaps } else { StoreKind::Creates };
        let mut random = SeededRandom::of(&[seed, i]);
        let broken = guarded(|| play(kind, |n| random.below(n)).err().into_iter().collect());
        add(&row, || format!("schedule {i}"), broken);
    });
    vec![row.into_inner().unwrap_or_else(|e| e.into_inner())]
}
