//! The training state, and snapshots of it that do not stop the training.
//!
//! Between two updates the state is immutable: forward and backward passes only read it. So a snapshot is a set of
//! handles, taken in microseconds at any moment, also in the middle of a step. Every tensor has two homes of equal
//! size. An update writes in place where no snapshot holds the tensor, and to its other home where one does; which
//! home is current changes together with the train state, under the lock that captures take.
//!
//! Invariants: a capture is one cut, never half of an update. A home that a handle points to is never written. With
//! one snapshot in flight at most, the other home of every tensor is free when an update begins, so that the extra
//! memory is one state at most. Deliberately not here: what an update computes (`optim`), encoding and disk (`store`).
//!
//! On a CUDA device the tensors live there, and a capture copies them to the host.

mod slab;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use ckptd_core::dtype::DType;
use ckptd_core::snapshot::{Metrics, Role, Tensor as SnapshotTensor, TensorMeta, TrainState};
use ckptd_core::{Error, Result};
use tch::{Device, Kind, Tensor};

use crate::torch::TorchContext;
use slab::{StateMapping, TensorBuffer};

/// The training thread's side: it reads the parameters and updates the state.
pub struct TrainingState {
    shared: Arc<SharedState>,
    device: Device,
    /// Autograd leaves over the parameters' current homes, in the order of the slots.
    params: Vec<Tensor>,
}

/// The capturing side; any thread may hold a clone.
#[derive(Clone)]
pub struct StateCapturer {
    shared: Arc<SharedState>,
}

/// One cut of the training. It is in flight until this and all the tensors' bytes are dropped.
pub struct StateCapture {
    /// In the order of the state's slots.
    pub tensors: Vec<SnapshotTensor>,
    pub train: TrainState,
    pub metrics: Metrics,
    /// How long taking it took on the capturing thread, the wait for a running update included.
    pub capture_time: Duration,
    ticket: Arc<FlightTicket>,
}

/// Reads how long a snapshot has held up the training thread so far; outlives the snapshot.
#[derive(Clone)]
pub struct StallMeter(Arc<AtomicU64>);

/// Bytes of memory that the state takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StateMemory {
    pub state: u64,
    /// Held by the snapshot in flight although the training has moved on.
    pub extra: u64,
    /// The largest `extra` so far.
    pub extra_peak: u64,
}

/// A tensor's memory while the state is filled from an initialisation, a checkpoint or a snapshot.
pub struct TensorDestination<'a> {
    pub meta: &'a TensorMeta,
    /// Aligned to 64 bytes.
    pub bytes: &'a mut [u8],
}

/// A tensor during an update: what to read, and where to write.
pub enum UpdatePlace {
    /// Float32 in host memory; `source` and `target` are equal, or do not overlap.
    Host(UpdateSpan),
    /// To be changed in place.
    Device(Tensor),
}

#[derive(Clone, Copy)]
pub struct UpdateSpan {
    pub source: *const f32,
    pub target: *mut f32,
    pub elements: usize,
}

// SAFETY: a span is handed out for one update, which has both homes to itself.
unsafe impl Send for UpdateSpan {}
// SAFETY: as above; writers divide it among themselves.
unsafe impl Sync for UpdateSpan {}

struct SharedState {
    metas: Vec<TensorMeta>,
    inner: Mutex<StateInner>,
    /// The same as `frozen`, for those who do not wait for the lock.
    ending: AtomicBool,
}

struct StateInner {
    slots: Vec<TensorSlot>,
    train: TrainState,
    metrics: Metrics,
    /// The snapshot in flight.
    ticket: Weak<FlightTicket>,
    extra_peak: u64,
    /// An update failed half way: the state is no longer one.
    torn: bool,
    /// No update begins any more.
    frozen: bool,
    /// The background sees to the pages of the homes.
    settled: bool,
}

enum TensorSlot {
    Host { homes: [Arc<TensorBuffer>; 2], current: usize },
    Device(Tensor),
}

/// Alive while a snapshot is in flight.
struct FlightTicket {
    stall_ns: Arc<AtomicU64>,
}

