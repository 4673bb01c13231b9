//! The shards of a saved optimizer state on their way to ranks that cannot read the snapshot: rank 0 reads them, and
//! holds another one itself.
//!
//! Invariant: all ranks make the same calls, also those that want nothing. Deliberately not here: who owns what
//! (`reduction`), parameters (`follow`).

use std::ops::Range;

use ckptd_core::codec::CHUNK_BYTES;
use ckptd_core::store::SnapshotReader;
use ckptd_core::{Error, Result};

use super::open::TrainingSetup;
use crate::ranks::{RankGroup, SpreadEnd, spread};

/// Bytes of a moment that rank 0 reads at a time; whole chunks.
const PIECE_BYTES: usize = 8 * CHUNK_BYTES;

/// What a rank holds of one moment.
struct MomentShard {
    rank: usize,
    /// Of the moment in the state.
    index: usize,
    bytes: Range<usize>,
}

impl MomentShard {
    /// Where each piece begins, and its bytes.
    fn pieces(&self) -> impl Iterator<Item = (usize, usize)> {
        let Range { start, end } = self.bytes;
        (start..end).step_by(PIECE_BYTES).map(move |from| (from, (end - from).min(PIECE_BYTES)))
    }

    /// The ranks that it goes to.
    fn takers(&self, ranks: usize) -> Vec<bool> {
        (0..ranks).map(|rank| rank == self.rank).collect()
    }
}

impl TrainingSetup {
    /// On rank 0: gives each rank that is `wanting` its shards from `snapshot`.
    pub(super) fn hand_out_moments(
        &self,
        snapshot: &SnapshotReader,
        wanting: &[bool],
        group: &mut dyn RankGroup,
    ) -> Result<()> {
        let mut piece = Vec::new();
        for shard in self.moment_shards(wanting) {
            let meta = &self.state.metas()[shard.index];
            let item = snapshot.manifest().tensors.iter().position(|tensor| tensor.meta == *meta);
            let item = item.ok_or_else(|| Error::mismatch(snapshot.path(), format!("{} is missing", meta.label())))?;
            for (from, length) in shard.pieces() {
                piece.resize(length, 0);
                snapshot.read_parts(vec![(item, from as u64, &mut piece)], 1)?;
                spread(group, &shard.takers(wanting.len()), length as u64, SpreadEnd::Source(&piece))?;
            }
        }
        Ok(())
    }

    /// On another rank: takes its shards, and lets the others take theirs. Returns the bytes that it took.
    pub(super) fn take_moments(&mut self, wanting: &[bool], group: &mut dyn RankGroup) -> Result<u64> {
        let (shards, mut taken) = (self.moment_shards(wanting), 0);
        self.state.fill(|destinations| {
            for shard in shards {
                let (memory, mut at) = (&mut *destinations[shard.index].bytes, 0);
                for (_, length) in shard.pieces() {
                    let mut sink = |piece: &[u8]| {
                        memory[at..at + piece.len()].copy_from_slice(piece);
                        at += piece.len();
                        taken += piece.len() as u64;
                        Ok(())
                    };
                    let is_own = shard.rank == group.rank();
                    let end = if is_own { SpreadEnd::Sink(&mut sink) } else { SpreadEnd::Bystander };
                    spread(group, &shard.takers(wanting.len()), length as u64, end)?;
                }
            }
            Ok(taken)
        })
    }

    /// Those of the ranks that are `wanting`, in order.
    fn moment_shards(&self, wanting: &[bool]) -> Vec<MomentShard> {
        let params = self.state.params().len();
        let mut shards = Vec::new();
        for rank in (0..wanting.len()).filter(|rank| wanting[*rank]) {
            let owned = self.owned_by(rank).unwrap_or_default();
            shards.extend((params..self.state.metas().len()).map(|index| {
                let elements = &owned[index % params];
                MomentShard { rank, index, bytes: 4 * elements.start..4 * elements.end }
            }));
        }
        shards
    }
}
