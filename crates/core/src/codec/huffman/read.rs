//! Reads back the frames that [`write_frame`](super::write::write_frame) writes, about twice as fast as libzstd: a
//! look-up gives up to four symbols, and they go where they belong without a copy in between.
//!
//! Invariant: what it decodes is what any zstd decoder makes of the frame; whatever else a frame holds is declined, and
//! libzstd then decides whether it is a frame at all. Nothing is believed: every stream must end exactly at its first
//! bit.

use super::frame::{
    BLOCK_BYTES, BLOCK_HEADER_BYTES, COMPRESSED_BLOCK, DESCRIPTOR, FRAME_HEADER_BYTES, JUMP_TABLE_BYTES,
    LITERALS_HEADER_BYTES, MAGIC, RAW_BLOCK,
};
use crate::codec::dispatch::{InstructionSet, fetch, multiversion};
use crate::codec::tree::{MAX_BITS, MAX_SYMBOLS};

/// Look-ups between two loads of a stream's bits: five of at most 11 bits each fit into the 57 that a load gives.
const LOOK_UPS: usize = 5;
/// Most symbols of a look-up.
const SYMBOLS: usize = 4;

/// Bytes that are fetched ahead between two loads of a stream's bits, of either memory: somewhat more than the symbols
/// of four such loads are finished with: of a word's four bytes, and of the three that are stored beside a symbol.
const AHEAD_BYTES: [usize; 2] = [256, 192];

/// A look-up's symbols in the high 32 bits; in the bytes below: the bits that they take (lowest, where a shift needs
/// them), their number, the bits of the first one.
#[derive(Clone, Copy, Default)]
struct LookupEntry(u64);

/// By the next [`MAX_BITS`] bits of a stream.
pub(in crate::codec) struct LookupTable(Box<[LookupEntry; 1 << MAX_BITS]>);

impl Default for LookupTable {
    fn default() -> Self {
        LookupTable(Box::new([LookupEntry::default(); 1 << MAX_BITS]))
    }
}

/// Decodes a frame into `out`, with `base` added to every byte (modulo 256). False where it is not a frame of this
/// coder, or a damaged one; what `out` holds is then undefined.
///
/// `ahead` is memory that is wanted afterwards, what is written and what is read: decoding waits for the processor,
/// fetching for the memory, so both at once.
pub(in crate::codec) fn read_frame(
    isa: InstructionSet,
    table: &mut LookupTable,
    frame: &[u8],
    base: u8,
    out: &mut [u8],
    ahead: [&[u8]; 2],
) -> bool {
    let Some((header, mut blocks)) = frame.split_at_checked(FRAME_HEADER_BYTES) else { return false };
    let size = u32::try_from(out.len()).map(u32::to_le_bytes);
    if header[..4] != MAGIC || header[4] != DESCRIPTOR || Ok(&header[5..]) != size.as_ref().map(|s| s.as_slice()) {
        return false;
    }
    let count = out.len().div_ceil(BLOCK_BYTES);
    let mut ahead = ahead.map(|ahead| ahead.chunks((ahead.len() / count.max(1)).max(1)));
    for (index, out) in out.chunks_mut(BLOCK_BYTES).enumerate() {
        let ahead = ahead.each_mut().map(|ahead| ahead.next().unwrap_or_default());
        let Some((header, rest)) = blocks.split_at_checked(BLOCK_HEADER_BYTES) else { return false };
        let header = u32::from_le_bytes([header[0], header[1], header[2], 0]);
        let Some((body, rest)) = rest.split_at_checked((header >> 3) as usize) else { return false };
        let last = index + 1 == count;
        let decoded = match header >> 1 & 3 {
            _ if last != (header & 1 == 1) => false,
            RAW_BLOCK if body.len() == out.len() => {
                out.iter_mut().zip(body).for_each(|(to, from)| *to = from.wrapping_add(base));
                true
            }
            COMPRESSED_BLOCK => read_literals(isa, table, body, base, out, ahead).is_some_and(|complete| complete),
            _ => false,
        };
        if !decoded {
            return false;
        }
        blocks = rest;
    }
    blocks.is_empty()
}

