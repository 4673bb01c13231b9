//! The training's side of the state: it reads the parameters and updates them.
//!
//! Invariant: the leaves of autograd show the current buffers whenever a step begins. Deliberately not here: what an
//! update computes (`optim`).

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use ckptd_core::config::SnapshotMemory;
use ckptd_core::dtype::DType;
use ckptd_core::snapshot::{Metrics, Role, TensorMeta, TrainState};
use ckptd_core::{Error, Result};
use rayon::prelude::*;
use tch::{Device, Tensor};

use super::capturer::StateCapturer;
use super::cut::{SharedState, StateInner};
use super::memory;
use super::slots::{StateSlot, TensorDestination, UpdatePlace, device_slots, fill_device, fill_host, host_slots};
use super::spare::SpareMemory;

/// How often an update that waits for a tensor looks whether it is free, unless it is told.
const RELEASE_INTERVAL: Duration = Duration::from_millis(5);

/// The training thread's side: it reads the parameters and updates the state.
pub struct TrainingState {
    shared: Arc<SharedState>,
    device: Device,
    /// Autograd leaves over the parameters' current buffers, in the order of the slots.
    params: Vec<Tensor>,
    /// A hash of what is here, where moments are sharded.
    seal: Option<blake3::Hash>,
}

impl TrainingState {
    /// A state of zeros: `params`, and for each of `roles` a tensor of the same names and shapes after them, in
    /// that order. All of them float32.
    pub fn new(params: &[TensorMeta], roles: &[Role], device: Device, train: TrainState) -> Result<TrainingState> {
        TrainingState::holding(params, roles, device, train, None)
    }

    /// As `new`, with all parameters, and of the moments the elements that are `owned`, per parameter: other ranks hold
    /// the rest of these.
    ///
    /// # Errors
    /// [`Error::Config`] for a device: shards are kept in host memory.
    pub fn sharded(
        params: &[TensorMeta],
        roles: &[Role],
        device: Device,
        train: TrainState,
        owned: &[Range<usize>],
    ) -> Result<TrainingState> {
        if device != Device::Cpu {
            return Err(Error::Config("[ranks] shard_optimizer works on the CPU alone; leave it out".into()));
        }
        TrainingState::holding(params, roles, device, train, Some(owned))
    }

    fn holding(
        params: &[TensorMeta],
        roles: &[Role],
        device: Device,
        train: TrainState,
        owned: Option<&[Range<usize>]>,
    ) -> Result<TrainingState> {
        let moments = roles.iter().flat_map(|&role| params.iter().map(move |meta| TensorMeta { role, ..meta.clone() }));
        let metas: Vec<TensorMeta> = params.iter().cloned().chain(moments).collect();
        if let Some(meta) = metas.iter().find(|meta| meta.dtype != DType::F32) {
            return Err(Error::Other(format!("{} is {}; a state is float32", meta.label(), meta.dtype)));
        }
        let mut held: Vec<Range<usize>> =
            metas.iter().map(|meta| 0..meta.elements().unwrap_or(u64::MAX) as usize).collect();
        for (held, owned) in held[params.len()..].iter_mut().zip(owned.iter().flat_map(|owned| owned.iter().cycle())) {
            *held = owned.clone();
        }
        let slots = match device {
            Device::Cpu => host_slots(&held)?,
            _ => device_slots(&metas, device)?,
        };
        let inner = StateInner {
            slots,
            train,
            metrics: Metrics::default(),
            ticket: Weak::new(),
            extra_peak: 0,
            spare: SpareMemory::new(SnapshotMemory::Unlimited, &[]),
            overdrawn: false,
            torn: false,
            frozen: false,
            settled: false,
        };
        let (is_sharded, ending) = (owned.is_some(), AtomicBool::new(false));
        let shared = Arc::new(SharedState {
            metas,
            held,
            is_sharded,
            inner: Mutex::new(inner),
            released: Condvar::new(),
            ending,
        });
        let mut state = TrainingState { shared, device, params: Vec::new(), seal: None };
        state.refresh_leaves()?;
        Ok(state)
    }

    /// The same, with no more than this beside it for what a snapshot holds; without this call there is no bound.
    pub fn sparing(self, memory: SnapshotMemory) -> TrainingState {
        let mut inner = self.shared.lock();
        let sizes: Vec<u64> = inner.slots.iter().map(StateSlot::bytes).collect();
        inner.spare = SpareMemory::new(memory, &sizes);
        drop(inner);
        self
    }

    /// Names, shapes and roles in the order of the slots.
    pub fn metas(&self) -> &[TensorMeta] {
        &self.shared.metas
    }

    /// The parameters, as leaves of autograd, in the order in which `new` was given them. They show the newest
    /// values only until the next update: do not keep them.
    pub fn params(&self) -> &[Tensor] {
        &self.params
    }

    pub fn capturer(&self) -> StateCapturer {
        StateCapturer::new(self.shared.clone())
    }

    /// A copy of the train state and the metrics.
    pub fn train(&self) -> (TrainState, Metrics) {
        let inner = self.shared.lock();
        (inner.train.clone(), inner.metrics.clone())
    }

    /// One hash of all tensors that are whole here, and the train state. To be called between updates.
    ///
    /// # Errors
    /// Where a device's memory cannot be copied.
    pub fn hash(&self) -> Result<blake3::Hash> {
        let train = serde_json::to_vec(&self.train().0).map_err(|e| Error::Other(format!("writing a state: {e}")))?;
        Ok(self.content(|index| self.shared.is_whole(index))?.update(&train).finalize())
    }

