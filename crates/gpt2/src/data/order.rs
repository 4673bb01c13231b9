//! Which tokens a step sees: the order of the training samples and the fixed validation windows.
//!
//! Invariant: pure functions of (seed, epoch, position), so that seeking is O(1) and a resume needs only a cursor.
//! Deliberately not here: where the tokens lie (tokens).

use std::ops::Range;

use ckptd_core::permutation::KeyedPermutation;

use crate::rng;
use crate::tokens::TokenView;

/// How far the training has read: `position` samples of `epoch` are consumed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DataCursor {
    pub epoch: u64,
    pub position: u64,
}

/// The order of the training samples.
///
/// A sample is a window of `sequence_length + 1` tokens (inputs, and the same shifted by one as targets); sample i of
/// an epoch starts at `offset + i * sequence_length`. The offset, at most `sequence_length - 1`, is drawn anew for
/// each epoch, so that the windows' borders move; the order is a permutation keyed by (seed, epoch).
#[derive(Clone, Debug)]
pub struct SampleOrder {
    sequence_length: u64,
    seed: u64,
    samples: u64,
    max_offset: u64,
}

impl SampleOrder {
    /// For `n_tokens` training tokens, at least `sequence_length + 1` of them.
    pub fn new(n_tokens: u64, sequence_length: u64, seed: u64) -> SampleOrder {
        debug_assert!(sequence_length > 0 && n_tokens > sequence_length);
        // As many windows as fit at the largest offset, so that every epoch has the same number of them.
        let samples = (n_tokens.saturating_sub(sequence_length) / sequence_length).max(1);
        let slack = n_tokens.saturating_sub(1 + samples * sequence_length);
        SampleOrder { sequence_length, seed, samples, max_offset: slack.min(sequence_length - 1) }
    }

    pub fn samples_per_epoch(&self) -> u64 {
        self.samples
    }

    /// The tokens of the sample at `position` (below [`SampleOrder::samples_per_epoch`]) of `epoch`; one more than the
    /// sequence length.
    pub fn window(&self, epoch: u64, position: u64) -> Range<usize> {
        self.epoch(epoch).window(position)
    }

    /// `cursor`, `samples` further; past an epoch's end it goes on in the next.
    pub fn advance(&self, cursor: DataCursor, samples: u64) -> DataCursor {
        let position = cursor.position + samples;
        DataCursor { epoch: cursor.epoch + position / self.samples, position: position % self.samples }
    }

    fn epoch(&self, epoch: u64) -> EpochOrder {
        let [offset] = rng::words("epoch offset", [self.seed, epoch]);
        EpochOrder {
            permutation: KeyedPermutation::of_epoch(self.samples, self.seed, epoch),
            offset: offset % (self.max_offset + 1),
            sequence_length: self.sequence_length,
        }
    }
}

/// One epoch of a [`SampleOrder`].
struct EpochOrder {
    permutation: KeyedPermutation,
    offset: u64,
    sequence_length: u64,
}

impl EpochOrder {
    fn window(&self, position: u64) -> Range<usize> {
        let start = (self.offset + self.permutation.at(position) * self.sequence_length) as usize;
        start..start + self.sequence_length as usize + 1
    }
}

/// Training batches.
#[derive(Clone)]
pub struct TrainBatches {
    tokens: TokenView,
    sampler: SampleOrder,
}

impl TrainBatches {
    /// Over `tokens`, at least `sequence_length + 1` of them.
    pub fn new(tokens: TokenView, sequence_length: u64, seed: u64) -> TrainBatches {
        let sampler = SampleOrder::new(tokens.len() as u64, sequence_length, seed);
        TrainBatches { tokens, sampler }
    }

    pub fn sampler(&self) -> &SampleOrder {
        &self.sampler
    }

    /// Replaces `inputs` and `targets` with `batch_size` samples from `cursor` on, each `batch_size *
    /// sequence_length` ids, row by row, and returns the cursor after them.
    pub fn fill(
        &self,
        cursor: DataCursor,
        batch_size: u64,
        inputs: &mut Vec<i64>,
        targets: &mut Vec<i64>,
    ) -> DataCursor {
        inputs.clear();
        targets.clear();
        // A cursor of other settings may lie past the end of an epoch of these.
        let mut cursor = self.sampler.advance(cursor, 0);
        let mut epoch = self.sampler.epoch(cursor.epoch);
        for _ in 0..batch_size {
            push_window(&self.tokens, epoch.window(cursor.position), inputs, targets);
            let next = self.sampler.advance(cursor, 1);
            if next.epoch != cursor.epoch {
                epoch = self.sampler.epoch(next.epoch);
            }
            cursor = next;
        }
        cursor
    }
}

