//! The seeds of torch's generator.
//!
//! Invariant: each function is pure, so that a resume needs no generator state, and its value is the same on every
//! platform. Deliberately not here: torch's generator, which the training loop seeds with [`seed_for`].

pub use ckptd_core::randomness::words;

/// The seed of torch's generator for one micro-batch (0-based) of one update (0-based).
///
/// Of its 64 bits torch's CPU generator (mt19937) takes the lower 32, the CUDA generator (Philox) all.
pub fn seed_for(seed: u64, step: u64, micro_batch: u64, purpose: &str) -> i64 {
    let [word] = words(purpose, [seed, step, micro_batch]);
    i64::from_le_bytes(word.to_le_bytes())
}

/// The seed of torch's generator for the initial weights.
pub fn init_seed(seed: u64) -> i64 {
    let [word] = words("init", [seed]);
    i64::from_le_bytes(word.to_le_bytes())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn seeds_are_those_of_the_first_release() {
        // Computed with the Python package blake3 from the definition above.
        assert_eq!(seed_for(1337, 0, 0, "dropout"), 4_880_419_264_645_085_147);
        assert_eq!(seed_for(u64::MAX, 123_456_789, 7, "dropout"), -4_933_317_199_986_250_586);
        assert_eq!(init_seed(1337), 8_804_531_759_548_040_592);
    }

    #[test]
    fn every_argument_changes_the_seed() {
        let seeds: HashSet<i64> = [
            seed_for(1, 2, 3, "dropout"),
            seed_for(2, 1, 3, "dropout"),
            seed_for(1, 3, 2, "dropout"),
            seed_for(1, 2, 4, "dropout"),
            seed_for(1, 2, 3, "init"),
            init_seed(1),
            init_seed(2),
        ]
        .into();
        assert_eq!(seeds.len(), 7);
    }
}
