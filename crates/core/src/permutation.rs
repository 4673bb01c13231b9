//! The order of an epoch, which can be entered anywhere.
//!
//! Invariant: a pure function of (length, seed, epoch, index), so that seeking is O(1) and a resume needs only a place.
//! Deliberately not here: what is at those indices.

use crate::randomness::words;

/// Rounds of the Feistel network; even, so that the halves come back to their own widths.
const ROUNDS: usize = 8;

/// A keyed bijection of `0..n`: a Feistel network on the bits of `n - 1`, walked along its cycle until it lands below
/// `n` (Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002), under two evaluations on average.
#[derive(Clone, Debug)]
pub struct KeyedPermutation {
    n: u64,
    bits: u32,
    keys: [u64; ROUNDS],
}

impl KeyedPermutation {
    /// That of the epoch `epoch` of a training with this seed.
    pub fn of_epoch(n: u64, seed: u64, epoch: u64) -> KeyedPermutation {
        let keys = words("epoch order", [seed, epoch]);
        KeyedPermutation { n, bits: u64::BITS - n.saturating_sub(1).leading_zeros(), keys }
    }

    /// What stands at `index`, which is below `n`.
    pub fn at(&self, index: u64) -> u64 {
        debug_assert!(index < self.n);
        let mut value = index;
        loop {
            value = self.feistel(value);
            if value < self.n {
                return value;
            }
        }
    }

    /// A bijection of the numbers of `bits` bits. The halves may differ in width by one bit; they swap every round.
    fn feistel(&self, value: u64) -> u64 {
        let (mut left_bits, mut right_bits) = (self.bits / 2, self.bits - self.bits / 2);
        let (mut left, mut right) = (value >> right_bits, value & mask(right_bits));
        for key in self.keys {
            (left, right) = (right, left ^ (mix(right ^ key) & mask(left_bits)));
            (left_bits, right_bits) = (right_bits, left_bits);
        }
        (left << right_bits) | right
    }
}

/// The lowest `bits` bits, at most 32 of them.
fn mask(bits: u32) -> u64 {
    (1 << bits) - 1
}

/// The finaliser of SplitMix64 (Stafford's mix 13).
fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    fn permutation(n: u64, seed: u64) -> KeyedPermutation {
        KeyedPermutation::of_epoch(n, seed, 0)
    }

    #[test]
    fn the_order_is_a_permutation_for_every_number_of_samples_up_to_3000() {
        for n in 1..=3000u64 {
            let permutation = permutation(n, n);
            let mut seen = vec![false; n as usize];
            for i in 0..n {
                assert!(!std::mem::replace(&mut seen[permutation.at(i) as usize], true), "n {n} repeats at {i}");
            }
        }
    }

    #[test]
    fn the_order_is_that_of_the_first_release() {
        // Computed by a separate implementation in Python.
        let order: Vec<u64> = (0..10).map(|i| permutation(10, 1337).at(i)).collect();
        assert_eq!(order, [8, 9, 0, 6, 2, 4, 7, 5, 1, 3]);
        assert_eq!(permutation(1 << 40, 1337).at(12345), 765_966_357_289);
    }

    #[test]
    fn every_place_is_about_equally_likely_over_the_seeds() {
        for n in [2u64, 3, 5, 8, 13] {
            let mut counts = vec![vec![0u32; n as usize]; n as usize];
            for seed in 0..4000 {
                let permutation = permutation(n, seed);
                for i in 0..n {
                    counts[i as usize][permutation.at(i) as usize] += 1;
                }
            }
            let expected = 4000.0 / n as f64;
            for count in counts.into_iter().flatten() {
                // Six standard deviations of a binomial count.
                assert!((f64::from(count) - expected).abs() < 6.0 * expected.sqrt(), "n {n}: {count} of {expected}");
            }
        }
    }

    proptest! {
        #[test]
        fn a_big_order_stays_in_range_and_repeats_nothing_nearby(n in 3001u64..1 << 50, seed: u64, start: u64) {
            let permutation = permutation(n, seed);
            let start = start % (n - 2000);
            let places: HashSet<u64> = (start..start + 2000).map(|i| permutation.at(i)).collect();
            prop_assert_eq!(places.len(), 2000);
            prop_assert!(places.iter().all(|&place| place < n));
        }
    }
}
