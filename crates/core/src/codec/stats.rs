//! What a plane of bytes looks like, from one pass over its range and a sample of its values.
//!
//! The figures only steer decisions; a wrong estimate costs bytes, never correctness.

use super::dispatch::{InstructionSet, multiversion};

/// Bytes that are counted at a stretch, and the distance from one stretch to the next in a long plane.
const PAGE_BYTES: usize = 1 << 10;
const PAGE_STRIDE_BYTES: usize = 8 * PAGE_BYTES;
/// Planes shorter than this are counted in full.
const SAMPLED_FROM_BYTES: usize = 32 << 10;

/// How often each byte value occurs among those counted.
pub(super) type ByteCounts = [u32; 256];

pub(super) struct PlaneStats {
    /// Smallest and largest value; exact, not sampled.
    pub min: u8,
    pub max: u8,
    pub counts: ByteCounts,
    /// Estimated order-0 entropy of a value in bits.
    pub entropy_bits: f32,
}

impl PlaneStats {
    /// `plane` must not be empty.
    pub(super) fn of(isa: InstructionSet, plane: &[u8]) -> PlaneStats {
        let (min, max) = range(isa, plane);
        let counts = count(plane);
        PlaneStats { min, max, counts, entropy_bits: entropy_bits(&counts) }
    }

    /// Number of values from the smallest to the largest.
    pub(super) fn span(&self) -> usize {
        usize::from(self.max - self.min) + 1
    }
}

multiversion! {
    fn range(plane: &[u8]) -> (u8, u8) {
        plane.iter().fold((u8::MAX, u8::MIN), |(min, max), &v| (min.min(v), max.max(v)))
    }
}

fn count(plane: &[u8]) -> ByteCounts {
    let stride = if plane.len() < SAMPLED_FROM_BYTES { PAGE_BYTES } else { PAGE_STRIDE_BYTES };
    // Four histograms, because a run of equal values would wait for its own counter.
    let mut parts = [[0u32; 256]; 4];
    for stretch in plane.chunks(stride) {
        let page = &stretch[..stretch.len().min(PAGE_BYTES)];
        let (quads, rest) = page.as_chunks::<4>();
        for quad in quads {
            for (part, &value) in parts.iter_mut().zip(quad) {
                part[usize::from(value)] += 1;
            }
        }
        for &value in rest {
            parts[0][usize::from(value)] += 1;
        }
    }
    std::array::from_fn(|v| parts.iter().map(|part| part[v]).sum())
}

/// Shannon entropy of the counts with Miller and Madow's correction: a small sample understates it by about
/// (values seen - 1) / (2 n ln 2) bits.
pub(super) fn entropy_bits(counts: &ByteCounts) -> f32 {
    let total: u32 = counts.iter().sum();
    if total == 0 {
        return 0.0;
    }
    let total = total as f32;
    let (mut sum, mut seen) = (0.0, 0);
    for &count in counts.iter().filter(|&&count| count > 0) {
        sum += count as f32 * (total / count as f32).log2();
        seen += 1;
    }
    sum / total + (seen - 1) as f32 / (2.0 * total * std::f32::consts::LN_2)
}