    /// Remembers what memory holds, where moments are sharded: what a rank holds of these is compared with nobody
    /// else's, and its parameters are overwritten in each step.
    ///
    /// # Errors
    /// Those of [`TrainingState::hash`].
    pub fn seal(&mut self) -> Result<()> {
        if self.shared.is_sharded {
            self.seal = Some(self.content(|_| true)?.finalize());
        }
        Ok(())
    }

    /// Whether memory still holds what was sealed.
    ///
    /// # Errors
    /// Those of [`TrainingState::hash`].
    pub fn is_as_sealed(&self) -> Result<bool> {
        self.seal.map_or(Ok(true), |seal| Ok(self.content(|_| true)?.finalize() == seal))
    }

    /// The `wanted` tensors, by their index, hashed.
    fn content(&self, wanted: impl Fn(usize) -> bool) -> Result<blake3::Hasher> {
        // Captures are not held up: nothing writes to these buffers before the next update.
        let bytes = {
            let inner = self.shared.lock();
            let tensors = inner.slots.iter().zip(&self.shared.metas).enumerate();
            let wanted = tensors.filter(|(index, _)| wanted(*index)).map(|(_, (slot, meta))| slot.content(meta));
            wanted.collect::<Result<Vec<_>>>()?
        };
        let hashes: Vec<blake3::Hash> = bytes.par_iter().map(|bytes| blake3::hash((**bytes).as_ref())).collect();
        let mut hasher = blake3::Hasher::new();
        for hash in &hashes {
            hasher.update(hash.as_bytes());
        }
        Ok(hasher)
    }

    /// Changes the train state between updates (an evaluation was completed, a resume sets it).
    pub fn edit<T>(&mut self, change: impl FnOnce(&mut TrainState, &mut Metrics) -> T) -> T {
        let mut inner = self.shared.lock();
        let StateInner { train, metrics, .. } = &mut *inner;
        change(train, metrics)
    }

    /// Lets `fill` write the tensors' memory directly, several at a time if it likes; it starts as zeros.
    ///
    /// # Errors
    /// That of `fill`, or [`Error::Other`] while a snapshot is in flight.
    pub fn fill<T>(&mut self, fill: impl FnOnce(&mut [TensorDestination<'_>]) -> Result<T>) -> Result<T> {
        let shared = self.shared.clone();
        let mut inner = shared.lock();
        match self.device {
            Device::Cpu => fill_host((&shared.metas, &shared.held), &mut inner.slots, fill),
            _ => fill_device(&shared.metas, &mut inner.slots, fill),
        }
    }

    /// One update, once no snapshot holds what it may not write elsewhere. `apply` computes it on the tensors' places,
    /// in the order of the slots; then `advance` changes the train state and the metrics. Captures see both, or
    /// neither. Returns what `apply` does.
    ///
    /// # Errors
    /// That of `apply`. The state may then be half updated, and is refused to captures and further updates.
    pub fn update<T>(
        &mut self,
        apply: impl FnOnce(&[UpdatePlace]) -> Result<T>,
        advance: impl FnOnce(&mut TrainState, &mut Metrics),
    ) -> Result<T> {
        let began = Instant::now();
        let (mut inner, waited) = self.await_memory(began);
        inner.check()?;
        let (places, moved) = inner.places()?;
        let meter = inner.ticket.upgrade().map(|ticket| ticket.meter());
        let held_up = |since: Instant| {
            if let Some(meter) = &meter {
                meter.add(since.elapsed());
            }
        };
        held_up(began);
        inner.torn = true;
        let result = apply(&places)?;
        inner.torn = false;
        for &index in &moved {
            if let StateSlot::Host { current, .. } = &mut inner.slots[index] {
                *current = 1 - *current;
            }
        }
        inner.spare.updated(waited);
        let StateInner { train, metrics, .. } = &mut *inner;
        advance(train, metrics);
        if let (false, Some(StateSlot::Host { buffers, current })) = (inner.settled, inner.slots.first()) {
            // Not before: it would take time from the first step after a restore.
            let shared = self.shared.clone();
            let unwanted = move || shared.ending.load(Ordering::Relaxed);
            let first = inner.slots.get(inner.spare.first()).and_then(StateSlot::offset);
            memory::settle_in_background(
                (buffers[1 - current].mapping(), first),
                buffers[*current].mapping(),
                unwanted,
            );
            inner.settled = true;
        }
        drop(inner);
        if moved.iter().any(|&index| index < self.params.len()) {
            let began = Instant::now();
            self.refresh_leaves()?;
            held_up(began);
        }
        Ok(result)
    }

    /// The lock once an update may begin, and how long it had to wait for tensors that a snapshot held.
    fn await_memory(&self, began: Instant) -> (MutexGuard<'_, StateInner>, Duration) {
        let mut inner = self.shared.lock();
        let (until, mut waited) = (inner.spare.patience(began), Duration::ZERO);
        loop {
            if inner.frozen {
                // The process ends; what this step computed is not wanted any more.
                drop(inner);
                std::thread::park();
                inner = self.shared.lock();
                continue;
            }
            let (missing, now) = (inner.missing(), Instant::now());
            if missing == 0 || until.is_some_and(|until| now >= until) && SpareMemory::is_free(missing) {
                return (inner, waited);
            }
            let next = self.shared.released.wait_timeout(inner, RELEASE_INTERVAL);
            inner = next.unwrap_or_else(PoisonError::into_inner).0;
            waited = began.elapsed();
        }
    }

    fn refresh_leaves(&mut self) -> Result<()> {
        let inner = self.shared.lock();
        let params = self.shared.metas.iter().zip(&inner.slots).take_while(|(meta, _)| meta.role == Role::Param);
        self.params = params.map(|(meta, slot)| slot.leaf(meta)).collect::<Result<_>>()?;
        Ok(())
    }
}
