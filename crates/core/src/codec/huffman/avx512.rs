//! The Huffman stream 64 symbols at a time: codes are looked up by byte permutes, merged until every 64-bit lane has
//! the codes of eight symbols, and shifted to where they belong in the stream, all lanes at once.

use std::arch::x86_64::*;

use super::bits::BitWriter;
use crate::codec::tree::{HuffmanCode, MAX_SYMBOLS};

/// The code table as two tables of bytes, each in two registers.
struct CodeTable {
    /// Low 8 bits of the codes.
    low: [__m512i; 2],
    /// High bits of the codes, their lengths in the upper four bits.
    high: [__m512i; 2],
}

impl CodeTable {
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,bmi2")]
    fn new(code: &HuffmanCode) -> CodeTable {
        let mut bytes = [[0u8; MAX_SYMBOLS]; 2];
        for (symbol, entry) in code.entries().iter().enumerate() {
            bytes[0][symbol] = entry.code() as u8;
            bytes[1][symbol] = (entry.code() >> 8 | entry.length() << 4) as u8;
        }
        let [low, high] = bytes.map(|table| {
            let (halves, _) = table.as_chunks::<64>();
            [load(&halves[0]), load(&halves[1])]
        });
        CodeTable { low, high }
    }
}

/// Takes the last byte first, because a stream begins with its last symbol.
const REVERSE: [u8; 64] = {
    let mut order = [0; 64];
    let mut i = 0;
    while i < 64 {
        order[i] = 63 - i as u8;
        i += 1;
    }
    order
};

/// As `write_stream_by_table`, with vectors.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,bmi2")]
pub(super) fn write_stream(values: &[u8], code: &HuffmanCode, out: &mut [u8]) -> usize {
    let table = CodeTable::new(code);
    let (reverse, base_everywhere) = (load(&REVERSE), _mm512_set1_epi8(code.base() as i8));
    let mut writer = BitWriter::new(out);
    let (blocks, tail) = values.as_chunks::<64>();
    for &value in tail.iter().rev() {
        writer.put(code.entry(value).code(), code.entry(value).length());
    }
    for block in blocks.iter().rev() {
        let symbols = _mm512_sub_epi8(_mm512_permutexvar_epi8(reverse, load(block)), base_everywhere);
        let (word, length) = merge_codes(&table, symbols);
        if _mm512_cmpgt_epu64_mask(length, _mm512_set1_epi64(BitWriter::PUT_BITS as i64)) == 0 {
            put_words(&mut writer, word, length);
        } else {
            // Eight codes that are too long for a word are rare.
            for &value in block.iter().rev() {
                writer.put(code.entry(value).code(), code.entry(value).length());
            }
        }
    }
    writer.close()
}

/// The codes of eight symbols in every 64-bit lane, the first one lowest, and their length. Where the length is over 64
/// the word has lost bits.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,bmi2")]
fn merge_codes(table: &CodeTable, symbols: __m512i) -> (__m512i, __m512i) {
    let low = _mm512_permutex2var_epi8(table.low[0], symbols, table.low[1]);
    let high = _mm512_permutex2var_epi8(table.high[0], symbols, table.high[1]);

    // Codes and lengths of the four symbols of every 32-bit lane.
    let (byte, nibble, top) = (_mm512_set1_epi32(0xff), _mm512_set1_epi32(0xf), _mm512_set1_epi32(0xf00));
    let code = [
        _mm512_or_si512(_mm512_and_si512(low, byte), _mm512_and_si512(_mm512_slli_epi32::<8>(high), top)),
        _mm512_or_si512(_mm512_and_si512(_mm512_srli_epi32::<8>(low), byte), _mm512_and_si512(high, top)),
        _mm512_or_si512(
            _mm512_and_si512(_mm512_srli_epi32::<16>(low), byte),
            _mm512_and_si512(_mm512_srli_epi32::<8>(high), top),
        ),
        _mm512_or_si512(_mm512_srli_epi32::<24>(low), _mm512_and_si512(_mm512_srli_epi32::<16>(high), top)),
    ];
    let length = [
        _mm512_and_si512(_mm512_srli_epi32::<4>(high), nibble),
        _mm512_and_si512(_mm512_srli_epi32::<12>(high), nibble),
        _mm512_and_si512(_mm512_srli_epi32::<20>(high), nibble),
        _mm512_srli_epi32::<28>(high),
    ];

    // Pairs (up to 22 bits), pairs of pairs in lanes of 64 bits (up to 44), and both of these.
    let first = _mm512_or_si512(code[0], _mm512_sllv_epi32(code[1], length[0]));
    let second = _mm512_or_si512(code[2], _mm512_sllv_epi32(code[3], length[2]));
    let first_length = _mm512_add_epi32(length[0], length[1]);
    let lane_length = _mm512_add_epi32(first_length, _mm512_add_epi32(length[2], length[3]));

    let even_lane = _mm512_set1_epi64(0xffff_ffff);
    let early = _mm512_or_si512(
        _mm512_and_si512(first, even_lane),
        _mm512_sllv_epi64(_mm512_and_si512(second, even_lane), _mm512_and_si512(first_length, even_lane)),
    );
    let late = _mm512_or_si512(
        _mm512_srli_epi64::<32>(first),
        _mm512_sllv_epi64(_mm512_srli_epi64::<32>(second), _mm512_srli_epi64::<32>(first_length)),
    );
    let early_length = _mm512_and_si512(lane_length, even_lane);
    let late_length = _mm512_srli_epi64::<32>(lane_length);
    (_mm512_or_si512(early, _mm512_sllv_epi64(late, early_length)), _mm512_add_epi64(early_length, late_length))
}

