//! Row and column means of the moments' magnitudes.
//!
//! The moments of a matrix look like a row scale times a column scale times noise. The bit pattern of a float32's
//! magnitude, read as an integer, is close to its logarithm (2^23 to the octave), so subtracting a row and a column
//! mean of these integers divides the scales out, and what is left has less entropy. It is integer arithmetic modulo
//! 2^32, lossless for all numbers.
//!
//! A chunk may start and end in the middle of a row; the parts are rows of their own.

use std::ops::Range;

use super::chunk::ChunkContext;
use super::dispatch::{InstructionSet, multiversion};
use super::sink::ByteSink;

/// MagnitudeMeans are kept in units of 2^20: an eighth of an octave.
const MEAN_SHIFT: u32 = 20;
/// Magnitudes are summed in units of 2^12, so that sums fit in 32 bits.
const SUM_SHIFT: u32 = 12;
const MEAN_SUMS: i32 = 1 << (MEAN_SHIFT - SUM_SHIFT);
/// Added to a residual so that it is positive: 40 octaves. Residuals have 64 octaves of room in all.
const CENTRE: u32 = 40 << 23;
const RESIDUAL_BITS: u32 = 29;
const MAGNITUDE: u32 = 0x7fff_ffff;

/// Shorter rows cost too much in means; more than this many could overflow a column's sum.
const SHORTEST_ROW: usize = 64;
const MOST_ROWS: usize = 2048;
/// Columns with fewer values have no mean worth its byte.
const FEWEST_ROWS: usize = 8;

/// How the elements of a chunk lie in the rows of their matrix.
#[derive(Clone, Copy)]
pub(super) struct ChunkGrid {
    elements: usize,
    row: usize,
    /// Column of the chunk's first element.
    first_column: usize,
}

impl ChunkGrid {
    /// `None` where the tensor is not a matrix or its rows are longer than the chunk.
    pub(super) fn of(ctx: ChunkContext, elements: usize) -> Option<ChunkGrid> {
        let row = usize::try_from(ctx.row).ok().filter(|&row| row > 0 && row <= elements)?;
        Some(ChunkGrid { elements, row, first_column: (ctx.first % ctx.row) as usize })
    }

    /// Whether the means are likely to be worth their bytes.
    pub(super) fn worthwhile(&self) -> bool {
        self.row >= SHORTEST_ROW && self.rows() <= MOST_ROWS && self.elements / self.row >= FEWEST_ROWS
    }

    /// Rows that the chunk touches, in part or whole.
    pub(super) fn rows(&self) -> usize {
        (self.first_column + self.elements).div_ceil(self.row)
    }

    pub(super) fn columns(&self) -> usize {
        self.row
    }

    /// Bytes of the means.
    pub(super) fn means_len(&self) -> usize {
        2 * self.rows() + self.row
    }

    /// The rows that some of the elements lie in: each row's number, elements and columns.
    fn spans(self, some: Range<usize>) -> impl Iterator<Item = (usize, Range<usize>, Range<usize>)> {
        let rows = (self.first_column + some.start) / self.row..(self.first_column + some.end).div_ceil(self.row);
        rows.map(move |row| {
            // Counted from the start of the chunk's first row, of which the chunk may lack the beginning.
            let start = (row * self.row).max(self.first_column + some.start);
            let end = ((row + 1) * self.row).min(self.first_column + some.end);
            let columns = start - row * self.row..end - row * self.row;
            (row, start - self.first_column..end - self.first_column, columns)
        })
    }

    fn all_spans(self) -> impl Iterator<Item = (usize, Range<usize>, Range<usize>)> {
        self.spans(0..self.elements)
    }
}

/// The means of a chunk, in units of 2^20 of the magnitudes' bit patterns. Reused from chunk to chunk.
#[derive(Default)]
pub(super) struct MagnitudeMeans {
    rows: Vec<u16>,
    columns: Vec<i8>,
    sums: Vec<i32>,
    /// `columns` in units of 1.
    shifts: Vec<u32>,
}

impl MagnitudeMeans {
    /// Takes the means of a chunk.
    pub(super) fn fit(&mut self, isa: InstructionSet, grid: ChunkGrid, words: &[[u8; 4]]) {
        self.rows.clear();
        self.sums.clear();
        self.sums.resize(grid.columns(), 0);
        let mut whole_rows = 0;
        for (_, elements, columns) in grid.all_spans() {
            let words = &words[elements];
            let mean = (sum_row(isa, words) / words.len() as u64) as i32;
            let row = (mean + MEAN_SUMS / 2) / MEAN_SUMS;
            self.rows.push(row as u16);
            if columns.len() == grid.columns() {
                add_residuals(isa, words, row * MEAN_SUMS, &mut self.sums);
                whole_rows += 1;
            }
        }
        let scale = 1.0 / (MEAN_SUMS * whole_rows.max(1)) as f32;
        self.columns.clear();
        self.columns.extend(self.sums.iter().map(|&sum| rounded(sum as f32 * scale)));
        self.correct_partial_rows(grid);
        self.spread_columns();
    }

