//! From an encoded chunk back to its bytes. The input is not trusted.

use super::chunk::ChunkContext;
use super::coding::ChunkCoding;
use super::cursor::ByteCursor;
use super::dispatch::InstructionSet;
use super::error::CodecError;
use super::packing::packed_len;
use super::plane::PlaneReader;
use super::planes;
use super::scratch::resized;
use super::split::{STRETCH, join};
use super::whiten::{ChunkGrid, MagnitudeMeans};
use crate::dtype::DType;

/// Decodes chunks, one at a time; holds the scratch memory of one thread.
///
/// Its memory is bounded by the raw length of the chunks, whatever the encoded bytes say.
pub struct ChunkDecoder {
    isa: InstructionSet,
    planes: PlaneReader,
    means: MagnitudeMeans,
    symbols: Vec<u8>,
}

impl Default for ChunkDecoder {
    fn default() -> Self {
        ChunkDecoder::new()
    }
}

impl ChunkDecoder {
    /// With the fastest instruction set that this processor has.
    pub fn new() -> Self {
        ChunkDecoder::with_isa(InstructionSet::best())
    }

    /// With a slower instruction set than the best, for tests and benchmarks.
    pub fn with_isa(isa: InstructionSet) -> Self {
        ChunkDecoder { isa, planes: PlaneReader::new(isa), means: MagnitudeMeans::default(), symbols: Vec::new() }
    }

    /// Fills `raw` from `encoded`, which must hold exactly as much. After an error the content of `raw` is undefined.
    pub fn decode(&mut self, ctx: ChunkContext, encoded: &[u8], raw: &mut [u8]) -> Result<(), CodecError> {
        let mut input = ByteCursor::new(encoded);
        let byte = input.u8()?;
        let coding = ChunkCoding::from_byte(byte).ok_or(CodecError::UnknownCoding(byte))?;
        let misfit = CodecError::Misfit { coding, dtype: ctx.dtype, bytes: raw.len() };
        let size = ctx.dtype.size();
        let whole = raw.len().is_multiple_of(size);
        match (coding, ctx.dtype) {
            (ChunkCoding::Raw, _) => raw.copy_from_slice(input.take(raw.len())?),
            (ChunkCoding::Zstd, _) => self.planes.read_zstd(input.rest(), raw)?,
            _ if !whole || raw.is_empty() => return Err(misfit),
            (ChunkCoding::Constant, _) => {
                raw[..size].copy_from_slice(input.take(size)?);
                repeat(raw, size);
            }
            (ChunkCoding::Planes, DType::F32) => self.decode_planes::<4>(&mut input, raw.as_chunks_mut().0)?,
            (ChunkCoding::Planes, DType::F16 | DType::BF16) => {
                self.decode_planes::<2>(&mut input, raw.as_chunks_mut().0)?
            }
            (ChunkCoding::Planes, DType::F64) => self.decode_planes::<8>(&mut input, raw.as_chunks_mut().0)?,
            (ChunkCoding::Split, DType::F32) => self.decode_split::<8>(&mut input, raw.as_chunks_mut().0, None)?,
            (ChunkCoding::SplitPositive, DType::F32) => {
                self.decode_split::<7>(&mut input, raw.as_chunks_mut().0, None)?
            }
            (ChunkCoding::Whitened | ChunkCoding::WhitenedPositive, DType::F32) => {
                let (words, _) = raw.as_chunks_mut();
                let grid = ChunkGrid::of(ctx, words.len()).ok_or(misfit)?;
                if coding == ChunkCoding::Whitened {
                    self.decode_whitened::<6>(&mut input, grid, words)?;
                } else {
                    self.decode_whitened::<5>(&mut input, grid, words)?;
                }
            }
            _ => return Err(misfit),
        }
        input.finish()
    }

    fn decode_planes<const W: usize>(
        &mut self,
        input: &mut ByteCursor<'_>,
        elements: &mut [[u8; W]],
    ) -> Result<(), CodecError> {
        let mut read = [[].as_slice(); W];
        let scratch = resized(&mut self.symbols, W * elements.len());
        for (plane, scratch) in read.iter_mut().zip(scratch.chunks_exact_mut(elements.len())) {
            *plane = self.planes.read(input, scratch, [&[]; 2])?;
        }
        planes::paste(self.isa, &read, elements);
        Ok(())
    }

    /// `means` are of whitened words, and added back.
    fn decode_split<const H: usize>(
        &mut self,
        input: &mut ByteCursor<'_>,
        words: &mut [[u8; 4]],
        means: Option<ChunkGrid>,
    ) -> Result<(), CodecError> {
        let stored = input.take(2 * words.len() + packed_len(words.len(), H))?;
        let symbols =
            self.planes.read(input, resized(&mut self.symbols, words.len()), [words.as_flattened(), stored])?;
        let (low, high) = stored.split_at(2 * words.len());
        let parts = low.chunks(2 * STRETCH).zip(high.chunks(packed_len(STRETCH, H))).zip(symbols.chunks(STRETCH));
        for (index, (words, ((low, high), symbols))) in words.chunks_mut(STRETCH).zip(parts).enumerate() {
            let whitening = means.map(|grid| (&self.means, grid, index * STRETCH));
            join::<H>(self.isa, symbols, low, high, whitening, words);
        }
        Ok(())
    }

    fn decode_whitened<const H: usize>(
        &mut self,
        input: &mut ByteCursor<'_>,
        grid: ChunkGrid,
        words: &mut [[u8; 4]],
    ) -> Result<(), CodecError> {
        self.means.read(grid, input.take(grid.means_len())?);
        self.decode_split::<H>(input, words, Some(grid))
    }
}

/// Fills `raw` with copies of its first `filled` bytes, twice as many every time.
fn repeat(raw: &mut [u8], mut filled: usize) {
    while filled < raw.len() {
        let more = filled.min(raw.len() - filled);
        raw.copy_within(..more, filled);
        filled += more;
    }
}
