//! The promises of the codec: exact, portable, bounded, and safe against any input.

#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use proptest::sample::select;

use super::stats::PlaneStats;
use super::*;
use crate::dtype::DType;
use crate::snapshot::Role;
use made_values::{LOOKS, Look, Random, chunk};

mod made_values;

const DTYPES: [DType; 10] = [
    DType::F64,
    DType::F32,
    DType::F16,
    DType::BF16,
    DType::I64,
    DType::I32,
    DType::I16,
    DType::I8,
    DType::U8,
    DType::Bool,
];
const ROLES: [Role; 6] = [Role::Param, Role::ExpAvg, Role::ExpAvgSq, Role::MomentumBuffer, Role::Buffer, Role::State];

fn f32_context(role: Role, row: u64, first: u64) -> ChunkContext {
    ChunkContext { dtype: DType::F32, role, row, first }
}

/// What the encoder makes of the chunk, in memory that held something else before.
fn encoded_by(encoder: &mut ChunkEncoder, ctx: ChunkContext, raw: &[u8]) -> Vec<u8> {
    let mut out = vec![0xa5; max_encode_bytes(raw.len())];
    let len = encoder.encode(ctx, raw, &mut out);
    out.truncate(len);
    out
}

/// Encodes on every path, wants the same bytes of all, decodes on every path, wants `raw`. Returns the encoded chunk.
fn round_trip(ctx: ChunkContext, level: u8, raw: &[u8]) -> Vec<u8> {
    let mut encoded: Option<Vec<u8>> = None;
    for isa in InstructionSet::supported() {
        let out = encoded_by(&mut ChunkEncoder::with_isa(level, isa), ctx, raw);
        assert!(out.len() <= raw.len() + MAX_OVERHEAD, "{} bytes for {}", out.len(), raw.len());
        if let Some(first) = &encoded {
            assert!(*first == out, "{} writes other bytes than portable", isa.name());
        }
        encoded = Some(out);
    }
    let encoded = encoded.unwrap();
    for isa in InstructionSet::supported() {
        let mut decoded = vec![0xa5; raw.len()];
        ChunkDecoder::with_isa(isa).decode(ctx, &encoded, &mut decoded).unwrap();
        assert!(decoded == raw, "{} decodes something else from {:?}", isa.name(), coding_of(&encoded));
    }
    encoded
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(debug_assertions) { 96 } else { 1024 }))]

    #[test]
    fn every_chunk_comes_back_bit_for_bit_on_every_path(
        look in select(&LOOKS[..]), dtype in select(&DTYPES[..]), role in select(&ROLES[..]), level in 0u8..4,
        elements in prop_oneof![0usize..40, 500usize..530, 1000usize..5000, 8000usize..40_000],
        row in prop_oneof![Just(0u64), Just(1), 60u64..70, 64u64..800, Just(100_000)], first in 0u64..5000, seed: u64,
    ) {
        let raw = chunk(look, dtype, elements, row, first, seed);
        round_trip(ChunkContext { dtype, role, row, first }, level, &raw);
    }

    #[test]
    fn chunks_that_are_no_whole_number_of_elements_come_back(
        raw in prop::collection::vec(any::<u8>(), 0..3000), dtype in select(&DTYPES[..]), row in 0u64..3,
    ) {
        round_trip(ChunkContext { dtype, role: Role::ExpAvg, row, first: 0 }, 1, &raw);
    }

    #[test]
    fn random_bytes_decode_to_an_error_or_fill_the_chunk(
        mut encoded in prop::collection::vec(any::<u8>(), 0..4000), coding in 0u8..9, dtype in select(&DTYPES[..]),
        elements in 0usize..1100, row in 0u64..600, first: u64,
    ) {
        if let Some(byte) = encoded.first_mut() {
            *byte = coding;
        }
        let ctx = ChunkContext { dtype, role: Role::ExpAvg, row, first };
        let mut raw = vec![0; elements * dtype.size()];
        for isa in InstructionSet::supported() {
            let _ = ChunkDecoder::with_isa(isa).decode(ctx, &encoded, &mut raw);
        }
    }

    #[test]
    fn damaged_chunks_decode_to_an_error_or_fill_the_chunk(
        look in select(&LOOKS[..]), dtype in select(&[DType::F32, DType::BF16, DType::F64, DType::I32][..]),
        at in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4), cut: prop::sample::Index,
        shift in 0u64..300, seed: u64,
    ) {
        let ctx = ChunkContext { dtype, role: Role::ExpAvgSq, row: 128, first: 77 };
        let raw = chunk(look, dtype, 3000, 128, 77, seed);
        let mut encoded = encoded_by(&mut ChunkEncoder::new(1), ctx, &raw);
        let mut decoded = vec![0; raw.len()];
        let mut decoder = ChunkDecoder::new();
        prop_assert!(decoder.decode(ctx, &encoded[..cut.index(encoded.len())], &mut decoded).is_err());
        let mut longer = encoded.clone();
        longer.push(0);
        prop_assert!(decoder.decode(ctx, &longer, &mut decoded).is_err());
        // Headers are where damage is interesting, so half of it goes there.
        for (i, (at, value)) in at.iter().enumerate() {
            let len = if i % 2 == 0 { encoded.len() } else { encoded.len().min(16) };
            encoded[at.index(len)] = *value;
        }
        let _ = decoder.decode(ctx, &encoded, &mut decoded);
        let _ = decoder.decode(ChunkContext { row: shift, ..ctx }, &encoded, &mut decoded);
        let other_length = decoded.len() - 4;
        let _ = decoder.decode(ctx, &encoded, &mut decoded[..other_length]);
    }

    #[test]
    fn the_huffman_coder_writes_frames_that_zstd_reads(
        spread in 1u32..128, skew in 0.3f64..6.0, base: u8,
        len in prop_oneof![
            2usize..300, 1000usize..9000, Just(131_072), Just(131_073), Just(262_144), 131_000usize..140_000
        ],
        seed: u64,
    ) {
        let mut random = Random(seed);
        let plane: Vec<u8> = (0..len)
            .map(|_| base.saturating_add((random.unit().powf(skew) * f64::from(spread + 1)) as u8))
            .collect();
        for isa in InstructionSet::supported() {
            let stats = PlaneStats::of(isa, &plane);
            let mut scratch = vec![0xff; huffman::frame_bound(len)];
            if huffman::fits(&plane, &stats, scratch.len()) {
                let written = huffman::write_frame(isa, &plane, &stats, &mut scratch);
                let decoded = zstd::bulk::decompress(&scratch[..written], len).unwrap();
                let content = zstd_safe::get_frame_content_size(&scratch[..written]).ok().flatten();
                prop_assert_eq!(content, Some(len as u64));
                prop_assert!(decoded.iter().zip(&plane).all(|(d, p)| d.wrapping_add(stats.min) == *p));
                let mut read = vec![0xa5; len];
                let mut table = huffman::LookupTable::default();
                let (frame, ahead) = (&scratch[..written], [&plane[..], &scratch]);
                prop_assert!(huffman::read_frame(isa, &mut table, frame, stats.min, &mut read, ahead));
                prop_assert!(read == plane);
            }
        }
    }

    #[test]
    fn a_damaged_frame_is_declined_or_means_the_same_to_zstd(
        skew in 0.3f64..6.0,
        len in 64usize..9000,
        at in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..3),
        head in any::<bool>(), seed: u64,
    ) {
        let mut random = Random(seed);
        let plane: Vec<u8> = (0..len).map(|_| (random.unit().powf(skew) * 60.0) as u8).collect();
        let stats = PlaneStats::of(InstructionSet::PORTABLE, &plane);
        let mut frame = vec![0; huffman::frame_bound(len)];
        prop_assume!(huffman::fits(&plane, &stats, frame.len()));
        let written = huffman::write_frame(InstructionSet::PORTABLE, &plane, &stats, &mut frame);
        frame.truncate(written);
        for (at, value) in at {
            let len = if head { frame.len().min(60) } else { frame.len() };
            frame[at.index(len)] = value;
        }
        let mut read = vec![0; len];
        if huffman::read_frame(InstructionSet::best(), &mut Default::default(), &frame, 0, &mut read, [&[]; 2]) {
            prop_assert!(zstd::bulk::decompress(&frame, len).unwrap() == read);
        }
    }
}

