//! Every order of events up to a bound: a breadth-first search over the states of [`World`].

use std::collections::{HashSet, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use super::model::{Fate, Step, StoreKind, TICK, World};

/// How far the search goes.
struct Bound {
    /// Clock of each process. They begin alike, so that only who has more time matters.
    time: [Duration; 2],
    /// Writes that do not go as they should.
    faults: usize,
    /// Snapshots of each process.
    snapshots: u64,
    /// More than so many states take too long.
    states: usize,
}

/// What was seen.
struct Found {
    states: usize,
    committed: u64,
    epochs: u64,
    deepest: usize,
}

fn search(kind: StoreKind, bound: &Bound) -> Found {
    let hashers = [RandomState::new(), RandomState::new()];
    let print = |state: &(World, usize)| {
        let [a, b] = [0, 1].map(|i| u128::from(hashers[i].hash_one(state)));
        a << 64 | b
    };
    let begin = (World::new(kind, 2), 0);
    let mut seen = HashSet::from([print(&begin)]);
    let mut queue = VecDeque::from([(begin, 0)]);
    let mut found = Found { states: 1, committed: 0, epochs: 0, deepest: 0 };
    while let Some(((world, faults), depth)) = queue.pop_front() {
        found.deepest = depth;
        for step in world.steps() {
            let is_fault = match step {
                Step::Answer { fate, .. } => fate != Fate::Told,
                Step::Silence { .. } => true,
                _ => false,
            };
            let faults = faults + usize::from(is_fault);
            let is_beyond = match step {
                // A killed process is one that nothing happens to any more: every prefix has that already. What leaving
                // does is left to the long schedules.
                Step::Kill(_) | Step::Leave(_) => true,
                Step::Tick { process, by } => world.processes[process].now + by > bound.time[process],
                Step::Send(process) => world.processes[process].sent >= bound.snapshots,
                _ => faults > bound.faults,
            };
            if is_beyond {
                continue;
            }
            let mut next = world.clone();
            if let Err(what) = next.step(step) {
                panic!("after {depth} steps, {step:?}: {what}\n{next:#?}");
            }
            let next = (next, faults);
            if seen.insert(print(&next)) {
                found.states += 1;
                found.committed = found.committed.max(next.0.committed);
                found.epochs = found.epochs.max(next.0.fence().newest_epoch());
                assert!(found.states <= bound.states, "more states than the test has time for");
                queue.push_back((next, depth + 1));
            }
        }
    }
    found
}

fn check(kind: StoreKind, time: [u32; 2]) {
    // An owner that falls silent soon, and a challenger that sees its time run out.
    let bound = Bound { time: time.map(|ticks| ticks * TICK), faults: 1, snapshots: 1, states: 20_000_000 };
    let Found { states, committed, epochs, deepest } = search(kind, &bound);
    println!("{kind:?}: {states} states, {deepest} steps deep, {epochs} epochs, {committed} commits");
    assert!(states > 10_000 && committed >= 2 && epochs >= 2, "the search does not reach what it is about");
}

#[test]
fn no_order_of_events_breaks_it_where_the_store_swaps() {
    check(StoreKind::Swaps, [0, 4]);
}

#[test]
fn no_order_of_events_breaks_it_where_the_store_only_creates() {
    check(StoreKind::Creates, [0, 4]);
}

#[test]
#[ignore = "takes minutes: cargo test --release -p ckptd-remote -- --ignored"]
fn no_longer_order_of_events_breaks_it_either() {
    check(StoreKind::Swaps, [2, 6]);
    check(StoreKind::Creates, [2, 6]);
}
