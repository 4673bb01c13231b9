//! The tree of additions: leaf i is micro-batch i; a node is the sum of its two halves, each of a power of two of
//! leaves; what lies beyond the last leaf is absent.
//!
//! a + b is b + a to the bit, so that only the tree's shape counts. Each rank adds what lies within its leaves; what it
//! is left with are the largest subtrees there. Invariant: the plan is a function of the numbers of leaves and ranks,
//! and its sums nest as the tree says, whatever these are. Deliberately not here: values.

use std::ops::Range;

use crate::ranks::share;

/// The leaves `first` to `first + 2^level - 1`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Subtree {
    pub first: u64,
    pub level: u32,
}

impl Subtree {
    pub(super) fn leaf(index: u64) -> Subtree {
        Subtree { first: index, level: 0 }
    }

    fn leaves(self) -> u64 {
        1 << self.level
    }

    /// Whether this is the left half of a node and `other` its right half.
    pub(super) fn is_left_of(self, other: Subtree) -> bool {
        let halves = self.level == other.level && self.first + self.leaves() == other.first;
        halves && self.first.is_multiple_of(2 * self.leaves())
    }

    /// The node whose left half this is.
    pub(super) fn parent(self) -> Subtree {
        Subtree { first: self.first, level: self.level + 1 }
    }
}

/// Who has which subtrees, and in which order they are added.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TreePlan {
    /// All subtrees from the first leaf to the last, each with its rank.
    pub subtrees: Vec<(usize, Subtree)>,
    /// (into, from): indices of subtrees; after all of them the first one is the whole sum.
    pub additions: Vec<(usize, usize)>,
}

impl TreePlan {
    /// For `leaves` leaves dealt out to `ranks` ranks.
    pub(super) fn new(ranks: usize, leaves: u64) -> TreePlan {
        let mut plan = TreePlan { subtrees: Vec::new(), additions: Vec::new() };
        for rank in 0..ranks {
            plan.subtrees.extend(largest_within(share(rank, ranks, leaves)).into_iter().map(|subtree| (rank, subtree)));
        }
        let top = Subtree { first: 0, level: leaves.max(1).next_power_of_two().ilog2() };
        plan.add_up(top, leaves);
        plan
    }

    /// The indices of a rank's subtrees.
    pub(super) fn of_rank(&self, rank: usize) -> Vec<usize> {
        let mine = self.subtrees.iter().enumerate().filter(|(_, (owner, _))| *owner == rank);
        mine.map(|(index, _)| index).collect()
    }

    /// Notes the additions below `node`; returns the index where its sum is.
    fn add_up(&mut self, node: Subtree, leaves: u64) -> Option<usize> {
        if node.first >= leaves {
            return None;
        }
        if let Some(index) = self.subtrees.iter().position(|(_, subtree)| *subtree == node) {
            return Some(index);
        }
        let level = node.level.checked_sub(1)?;
        let left = self.add_up(Subtree { first: node.first, level }, leaves);
        let right = self.add_up(Subtree { first: node.first + (1 << level), level }, leaves);
        if let (Some(into), Some(from)) = (left, right) {
            self.additions.push((into, from));
        }
        left.or(right)
    }
}

/// The largest subtrees that lie within `leaves`, in order.
fn largest_within(leaves: Range<u64>) -> Vec<Subtree> {
    let (mut found, mut first) = (Vec::new(), leaves.start);
    while first < leaves.end {
        let aligned = if first == 0 { 63 } else { first.trailing_zeros() };
        let level = aligned.min((leaves.end - first).ilog2());
        found.push(Subtree { first, level });
        first += 1 << level;
    }
    found
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Values whose sum depends on the order of additions.
    fn leaf(index: u64) -> f32 {
        ((index * 2_654_435_761 % 1_000_003) as f32).mul_add(1.37e-3, 1e-7)
            * if index.is_multiple_of(3) { -1.0 } else { 1.0 }
    }

    /// By the definition.
    fn whole(first: u64, level: u32, leaves: u64) -> Option<f32> {
        if first >= leaves {
            return None;
        }
        if level == 0 {
            return Some(leaf(first));
        }
        let (left, right) = (whole(first, level - 1, leaves), whole(first + (1 << (level - 1)), level - 1, leaves));
        Some(right.map_or(left.unwrap(), |right| left.unwrap() + right))
    }

    fn planned(ranks: usize, leaves: u64) -> f32 {
        let plan = TreePlan::new(ranks, leaves);
        let sums = plan.subtrees.iter().map(|(_, subtree)| whole(subtree.first, subtree.level, leaves).unwrap());
        let mut sums: Vec<f32> = sums.collect();
        for &(into, from) in &plan.additions {
            sums[into] += sums[from];
        }
        assert_eq!(plan.additions.len() + 1, sums.len(), "every sum is added once");
        sums[0]
    }

    #[test]
    fn the_sum_is_the_trees_for_any_number_of_ranks_and_leaves() {
        let mut order_matters = false;
        for leaves in 1..=33 {
            let expected = whole(0, 6, leaves).unwrap();
            order_matters |= (0..leaves).map(leaf).sum::<f32>() != expected;
            for ranks in 1..=9 {
                assert_eq!(planned(ranks, leaves).to_bits(), expected.to_bits(), "{leaves} leaves on {ranks} ranks");
            }
        }
        assert!(order_matters, "these values would show another order");
    }

    #[test]
    fn a_rank_has_few_subtrees() {
        assert_eq!(TreePlan::new(1, 8).subtrees, [(0, Subtree { first: 0, level: 3 })]);
        assert_eq!(TreePlan::new(4, 8).subtrees.len(), 4);
        assert_eq!(TreePlan::new(3, 8).subtrees.len(), 5);
        assert!(TreePlan::new(3, 1).of_rank(0).is_empty());
        assert_eq!(TreePlan::new(3, 1).of_rank(2), [0]);
    }
}
