//! Which rank owns which values of a gradient: parts of about the same size, in order.
//!
//! Invariant: a part begins and ends where chunks of a snapshot do (and so blocks of the update). Deliberately not
//! here: what owners do.

use std::ops::Range;

use ckptd_core::codec::CHUNK_BYTES;

use crate::optim::NORM_BLOCK;

/// Values of a chunk of a snapshot, a whole number of blocks.
const CHUNK: usize = CHUNK_BYTES / 4;
const _: () = assert!(CHUNK.is_multiple_of(NORM_BLOCK));

/// The values of all tensors, one behind the other.
#[derive(Clone, Debug)]
pub(super) struct GradientLayout {
    /// Where each tensor begins, and where the last one ends.
    pub tensors: Vec<usize>,
    /// Of each block of the norm, in order.
    pub blocks: Vec<Range<usize>>,
}

/// What a rank owns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct OwnedPart {
    pub values: Range<usize>,
    /// Indices of [`GradientLayout::blocks`].
    pub blocks: Range<usize>,
}

impl GradientLayout {
    /// Of tensors with so many values.
    pub(super) fn new(sizes: &[usize]) -> GradientLayout {
        let (mut tensors, mut blocks) = (vec![0], Vec::new());
        for size in sizes {
            let start = tensors.last().copied().unwrap_or(0);
            let end = start + size;
            blocks.extend((start..end).step_by(NORM_BLOCK).map(|from| from..(from + NORM_BLOCK).min(end)));
            tensors.push(end);
        }
        GradientLayout { tensors, blocks }
    }

    /// Number of values.
    pub(super) fn len(&self) -> usize {
        self.tensors.last().copied().unwrap_or(0)
    }

    /// The elements of each tensor within `values`.
    pub(super) fn elements(&self, values: &Range<usize>) -> Vec<Range<usize>> {
        let within = |tensor: &[usize]| {
            let (from, to) = (values.start.clamp(tensor[0], tensor[1]), values.end.clamp(tensor[0], tensor[1]));
            from - tensor[0]..to - tensor[0]
        };
        self.tensors.windows(2).map(within).collect()
    }

    /// What each of `ranks` ranks owns.
    pub(super) fn parts(&self, ranks: usize) -> Vec<OwnedPart> {
        // Where chunks begin: a value and a block; at last the end of all.
        let mut borders: Vec<(usize, usize)> = Vec::new();
        let mut block = 0;
        for tensor in self.tensors.windows(2) {
            for start in (tensor[0]..tensor[1]).step_by(CHUNK) {
                borders.push((start, block));
                block += (tensor[1] - start).min(CHUNK).div_ceil(NORM_BLOCK);
            }
        }
        let end = (self.len(), self.blocks.len());
        let border = |rank: usize| {
            let wanted = (self.len() as u128 * rank as u128 / ranks as u128) as usize;
            let at = borders.partition_point(|(value, _)| *value < wanted);
            if rank == ranks { end } else { borders.get(at).copied().unwrap_or(end) }
        };
        let part = |rank: usize| {
            let (from, to) = (border(rank), border(rank + 1));
            OwnedPart { values: from.0..to.0, blocks: from.1..to.1 }
        };
        (0..ranks).map(part).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_elements_of_all_parts_are_all_elements() {
        let sizes = [3 * CHUNK + 5, 7, 0, NORM_BLOCK + 1, CHUNK, 2 * CHUNK - 1];
        let layout = GradientLayout::new(&sizes);
        for ranks in 1..=9 {
            let elements: Vec<_> = layout.parts(ranks).iter().map(|part| layout.elements(&part.values)).collect();
            for (tensor, size) in sizes.into_iter().enumerate() {
                assert_eq!(elements.iter().map(|of_rank| of_rank[tensor].len()).sum::<usize>(), size);
                for range in elements.iter().map(|of_rank| &of_rank[tensor]).filter(|range| !range.is_empty()) {
                    assert!(
                        range.start.is_multiple_of(CHUNK) && (range.end == size || range.end.is_multiple_of(CHUNK))
                    );
                }
            }
        }
    }

    #[test]
    fn parts_are_whole_in_order_and_cut_where_chunks_are() {
        let layout = GradientLayout::new(&[3 * CHUNK + 5, 7, 0, NORM_BLOCK + 1, CHUNK, 2 * CHUNK - 1]);
        for ranks in 1..=9 {
            let parts = layout.parts(ranks);
            assert_eq!((parts[0].values.start, parts[0].blocks.start), (0, 0));
            let last = &parts[ranks - 1];
            assert_eq!((last.values.end, last.blocks.end), (layout.len(), layout.blocks.len()));
            assert!(
                parts.windows(2).all(|p| p[0].values.end == p[1].values.start && p[0].blocks.end == p[1].blocks.start)
            );
            for part in parts.iter().filter(|part| !part.values.is_empty()) {
                assert_eq!(layout.blocks[part.blocks.start].start, part.values.start);
                assert_eq!(layout.blocks[part.blocks.end - 1].end, part.values.end);
                let tensor = layout.tensors.partition_point(|start| *start <= part.values.start) - 1;
                assert!((part.values.start - layout.tensors[tensor]).is_multiple_of(CHUNK));
            }
        }
    }
}
