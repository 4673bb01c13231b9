//! Snapshots of a state whose moments the ranks hold in shards: all in one file, as ever.
//!
//! Rank 0 writes its own parts from memory, and asks each other rank for a chunk when that is to be encoded. Invariant:
//! all parts are of one step. Deliberately not here: how ranks hold and give parts (`ranks`).

use std::ops::Range;
use std::sync::Arc;

use ckptd_core::snapshot::{DistantBytes, DistantTensor, TensorBytes};
use ckptd_core::{Error, Result};

use super::gate::{GateHold, UpdateGate};
use crate::capture::{StateCapture, StateCapturer};
use crate::ranks::{HeldParts, HeldStep};

/// What rank 0 knows of the moments.
#[derive(Clone)]
pub struct ShardedMoments {
    pub gate: UpdateGate,
    pub parts: HeldParts,
    /// Of each rank, the elements of each parameter that it owns.
    pub owned: Arc<Vec<Vec<Range<usize>>>>,
}

/// A moment, wherever its parts are.
struct ShardedTensor {
    index: usize,
    /// Elements of each rank.
    owned: Vec<Range<usize>>,
    /// Rank 0's.
    here: TensorBytes,
    there: Arc<HeldStep>,
}

impl ShardedMoments {
    /// A cut of all ranks' states after one step, and its moments.
    ///
    /// # Errors
    /// That a rank is lost, or those of capturing.
    pub(super) fn capture(&self, capturer: &StateCapturer) -> Result<Option<(StateCapture, Vec<DistantTensor>)>> {
        let _held: GateHold = self.gate.hold();
        let Some(mut capture) = capturer.capture()? else { return Ok(None) };
        let owners: Vec<usize> = (1..self.owned.len()).filter(|rank| owns_something(&self.owned[*rank])).collect();
        let there = Arc::new(self.parts.hold(capture.train.step, &owners)?);
        let params = self.owned.first().map_or(0, Vec::len);
        let shards = std::mem::take(&mut capture.shards);
        let sharded = shards.into_iter().map(|shard| {
            let owned = self.owned.iter().map(|of_rank| of_rank[shard.index % params].clone()).collect();
            let bytes = ShardedTensor { index: shard.index, owned, here: shard.bytes, there: there.clone() };
            DistantTensor { meta: shard.meta, bytes: Arc::new(bytes) }
        });
        let sharded = sharded.collect();
        Ok(Some((capture, sharded)))
    }
}

fn owns_something(owned: &[Range<usize>]) -> bool {
    owned.iter().any(|elements| !elements.is_empty())
}

impl DistantBytes for ShardedTensor {
    fn read(&self, offset: u64, into: &mut [u8]) -> Result<()> {
        let bytes = |elements: &Range<usize>| 4 * elements.start as u64..4 * elements.end as u64;
        let owner = self.owned.iter().position(|elements| bytes(elements).contains(&offset));
        let owner =
            owner.ok_or_else(|| Error::Other(format!("no rank holds byte {offset} of tensor {}", self.index)))?;
        if owner > 0 {
            return self.there.fetch(owner, self.index, offset, into);
        }
        let from = (offset - bytes(&self.owned[0]).start) as usize;
        let whole: &[u8] = (*self.here).as_ref();
        let part = whole.get(from..from + into.len());
        let part = part.ok_or_else(|| Error::Other(format!("tensor {} ends before a chunk does", self.index)))?;
        into.copy_from_slice(part);
        Ok(())
    }
}
