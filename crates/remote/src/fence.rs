//! Which markers belong to the one history of a training.
//!
//! Each ownership of a job has an epoch, and a base: the sequence number that it goes on from. What an earlier epoch
//! wrote beyond the base of a later one is an orphan: another machine went on from before it. An orphan is shown, never
//! chosen. So a machine that slept through the loss of its lease does no harm, whatever its clock says.
//!
//! Invariant: the order is that of (epoch, sequence number), never that of a time.

use std::collections::BTreeMap;
use std::ops::Bound::{Excluded, Unbounded};

/// The bases of all epochs that are known.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Fence {
    bases: BTreeMap<u64, u64>,
}

impl Fence {
    /// Of (epoch, base). Where one stands twice, the lower base counts: fewer markers are chosen.
    pub fn new(epochs: impl IntoIterator<Item = (u64, u64)>) -> Fence {
        let mut bases = BTreeMap::new();
        for (epoch, base) in epochs {
            let lowest: &mut u64 = bases.entry(epoch).or_insert(base);
            *lowest = base.min(*lowest);
        }
        Fence { bases }
    }

    /// The newest epoch; 0 where there is none.
    pub fn newest_epoch(&self) -> u64 {
        self.bases.keys().next_back().copied().unwrap_or(0)
    }

    /// The later epoch that went on from before this snapshot.
    pub fn overtaken_by(&self, epoch: u64, seq: u64) -> Option<u64> {
        self.bases.range((Excluded(epoch), Unbounded)).find(|(_, base)| **base < seq).map(|(later, _)| *later)
    }

    /// Whether another machine went on from before this snapshot.
    pub fn is_orphan(&self, epoch: u64, seq: u64) -> bool {
        self.overtaken_by(epoch, seq).is_some()
    }

    /// Those that are no orphans, the newest first. `place` is (epoch, sequence number).
    pub fn in_order<T>(&self, all: impl IntoIterator<Item = T>, place: impl Fn(&T) -> (u64, u64)) -> Vec<T> {
        let mut kept: Vec<T> = all
            .into_iter()
            .filter(|item| {
                let (epoch, seq) = place(item);
                !self.is_orphan(epoch, seq)
            })
            .collect();
        kept.sort_by_key(|item| std::cmp::Reverse(place(item)));
        kept
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_earlier_epoch_wrote_beyond_a_later_base_is_an_orphan() {
        let fence = Fence::new([(1, 0), (2, 12), (4, 20)]);
        assert!(!fence.is_orphan(1, 12) && fence.is_orphan(1, 13) && fence.is_orphan(1, 19));
        assert!(!fence.is_orphan(2, 20) && fence.is_orphan(2, 21) && fence.is_orphan(3, 21));
        assert!(!fence.is_orphan(4, 1000) && !fence.is_orphan(5, 1000));
        assert_eq!(fence.overtaken_by(1, 21), Some(2));
        assert_eq!(fence.newest_epoch(), 4);
    }

    #[test]
    fn the_order_is_epoch_then_sequence_number_without_orphans() {
        let fence = Fence::new([(1, 0), (2, 12)]);
        let all = [(1, 11), (1, 12), (1, 15), (2, 13), (2, 14), (0, 12)];
        assert_eq!(fence.in_order(all, |place| *place), [(2, 14), (2, 13), (1, 12), (1, 11)]);
    }

    #[test]
    fn of_two_bases_of_one_epoch_the_lower_counts() {
        assert_eq!(Fence::new([(2, 12), (2, 9)]), Fence::new([(2, 9)]));
    }
}
