//! Numbers of `H` bits, eight in a byte each or packed without gaps, least significant first.
//!
//! Invariant: eight numbers fill `H` bytes, so a stretch of a multiple of eight begins on a whole byte.

use super::dispatch::{InstructionSet, multiversion};

/// Numbers handled at a stretch, a multiple of eight: their merged words are made in one loop and stored in another,
/// since only the first can be vectorised, and stay in the first-level cache.
pub(super) const BLOCK: usize = 512;

/// Bytes that `n` numbers take.
pub(super) const fn packed_len(n: usize, bits: usize) -> usize {
    (n * bits).div_ceil(8)
}

multiversion! {
    /// Packs the low `H` bits of every byte.
    pub(super) fn pack<const H: usize>(bytes: &[u8], packed: &mut [u8]) {
        assert_eq!(packed.len(), packed_len(bytes.len(), H));
        for (bytes, packed) in bytes.chunks(BLOCK).zip(packed.chunks_mut(BLOCK / 8 * H)) {
            let (groups, tail) = bytes.as_chunks::<8>();
            let mut merged = [0u64; BLOCK / 8];
            for (merged, group) in merged.iter_mut().zip(groups) {
                *merged = merge::<H>(u64::from_le_bytes(*group));
            }
            let (whole, rest) = packed.split_at_mut(groups.len() * H);
            for (packed, merged) in whole.chunks_exact_mut(H).zip(&merged) {
                packed.copy_from_slice(&merged.to_le_bytes()[..H]);
            }
            if !tail.is_empty() {
                let mut group = [0; 8];
                group[..tail.len()].copy_from_slice(tail);
                rest.copy_from_slice(&merge::<H>(u64::from_le_bytes(group)).to_le_bytes()[..rest.len()]);
            }
        }
    }
}

/// Undoes [`pack`].
pub(super) fn unpack<const H: usize>(isa: InstructionSet, packed: &[u8], bytes: &mut [u8]) {
    assert_eq!(packed.len(), packed_len(bytes.len(), H));
    #[cfg(target_arch = "x86_64")]
    if isa.kind() == super::dispatch::IsaKind::Avx512 {
        // SAFETY: an `InstructionSet` of this kind exists only where the processor has the features.
        return unsafe { avx512::unpack::<H>(packed, bytes) };
    }
    unpack_by_words::<H>(isa, packed, bytes);
}

multiversion! {
    /// A few numbers at a time, without gaps between them in a word.
    fn unpack_by_words<const H: usize>(packed: &[u8], bytes: &mut [u8]) {
        for (packed, bytes) in packed.chunks(BLOCK / 8 * H).zip(bytes.chunks_mut(BLOCK)) {
            let (groups, tail) = bytes.as_chunks_mut::<8>();
            let (whole, rest) = packed.split_at(groups.len() * H);
            let mut merged = [0u64; BLOCK / 8];
            // Read with the bytes after it, which `spread` does not look at, where there are as many.
            let wide = packed.windows(8).step_by(H);
            let (bulk, last) = merged[..groups.len()].split_at_mut(wide.len().min(groups.len()));
            for (merged, packed) in bulk.iter_mut().zip(wide) {
                *merged = packed.first_chunk().copied().map_or(0, u64::from_le_bytes);
            }
            for (merged, packed) in last.iter_mut().zip(whole[bulk.len() * H..].chunks_exact(H)) {
                let mut group = [0; 8];
                group[..H].copy_from_slice(packed);
                *merged = u64::from_le_bytes(group);
            }
            for (group, merged) in groups.iter_mut().zip(&merged) {
                *group = spread::<H>(*merged).to_le_bytes();
            }
            if !tail.is_empty() {
                let mut group = [0; 8];
                group[..rest.len()].copy_from_slice(rest);
                tail.copy_from_slice(&spread::<H>(u64::from_le_bytes(group)).to_le_bytes()[..tail.len()]);
            }
        }
    }
}

/// Closes the gaps between eight `H`-bit numbers, one in each byte: pairs, then pairs of pairs, then both halves.
#[inline(always)]
fn merge<const H: usize>(x: u64) -> u64 {
    let x = x & (low_bits(H) * 0x0101_0101_0101_0101);
    let x = x & 0x00ff_00ff_00ff_00ff | (x >> 8 & 0x00ff_00ff_00ff_00ff) << H;
    let x = x & 0x0000_ffff_0000_ffff | (x >> 16 & 0x0000_ffff_0000_ffff) << (2 * H);
    x & 0xffff_ffff | (x >> 32) << (4 * H)
}