#[test]
fn whole_chunks_of_trained_state_use_the_coding_that_suits_them() {
    let elements = CHUNK_BYTES / 4;
    let first = elements as u64 * 3;
    for (look, role, row, coding, percent) in [
        (Look::Weights, Role::Param, 768, "split", 85),
        (Look::Squares, Role::Param, 768, "split-positive", 84),
        (Look::Moments, Role::ExpAvg, 768, "whitened", 84),
        (Look::SquaredMoments, Role::ExpAvgSq, 768, "whitened-positive", 84),
        (Look::Moments, Role::MomentumBuffer, 3072, "whitened", 85),
        (Look::Moments, Role::ExpAvg, 0, "split", 88),
        (Look::Rounded, Role::Param, 768, "planes", 36),
        (Look::Constant, Role::ExpAvg, 768, "constant", 1),
        (Look::Noise, Role::Param, 768, "raw", 101),
    ] {
        let encoded = round_trip(f32_context(role, row, first), 1, &chunk(look, DType::F32, elements, row, first, 1));
        assert_eq!(coding_of(&encoded), Some(coding), "{look:?}");
        assert!(encoded.len() * 100 <= CHUNK_BYTES * percent, "{look:?}: {} bytes", encoded.len());
    }
}

#[test]
fn half_precision_chunks_code_the_exponent() {
    for dtype in [DType::BF16, DType::F16] {
        let ctx = ChunkContext { dtype, role: Role::Param, row: 768, first: 0 };
        let encoded = round_trip(ctx, 1, &chunk(Look::Weights, dtype, CHUNK_BYTES / 2, 768, 0, 1));
        assert_eq!(coding_of(&encoded), Some("planes"));
        assert!(encoded.len() * 100 <= CHUNK_BYTES * 70, "{} bytes", encoded.len());
    }
}

