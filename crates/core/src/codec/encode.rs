//! Which coding suits a chunk, and the chunk in that coding.

use super::chunk::{ChunkContext, max_encode_bytes};
use super::coding::ChunkCoding;
use super::dispatch::{InstructionSet, multiversion};
use super::packing::packed_len;
use super::plane::PlaneWriter;
use super::planes;
use super::scratch::resized;
use super::sink::ByteSink;
use super::split::split;
use super::stats::entropy_bits;
use super::whiten::{ChunkGrid, MagnitudeMeans};
use crate::dtype::DType;
use crate::snapshot::Role;

/// Floats fewer than this go through zstd: planes would not earn their headers.
const FEWEST_FLOATS: usize = 512;
/// Elements that are sampled to judge a chunk's mantissas: runs that fill a cache line, spread over the chunk.
const SAMPLED_RUNS: usize = 128;
const SAMPLED_RUN: usize = 16;
/// zstd's highest level.
const MAX_LEVEL: u8 = 22;

/// Encodes chunks, one at a time; holds the scratch memory of one thread.
pub struct ChunkEncoder {
    isa: InstructionSet,
    level: u8,
    planes: PlaneWriter,
    means: MagnitudeMeans,
    /// Bytes of one plane, or of all planes of a chunk.
    symbols: Vec<u8>,
    whitened: Vec<[u8; 4]>,
}

impl ChunkEncoder {
    /// Level 0 stores chunks as they are. Any other cuts floats into planes and gives everything else to zstd at that
    /// level, at most 22.
    pub fn new(level: u8) -> Self {
        ChunkEncoder::with_isa(level, InstructionSet::best())
    }

    /// With a slower instruction set than the best, for tests and benchmarks; the bytes are the same.
    pub fn with_isa(level: u8, isa: InstructionSet) -> Self {
        ChunkEncoder {
            isa,
            level: level.min(MAX_LEVEL),
            planes: PlaneWriter::new(isa),
            means: MagnitudeMeans::default(),
            symbols: Vec::new(),
            whitened: Vec::new(),
        }
    }

    /// Writes the encoded chunk to the beginning of `out` and returns its length: at most `raw.len() + MAX_OVERHEAD`
    /// bytes, although `out` must have [`max_encode_bytes`] for the chunk. Chunks of any length are taken; one that is
    /// not a whole number of elements is given to zstd.
    pub fn encode(&mut self, ctx: ChunkContext, raw: &[u8], out: &mut [u8]) -> usize {
        assert!(
            out.len() >= max_encode_bytes(raw.len()),
            "{} bytes are too few for a chunk of {}",
            out.len(),
            raw.len()
        );
        let mut out = ByteSink::new(out);
        if self.level == 0 || raw.is_empty() || !self.encode_smaller(ctx, raw, &mut out) || out.len() > raw.len() {
            return store_raw(raw, out);
        }
        out.len()
    }

    /// Appends the chunk in the coding that suits it; false if no coding makes it smaller.
    fn encode_smaller(&mut self, ctx: ChunkContext, raw: &[u8], out: &mut ByteSink<'_>) -> bool {
        let size = ctx.dtype.size();
        let whole = raw.len().is_multiple_of(size);
        if whole && raw.len() > size && raw[size..] == raw[..raw.len() - size] {
            out.push(ChunkCoding::Constant as u8);
            out.extend(&raw[..size]);
            return true;
        }
        if whole && raw.len() / size >= FEWEST_FLOATS {
            match ctx.dtype {
                DType::F32 => self.encode_f32(ctx, raw.as_chunks().0, out),
                DType::F16 | DType::BF16 => self.encode_planes::<2>(raw.as_chunks().0, out),
                DType::F64 => self.encode_planes::<8>(raw.as_chunks().0, out),
                _ => return self.encode_zstd(raw, out),
            }
            return true;
        }
        self.encode_zstd(raw, out)
    }

    fn encode_zstd(&mut self, raw: &[u8], out: &mut ByteSink<'_>) -> bool {
        out.push(ChunkCoding::Zstd as u8);
        self.planes.write_zstd(raw, i32::from(self.level), out)
    }

    fn encode_planes<const W: usize>(&mut self, elements: &[[u8; W]], out: &mut ByteSink<'_>) {
        out.push(ChunkCoding::Planes as u8);
        let cut = resized(&mut self.symbols, W * elements.len());
        planes::cut(self.isa, elements, cut);
        for plane in cut.chunks_exact(elements.len()) {
            let stats = self.planes.stats(plane);
            self.planes.write(plane, &stats, out);
        }
    }

