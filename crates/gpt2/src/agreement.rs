//! Whether all ranks hold the same state, and who does not: a detector of machines that compute or remember wrongly.
//!
//! Invariant: a state that ranks differ in is told with the hash of each, so that computing it again names the one that
//! was wrong, also among two. Deliberately not here: when to compare (`train`), what becomes of snapshots (the daemon).

use std::path::PathBuf;

use ckptd_core::protocol::{StateDispute, WorkerEvent};
use ckptd_core::{Error, Result};

use crate::capture::TrainingState;
use crate::ranks::{RankGroup, numbers_in};

/// In the environment of ranks under test: "RANK:STEP:FILE" has one bit of that rank's parameters flipped after that
/// step, once: the file, which must be there, is removed with it.
const FLIP: &str = "CKPTD_TEST_FLIP_BIT";

/// What comparing has shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StateComparison {
    Same(String),
    Different {
        what: String,
        /// Of each rank, in order.
        hashes: Vec<String>,
        /// A majority holds what rank 0 holds: what it has saved is right.
        is_rank_zero_right: bool,
    },
}

impl StateComparison {
    /// Of the states of all ranks.
    ///
    /// # Errors
    /// That a rank is lost.
    pub fn of(state: &TrainingState, group: &mut dyn RankGroup) -> Result<StateComparison> {
        let hash = state.hash()?.to_hex();
        let hashes = group.gather(hash.as_bytes())?;
        Ok(compare(&hashes.iter().map(|hash| String::from_utf8_lossy(hash).into_owned()).collect::<Vec<_>>()))
    }

    /// What the daemon hears of it.
    pub fn event(&self, step: u64) -> WorkerEvent {
        match self.clone() {
            StateComparison::Same(_) => WorkerEvent::Agreed { step },
            StateComparison::Different { what, hashes, is_rank_zero_right } => {
                WorkerEvent::Disagreed { dispute: StateDispute { step, hashes }, what, is_rank_zero_right }
            }
        }
    }
}

/// What all ranks say of a step before any of them updates.
pub struct StepWords {
    /// Of the micro-batches, in order.
    pub losses: Vec<f64>,
    /// Of each rank: its memory holds what its last update left there.
    are_as_left: Vec<bool>,
}

impl StepWords {
    /// Says what is this rank's. Rank 0 calls `pass` when all have said it, and before any hears of it.
    ///
    /// # Errors
    /// That a rank is lost.
    pub fn exchange(
        losses: &[f64],
        is_as_left: bool,
        group: &mut dyn RankGroup,
        pass: &mut dyn FnMut(),
    ) -> Result<StepWords> {
        let bytes = losses.iter().flat_map(|loss| loss.to_le_bytes()).chain([u8::from(is_as_left)]);
        let mut said = group.meet(&bytes.collect::<Vec<u8>>(), pass)?;
        let are_as_left = said.iter_mut().map(|bytes| bytes.pop() == Some(1)).collect();
        Ok(StepWords { losses: numbers_in(&said), are_as_left })
    }

    /// The ranks whose memory has changed since `step` was done, as the daemon hears of it; `None` where there are
    /// none.
    pub fn spoilt(&self, step: u64) -> Option<SpoiltMemory> {
        changed_memory(&self.are_as_left).map(|what| SpoiltMemory { step, what })
    }
}

/// Some ranks' memory does not hold what it should. Where the optimizer is sharded, nothing else would show that.
pub struct SpoiltMemory {
    step: u64,
    what: String,
}

impl SpoiltMemory {
    /// Asks all ranks about it.
    ///
    /// # Errors
    /// That a rank is lost.
    pub fn find(step: u64, is_as_left: bool, group: &mut dyn RankGroup) -> Result<Option<SpoiltMemory>> {
        let said = group.gather(&[u8::from(is_as_left)])?;
        let are_as_left: Vec<bool> = said.iter().map(|said| said.as_slice() == [1]).collect();
        Ok(changed_memory(&are_as_left).map(|what| SpoiltMemory { step, what }))
    }

    /// What the daemon hears of it.
    pub fn event(&self) -> WorkerEvent {
        let dispute = StateDispute { step: self.step, hashes: Vec::new() };
        WorkerEvent::Disagreed { dispute, what: self.what.clone(), is_rank_zero_right: false }
    }

    /// What ends the training.
    pub fn error(&self) -> Error {
        Error::Other(format!("after step {} {}", self.step, self.what))
    }
}

fn changed_memory(are_as_left: &[bool]) -> Option<String> {
    let changed = are_as_left.iter().enumerate().filter(|(_, is_as_left)| !**is_as_left);
    let changed: Vec<String> = changed.map(|(rank, _)| rank.to_string()).collect();
    match changed.as_slice() {
        [] => None,
        [one] => {
            Some(format!("rank {one} holds a state other than its last update left; its machine remembers wrongly"))
        }
        several => {
            let ranks = several.join(", ");
            Some(format!("ranks {ranks} hold a state other than their last update left; they remember wrongly"))
        }
    }
}