#[test]
fn every_f32_bit_pattern_of_interest_survives_among_ordinary_values() {
    let mut raw = chunk(Look::Moments, DType::F32, 8192, 256, 0, 5);
    for (i, exponent) in (0..=255u32).enumerate() {
        for (j, mantissa) in [0, 1, 0x3f_ffff, 0x40_0000, 0x7f_ffff].iter().enumerate() {
            let word = exponent << 23 | mantissa | ((i + j) as u32 & 1) << 31;
            raw[4 * (i * 29 + j)..][..4].copy_from_slice(&word.to_le_bytes());
        }
    }
    for role in ROLES {
        round_trip(f32_context(role, 256, 0), 1, &raw);
    }
}

#[test]
fn input_and_output_need_no_alignment() {
    let raw = chunk(Look::Moments, DType::F32, 20_000, 300, 123, 9);
    let ctx = f32_context(Role::ExpAvg, 300, 123);
    let expected = round_trip(ctx, 1, &raw);
    for shift in 1..8 {
        let mut padded = vec![0; shift];
        padded.extend_from_slice(&raw);
        let mut encoded = vec![0; shift + max_encode_bytes(raw.len())];
        let len = ChunkEncoder::new(1).encode(ctx, &padded[shift..], &mut encoded[shift..]);
        encoded.truncate(shift + len);
        assert!(encoded[shift..] == expected);
        let mut decoded = vec![0; shift + raw.len()];
        ChunkDecoder::new().decode(ctx, &encoded[shift..], &mut decoded[shift..]).unwrap();
        assert!(decoded[shift..] == raw);
    }
}

#[test]
fn a_chunk_may_start_and_end_anywhere_in_a_row() {
    for (elements, row) in [(2048, 64), (4096, 65), (5000, 250), (6001, 127), (9999, 500)] {
        for first in [0, 1, row / 2, row - 1, row * 1_000_003 + 5, u64::MAX - 20_000] {
            let ctx = f32_context(Role::ExpAvgSq, row, first);
            let encoded = round_trip(ctx, 1, &chunk(Look::SquaredMoments, DType::F32, elements, row, first, 2));
            assert_eq!(coding_of(&encoded), Some("whitened-positive"), "{elements} from {first} in rows of {row}");
        }
    }
}

