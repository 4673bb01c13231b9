//! Bytes that rank 0 has and others want: tokens, and the state that a session begins with.
//!
//! Invariant: at most one piece of them is in memory besides source and destination. All ranks take part, also those
//! that want nothing. Deliberately not here: who wants what, and whether it arrived whole (`setup`, by hash).

use ckptd_core::Result;

use super::group::{Incoming, Outgoing, RankGroup};

/// Values of a piece, of 4 bytes each.
const PIECE: usize = 1 << 20;

/// This rank's end of a transfer.
pub enum SpreadEnd<'a> {
    /// Rank 0's.
    Source(&'a [u8]),
    /// Takes the bytes, in order.
    Sink(&'a mut dyn FnMut(&[u8]) -> Result<()>),
    /// Wants nothing.
    Bystander,
}

/// Gives rank 0's `length` bytes to each rank that is `wanting`.
///
/// # Errors
/// That a rank is lost, or what a sink says.
pub fn spread(group: &mut dyn RankGroup, wanting: &[bool], length: u64, mut end: SpreadEnd<'_>) -> Result<()> {
    if !wanting.contains(&true) {
        return Ok(());
    }
    let (mut values, mut bytes) = (Vec::new(), Vec::new());
    let mut done = 0;
    while done < length {
        let count = (length - done).min(4 * PIECE as u64) as usize;
        match &mut end {
            SpreadEnd::Source(source) => {
                let piece = &source[done as usize..done as usize + count];
                values.clear();
                values.extend(piece.chunks(4).map(|word| {
                    let mut padded = [0; 4];
                    padded[..word.len()].copy_from_slice(word);
                    f32::from_bits(u32::from_le_bytes(padded))
                }));
                let peers = wanting.iter().enumerate().filter(|(_, wants)| **wants);
                let sends = peers.map(|(peer, _)| Outgoing { peer, values: values.as_slice() });
                group.exchange(&sends.collect::<Vec<_>>(), &mut [])?;
            }
            SpreadEnd::Sink(sink) => {
                values.resize(count.div_ceil(4), 0.0);
                group.exchange(&[], &mut [Incoming { peer: 0, values: &mut values }])?;
                bytes.clear();
                bytes.extend(values.iter().flat_map(|value| value.to_bits().to_le_bytes()));
                sink(&bytes[..count])?;
            }
            // The transfers of all ranks have the same numbers.
            SpreadEnd::Bystander => group.exchange(&[], &mut [])?,
        }
        done += count as u64;
    }
    Ok(())
}
