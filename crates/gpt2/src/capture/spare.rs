//! What updates may take beside the state: which tensors may have another home at once, and how long an update waits
//! for the rest.
//!
//! Invariant: an update never writes what a snapshot holds. Deliberately not here: where tensors lie (`slots`).

use std::time::{Duration, Instant};

use ckptd_core::config::SnapshotMemory;
use ckptd_core::os::process::available_memory;

/// An update under [`SnapshotMemory::Auto`] waits for at least this before it takes memory.
const LEAST_PATIENCE: Duration = Duration::from_secs(1);
/// It takes no more than one part of so many of what the machine has left.
const SHARE_OF_FREE: u64 = 2;

/// The bound on a state's spare memory, and what it led to.
pub(super) struct SpareMemory {
    memory: SnapshotMemory,
    /// The first tensor that may be written elsewhere at once; those behind it are the last to be encoded.
    first: usize,
    /// When the update before ended.
    last_update: Instant,
    pub waits: u64,
    pub waited: Duration,
}

impl SpareMemory {
    /// For tensors of these sizes in bytes, in the order in which snapshots are encoded.
    pub(super) fn new(memory: SnapshotMemory, sizes: &[u64]) -> SpareMemory {
        let mut left = memory.bytes(sizes.iter().sum());
        let behind = sizes.iter().rev().take_while(|&&size| {
            let fits = size <= left;
            left = left.saturating_sub(size);
            fits
        });
        let first = sizes.len() - behind.count();
        SpareMemory { memory, first, last_update: Instant::now(), waits: 0, waited: Duration::ZERO }
    }

    /// Whether this tensor may have another home without a wait.
    pub(super) fn allows(&self, index: usize) -> bool {
        index >= self.first
    }

    /// The first that may; as many as there are tensors where none may.
    pub(super) fn first(&self) -> usize {
        self.first
    }

    /// Until when an update that begins now waits for tensors, before it takes memory for them all the same; `None`:
    /// for as long as they are held. The training is not to stand still with a slow disk where there is memory.
    pub(super) fn patience(&self, now: Instant) -> Option<Instant> {
        let step = now.saturating_duration_since(self.last_update);
        (self.memory == SnapshotMemory::Auto).then(|| now + step.max(LEAST_PATIENCE))
    }

    /// Whether the machine has `bytes` to spare.
    pub(super) fn is_free(bytes: u64) -> bool {
        available_memory().is_none_or(|free| bytes <= free / SHARE_OF_FREE)
    }

    /// An update ends now, which has waited for so long.
    pub(super) fn updated(&mut self, waited: Duration) {
        self.last_update = Instant::now();
        self.waits += u64::from(!waited.is_zero());
        self.waited += waited;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tensors_that_are_encoded_last_may_have_another_home_as_far_as_memory_is_allowed() {
        let sizes = [500, 300, 200, 100];
        let first = |memory| SpareMemory::new(memory, &sizes).first;
        let bytes = SnapshotMemory::Bytes;
        assert_eq!([0, 99, 100, 299, 300, 599, 600, 1100].map(|n| first(bytes(n))), [4, 4, 3, 3, 2, 2, 1, 0]);
        assert_eq!(
            (first(SnapshotMemory::Unlimited), first(SnapshotMemory::Auto)),
            (0, 0),
            "a small state never waits"
        );
    }

    #[test]
    fn only_auto_takes_memory_that_it_would_have_to_wait_for() {
        let now = Instant::now();
        let patience = |memory| SpareMemory { last_update: now, ..SpareMemory::new(memory, &[1]) };
        let after = now + Duration::from_secs(7);
        assert_eq!(patience(SnapshotMemory::Auto).patience(after), Some(after + Duration::from_secs(7)));
        assert_eq!(patience(SnapshotMemory::Auto).patience(now), Some(now + LEAST_PATIENCE));
        assert_eq!(patience(SnapshotMemory::Bytes(0)).patience(after), None);
    }
}
