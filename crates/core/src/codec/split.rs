//! float32 words as one byte plane to be coded and the other bits as they are.
//!
//! A word of `24 + H` bits becomes a symbol (its top 8 bits), its low 16 bits, and the `H` bits between, packed without
//! gaps, least significant first. H is 8 for floats with a sign, 7 without, 6 and 5 for whitened ones.
//!
//! Words travel as `[u8; 4]`, little-endian, because the bytes of a tensor need not be aligned.

use super::dispatch::{InstructionSet, multiversion};
use super::packing::{BLOCK, pack, packed_len, unpack};
use super::whiten::{ChunkGrid, MagnitudeMeans, whole};

/// Most words that [`join`] takes: they stay in the first-level cache while they are finished. A multiple of eight, so
/// that their packed bits fill whole bytes.
pub(super) const STRETCH: usize = 2048;

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
pub(super) fn split<const H: usize>(
    isa: InstructionSet,
    words: &[[u8; 4]],
    symbols: &mut [u8],
    low: &mut [u8],
    high: &mut [u8],
) {
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

/// Undoes [`split`] for a part of its words, of at most [`STRETCH`]; where they are whitened, `whitening` has the means
/// of their chunk and the place of the first word in it.
pub(super) fn join<const H: usize>(
    isa: InstructionSet,
    symbols: &[u8],
    low: &[u8],
    high: &[u8],
    whitening: Option<(&MagnitudeMeans, ChunkGrid, usize)>,
    words: &mut [[u8; 4]],
) {
    if H == 8 {
        return put_together::<H>(isa, symbols, low, high, words);
    }
    assert!(symbols.len() == words.len() && low.len() == 2 * words.len());
    let mut middle = [0u8; STRETCH];
    let middle = &mut middle[..words.len()];
    unpack::<H>(isa, high, middle);
    let Some((means, grid, first)) = whitening else {
        return put_together::<H>(isa, symbols, low, middle, words);
    };
    for (elements, offset, shifts) in means.of(grid, first..first + words.len()) {
        let at = elements.start - first..elements.end - first;
        let low = &low[2 * at.start..2 * at.end];
        put_back::<H>(isa, &symbols[at.clone()], low, &middle[at.clone()], offset, shifts, &mut words[at]);
    }
}

multiversion! {
    /// The bits above `H` in `middle` are undefined.
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
            let joined = joined::<H>(*symbol, *low, *middle);
            *word = if H == 8 { unrotate(joined) } else { joined }.to_le_bytes();
        }
    }
}

multiversion! {
    /// As [`put_together`], for whitened words of one row.
    fn put_back<const H: usize>(
        symbols: &[u8], low: &[u8], middle: &[u8], offset: u32, shifts: &[u32], words: &mut [[u8; 4]],
    ) {
        let (low, _) = low.as_chunks::<2>();
        assert!(symbols.len() == words.len() && low.len() == words.len());
        assert!(middle.len() == words.len() && shifts.len() == words.len());
        for ((((word, symbol), low), middle), shift) in words.iter_mut().zip(symbols).zip(low).zip(middle).zip(shifts) {
            *word = whole::<H>(joined::<H>(*symbol, *low, *middle), offset, *shift).to_le_bytes();
        }
    }
}

#[inline(always)]
fn joined<const H: usize>(symbol: u8, low: [u8; 2], middle: u8) -> u32 {
    u32::from(symbol) << (16 + H) | u32::from(middle) << 16 | u32::from(u16::from_le_bytes(low))
}