/// A tensor's bytes for as long as a snapshot needs them.
struct BufferHandle {
    home: Arc<TensorBuffer>,
    // Dropped after the home: while the ticket is gone, so is every handle.
    _ticket: Arc<FlightTicket>,
}

impl AsRef<[u8]> for BufferHandle {
    fn as_ref(&self) -> &[u8] {
        self.home.bytes()
    }
}

impl TrainingState {
    /// A state of zeros: `params`, and for each of `roles` a tensor of the same names and shapes after them, in
    /// that order. All of them float32.
    pub fn new(params: &[TensorMeta], roles: &[Role], device: Device, train: TrainState) -> Result<TrainingState> {
        let moments = roles.iter().flat_map(|&role| params.iter().map(move |meta| TensorMeta { role, ..meta.clone() }));
        let metas: Vec<TensorMeta> = params.iter().cloned().chain(moments).collect();
        if let Some(meta) = metas.iter().find(|meta| meta.dtype != DType::F32) {
            return Err(Error::Other(format!("{} is {}; a state is float32", meta.label(), meta.dtype)));
        }
        let slots = match device {
            Device::Cpu => host_slots(&metas)?,
            _ => device_slots(&metas, device)?,
        };
        let inner = StateInner {
            slots,
            train,
            metrics: Metrics::default(),
            ticket: Weak::new(),
            extra_peak: 0,
            torn: false,
            frozen: false,
            settled: false,
        };
        let shared = Arc::new(SharedState { metas, inner: Mutex::new(inner), ending: AtomicBool::new(false) });
        let mut state = TrainingState { shared, device, params: Vec::new() };
        state.refresh_leaves()?;
        Ok(state)
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
        StateCapturer { shared: self.shared.clone() }
    }

    /// A copy of the train state and the metrics.
    pub fn train(&self) -> (TrainState, Metrics) {
        let inner = self.shared.lock();
        (inner.train.clone(), inner.metrics.clone())
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
            Device::Cpu => fill_host(&shared.metas, &mut inner.slots, fill),
            _ => fill_device(&shared.metas, &mut inner.slots, fill),
        }
    }

    /// One update. `apply` computes it on the tensors' places, in the order of the slots; then `advance` changes the
    /// train state and the metrics. Captures see both, or neither. Returns what `apply` does.
    ///
    /// # Errors
    /// That of `apply`. The state may then be half updated, and is refused to captures and further updates.
    pub fn update<T>(
        &mut self,
        apply: impl FnOnce(&[UpdatePlace]) -> Result<T>,
        advance: impl FnOnce(&mut TrainState, &mut Metrics),
    ) -> Result<T> {
        let began = Instant::now();
        let mut inner = self.shared.lock();
        while inner.frozen {
            // The process ends; what this step computed is not wanted any more.
            drop(inner);
            std::thread::park();
            inner = self.shared.lock();
        }
        inner.check()?;
        let (places, moved) = inner.places()?;
        let meter = inner.ticket.upgrade().map(|ticket| StallMeter(ticket.stall_ns.clone()));
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
            if let TensorSlot::Host { current, .. } = &mut inner.slots[index] {
                *current = 1 - *current;
            }
        }
        let StateInner { train, metrics, .. } = &mut *inner;
        advance(train, metrics);
        if let (false, Some(TensorSlot::Host { homes, current })) = (inner.settled, inner.slots.first()) {
            // Not before: it would take time from the first step after a restore.
            let shared = self.shared.clone();
            let unwanted = move || shared.ending.load(Ordering::Relaxed);
            slab::settle_in_background(homes[1 - current].slab(), homes[*current].slab(), unwanted);
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

    fn refresh_leaves(&mut self) -> Result<()> {
        let inner = self.shared.lock();
        let params = self.shared.metas.iter().zip(&inner.slots).take_while(|(meta, _)| meta.role == Role::Param);
        self.params = params.map(|(meta, slot)| slot.leaf(meta)).collect::<Result<_>>()?;
        Ok(())
    }
}