/// Validation batches: the same windows every time, spread evenly over the validation part.
#[derive(Clone)]
pub struct EvalBatches {
    tokens: TokenView,
    starts: Vec<usize>,
    sequence_length: usize,
    batch_size: usize,
}

impl EvalBatches {
    /// At most `batches` batches of `batch_size` windows of `sequence_length + 1` tokens; fewer, all of them full,
    /// where the part has fewer windows.
    pub fn new(tokens: TokenView, sequence_length: u64, batch_size: u64, batches: u64) -> EvalBatches {
        let windows = (tokens.len() as u64).saturating_sub(1) / sequence_length;
        let wanted = batches.min(windows / batch_size) * batch_size;
        let starts = (0..wanted)
            .map(|i| (u128::from(i) * u128::from(windows) / u128::from(wanted)) as usize * sequence_length as usize)
            .collect();
        EvalBatches { tokens, starts, sequence_length: sequence_length as usize, batch_size: batch_size as usize }
    }

    /// Number of batches.
    pub fn len(&self) -> usize {
        self.starts.len() / self.batch_size
    }

    pub fn is_empty(&self) -> bool {
        self.starts.is_empty()
    }

    /// Replaces `inputs` and `targets` with batch `index`, below [`EvalBatches::len`].
    pub fn fill(&self, index: usize, inputs: &mut Vec<i64>, targets: &mut Vec<i64>) {
        inputs.clear();
        targets.clear();
        for &start in &self.starts[index * self.batch_size..(index + 1) * self.batch_size] {
            push_window(&self.tokens, start..start + self.sequence_length + 1, inputs, targets);
        }
    }
}

fn push_window(tokens: &TokenView, window: Range<usize>, inputs: &mut Vec<i64>, targets: &mut Vec<i64>) {
    inputs.extend(tokens.ids(window.start..window.end - 1).map(i64::from));
    targets.extend(tokens.ids(window.start + 1..window.end).map(i64::from));
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_order_is_that_of_the_first_release() {
        // Computed by a separate implementation in Python.
        assert_eq!(SampleOrder::new(1000, 64, 1337).window(3, 2), 114..179);
    }

    proptest! {
        #[test]
        fn every_sample_is_seen_exactly_once_an_epoch_and_lies_in_the_tokens(
            n_tokens in 9u64..5000, sequence_length in 1u64..9, seed: u64, epoch: u64,
        ) {
            let sampler = SampleOrder::new(n_tokens, sequence_length, seed);
            let mut starts: Vec<usize> =
                (0..sampler.samples_per_epoch()).map(|i| sampler.window(epoch, i).start).collect();
            starts.sort_unstable();
            for pair in starts.windows(2) {
                prop_assert_eq!(pair[1] - pair[0], sequence_length as usize);
            }
            let last = sampler.window(epoch, 0).len() + starts[starts.len() - 1];
            prop_assert!(last as u64 <= n_tokens);
            prop_assert!(starts[0] < sequence_length as usize);
            // What an epoch leaves out is less than two windows.
            prop_assert!(starts.len() as u64 * sequence_length + 2 * sequence_length > n_tokens);
        }

        #[test]
        fn seeking_equals_walking(n_tokens in 9u64..500, seed: u64, batches in prop::collection::vec(1u64..20, 1..20)) {
            let sampler = SampleOrder::new(n_tokens, 8, seed);
            let mut walked = DataCursor::default();
            for &batch in &batches {
                for _ in 0..batch {
                    walked = sampler.advance(walked, 1);
                }
            }
            prop_assert_eq!(sampler.advance(DataCursor::default(), batches.iter().sum()), walked);
            prop_assert!(walked.position < sampler.samples_per_epoch());
        }
    }

    #[test]
    fn seeds_and_epochs_differ_in_order_and_offset() {
        let starts = |seed, epoch| -> Vec<usize> {
            let sampler = SampleOrder::new(100_000, 64, seed);
            (0..1000).map(|i| sampler.window(epoch, i).start).collect()
        };
        let (a, b, c) = (starts(1, 0), starts(1, 1), starts(2, 0));
        assert_ne!(a, b);
        assert_ne!(a, c);
        let offsets: HashSet<usize> = (0..200).map(|epoch| starts(1, epoch)[0] % 64).collect();
        assert!(offsets.len() > 50, "{} of 64 offsets in 200 epochs", offsets.len());
    }

    #[test]
    fn the_fewest_tokens_make_one_sample() {
        let sampler = SampleOrder::new(9, 8, 1);
        assert_eq!(sampler.samples_per_epoch(), 1);
        assert_eq!(sampler.window(5, 0), 0..9);
    }
}