fn compare(hashes: &[String]) -> StateComparison {
    let alike = |hash: &String| hashes.iter().filter(|other| *other == hash).count();
    let Some(most) = hashes.iter().max_by_key(|hash| alike(hash)) else { return StateComparison::Same(String::new()) };
    if alike(most) == hashes.len() {
        return StateComparison::Same(most.clone());
    }
    let has_majority = 2 * alike(most) > hashes.len();
    let what = if has_majority {
        let odd = odd_ones(hashes, most);
        format!("{odd} a state other than the rest; its machine computes or remembers wrongly")
    } else {
        let all = (0..hashes.len()).map(|rank| rank.to_string()).collect::<Vec<_>>().join(", ");
        format!("ranks {all} do not hold the same state; it is computed again from the last one that they agreed on")
    };
    let is_rank_zero_right = has_majority && hashes[0] == *most;
    StateComparison::Different { what, hashes: hashes.to_vec(), is_rank_zero_right }
}

/// "rank 2 holds", "ranks 1, 2 hold": those that hold something else.
fn odd_ones(hashes: &[String], right: &str) -> String {
    let odd: Vec<String> =
        (0..hashes.len()).filter(|&rank| hashes[rank] != right).map(|rank| rank.to_string()).collect();
    match odd.as_slice() {
        [one] => format!("rank {one} holds"),
        several => format!("ranks {} hold", several.join(", ")),
    }
}

/// Who was wrong in an earlier dispute, now that all hold `right` at its step.
pub fn settled(dispute: &StateDispute, right: &str) -> String {
    let step = dispute.step;
    if dispute.hashes.is_empty() {
        return format!("step {step}, which a machine that remembers wrongly had spoilt, is computed again");
    }
    if dispute.hashes.iter().all(|hash| hash != right) {
        return format!("step {step}, computed again, is what no rank held before: none of them computes reliably");
    }
    let odd = odd_ones(&dispute.hashes, right).replace("holds", "held").replace(" hold", " held");
    format!(
        "step {step}, computed again on all ranks alike: {odd} another state; that machine computed or remembered \
             wrongly"
    )
}

/// A bit that is to be flipped, in a test.
#[derive(Debug)]
pub struct BitFlip {
    step: u64,
    once: PathBuf,
}

impl BitFlip {
    /// Of this rank, where there is one.
    pub fn of_rank(rank: usize) -> Option<BitFlip> {
        let text = std::env::var(FLIP).ok()?;
        let mut parts = text.splitn(3, ':');
        let (of_rank, step): (usize, u64) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
        (of_rank == rank).then_some(BitFlip { step, once: parts.next()?.into() })
    }

    /// Flips it where `step` steps are done, or as soon after that as no snapshot is in flight.
    pub fn strike(&self, step: u64, state: &mut TrainingState) {
        if step < self.step || !self.once.exists() {
            return;
        }
        let flipped = state.fill(|tensors| {
            if let Some(byte) = tensors.first_mut().and_then(|tensor| tensor.bytes.first_mut()) {
                *byte ^= 1;
            }
            Ok(())
        });
        if flipped.is_ok() {
            let _ = std::fs::remove_file(&self.once);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hashes(text: &str) -> Vec<String> {
        text.chars().map(String::from).collect()
    }

    #[test]
    fn the_odd_rank_is_named_where_there_is_a_majority() {
        assert_eq!(compare(&hashes("aaa")), StateComparison::Same("a".into()));
        assert_eq!(compare(&hashes("a")), StateComparison::Same("a".into()));
        let different = |text: &str| match compare(&hashes(text)) {
            StateComparison::Different { what, is_rank_zero_right, .. } => (what, is_rank_zero_right),
            StateComparison::Same(_) => panic!("{text}"),
        };
        let (what, is_right) = different("aab");
        assert!(what.starts_with("rank 2 holds a state other than the rest") && is_right, "{what}");
        let (what, is_right) = different("baa");
        assert!(what.starts_with("rank 0 holds") && !is_right, "{what}");
        assert!(different("abcaa").0.starts_with("ranks 1, 2 hold"));
        let (what, is_right) = different("ab");
        assert!(what.starts_with("ranks 0, 1 do not hold the same state") && !is_right, "{what}");
    }

    #[test]
    fn ranks_whose_memory_has_changed_are_named() {
        assert_eq!(changed_memory(&[true, true]), None);
        assert!(changed_memory(&[true, false]).is_some_and(|what| what.starts_with("rank 1 holds a state other")));
        assert!(changed_memory(&[false, true, false]).is_some_and(|what| what.starts_with("ranks 0, 2 hold")));
        let dispute = StateDispute { step: 50, hashes: Vec::new() };
        assert_eq!(
            settled(&dispute, "a"),
            "step 50, which a machine that remembers wrongly had spoilt, is computed again"
        );
    }

    #[test]
    fn computing_again_names_the_one_of_two_that_was_wrong() {
        let dispute = |text: &str| StateDispute { step: 50, hashes: hashes(text) };
        assert!(settled(&dispute("ab"), "a").contains("rank 1 held another state"));
        assert!(settled(&dispute("ab"), "b").contains("rank 0 held another state"));
        assert!(settled(&dispute("ab"), "c").contains("no rank held"));
    }
}
