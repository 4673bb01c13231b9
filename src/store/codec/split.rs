//! float32 words as one byte plane to be coded and the other bits as they are.
//!
//! A word of `24 + H` bits becomes a symbol (its top 8 bits), its low 16 bits, and the `H` bits between, packed without
//! gaps, least significant first. H is 8 for floats with a sign, 7 without, 6 and 5 for whitened ones.
//!
//! Words travel as `[u8; 4]`, little-endian, because the bytes of a tensor need not be aligned.

use super::dispatch::multiversion;

/// Elements handled at a stretch; its intermediate bytes stay in the first-level cache. A multiple of 8, so that every
/// stretch of packed bits starts on a whole byte.
const BLOCK: usize = 512;

/// Bytes that `H` bits each of `n` words take.
pub(super) const fn packed_len(n: usize, high_bits: usize) -> usize {
    (n * high_bits).div_ceil(8)
}

/// float32 to its word for H = 8: exponent, sign, mantissa. The sign is between them so that the mantissa's bytes are
/// as compressible as they were.
#[inline(always)]
fn rotate(x: u32) -> u32 {
    (x << 1) & 0xff00_0000 | (x >> 8) & 0x0080_0000 | x & 0x007f_ffff
}

#[inline(always)]
fn unrotate(y: u32) -> u32 {
    (y >> 1) & 0x7f80_0000 | (y << 8) & 0x8000_0000 | y & 0x007f_ffff
}

multiversion! {
    /// Splits `words`. With H = 8 they are floats, otherwise numbers below 2^(24 + H).
    ///
    /// `symbols` holds one byte a word, `low` two, `high` `packed_len(words.len(), H)` in all.
    pub(super) fn split<const H: usize>(words: &[[u8; 4]], symbols: &mut [u8], low: &mut [u8], high: &mut [u8]) {
        let (low, _) = low.as_chunks_mut::<2>();
        assert!(symbols.len() == words.len() && low.len() == words.len() && high.len() == packed_len(words.len(), H));
        let mut middle = [0u8; BLOCK];
        let blocks = words.chunks(BLOCK).zip(symbols.chunks_mut(BLOCK)).zip(low.chunks_mut(BLOCK));
        for (((words, symbols), low), high) in blocks.zip(high.chunks_mut(BLOCK / 8 * H)) {
            let middle = &mut middle[..words.len()];
            for (((word, symbol), low), middle) in words.iter().zip(symbols).zip(low).zip(&mut *middle) {
                let word = u32::from_le_bytes(*word);
                let word = if H == 8 { rotate(word) } else { word };
                *symbol = (word >> (16 + H)) as u8;
                *low = (word as u16).to_le_bytes();
                *middle = (word >> 16) as u8 & (0xff >> (8 - H));
            }
            pack::<H>(middle, high);
        }
    }
}

multiversion! {
    /// Undoes [`split`].
    pub(super) fn join<const H: usize>(symbols: &[u8], low: &[u8], high: &[u8], words: &mut [[u8; 4]]) {
        let (low, _) = low.as_chunks::<2>();
        assert!(symbols.len() == words.len() && low.len() == words.len() && high.len() == packed_len(words.len(), H));
        let mut middle = [0u8; BLOCK];
        let blocks = words.chunks_mut(BLOCK).zip(symbols.chunks(BLOCK)).zip(low.chunks(BLOCK));
        for (((words, symbols), low), high) in blocks.zip(high.chunks(BLOCK / 8 * H)) {
            let middle = &mut middle[..words.len()];
            unpack::<H>(high, middle);
            for (((word, symbol), low), middle) in words.iter_mut().zip(symbols).zip(low).zip(&*middle) {
                let top = u32::from(*symbol) << (16 + H);
                let joined = top | u32::from(*middle) << 16 | u32::from(u16::from_le_bytes(*low));
                *word = if H == 8 { unrotate(joined) } else { joined }.to_le_bytes();
            }
        }
    }
}

/// Packs the low `H` bits of every byte; at most `BLOCK` of them.
#[inline(always)]
fn pack<const H: usize>(bytes: &[u8], packed: &mut [u8]) {
    if H == 8 {
        return packed.copy_from_slice(bytes);
    }
    let (groups, tail) = bytes.as_chunks::<8>();
    // Merging is one loop and storing another, because only the first can be vectorised.
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

/// Undoes [`pack`].
#[inline(always)]
fn unpack<const H: usize>(packed: &[u8], bytes: &mut [u8]) {
    if H == 8 {
        return bytes.copy_from_slice(packed);
    }
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

/// Closes the gaps between eight `H`-bit numbers, one in each byte: pairs, then pairs of pairs, then both halves.
#[inline(always)]
fn merge<const H: usize>(x: u64) -> u64 {
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
