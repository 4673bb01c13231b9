//! The seam between a training and the ranks that compute it: five calls. Below it, what carries values between them.
//!
//! Invariant: all ranks make the same calls in the same order. Deliberately not here: how ranks reach one another.

use std::time::Duration;

use ckptd_core::Result;

/// Values for another rank.
pub struct Outgoing<'a> {
    pub peer: usize,
    pub values: &'a [f32],
}

/// Where values of another rank go; as many as it sends.
pub struct Incoming<'a> {
    pub peer: usize,
    pub values: &'a mut [f32],
}

/// The ranks of a training, seen from one of them.
///
/// An error of any call names the rank that is the cause, as far as it can be known, and ends the group.
pub trait RankGroup: Send {
    /// This rank, from 0.
    fn rank(&self) -> usize;

    /// How many ranks there are.
    fn size(&self) -> usize;

    /// Sends and receives float32 values, all at once; between two ranks the first that is sent is the first that is
    /// received.
    fn exchange(&mut self, sends: &[Outgoing<'_>], receives: &mut [Incoming<'_>]) -> Result<()>;

    /// What each rank says, in the order of the ranks, to all of them.
    fn gather(&mut self, bytes: &[u8]) -> Result<Vec<Vec<u8>>>;

    /// As [`RankGroup::gather`], once per step, where the rank that comes last is the one that the others wait for.
    /// Rank 0 calls `pass` when all have come: until that returns, none goes on.
    fn meet(&mut self, bytes: &[u8], _pass: &mut dyn FnMut()) -> Result<Vec<Vec<u8>>> {
        self.gather(bytes)
    }

    /// What rank 0 says, to all of them; what the others say is left out.
    fn broadcast(&mut self, bytes: &[u8]) -> Result<Vec<u8>> {
        let said: &[u8] = if self.rank() == 0 { bytes } else { &[] };
        Ok(self.gather(said)?.into_iter().next().unwrap_or_default())
    }

    /// The numbers that each rank says, one rank's after another's.
    fn gather_numbers(&mut self, numbers: &[f64]) -> Result<Vec<f64>> {
        let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        Ok(numbers_in(&self.gather(&bytes)?))
    }

    /// The largest value of all ranks.
    fn agree(&mut self, value: u64) -> Result<u64> {
        let parts = self.gather(&value.to_le_bytes())?;
        let values = parts.iter().filter_map(|part| part.as_slice().try_into().ok()).map(u64::from_le_bytes);
        Ok(values.fold(value, u64::max))
    }

    /// Tells how far this rank is; whoever waits for it says so.
    fn is_at(&self, _step: u64, _micro_batch: u64) {}

    /// The share of `count` things, dealt out in order, that is this rank's.
    fn share(&self, count: u64) -> std::ops::Range<u64> {
        share(self.rank(), self.size(), count)
    }
}

/// Connections from each rank to each. The memory of a transfer is not touched by anybody else until it has ended.
pub(super) trait Transport: Send {
    /// All of it at once; between two ranks the first that is sent is the first that is received. On failure, the rank
    /// whose transfer failed first, and why; what had begun may then still read and write its memory, and there is no
    /// other exchange.
    fn exchange(
        &mut self,
        sends: &[Outgoing<'_>],
        receives: &mut [Incoming<'_>],
        patience: Duration,
    ) -> std::result::Result<(), (usize, String)>;
}

/// The float64 numbers in what ranks have said.
pub(crate) fn numbers_in(said: &[Vec<u8>]) -> Vec<f64> {
    said.concat().as_chunks::<8>().0.iter().map(|bytes| f64::from_le_bytes(*bytes)).collect()
}

/// The share of `count` things, dealt out in order to `size` ranks, that is `rank`'s.
pub(crate) fn share(rank: usize, size: usize, count: u64) -> std::ops::Range<u64> {
    let border = |rank: usize| (u128::from(count) * rank as u128 / size as u128) as u64;
    border(rank)..border(rank + 1)
}

/// The only rank.
#[derive(Clone, Copy, Debug, Default)]
pub struct Alone;

impl RankGroup for Alone {
    fn rank(&self) -> usize {
        0
    }

    fn size(&self) -> usize {
        1
    }

    fn exchange(&mut self, _sends: &[Outgoing<'_>], _receives: &mut [Incoming<'_>]) -> Result<()> {
        Ok(())
    }

    fn gather(&mut self, bytes: &[u8]) -> Result<Vec<Vec<u8>>> {
        Ok(vec![bytes.to_vec()])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_in_order_whole_and_differ_by_one_at_most() {
        for (size, count) in [(1, 6), (2, 8), (3, 8), (4, 6), (6, 8), (5, 3), (7, 0)] {
            let shares: Vec<_> = (0..size).map(|rank| share(rank, size, count)).collect();
            assert!(shares.windows(2).all(|pair| pair[0].end == pair[1].start));
            assert_eq!((shares[0].start, shares[size - 1].end), (0, count));
            let lengths: Vec<u64> = shares.iter().map(|share| share.end - share.start).collect();
            assert!(lengths.iter().max().zip(lengths.iter().min()).is_some_and(|(most, least)| most - least <= 1));
        }
    }
}