    /// A part of a row has its mean over some columns only, and theirs must not count twice.
    fn correct_partial_rows(&mut self, grid: ChunkGrid) {
        for (row, _, columns) in grid.all_spans() {
            let row = &mut self.rows[row];
            if columns.len() < grid.columns() {
                let sum: i32 = self.columns[columns.clone()].iter().map(|&mean| i32::from(mean)).sum();
                *row = (i32::from(*row) - sum / columns.len() as i32).max(0) as u16;
            }
        }
    }

    fn spread_columns(&mut self) {
        self.shifts.clear();
        self.shifts.extend(self.columns.iter().map(|&mean| (i32::from(mean) as u32) << MEAN_SHIFT));
    }

    /// Appends the row means, two bytes each, and the column means, one byte each.
    pub(super) fn write(&self, out: &mut ByteSink<'_>) {
        for (bytes, mean) in out.grow(2 * self.rows.len()).as_chunks_mut().0.iter_mut().zip(&self.rows) {
            *bytes = mean.to_le_bytes();
        }
        for (byte, &mean) in out.grow(self.columns.len()).iter_mut().zip(&self.columns) {
            *byte = mean as u8;
        }
    }

    /// Takes over what [`MagnitudeMeans::write`] wrote; `bytes` has `grid.means_len()` of them.
    pub(super) fn read(&mut self, grid: ChunkGrid, bytes: &[u8]) {
        let (rows, columns) = bytes.split_at(2 * grid.rows());
        self.rows.clear();
        self.rows.extend(rows.as_chunks::<2>().0.iter().map(|mean| u16::from_le_bytes(*mean)));
        self.columns.clear();
        self.columns.extend(columns.iter().map(|&mean| mean as i8));
        self.spread_columns();
    }

    /// Writes the residuals with their sign bits (H = 6) or without (H = 5) to `whitened`. False where one of them is
    /// out of range; `whitened` is then of no use.
    pub(super) fn subtract<const H: usize>(
        &self,
        isa: InstructionSet,
        grid: ChunkGrid,
        words: &[[u8; 4]],
        whitened: &mut [[u8; 4]],
    ) -> bool {
        let mut ored = 0;
        for (row, elements, columns) in grid.all_spans() {
            let offset = self.offset(row);
            let (words, whitened) = (&words[elements.clone()], &mut whitened[elements]);
            ored |= subtract_row::<H>(isa, words, offset, &self.shifts[columns], whitened);
        }
        ored >> RESIDUAL_BITS == 0
    }

    /// What undoes [`MagnitudeMeans::subtract`] for some of the chunk's elements, row by row: see [`whole`].
    pub(super) fn of(&self, grid: ChunkGrid, some: Range<usize>) -> impl Iterator<Item = (Range<usize>, u32, &[u32])> {
        grid.spans(some).map(|(row, elements, columns)| (elements, self.offset(row), &self.shifts[columns]))
    }

    fn offset(&self, row: usize) -> u32 {
        (u32::from(self.rows[row]) << MEAN_SHIFT).wrapping_sub(CENTRE)
    }
}

/// To the nearest integer that fits. The detour by a positive number makes truncation round down, as no portable
/// instruction does.
fn rounded(mean: f32) -> i8 {
    ((mean + 4096.5) as i32 - 4096).clamp(-128, 127) as i8
}

multiversion! {
    /// Sum of the magnitudes in units of 2^12.
    fn sum_row(words: &[[u8; 4]]) -> u64 {
        let magnitude = |word: &[u8; 4]| (u32::from_le_bytes(*word) & MAGNITUDE) >> SUM_SHIFT;
        // 4096 numbers of 19 bits stay below 2^31.
        words.chunks(4096).map(|words| u64::from(words.iter().map(magnitude).sum::<u32>())).sum()
    }
}

multiversion! {
    fn add_residuals(words: &[[u8; 4]], mean: i32, sums: &mut [i32]) {
        for (word, sum) in words.iter().zip(sums) {
            *sum += ((u32::from_le_bytes(*word) & MAGNITUDE) >> SUM_SHIFT) as i32 - mean;
        }
    }
}

multiversion! {
    fn subtract_row<const H: usize>(words: &[[u8; 4]], offset: u32, shifts: &[u32], whitened: &mut [[u8; 4]]) -> u32 {
        let mut ored = 0;
        for ((word, shift), whitened) in words.iter().zip(shifts).zip(whitened) {
            let word = u32::from_le_bytes(*word);
            let residual = (word & MAGNITUDE).wrapping_sub(offset).wrapping_sub(*shift);
            ored |= residual;
            *whitened = if H == 6 {
                // The sign goes under the 8 bits that are coded.
                (residual >> 21) << 22 | word >> 31 << 21 | residual & 0x001f_ffff
            } else {
                residual
            }
            .to_le_bytes();
        }
        ored
    }
}

/// The number that was whitened with the offset of its row and the shift of its column.
#[inline(always)]
pub(super) fn whole<const H: usize>(whitened: u32, offset: u32, shift: u32) -> u32 {
    let (residual, sign) = if H == 6 {
        ((whitened >> 22) << 21 | whitened & 0x001f_ffff, (whitened << 10) & !MAGNITUDE)
    } else {
        (whitened, 0)
    };
    residual.wrapping_add(offset).wrapping_add(shift) & MAGNITUDE | sign
}
