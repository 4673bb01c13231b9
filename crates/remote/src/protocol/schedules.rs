//! Long random schedules of three processes in a [`World`], with any number of faults. Their clocks know nothing of
//! each other.

use std::time::Duration;

pub use super::model::StoreKind;
use super::model::{Fate, Step, World};

const STEPS: u64 = 300;

/// What a schedule came to.
#[derive(Clone, Copy, Debug, Default)]
pub struct PlayedSchedule {
    /// The newest epoch.
    pub epochs: u64,
    /// Snapshots that were committed.
    pub committed: u64,
}

/// Plays one schedule; `below` draws a number below another one.
///
/// # Errors
/// What must not be so, and after what.
pub fn play(kind: StoreKind, mut below: impl FnMut(u64) -> u64) -> Result<PlayedSchedule, String> {
    let mut world = World::new(kind, 3);
    world.set_clocks([0, 1, 2].map(|process| Duration::from_secs(process * below(7200))));
    // Some schedules have few faults, some have little else.
    let one_in = 1 + below(20);
    for number in 0..STEPS {
        let mut steps = world.steps();
        let is_rare = |step: &Step| matches!(step, Step::Kill(_) | Step::Leave(_));
        let is_bad = |step: &Step| match step {
            Step::Answer { fate, .. } => *fate != Fate::Told,
            Step::Silence { .. } => true,
            _ => false,
        };
        let (rare, bad) = (below(60) == 0, below(one_in) == 0);
        steps.retain(|step| (rare || !is_rare(step)) && (bad || !is_bad(step)));
        if steps.is_empty() {
            break;
        }
        let step = steps[below(steps.len() as u64) as usize];
        world.step(step).map_err(|what| format!("step {number}, {step:?}: {what}; {world:?}"))?;
    }
    Ok(PlayedSchedule { epochs: world.fence().newest_epoch(), committed: world.committed })
}

#[cfg(test)]
mod tests {
    use ckptd_testkit::random::SeededRandom;

    use super::*;

    const SCHEDULES: u64 = 10_000;

    fn play_all(kind: StoreKind) {
        let mut all = PlayedSchedule::default();
        for seed in 0..SCHEDULES / 2 {
            let mut random = SeededRandom::of(&[seed, kind as u64]);
            let played = play(kind, |n| random.below(n)).unwrap_or_else(|what| panic!("seed {seed}: {what}"));
            all.epochs += played.epochs;
            all.committed += played.committed;
        }
        println!("{kind:?}: {} schedules, {} epochs, {} commits", SCHEDULES / 2, all.epochs, all.committed);
        assert!(all.epochs > SCHEDULES / 2 && all.committed > SCHEDULES, "they do not reach what they are about");
    }

    #[test]
    fn no_schedule_breaks_it_where_the_store_swaps() {
        play_all(StoreKind::Swaps);
    }

    #[test]
    fn no_schedule_breaks_it_where_the_store_only_creates() {
        play_all(StoreKind::Creates);
    }
}