    fn encode_f32(&mut self, ctx: ChunkContext, words: &[[u8; 4]], out: &mut ByteSink<'_>) {
        // First, because it also brings the chunk into the cache in the fastest way.
        let negative = has_negative(self.isa, words);
        let sample = FloatSample::of(words);
        if !sample.mantissa_is_noise {
            return self.encode_planes(words, out);
        }
        let moment = matches!(ctx.role, Role::ExpAvg | Role::ExpAvgSq | Role::MomentumBuffer);
        let grid = ChunkGrid::of(ctx, words.len()).filter(|grid| moment && grid.worthwhile());
        let whitened = grid.is_some_and(|grid| {
            if negative {
                self.encode_whitened::<6>(grid, words, sample.exponent_bits + 8.0, out)
            } else {
                self.encode_whitened::<5>(grid, words, sample.exponent_bits + 7.0, out)
            }
        });
        match (whitened, negative) {
            (true, _) => {}
            (false, true) => self.encode_split::<8>(words, out),
            (false, false) => self.encode_split::<7>(words, out),
        }
    }

    fn encode_split<const H: usize>(&mut self, words: &[[u8; 4]], out: &mut ByteSink<'_>) {
        out.push(if H == 8 { ChunkCoding::Split } else { ChunkCoding::SplitPositive } as u8);
        let symbols = resized(&mut self.symbols, words.len());
        append_split::<H>(self.isa, words, symbols, out);
        let stats = self.planes.stats(symbols);
        self.planes.write(symbols, &stats, out);
    }

    /// False, with `out` as it was, where the chunk does not suit or is estimated to be no smaller than with
    /// `split_bits` an element.
    fn encode_whitened<const H: usize>(
        &mut self,
        grid: ChunkGrid,
        words: &[[u8; 4]],
        split_bits: f32,
        out: &mut ByteSink<'_>,
    ) -> bool {
        self.means.fit(self.isa, grid, words);
        self.whitened.resize(words.len(), [0; 4]);
        if !self.means.subtract::<H>(self.isa, grid, words, &mut self.whitened) {
            return false;
        }
        let start = out.len();
        out.push(if H == 6 { ChunkCoding::Whitened } else { ChunkCoding::WhitenedPositive } as u8);
        self.means.write(out);
        let symbols = resized(&mut self.symbols, words.len());
        append_split::<H>(self.isa, &self.whitened, symbols, out);
        let stats = self.planes.stats(symbols);
        let means_bits = 8.0 * grid.means_len() as f32 / words.len() as f32;
        if stats.entropy_bits + H as f32 + means_bits >= split_bits {
            out.truncate(start);
            return false;
        }
        self.planes.write(symbols, &stats, out);
        true
    }
}

fn store_raw(raw: &[u8], mut out: ByteSink<'_>) -> usize {
    out.truncate(0);
    out.push(ChunkCoding::Raw as u8);
    out.extend(raw);
    out.len()
}

/// Splits `words` and appends all but the symbols.
fn append_split<const H: usize>(isa: InstructionSet, words: &[[u8; 4]], symbols: &mut [u8], out: &mut ByteSink<'_>) {
    let parts = out.grow(2 * words.len() + packed_len(words.len(), H));
    let (low, high) = parts.split_at_mut(2 * words.len());
    split::<H>(isa, words, symbols, low, high);
}

multiversion! {
    fn has_negative(words: &[[u8; 4]]) -> bool {
        words.iter().fold(0, |ored, word| ored | u32::from_le_bytes(*word)) >> 31 != 0
    }
}

/// What some elements of a float32 chunk say about all.
struct FloatSample {
    /// The mantissas cannot be compressed.
    mantissa_is_noise: bool,
    /// Estimated entropy of an exponent.
    exponent_bits: f32,
}

impl FloatSample {
    fn of(words: &[[u8; 4]]) -> FloatSample {
        let mut counts = [[0; 256]; 4];
        for run in words.chunks((words.len() / SAMPLED_RUNS).max(SAMPLED_RUN)) {
            for &[b0, b1, b2, b3] in &run[..run.len().min(SAMPLED_RUN)] {
                for (counts, value) in counts.iter_mut().zip([b0, b1, b2 & 0x7f, b3 << 1 | b2 >> 7]) {
                    counts[usize::from(value)] += 1;
                }
            }
        }
        let [low, middle, high, exponent] = counts.each_ref().map(entropy_bits);
        // Noise gives full entropy, less what an estimate from so few values may miss.
        let margin = 0.1 + 100.0 / words.len().min(SAMPLED_RUNS * SAMPLED_RUN) as f32;
        FloatSample {
            mantissa_is_noise: low > 8.0 - margin && middle > 8.0 - margin && high > 7.0 - margin,
            exponent_bits: exponent,
        }
    }
}
