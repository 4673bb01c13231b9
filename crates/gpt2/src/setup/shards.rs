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
        let (mut piece, mut sent) = (Vec::new(), vec![blake3::Hasher::new(); wanting.len()]);
        for shard in self.moment_shards(wanting) {
            let meta = &self.state.metas()[shard.index];
            let item = snapshot.manifest().tensors.iter().position(|tensor| tensor.meta == *meta);
            let item = item.ok_or_else(|| Error::mismatch(snapshot.path(), format!("{} is missing", meta.label())))?;
            for (from, length) in shard.pieces() {
                piece.resize(length, 0);
                snapshot.read_parts(vec![(item, from as u64, &mut piece)], 1)?;
                sent[shard.rank].update(&piece);
                spread(group, &shard.takers(wanting.len()), length as u64, SpreadEnd::Source(&piece))?;
            }
        }
        let hashes: Vec<u8> = sent.iter().flat_map(|hasher| *hasher.finalize().as_bytes()).collect();
        group.broadcast(&hashes).map(drop)
    }

    /// On another rank: takes its shards, and lets the others take theirs. Returns the bytes that it took, which hash
    /// to what rank 0 has read.
    pub(super) fn take_moments(&mut self, wanting: &[bool], group: &mut dyn RankGroup) -> Result<u64> {
        let (shards, mut taken, mut arrived) = (self.moment_shards(wanting), 0, blake3::Hasher::new());
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
                if shard.rank == group.rank() {
                    arrived.update(&memory[..at]);
                }
            }
            Ok(())
        })?;
        let rank = group.rank();
        require_same(rank, &group.broadcast(&[])?, arrived.finalize())?;
        Ok(taken)
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

/// Holds what `rank` got against the hashes of what was sent to each rank: its moments are compared with nobody else's.
fn require_same(rank: usize, sent: &[u8], arrived: blake3::Hash) -> Result<()> {
    if sent.chunks(blake3::OUT_LEN).nth(rank) == Some(arrived.as_bytes()) {
        return Ok(());
    }
    Err(Error::Other(format!(
        "what rank {rank} got of the optimizer's state is not what rank 0 has read; start again, and have a look at \
         the network and the memory of both machines where it happens again"
    )))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_shard_that_arrived_with_other_bytes_is_refused_by_its_rank() {
        let sent = [blake3::hash(b""), blake3::hash(b"one"), blake3::hash(b"two")];
        let sent: Vec<u8> = sent.iter().flat_map(|hash| *hash.as_bytes()).collect();
        require_same(2, &sent, blake3::hash(b"two")).unwrap();
        for (rank, bytes) in [(1, b"two"), (3, b"two")] {
            let error = require_same(rank, &sent, blake3::hash(bytes)).unwrap_err().to_string();
            assert!(error.contains(&format!("rank {rank}")), "{error}");
        }
    }
}