impl StateCapturer {
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
        let ticket = Arc::new(FlightTicket { stall_ns: Arc::default() });
        let mut bytes: Vec<ckptd_core::snapshot::TensorBytes> = Vec::with_capacity(inner.slots.len());
        for (slot, meta) in inner.slots.iter().zip(&self.shared.metas) {
            bytes.push(match slot {
                TensorSlot::Host { homes, current } => {
                    Arc::new(BufferHandle { home: homes[*current].clone(), _ticket: ticket.clone() })
                }
                TensorSlot::Device(tensor) => Arc::new(to_host(tensor, meta)?),
            });
        }
        let (train, metrics) = (inner.train.clone(), inner.metrics.clone());
        inner.ticket = Arc::downgrade(&ticket);
        drop(inner);
        let tensors = self.shared.metas.iter().cloned().zip(bytes).map(|(meta, bytes)| SnapshotTensor { meta, bytes });
        Ok(Some(StateCapture { tensors: tensors.collect(), train, metrics, capture_time: began.elapsed(), ticket }))
    }

    /// Waits for an update that is under way; no other one begins after it.
    pub fn freeze(&self) {
        self.shared.ending.store(true, Ordering::Relaxed);
        self.shared.lock().frozen = true;
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
        let state = self.shared.metas.iter().filter_map(TensorMeta::bytes).sum();
        StateMemory { state, extra, extra_peak: inner.extra_peak.max(extra) }
    }
}

impl StateCapture {
    pub fn stall_meter(&self) -> StallMeter {
        StallMeter(self.ticket.stall_ns.clone())
    }
}

impl StallMeter {
    /// Adds time that the training thread has spent on the snapshot.
    pub fn add(&self, time: Duration) {
        self.0.fetch_add(nanos(time), Ordering::Relaxed);
    }

    /// Waits for the lock, extra allocations, the move to other homes, and what else was added.
    pub fn stall(&self) -> Duration {
        Duration::from_nanos(self.0.load(Ordering::Relaxed))
    }
}

impl SharedState {
    /// A thread that panicked under the lock left `torn` set if it was updating; everything else stays whole.
    fn lock(&self) -> MutexGuard<'_, StateInner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl StateInner {
    fn check(&self) -> Result<()> {
        match self.torn {
            false => Ok(()),
            true => Err(Error::Other(
                "an update failed half way, so that the state is no longer one; go on from a snapshot".into(),
            )),
        }
    }

    /// Where each tensor is read and written, and which of them change their home.
    fn places(&mut self) -> Result<(Vec<UpdatePlace>, Vec<usize>)> {
        let mut moved = Vec::new();
        let mut places = Vec::with_capacity(self.slots.len());
        for (index, slot) in self.slots.iter_mut().enumerate() {
            places.push(match slot {
                TensorSlot::Device(tensor) => UpdatePlace::Device(tensor.shallow_clone()),
                TensorSlot::Host { homes, current } => {
                    let source = homes[*current].floats();
                    let elements = homes[*current].elements();
                    let free = |home: &mut Arc<TensorBuffer>| Arc::get_mut(home).is_some();
                    if free(&mut homes[*current]) {
                        UpdatePlace::Host(UpdateSpan { source, target: source, elements })
                    } else if free(&mut homes[1 - *current]) {
                        homes[1 - *current].fault_in();
                        moved.push(index);
                        UpdatePlace::Host(UpdateSpan { source, target: homes[1 - *current].floats(), elements })
                    } else {
                        return Err(Error::Other("both homes of a tensor are held by snapshots".into()));
                    }
                }
            });
        }
        let moving: u64 = moved.iter().map(|&index| self.slots[index].bytes()).sum();
        self.extra_peak = self.extra_peak.max(moving + self.extra());
        Ok((places, moved))
    }

    /// Bytes of homes that are held but no longer current.
    fn extra(&self) -> u64 {
        let held = self.slots.iter().filter(|slot| match slot {
            TensorSlot::Host { homes, current } => Arc::strong_count(&homes[1 - current]) > 1,
            TensorSlot::Device(_) => false,
        });
        held.map(TensorSlot::bytes).sum()
    }
}

impl TensorSlot {
    fn bytes(&self) -> u64 {
        match self {
            TensorSlot::Host { homes, .. } => homes[0].bytes().len() as u64,
            TensorSlot::Device(tensor) => 4 * tensor.numel() as u64,
        }
    }

