//! Writes planes as frames.

#[cfg(target_arch = "x86_64")]
use super::avx512;
use super::bits::BitWriter;
use super::frame::{
    BLOCK_BYTES, BLOCK_HEADER_BYTES, COMPRESSED_BLOCK, DESCRIPTOR, FRAME_HEADER_BYTES, JUMP_TABLE_BYTES,
    LITERALS_HEADER_BYTES, MAGIC, RAW_BLOCK,
};
#[cfg(target_arch = "x86_64")]
use crate::codec::dispatch::IsaKind;
use crate::codec::dispatch::{InstructionSet, multiversion};
use crate::codec::stats::PlaneStats;
use crate::codec::tree::{HuffmanCode, MAX_BITS, MAX_SYMBOLS};

/// Blocks shorter than this are stored raw; four streams need at least six bytes.
const SMALLEST_CODED_BYTES: usize = 64;

/// Whether [`write_frame`] can write the plane that the stats is of into so many bytes.
pub(in crate::codec) fn fits(plane: &[u8], stats: &PlaneStats, room_bytes: usize) -> bool {
    let symbols = (2..=MAX_SYMBOLS).contains(&stats.span());
    symbols && u32::try_from(plane.len()).is_ok() && frame_bound(plane.len()) <= room_bytes
}

/// Room that a frame may need while it is written.
pub(in crate::codec) fn frame_bound(plane_bytes: usize) -> usize {
    let (whole, rest) = (plane_bytes / BLOCK_BYTES, plane_bytes % BLOCK_BYTES);
    FRAME_HEADER_BYTES + whole * block_bound(BLOCK_BYTES) + block_bound(rest)
}

/// Writes a frame that decodes to `plane` with `stats.min` taken off every byte.
///
/// The frame is the first bytes of `out`, as many as it returns; those after it are overwritten, too.
pub(in crate::codec) fn write_frame(isa: InstructionSet, plane: &[u8], stats: &PlaneStats, out: &mut [u8]) -> usize {
    let base = stats.min;
    let code = HuffmanCode::new(base, &stats.counts[usize::from(base)..=usize::from(stats.max)]);
    let mut description = Vec::with_capacity(1 + MAX_SYMBOLS / 2);
    code.describe(&mut description);

    out[..4].copy_from_slice(&MAGIC);
    out[4] = DESCRIPTOR;
    out[5..9].copy_from_slice(&(plane.len() as u32).to_le_bytes());
    let mut at = FRAME_HEADER_BYTES;
    let blocks = plane.len().div_ceil(BLOCK_BYTES);
    for (i, block) in plane.chunks(BLOCK_BYTES).enumerate() {
        let (header, body) = out[at..].split_at_mut(BLOCK_HEADER_BYTES);
        let coded = write_literals(isa, block, &code, &description, body).filter(|&len| len < block.len());
        let (kind, len) = match coded {
            Some(len) => (COMPRESSED_BLOCK, len),
            None => {
                for (to, from) in body.iter_mut().zip(block) {
                    *to = from.wrapping_sub(base);
                }
                (RAW_BLOCK, block.len())
            }
        };
        let last = u32::from(i + 1 == blocks);
        header.copy_from_slice(&(last | kind << 1 | (len as u32) << 3).to_le_bytes()[..BLOCK_HEADER_BYTES]);
        at += BLOCK_HEADER_BYTES + len;
    }
    at
}

/// Room that a block may need: its codes at their longest, headers, and what the bit writer touches beyond its end.
fn block_bound(block_bytes: usize) -> usize {
    let streams = 4 * stream_bound(block_bytes.div_ceil(4));
    BLOCK_HEADER_BYTES + LITERALS_HEADER_BYTES + 1 + MAX_SYMBOLS / 2 + JUMP_TABLE_BYTES + streams + 1
}

fn stream_bound(symbols: usize) -> usize {
    symbols * MAX_BITS / 8 + BitWriter::SLACK_BYTES
}

/// Writes the content of a compressed block: a literals section in four streams and an empty sequences section.
/// `None` where that is no use.
fn write_literals(
    isa: InstructionSet,
    block: &[u8],
    code: &HuffmanCode,
    description: &[u8],
    out: &mut [u8],
) -> Option<usize> {
    if block.len() < SMALLEST_CODED_BYTES {
        return None;
    }
    let tree = LITERALS_HEADER_BYTES;
    let jumps = tree + description.len();
    let streams = jumps + JUMP_TABLE_BYTES;
    out[tree..jumps].copy_from_slice(description);
    let mut at = streams;
    for (i, part) in block.chunks(block.len().div_ceil(4)).enumerate() {
        let len = write_stream(isa, part, code, &mut out[at..]);
        // The last stream's length follows from the section's.
        if let Some(jump) = out[jumps..streams].chunks_exact_mut(2).nth(i) {
            jump.copy_from_slice(&u16::try_from(len).ok()?.to_le_bytes());
        }
        at += len;
    }
    // Compressed literals, four streams, sizes of 18 bits each.
    let header = 0b1110 | (block.len() as u64) << 4 | ((at - tree) as u64) << 22;
    out[..tree].copy_from_slice(&header.to_le_bytes()[..tree]);
    out[at] = 0; // number of sequences
    Some(at + 1)
}

/// Writes one stream, the last value first, and returns its length in bytes.
fn write_stream(isa: InstructionSet, values: &[u8], code: &HuffmanCode, out: &mut [u8]) -> usize {
    #[cfg(target_arch = "x86_64")]
    if isa.kind() == IsaKind::Avx512 {
        // SAFETY: an `InstructionSet` of this kind exists only where the processor has the features.
        return unsafe { avx512::write_stream(values, code, out) };
    }
    write_stream_by_table(isa, values, code, out)
}

multiversion! {
    fn write_stream_by_table(values: &[u8], code: &HuffmanCode, out: &mut [u8]) -> usize {
        let mut writer = BitWriter::new(out);
        // Five codes are at most 55 bits, one write.
        let (groups, tail) = values.as_chunks::<5>();
        put_codes(&mut writer, code, tail);
        for group in groups.iter().rev() {
            put_codes(&mut writer, code, group);
        }
        writer.close()
    }
}

/// Appends the codes of a few values, the last one first.
#[inline(always)]
fn put_codes(writer: &mut BitWriter, code: &HuffmanCode, values: &[u8]) {
    let (mut word, mut length) = (0, 0);
    for &value in values {
        let entry = code.entry(value);
        word = word << (entry.0 % 64) | entry.code();
        length += entry.length();
    }
    writer.put(word, length);
}