/// Appends eight words of 8 to 56 bits, lane 0 first.
///
/// Where each word starts follows from a running sum of the lengths, so that all are shifted into place at once. The
/// byte that two words share is the last one of the earlier word, which has 8 bits at least and therefore nothing of
/// its predecessor there.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,bmi2")]
fn put_words(writer: &mut BitWriter, word: __m512i, length: __m512i) {
    let zero = _mm512_setzero_si512();
    let sum = _mm512_add_epi64(length, _mm512_alignr_epi64::<7>(length, zero));
    let sum = _mm512_add_epi64(sum, _mm512_alignr_epi64::<6>(sum, zero));
    let sum = _mm512_add_epi64(sum, _mm512_alignr_epi64::<4>(sum, zero));
    let end = _mm512_add_epi64(sum, _mm512_set1_epi64(writer.held_bits as i64));
    let start = _mm512_sub_epi64(end, length);

    let bit = _mm512_set1_epi64(7);
    let placed = _mm512_sllv_epi64(word, _mm512_and_si512(start, bit));
    let whole_bits = _mm512_sub_epi64(_mm512_andnot_si512(bit, end), _mm512_andnot_si512(bit, start));
    let shared = _mm512_srlv_epi64(placed, whole_bits);
    let held = _mm512_set1_epi64(writer.held as i64);
    let placed = _mm512_or_si512(placed, _mm512_alignr_epi64::<7>(shared, held));

    // The last word starts within 7 + 7 * 56 bits, in byte 49 at the latest. A window of 64 + 8 bytes and starts below
    // 64 are what the compiler needs to see that no write can miss it.
    let starts = _mm_cvtsi128_si64(_mm512_cvtepi64_epi8(_mm512_srli_epi64::<3>(start))).to_le_bytes();
    let window = &mut writer.out[writer.at..writer.at + 72];
    for (word, start) in lanes(placed).iter().zip(starts) {
        window[usize::from(start % 64)..][..8].copy_from_slice(&word.to_le_bytes());
    }
    writer.held = last_lane(shared);
    let end = last_lane(end);
    writer.held_bits = end % 8;
    writer.at += (end / 8) as usize;
}

#[inline]
#[target_feature(enable = "avx512f")]
fn last_lane(vector: __m512i) -> u64 {
    _mm256_extract_epi64::<3>(_mm512_extracti64x4_epi64::<1>(vector)) as u64
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load(bytes: &[u8; 64]) -> __m512i {
    // SAFETY: the 64 bytes read are those of the array; the load needs no alignment.
    unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn lanes(vector: __m512i) -> [u64; 8] {
    let mut lanes = [0; 8];
    // SAFETY: the 64 bytes written are those of the array; the store needs no alignment.
    unsafe { _mm512_storeu_si512(lanes.as_mut_ptr().cast(), vector) };
    lanes
}
