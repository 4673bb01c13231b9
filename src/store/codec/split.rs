//! float32 words as one byte plane to be coded and the other bits as they are.
//!
//! A word of `24 + H` bits becomes a symbol (its top 8 bits), its low 16 bits, and the `H` bits between, packed without
//! gaps, least significant first. H is 8 for floats with a sign, 7 without, 6 and 5 for whitened ones.
//!
//! Words travel as `[u8; 4]`, little-endian, because the bytes of a tensor need not be aligned.

use super::dispatch::{Isa, multiversion};
use super::packing::{BLOCK, pack, packed_len, unpack};

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

/// Splits `words`. With H = 8 they are floats, otherwise numbers below 2^(24 + H).
///
/// `symbols` holds one byte a word, `low` two, `high` `packed_len(words.len(), H)` in all.
pub(super) fn split<const H: usize>(isa: Isa, words: &[[u8; 4]], symbols: &mut [u8], low: &mut [u8], high: &mut [u8]) {
    if H == 8 {
        return take_apart::<H>(isa, words, symbols, low, high);
    }
    assert!(symbols.len() == words.len() && low.len() == 2 * words.len() && high.len() == packed_len(words.len(), H));
    let mut middle = [0u8; BLOCK];
    let blocks = words.chunks(BLOCK).zip(symbols.chunks_mut(BLOCK)).zip(low.chunks_mut(2 * BLOCK));
    for (((words, symbols), low), high) in blocks.zip(high.chunks_mut(packed_len(BLOCK, H))) {
        let middle = &mut middle[..words.len()];
        take_apart::<H>(isa, words, symbols, low, middle);
        pack::<H>(isa, middle, high);
    }
}

/// Undoes [`split`].
pub(super) fn join<const H: usize>(isa: Isa, symbols: &[u8], low: &[u8], high: &[u8], words: &mut [[u8; 4]]) {
    if H == 8 {
        return put_together::<H>(isa, symbols, low, high, words);
    }
    assert!(symbols.len() == words.len() && low.len() == 2 * words.len() && high.len() == packed_len(words.len(), H));
    let mut middle = [0u8; BLOCK];
    let blocks = words.chunks_mut(BLOCK).zip(symbols.chunks(BLOCK)).zip(low.chunks(2 * BLOCK));
    for (((words, symbols), low), high) in blocks.zip(high.chunks(packed_len(BLOCK, H))) {
        let middle = &mut middle[..words.len()];
        unpack::<H>(isa, high, middle);
        put_together::<H>(isa, symbols, low, middle, words);
    }
}

multiversion! {
    /// The bits above `H` in `middle` are whatever.
    fn take_apart<const H: usize>(words: &[[u8; 4]], symbols: &mut [u8], low: &mut [u8], middle: &mut [u8]) {
        let (low, _) = low.as_chunks_mut::<2>();
        assert!(symbols.len() == words.len() && low.len() == words.len() && middle.len() == words.len());
        for (((word, symbol), low), middle) in words.iter().zip(symbols).zip(low).zip(middle) {
            let word = u32::from_le_bytes(*word);
            let word = if H == 8 { rotate(word) } else { word };
            *symbol = (word >> (16 + H)) as u8;
            *low = (word as u16).to_le_bytes();
            *middle = (word >> 16) as u8;
        }
    }
}

multiversion! {
    /// Undoes [`take_apart`]; the bits above `H` in `middle` are zero.
    fn put_together<const H: usize>(symbols: &[u8], low: &[u8], middle: &[u8], words: &mut [[u8; 4]]) {
        let (low, _) = low.as_chunks::<2>();
        assert!(symbols.len() == words.len() && low.len() == words.len() && middle.len() == words.len());
        for (((word, symbol), low), middle) in words.iter_mut().zip(symbols).zip(low).zip(middle) {
            let top = u32::from(*symbol) << (16 + H);
            let joined = top | u32::from(*middle) << 16 | u32::from(u16::from_le_bytes(*low));
            *word = if H == 8 { unrotate(joined) } else { joined }.to_le_bytes();
        }
    }
}
