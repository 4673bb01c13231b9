//! Random numbers as a pure function: BLAKE3 of what a number is for.
//!
//! Invariant: pure, so that a resume needs no generator state, and the same on every platform. Deliberately not here:
//! generators of a framework.

/// Separates these hashes from every other use of BLAKE3; another string here changes every training.
const CONTEXT: &str = "ckptd randomness v1";

/// `N` uniform 64-bit words for `purpose` and `numbers`: BLAKE3 in its key derivation mode over the purpose, a zero
/// byte and the numbers (little-endian), its output read as little-endian words.
pub fn words<const N: usize, const M: usize>(purpose: &str, numbers: [u64; M]) -> [u64; N] {
    let mut hasher = blake3::Hasher::new_derive_key(CONTEXT);
    hasher.update(purpose.as_bytes()).update(&[0]);
    for number in numbers {
        hasher.update(&number.to_le_bytes());
    }
    let mut output = hasher.finalize_xof();
    [(); N].map(|()| {
        let mut bytes = [0; 8];
        output.fill(&mut bytes);
        u64::from_le_bytes(bytes)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_those_of_the_first_release() {
        // Computed with the Python package blake3 from the definition above.
        assert_eq!(
            words::<3, 2>("order", [1337, 2]),
            [802_899_614_280_223_234, 2_043_727_730_315_627_503, 9_565_785_337_039_716_311]
        );
    }
}