/// A literals section in four streams whose tree is described by plain weights, and no sequences.
fn read_literals(
    isa: InstructionSet,
    table: &mut LookupTable,
    body: &[u8],
    base: u8,
    out: &mut [u8],
    ahead: [&[u8]; 2],
) -> Option<bool> {
    let (header, body) = body.split_at_checked(LITERALS_HEADER_BYTES)?;
    let header = header.iter().rev().fold(0u64, |all, &byte| all << 8 | u64::from(byte));
    let (regenerated, coded) = ((header >> 4 & 0x3ffff) as usize, (header >> 22) as usize);
    let (coded, sequences) = body.split_at_checked(coded)?;
    // Shorter blocks than this are stored raw, and four parts of them could be fewer.
    if header & 0xf != 0b1110 || regenerated != out.len() || sequences != [0] || out.len() < 64 {
        return None;
    }
    let (&listed, coded) = coded.split_first()?;
    let listed = usize::from(listed).checked_sub(127).filter(|&n| n > 0 && n < MAX_SYMBOLS)?;
    let (weights, coded) = coded.split_at_checked(listed.div_ceil(2))?;
    table.build(weights, listed, base)?;

    let (jumps, coded) = coded.split_at_checked(JUMP_TABLE_BYTES)?;
    let length = |i: usize| usize::from(u16::from_le_bytes([jumps[2 * i], jumps[2 * i + 1]]));
    let (first, coded) = coded.split_at_checked(length(0))?;
    let (second, coded) = coded.split_at_checked(length(1))?;
    let (third, fourth) = coded.split_at_checked(length(2))?;
    let part = out.len().div_ceil(4);
    let (out0, out) = out.split_at_mut(part);
    let (out1, out) = out.split_at_mut(part);
    let (out2, out3) = out.split_at_mut(part);
    Some(read_streams(isa, table, [first, second, third, fourth], [out0, out1, out2, out3], ahead))
}

impl LookupTable {
    /// From the weights of all symbols but the last, two to a byte; `base` is added to the symbols.
    fn build(&mut self, weights: &[u8], listed: usize, base: u8) -> Option<()> {
        let mut weight = [0u8; MAX_SYMBOLS];
        for (index, weight) in weight[..listed].iter_mut().enumerate() {
            *weight = if index % 2 == 0 { weights[index / 2] >> 4 } else { weights[index / 2] & 0xf };
        }
        let cells = |weight: u8| (1usize << weight) >> 1;
        let total: usize = weight[..listed].iter().map(|&w| cells(w)).sum();
        // The last symbol fills the table up to a power of two.
        let bits = (total.checked_ilog2()? + 1) as usize;
        let rest = (1 << bits) - total;
        if bits > MAX_BITS || !rest.is_power_of_two() {
            return None;
        }
        weight[listed] = rest.ilog2() as u8 + 1;
        let scale = MAX_BITS - bits;

        // One symbol for every index: the lightest first, as they have the longest codes.
        let mut starts = [0; MAX_BITS + 2];
        for &weight in &weight[..=listed] {
            *starts.get_mut(usize::from(weight) + 1)? += cells(weight) << scale;
        }
        for weight in 1..starts.len() {
            starts[weight] += starts[weight - 1];
        }
        if starts[MAX_BITS + 1] != 1 << MAX_BITS {
            return None;
        }
        let mut single = [(0u8, 0u8); 1 << MAX_BITS];
        for (symbol, &weight) in weight[..=listed].iter().enumerate().filter(|(_, weight)| **weight > 0) {
            let start = &mut starts[usize::from(weight)];
            let next = *start + (cells(weight) << scale);
            single.get_mut(*start..next)?.fill((base.wrapping_add(symbol as u8), (bits + 1) as u8 - weight));
            *start = next;
        }
        for (index, entry) in self.0.iter_mut().enumerate() {
            *entry = LookupEntry::of(index, &single);
        }
        Some(())
    }
}

impl LookupEntry {
    /// The symbols whose codes lie within the bits of `index`.
    #[inline(always)]
    fn of(index: usize, single: &[(u8, u8); 1 << MAX_BITS]) -> LookupEntry {
        let (symbol, length) = single[index];
        let (mut symbols, mut bits, mut count) = (u64::from(symbol), u64::from(length), 1u64);
        while count < SYMBOLS as u64 {
            let (symbol, length) = single[index << bits & ((1 << MAX_BITS) - 1)];
            if bits + u64::from(length) > MAX_BITS as u64 {
                break;
            }
            symbols |= u64::from(symbol) << (8 * count);
            bits += u64::from(length);
            count += 1;
        }
        LookupEntry(symbols << 32 | u64::from(length) << 16 | count << 8 | bits)
    }
}

/// Where a stream is: bits that are left, symbols that are written.
#[derive(Clone, Copy, Default)]
struct StreamPosition {
    bits: usize,
    written: usize,
}

impl StreamPosition {
    /// By the bits and symbols that [`look_up`] counted.
    #[inline(always)]
    fn advance(&mut self, taken: u64) {
        self.bits -= (taken & 0xff) as usize;
        self.written += (taken >> 8 & 0xff) as usize;
    }
}

