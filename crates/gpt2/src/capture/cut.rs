//! What the training and the capturing side share, under one lock: the slots, the train state, the snapshot in flight.
//!
//! Invariant: every change under the lock leaves a whole state, or one that is marked as torn. Deliberately not here:
//! what either side does with it.

use std::ops::Range;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};

use ckptd_core::snapshot::{Metrics, Role, TensorMeta, TrainState};
use ckptd_core::{Error, Result};

use super::memory::TensorBuffer;
use super::slots::{StateSlot, UpdatePlace, UpdateSpan};
use super::spare::SpareMemory;
use super::stall::FlightTicket;

/// The state with its lock.
pub(super) struct SharedState {
    pub metas: Vec<TensorMeta>,
    /// Which elements of each tensor are here; the rest is with other ranks.
    pub held: Vec<Range<usize>>,
    /// Of the moments only shards are here.
    pub is_sharded: bool,
    pub inner: Mutex<StateInner>,
    /// A snapshot in flight has let go of a tensor.
    pub released: Condvar,
    /// The same as `frozen`, to be read without the lock.
    pub ending: AtomicBool,
}

/// What the lock guards.
pub(super) struct StateInner {
    pub slots: Vec<StateSlot>,
    pub train: TrainState,
    pub metrics: Metrics,
    /// The snapshot in flight.
    pub ticket: Weak<FlightTicket>,
    pub extra_peak: u64,
    pub spare: SpareMemory,
    /// Tensors have other homes than memory is allowed for.
    pub overdrawn: bool,
    /// An update failed half way: the tensors are of two steps.
    pub torn: bool,
    /// No update begins any more.
    pub frozen: bool,
    /// A background thread has been started to prepare the pages of the buffers.
    pub settled: bool,
}

impl SharedState {
    /// Whether all of the tensor with this index is here, on each rank: parameters are, and moments without shards.
    pub(super) fn is_whole(&self, index: usize) -> bool {
        !self.is_sharded || self.metas[index].role == Role::Param
    }

    /// A thread that panicked under the lock left `torn` set if it was updating; everything else stays whole.
    pub(super) fn lock(&self) -> MutexGuard<'_, StateInner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl StateInner {
    /// Refuses a torn state.
    pub(super) fn check(&self) -> Result<()> {
        if self.torn {
            return Err(Error::Other("an update failed half way: the state is torn; go on from a snapshot".into()));
        }
        Ok(())
    }

    /// Bytes of tensors that a snapshot holds and that may not be written elsewhere.
    pub(super) fn missing(&self) -> u64 {
        let slots = self.slots.iter().enumerate();
        let held = slots.filter(|(index, slot)| match slot {
            StateSlot::Host { buffers, current } => {
                !self.spare.allows(*index) && Arc::strong_count(&buffers[*current]) > 1
            }
            StateSlot::Device(_) => false,
        });
        held.map(|(_, slot)| slot.bytes()).sum()
    }

    /// Gives the pages back that were taken beyond what is allowed, once no snapshot is in flight.
    fn settle_overdraft(&mut self) {
        if !self.overdrawn || self.ticket.strong_count() > 0 {
            return;
        }
        self.overdrawn = false;
        for (index, slot) in self.slots.iter_mut().enumerate() {
            if let StateSlot::Host { buffers, current } = slot
                && !self.spare.allows(index)
                && let Some(buffer) = Arc::get_mut(&mut buffers[1 - *current])
            {
                buffer.give_back();
            }
        }
    }

    /// Where each tensor is read and written, and which of them change their buffer.
    pub(super) fn places(&mut self) -> Result<(Vec<UpdatePlace>, Vec<usize>)> {
        self.settle_overdraft();
        let mut moved = Vec::new();
        let mut places = Vec::with_capacity(self.slots.len());
        for (index, slot) in self.slots.iter_mut().enumerate() {
            places.push(match slot {
                StateSlot::Device(tensor) => UpdatePlace::Device(tensor.shallow_clone()),
                StateSlot::Host { buffers, current } => {
                    let source = buffers[*current].floats();
                    let elements = buffers[*current].elements();
                    let free = |buffer: &mut Arc<TensorBuffer>| Arc::get_mut(buffer).is_some();
                    if free(&mut buffers[*current]) {
                        UpdatePlace::Host(UpdateSpan { source, target: source, elements })
                    } else if free(&mut buffers[1 - *current]) {
                        buffers[1 - *current].fault_in();
                        self.overdrawn |= !self.spare.allows(index);
                        moved.push(index);
                        UpdatePlace::Host(UpdateSpan { source, target: buffers[1 - *current].floats(), elements })
                    } else {
                        return Err(Error::Other("both buffers of a tensor are held by snapshots".into()));
                    }
                }
            });
        }
        let moving: u64 = moved.iter().map(|&index| self.slots[index].bytes()).sum();
        self.extra_peak = self.extra_peak.max(moving + self.extra());
        Ok((places, moved))
    }

    /// Bytes of buffers that are held but no longer current.
    pub(super) fn extra(&self) -> u64 {
        let held = self.slots.iter().filter(|slot| match slot {
            StateSlot::Host { buffers, current } => Arc::strong_count(&buffers[1 - current]) > 1,
            StateSlot::Device(_) => false,
        });
        held.map(StateSlot::bytes).sum()
    }
}