/// Undoes [`merge`]; bits above the eighth number are ignored.
#[inline(always)]
fn spread<const H: usize>(x: u64) -> u64 {
    let x = x & low_bits(4 * H) | (x >> (4 * H) & low_bits(4 * H)) << 32;
    let pairs = low_bits(2 * H) * 0x0000_0001_0000_0001;
    let x = x & pairs | (x >> (2 * H) & pairs) << 16;
    let ones = low_bits(H) * 0x0001_0001_0001_0001;
    x & ones | (x >> H & ones) << 8
}

const fn low_bits(n: usize) -> u64 {
    (1 << n) - 1
}

/// 64 numbers at a time; the last ones are loaded and stored under a mask.
#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::arch::x86_64::*;

    use super::low_bits;

    /// Spreads groups of `H` bytes to 8 bytes each; the bytes above are undefined.
    const fn apart<const H: usize>() -> [u8; 64] {
        let mut order = [0; 64];
        let mut i = 0;
        while i < 64 {
            let within = if i % 8 < H { i % 8 } else { 0 };
            order[i] = (i / 8 * H + within) as u8;
            i += 1;
        }
        order
    }

    /// Where each of a lane's eight numbers begins, in bits.
    const fn shifts<const H: usize>() -> [u8; 64] {
        let mut shifts = [0; 64];
        let mut i = 0;
        while i < 64 {
            shifts[i] = (i % 8 * H) as u8;
            i += 1;
        }
        shifts
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi")]
    pub(super) fn unpack<const H: usize>(packed: &[u8], bytes: &mut [u8]) {
        let (apart, shifts) = (load(&const { apart::<H>() }), load(&const { shifts::<H>() }));
        let number = _mm512_set1_epi8(low_bits(H) as u8 as i8);
        for (bytes, packed) in bytes.chunks_mut(64).zip(packed.chunks(8 * H)) {
            let lanes = _mm512_permutexvar_epi8(apart, load(packed));
            store(bytes, _mm512_and_si512(_mm512_multishift_epi64_epi8(shifts, lanes), number));
        }
    }

    /// At most 64 bytes, zeroes after them.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi")]
    fn load(bytes: &[u8]) -> __m512i {
        // SAFETY: the mask has only bytes of the slice.
        unsafe { _mm512_maskz_loadu_epi8(mask(bytes.len()), bytes.as_ptr().cast()) }
    }

    /// At most 64 bytes; what is above them is dropped.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi")]
    fn store(bytes: &mut [u8], value: __m512i) {
        // SAFETY: the mask has only bytes of the slice.
        unsafe { _mm512_mask_storeu_epi8(bytes.as_mut_ptr().cast(), mask(bytes.len()), value) };
    }

    fn mask(bytes: usize) -> u64 {
        if bytes >= 64 { u64::MAX } else { (1 << bytes) - 1 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held<const H: usize>() {
        for n in (0..200).chain([511, 512, 513, 1024, 2048]) {
            let numbers: Vec<u8> = (0..n).map(|i| (i * 151 % 251) as u8).collect();
            let mut reference = vec![0; packed_len(n, H)];
            for (i, number) in numbers.iter().enumerate() {
                for bit in 0..H {
                    reference[(i * H + bit) / 8] |= (number >> bit & 1) << ((i * H + bit) % 8);
                }
            }
            for isa in InstructionSet::supported() {
                let mut packed = vec![0xff; reference.len()];
                pack::<H>(isa, &numbers, &mut packed);
                assert_eq!(packed, reference, "{H} bits, {n} numbers, {}", isa.name());
                let mut unpacked = vec![0xff; n];
                unpack::<H>(isa, &packed, &mut unpacked);
                let low: Vec<u8> = numbers.iter().map(|number| number & (0xff >> (8 - H))).collect();
                assert_eq!(unpacked, low, "{H} bits, {n} numbers, {}", isa.name());
            }
        }
    }

    #[test]
    fn every_instruction_set_packs_as_the_definition_says() {
        held::<5>();
        held::<6>();
        held::<7>();
    }
}
