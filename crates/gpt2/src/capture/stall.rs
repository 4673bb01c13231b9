//! How long a snapshot holds up the training thread.
//!
//! Invariant: a snapshot is in flight for as long as its ticket is held. Deliberately not here: what is measured.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Reads how long a snapshot has held up the training thread so far; outlives the snapshot.
#[derive(Clone)]
pub struct StallMeter(Arc<AtomicU64>);

/// Alive while a snapshot is in flight.
#[derive(Default)]
pub(super) struct FlightTicket {
    stall_ns: Arc<AtomicU64>,
}

impl FlightTicket {
    /// What measures this snapshot.
    pub(super) fn meter(&self) -> StallMeter {
        StallMeter(self.stall_ns.clone())
    }
}

impl StallMeter {
    /// Adds time that the training thread has spent on the snapshot.
    pub fn add(&self, time: Duration) {
        self.0.fetch_add(nanos(time), Ordering::Relaxed);
    }

    /// Waits for the lock, extra allocations, the move to other buffers, and what else was added.
    pub fn stall(&self) -> Duration {
        Duration::from_nanos(self.0.load(Ordering::Relaxed))
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