#[test]
fn an_encoder_can_be_used_again_for_chunks_of_any_kind() {
    let (mut encoder, mut decoder) = (ChunkEncoder::new(3), ChunkDecoder::new());
    for round in 0..60u64 {
        let look = LOOKS[round as usize % LOOKS.len()];
        let dtype = DTYPES[round as usize * 7 % DTYPES.len()];
        let ctx = ChunkContext { dtype, role: ROLES[round as usize % 5], row: 100 + round, first: round * 31 };
        let raw = chunk(look, dtype, 1 + (round * 611 % 9000) as usize, ctx.row, ctx.first, round);
        let encoded = encoded_by(&mut encoder, ctx, &raw);
        let fresh = encoded_by(&mut ChunkEncoder::new(3), ctx, &raw);
        assert!(encoded == fresh, "what was encoded before leaves no trace");
        let mut decoded = vec![0; raw.len()];
        decoder.decode(ctx, &encoded, &mut decoded).unwrap();
        assert!(decoded == raw);
    }
}

#[test]
fn level_0_stores_and_an_empty_chunk_is_one_byte() {
    let raw = chunk(Look::Constant, DType::F32, 4096, 64, 0, 0);
    let ctx = f32_context(Role::Param, 64, 0);
    assert_eq!(coding_of(&round_trip(ctx, 0, &raw)), Some("raw"));
    assert_eq!(round_trip(ctx, 1, &[]), [0]);
    assert_eq!(coding_of(&[]), None);
    assert_eq!(coding_of(&[8]), None);
    assert!(InstructionSet::supported().iter().any(|isa| isa.name() == default_isa_name()));
}

#[test]
fn a_frame_that_claims_more_than_the_chunk_is_refused() {
    let ctx = ChunkContext { dtype: DType::U8, role: Role::Buffer, row: 0, first: 0 };
    let mut encoded = vec![ChunkCoding::Zstd as u8];
    encoded.extend(zstd::bulk::compress(&vec![0; 64 << 20], 1).unwrap());
    assert_eq!(ChunkDecoder::new().decode(ctx, &encoded, &mut [0; 100]), Err(CodecError::Frame));
}

#[test]
fn only_one_frame_of_the_standard_format_is_read() {
    let ctx = ChunkContext { dtype: DType::U8, role: Role::Buffer, row: 0, first: 0 };
    let frame = zstd::bulk::compress(&[7; 50], 1).unwrap();
    let skippable = [0x50, 0x2a, 0x4d, 0x18, 0, 0, 0, 0];
    let decode = |parts: &[&[u8]], len: usize| {
        let encoded = [&[ChunkCoding::Zstd as u8], parts.concat().as_slice()].concat();
        ChunkDecoder::new().decode(ctx, &encoded, &mut vec![0; len])
    };
    assert_eq!(decode(&[&frame], 50), Ok(()));
    assert_eq!(decode(&[&frame, &frame], 100), Err(CodecError::Frame));
    assert_eq!(decode(&[&skippable, &frame], 50), Err(CodecError::Frame));
    assert_eq!(decode(&[&frame, &skippable], 50), Err(CodecError::Frame));
}

#[test]
fn codes_are_complete_and_bounded_for_the_steepest_counts() {
    // Fibonacci counts make the deepest tree; without a limit its codes would have up to 39 bits.
    let mut counts = vec![1u32, 1];
    while counts.len() < 40 {
        counts.push(counts[counts.len() - 1] + counts[counts.len() - 2]);
    }
    for len in 2..=counts.len() {
        let code = tree::HuffmanCode::new(7, &counts[..len]);
        let lengths: Vec<_> = code.entries().iter().map(|entry| entry.length() as usize).collect();
        assert!(lengths.iter().all(|&length| (1..=tree::MAX_BITS).contains(&length)));
        assert_eq!(lengths.iter().map(|&length| 1 << (tree::MAX_BITS - length)).sum::<usize>(), 1 << tree::MAX_BITS);
        assert!(lengths.is_sorted_by(|rare, frequent| rare >= frequent));
    }
}
