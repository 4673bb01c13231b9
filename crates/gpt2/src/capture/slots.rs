//! A tensor of the state: its two buffers, which of them is current, and how they are filled and handed out.
//!
//! Invariant: a buffer that a snapshot holds is never written. Deliberately not here: when buffers change (`cut`).

use std::ops::Range;
use std::sync::Arc;

use ckptd_core::snapshot::{TensorBytes, TensorMeta};
use ckptd_core::{Error, Result};
use tch::{Device, Kind, Tensor};

use super::memory::{StateMapping, TensorBuffer};
use crate::torch::TorchContext;

/// A tensor's memory while the state is filled from an initialisation, a checkpoint or a snapshot.
pub struct TensorDestination<'a> {
    pub meta: &'a TensorMeta,
    /// Where in the tensor the bytes begin; 0 unless other ranks hold the rest of it.
    pub offset: u64,
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

/// Memory that an update reads and writes.
#[derive(Clone, Copy)]
pub struct UpdateSpan {
    pub source: *const f32,
    pub target: *mut f32,
    pub elements: usize,
}

impl UpdateSpan {
    /// These elements of it.
    pub fn part(self, elements: &Range<usize>) -> UpdateSpan {
        assert!(elements.start <= elements.end && elements.end <= self.elements);
        UpdateSpan {
            source: self.source.wrapping_add(elements.start),
            target: self.target.wrapping_add(elements.start),
            elements: elements.len(),
        }
    }
}

// SAFETY: a span is handed out for one update, which has both buffers to itself.
unsafe impl Send for UpdateSpan {}
// SAFETY: as above; writers divide it among themselves.
unsafe impl Sync for UpdateSpan {}

/// Where one tensor of the state lives.
pub(super) enum StateSlot {
    Host { buffers: [Arc<TensorBuffer>; 2], current: usize },
    Device(Tensor),
}

/// A tensor's current buffer, to be read.
struct CurrentBuffer(Arc<TensorBuffer>);

impl AsRef<[u8]> for CurrentBuffer {
    fn as_ref(&self) -> &[u8] {
        self.0.bytes()
    }
}

impl StateSlot {
    /// The current values, in host memory; of no use after the next update.
    pub(super) fn content(&self, meta: &TensorMeta) -> Result<TensorBytes> {
        Ok(match self {
            StateSlot::Host { buffers, current } => Arc::new(CurrentBuffer(buffers[*current].clone())),
            StateSlot::Device(tensor) => Arc::new(to_host(tensor, meta)?),
        })
    }

    /// Bytes of the tensor.
    pub(super) fn bytes(&self) -> u64 {
        match self {
            StateSlot::Host { buffers, .. } => buffers[0].bytes().len() as u64,
            StateSlot::Device(tensor) => 4 * tensor.numel() as u64,
        }
    }

    /// Where in its mapping the buffer of a tensor in host memory begins, in bytes.
    pub(super) fn offset(&self) -> Option<usize> {
        match self {
            StateSlot::Host { buffers, .. } => Some(buffers[0].offset()),
            StateSlot::Device(_) => None,
        }
    }

    /// The current values as a leaf of autograd.
    pub(super) fn leaf(&self, meta: &TensorMeta) -> Result<Tensor> {
        let tensor = match self {
            StateSlot::Device(tensor) => tensor.f_detach(),
            StateSlot::Host { buffers, current } => {
                let shape: Vec<i64> = meta.shape.iter().map(|&d| d as i64).collect();
                let bytes = buffers[*current].floats().cast::<u8>().cast_const();
                // SAFETY: the state owns the buffer, and drops or replaces its leaves before it.
                unsafe { Tensor::f_from_blob(bytes, &shape, &[], Kind::Float, Device::Cpu) }
            }
        };
        tensor.and_then(|tensor| tensor.f_set_requires_grad(true)).context(format_args!("making {} a leaf", meta.name))
    }
}

/// Slots of zeros in host memory, of so many elements.
pub(super) fn host_slots(held: &[Range<usize>]) -> Result<Vec<StateSlot>> {
    let lengths: Vec<usize> = held.iter().map(|held| held.len().saturating_mul(4)).collect();
    let [first, second] = [StateMapping::new(&lengths)?, StateMapping::new(&lengths)?];
    let pairs = first.into_iter().zip(second);
    Ok(pairs.map(|(a, b)| StateSlot::Host { buffers: [Arc::new(a), Arc::new(b)], current: 0 }).collect())
}

/// Slots of zeros on `device`.
pub(super) fn device_slots(metas: &[TensorMeta], device: Device) -> Result<Vec<StateSlot>> {
    let slot = |meta: &TensorMeta| {
        let shape: Vec<i64> = meta.shape.iter().map(|&d| d as i64).collect();
        let zeros = Tensor::f_zeros(shape.as_slice(), (Kind::Float, device));
        zeros.map(StateSlot::Device).context(format_args!("allocating {}", meta.label()))
    };
    metas.iter().map(slot).collect()
}

/// Lets `fill` write the current buffers.
pub(super) fn fill_host<T>(
    (metas, held): (&[TensorMeta], &[Range<usize>]),
    slots: &mut [StateSlot],
    fill: impl FnOnce(&mut [TensorDestination<'_>]) -> Result<T>,
) -> Result<T> {
    let mut destinations = Vec::with_capacity(slots.len());
    for ((slot, meta), held) in slots.iter_mut().zip(metas).zip(held) {
        if let StateSlot::Host { buffers, current } = slot {
            let buffer = Arc::get_mut(&mut buffers[*current]);
            let buffer =
                buffer.ok_or_else(|| Error::Other("the state cannot be filled while a snapshot holds it".into()))?;
            destinations.push(TensorDestination { meta, offset: 4 * held.start as u64, bytes: buffer.bytes_mut() });
        }
    }
    fill(&mut destinations)
}

/// Lets `fill` write host memory, and copies it to the device.
pub(super) fn fill_device<T>(
    metas: &[TensorMeta],
    slots: &mut [StateSlot],
    fill: impl FnOnce(&mut [TensorDestination<'_>]) -> Result<T>,
) -> Result<T> {
    let mut buffers = StateMapping::new(&slots.iter().map(|slot| slot.bytes() as usize).collect::<Vec<_>>())?;
    let destinations = buffers.iter_mut().zip(metas).map(|(buffer, meta)| TensorDestination {
        meta,
        offset: 0,
        bytes: buffer.bytes_mut(),
    });
    let result = fill(&mut destinations.collect::<Vec<_>>())?;
    for ((slot, buffer), meta) in slots.iter_mut().zip(&buffers).zip(metas) {
        if let StateSlot::Device(tensor) = slot {
            let _no_grad = tch::no_grad_guard();
            let host = Tensor::f_from_data_size(buffer.bytes(), &tensor.size(), Kind::Float);
            let copied = host.and_then(|host| tensor.f_copy_(&host).map(|_| ()));
            copied.context(format_args!("copying {} to the device", meta.label()))?;
        }
    }
    Ok(result)
}

/// A copy of a device tensor's values.
pub(super) fn to_host(tensor: &Tensor, meta: &TensorMeta) -> Result<Vec<u8>> {
    let mut bytes = vec![0; 4 * tensor.numel()];
    let host = tensor.f_detach().and_then(|tensor| tensor.f_to_device(Device::Cpu));
    let copied = host.and_then(|host| host.f_copy_data_u8(&mut bytes, tensor.numel()));
    copied.context(format_args!("copying {} to the host", meta.label()))?;
    Ok(bytes)
}