    fn leaf(&self, meta: &TensorMeta) -> Result<Tensor> {
        let tensor = match self {
            TensorSlot::Device(tensor) => tensor.f_detach(),
            TensorSlot::Host { homes, current } => {
                let shape: Vec<i64> = meta.shape.iter().map(|&d| d as i64).collect();
                let bytes = homes[*current].floats().cast::<u8>().cast_const();
                // SAFETY: the state owns the home, and drops or replaces its leaves before it.
                unsafe { Tensor::f_from_blob(bytes, &shape, &[], Kind::Float, Device::Cpu) }
            }
        };
        tensor.and_then(|tensor| tensor.f_set_requires_grad(true)).context(format_args!("making {} a leaf", meta.name))
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

fn host_slots(metas: &[TensorMeta]) -> Result<Vec<TensorSlot>> {
    let lengths: Vec<usize> = metas.iter().map(|meta| meta.bytes().unwrap_or(u64::MAX) as usize).collect();
    let [first, second] = [StateMapping::new(&lengths)?, StateMapping::new(&lengths)?];
    let pairs = first.into_iter().zip(second);
    Ok(pairs.map(|(a, b)| TensorSlot::Host { homes: [Arc::new(a), Arc::new(b)], current: 0 }).collect())
}

fn device_slots(metas: &[TensorMeta], device: Device) -> Result<Vec<TensorSlot>> {
    let slot = |meta: &TensorMeta| {
        let shape: Vec<i64> = meta.shape.iter().map(|&d| d as i64).collect();
        let zeros = Tensor::f_zeros(shape.as_slice(), (Kind::Float, device));
        zeros.map(TensorSlot::Device).context(format_args!("allocating {}", meta.label()))
    };
    metas.iter().map(slot).collect()
}

fn fill_host<T>(
    metas: &[TensorMeta],
    slots: &mut [TensorSlot],
    fill: impl FnOnce(&mut [TensorDestination<'_>]) -> Result<T>,
) -> Result<T> {
    let mut destinations = Vec::with_capacity(slots.len());
    for (slot, meta) in slots.iter_mut().zip(metas) {
        if let TensorSlot::Host { homes, current } = slot {
            let home = Arc::get_mut(&mut homes[*current]);
            let home =
                home.ok_or_else(|| Error::Other("the state cannot be filled while a snapshot holds it".into()))?;
            destinations.push(TensorDestination { meta, bytes: home.bytes_mut() });
        }
    }
    fill(&mut destinations)
}

fn fill_device<T>(
    metas: &[TensorMeta],
    slots: &mut [TensorSlot],
    fill: impl FnOnce(&mut [TensorDestination<'_>]) -> Result<T>,
) -> Result<T> {
    let mut homes = StateMapping::new(&slots.iter().map(|slot| slot.bytes() as usize).collect::<Vec<_>>())?;
    let destinations =
        homes.iter_mut().zip(metas).map(|(home, meta)| TensorDestination { meta, bytes: home.bytes_mut() });
    let result = fill(&mut destinations.collect::<Vec<_>>())?;
    for ((slot, home), meta) in slots.iter_mut().zip(&homes).zip(metas) {
        if let TensorSlot::Device(tensor) = slot {
            let _no_grad = tch::no_grad_guard();
            let host = Tensor::f_from_data_size(home.bytes(), &tensor.size(), Kind::Float);
            let copied = host.and_then(|host| tensor.f_copy_(&host).map(|_| ()));
            copied.context(format_args!("copying {} to the device", meta.label()))?;
        }
    }
    Ok(result)
}

fn to_host(tensor: &Tensor, meta: &TensorMeta) -> Result<Vec<u8>> {
    let mut bytes = vec![0; 4 * tensor.numel()];
    let host = tensor.f_detach().and_then(|tensor| tensor.f_to_device(Device::Cpu));
    let copied = host.and_then(|host| host.f_copy_data_u8(&mut bytes, tensor.numel()));
    copied.context(format_args!("copying {} to the host", meta.label()))?;
    Ok(bytes)
}
