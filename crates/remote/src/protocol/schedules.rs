//! Long random schedules of three processes in a [`World`], with any number of faults.

use ckptd_testkit::random::SeededRandom;

use super::model::{Fate, Step, StoreKind, World};

const SCHEDULES: u64 = 10_000;
const STEPS: u64 = 300;

/// One schedule; returns the newest epoch and how many snapshots were committed.
fn play(kind: StoreKind, seed: u64) -> (u64, u64) {
    let mut random = SeededRandom::of(&[seed, kind as u64]);
    let mut world = World::new(kind, 3);
    // Some schedules have few faults, some have little else.
    let one_in = 1 + random.below(20);
    for number in 0..STEPS {
        let mut steps = world.steps();
        let is_rare = |step: &Step| matches!(step, Step::Kill(_) | Step::Leave(_));
        let is_bad = |step: &Step| match step {
            Step::Answer { fate, .. } => *fate != Fate::Told,
            Step::Silence { .. } => true,
            _ => false,
        };
        let (rare, bad) = (random.one_in(60), random.one_in(one_in));
        steps.retain(|step| (rare || !is_rare(step)) && (bad || !is_bad(step)));
        if steps.is_empty() {
            return (world.fence().newest_epoch(), world.committed);
        }
        let step = steps[random.below(steps.len() as u64) as usize];
        if let Err(what) = world.step(step) {
            panic!("seed {seed}, step {number}, {step:?}: {what}\n{world:#?}");
        }
    }
    (world.fence().newest_epoch(), world.committed)
}

fn play_all(kind: StoreKind) {
    let (mut epochs, mut committed) = (0, 0);
    for seed in 0..SCHEDULES / 2 {
        let (newest, commits) = play(kind, seed);
        epochs += newest;
        committed += commits;
    }
    println!("{kind:?}: {} schedules, {epochs} epochs, {committed} commits", SCHEDULES / 2);
    assert!(epochs > SCHEDULES / 2 && committed > SCHEDULES, "the schedules do not reach what they are about");
}

#[test]
fn no_schedule_breaks_it_where_the_store_swaps() {
    play_all(StoreKind::Swaps);
}

#[test]
fn no_schedule_breaks_it_where_the_store_only_creates() {
    play_all(StoreKind::Creates);
}