multiversion! {
    /// Four streams at once, since the look-ups of one have to wait for one another. False where one of them does not
    /// end where it must.
    fn read_streams(table: &LookupTable, streams: [&[u8]; 4], outs: [&mut [u8]; 4], ahead: [&[u8]; 2]) -> bool {
        let mut at = [StreamPosition::default(); 4];
        for (at, stream) in at.iter_mut().zip(streams) {
            // The highest bit of the last byte ends the stream.
            let Some(last) = stream.last().and_then(|last| last.checked_ilog2()) else { return false };
            at.bits = 8 * (stream.len() - 1) + last as usize;
        }
        let [out0, out1, out2, out3] = outs;
        let mut ahead = [ahead[0].chunks(AHEAD_BYTES[0]), ahead[1].chunks(AHEAD_BYTES[1])];
        loop {
            for ahead in &mut ahead {
                fetch(ahead.next().unwrap_or_default());
            }
            let bits = |i: usize| next_bits(streams[i], at[i].bits);
            let (Some(mut bits0), Some(mut bits1), Some(mut bits2), Some(mut bits3)) =
                (bits(0), bits(1), bits(2), bits(3)) else { break };
            let (Some(window0), Some(window1), Some(window2), Some(window3)) = (
                out0[at[0].written..].first_chunk_mut(), out1[at[1].written..].first_chunk_mut(),
                out2[at[2].written..].first_chunk_mut(), out3[at[3].written..].first_chunk_mut(),
            ) else { break };
            let mut taken = [0u64; 4];
            for _ in 0..LOOK_UPS {
                look_up(table, &mut bits0, &mut taken[0], window0);
                look_up(table, &mut bits1, &mut taken[1], window1);
                look_up(table, &mut bits2, &mut taken[2], window2);
                look_up(table, &mut bits3, &mut taken[3], window3);
            }
            for (at, taken) in at.iter_mut().zip(taken) {
                at.advance(taken);
            }
        }
        let outs = [out0, out1, out2, out3];
        // One of them is near its end, the others need not be.
        at.into_iter().zip(streams).zip(outs).all(|((mut at, stream), out)| {
            while let (Some(mut bits), Some(window)) =
                (next_bits(stream, at.bits), out[at.written..].first_chunk_mut())
            {
                let mut taken = 0;
                for _ in 0..LOOK_UPS {
                    look_up(table, &mut bits, &mut taken, window);
                }
                at.advance(taken);
            }
            finish(table, stream, at, out)
        })
    }
}

/// The next bits of a stream of which `left` are left, from the top; at least 56. `None` near its end.
#[inline(always)]
fn next_bits(stream: &[u8], left: usize) -> Option<u64> {
    // The bits are below the closing one, so the byte that they end in is there.
    let start = (left / 8).checked_sub(7)?;
    let word = stream.get(start..)?.first_chunk().copied().map(u64::from_le_bytes)?;
    Some(word << (8 - left % 8))
}

/// Room for the symbols of all look-ups between two loads, and what makes every index a valid one.
const WINDOW: usize = 32 + SYMBOLS;

/// `taken` counts bits in its lowest byte and symbols in the next one.
#[inline(always)]
fn look_up(table: &LookupTable, bits: &mut u64, taken: &mut u64, window: &mut [u8; WINDOW]) {
    let LookupEntry(entry) = table.0[(*bits >> (64 - MAX_BITS)) as usize];
    let written = (*taken >> 8 & 31) as usize;
    window[written..written + SYMBOLS].copy_from_slice(&((entry >> 32) as u32).to_le_bytes());
    *bits <<= entry & 63;
    *taken += entry & 0xffff;
}

const _: () = assert!(LOOK_UPS * SYMBOLS < 32 && LOOK_UPS * MAX_BITS <= 56);

/// The end of a stream, symbol by symbol. False unless both the bits and the room for symbols are used up.
fn finish(table: &LookupTable, stream: &[u8], mut at: StreamPosition, out: &mut [u8]) -> bool {
    while at.written < out.len() {
        let (from, mut word) = (at.bits.saturating_sub(MAX_BITS), 0u64);
        for (index, &byte) in stream[from / 8..].iter().take(4).enumerate() {
            word |= u64::from(byte) << (8 * index);
        }
        // Bits before the stream's first count as 0, as in zstd.
        let next = (word >> (from % 8) << (MAX_BITS - (at.bits - from))) & ((1 << MAX_BITS) - 1);
        let LookupEntry(entry) = table.0[next as usize];
        let [taken, count, first] = [0, 8, 16].map(|at| (entry >> at & 0xff) as usize);
        if count <= out.len() - at.written && taken <= at.bits {
            out[at.written..at.written + count].copy_from_slice(&(entry >> 32).to_le_bytes()[..count]);
            at = StreamPosition { bits: at.bits - taken, written: at.written + count };
        } else if first <= at.bits {
            out[at.written] = (entry >> 32) as u8;
            at = StreamPosition { bits: at.bits - first, written: at.written + 1 };
        } else {
            return false;
        }
    }
    at.bits == 0
}
