//! The capturing side of the state: any thread takes a cut of it at any moment.
//!
//! Invariant: a cut is of one update, whole; it holds its buffers until it is dropped. Deliberately not here: encoding
//! and disk (`store`).

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use ckptd_core::Result;
use ckptd_core::snapshot::{Metrics, Tensor as SnapshotTensor, TensorBytes, TensorMeta, TrainState};

use super::cut::SharedState;
use super::memory::TensorBuffer;
use super::slots::{StateSlot, to_host};
use super::stall::{FlightTicket, StallMeter};

/// The capturing side; any thread may hold a clone.
#[derive(Clone)]
pub struct StateCapturer {
    shared: Arc<SharedState>,
}

/// One cut of the training. It is in flight until this and all the tensors' bytes are dropped.
pub struct StateCapture {
    /// Those that are whole here, in the order of the state's slots.
    pub tensors: Vec<SnapshotTensor>,
    /// Parts of the others, in that order.
    pub shards: Vec<TensorShard>,
    pub train: TrainState,
    pub metrics: Metrics,
    /// How long taking it took on the capturing thread, the wait for a running update included.
    pub capture_time: Duration,
    ticket: Arc<FlightTicket>,
}

/// A part of a tensor, the rest of which other ranks hold.
pub struct TensorShard {
    /// Of the tensor in the state.
    pub index: usize,
    pub meta: TensorMeta,
    /// Where in the tensor it begins, in bytes.
    pub offset: u64,
    pub bytes: TensorBytes,
}

/// Bytes of memory that the state takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StateMemory {
    pub state: u64,
    /// Held by the snapshot in flight although the training has moved on.
    pub extra: u64,
    /// The largest `extra` so far.
    pub extra_peak: u64,
    /// Updates that waited for what a snapshot held, for so long in all.
    pub waits: u64,
    pub waited: Duration,
}

/// A tensor's bytes for as long as a snapshot needs them.
struct BufferHandle {
    /// `None` only while this is dropped.
    buffer: Option<Arc<TensorBuffer>>,
    shared: Arc<SharedState>,
    // Dropped after the buffer: while the ticket is gone, so is every handle.
    _ticket: Arc<FlightTicket>,
}

impl AsRef<[u8]> for BufferHandle {
    fn as_ref(&self) -> &[u8] {
        self.buffer.as_ref().map_or(&[], |buffer| buffer.bytes())
    }
}

impl Drop for BufferHandle {
    fn drop(&mut self) {
        self.buffer = None;
        // Without the lock, which the thread that drops may have: an update that just looked looks again soon.
        self.shared.released.notify_all();
    }
}

impl StateCapturer {
    pub(super) fn new(shared: Arc<SharedState>) -> StateCapturer {
        StateCapturer { shared }
    }

    /// Takes a cut, or `None` while an earlier one is in flight.
    ///
    /// # Errors
    /// [`Error::Other`] after an update that failed half way, or where a device's memory cannot be copied.
    pub fn capture(&self) -> Result<Option<StateCapture>> {
        let began = Instant::now();
        let mut inner = self.shared.lock();
        inner.check()?;
        if inner.ticket.strong_count() > 0 {
            return Ok(None);
        }
        let ticket = Arc::new(FlightTicket::default());
        let mut bytes: Vec<TensorBytes> = Vec::with_capacity(inner.slots.len());
        for (slot, meta) in inner.slots.iter().zip(&self.shared.metas) {
            bytes.push(match slot {
                StateSlot::Host { buffers, current } => Arc::new(BufferHandle {
                    buffer: Some(buffers[*current].clone()),
                    shared: self.shared.clone(),
                    _ticket: ticket.clone(),
                }),
                StateSlot::Device(tensor) => Arc::new(to_host(tensor, meta)?),
            });
        }
        let (train, metrics) = (inner.train.clone(), inner.metrics.clone());
        inner.ticket = Arc::downgrade(&ticket);
        drop(inner);
        let (mut tensors, mut shards) = (Vec::with_capacity(bytes.len()), Vec::new());
        for (index, (meta, bytes)) in self.shared.metas.iter().cloned().zip(bytes).enumerate() {
            if self.shared.is_whole(index) {
                tensors.push(SnapshotTensor { meta, bytes });
            } else {
                let offset = 4 * self.shared.held[index].start as u64;
                shards.push(TensorShard { index, meta, offset, bytes });
            }
        }
        Ok(Some(StateCapture { tensors, shards, train, metrics, capture_time: began.elapsed(), ticket }))
    }

    /// Waits for an update that is under way; no other one begins after it.
    pub fn freeze(&self) {
        self.shared.ending.store(true, Ordering::Relaxed);
        self.shared.lock().frozen = true;
    }

    /// The training was held up for so long; counts for the snapshot in flight.
    pub fn held_up(&self, time: Duration) {
        if let Some(ticket) = self.shared.lock().ticket.upgrade() {
            ticket.meter().add(time);
        }
    }

    /// Optimiser steps completed.
    pub fn step(&self) -> u64 {
        self.shared.lock().train.step
    }

    /// The train state as it is now.
    pub fn train(&self) -> TrainState {
        self.shared.lock().train.clone()
    }

    pub fn memory(&self) -> StateMemory {
        let inner = self.shared.lock();
        let extra = inner.extra();
        let state = inner.slots.iter().map(StateSlot::bytes).sum();
        let (waits, waited) = (inner.spare.waits, inner.spare.waited);
        StateMemory { state, extra, extra_peak: inner.extra_peak.max(extra), waits, waited }
    }
}

impl StateCapture {
    pub fn stall_meter(&self) -> StallMeter {
        self.ticket.meter()
    }
}
