//! The state of libtorch's generator, which tch does not give: what was drawn can be drawn again.
//!
//! Deliberately not here: what it is seeded with (`rng`), the calls themselves (`kernels/generator.cc`).

use std::ffi::c_void;

use tch::{Device, TchError, Tensor};

use crate::torch::checked;

unsafe extern "C" {
    fn ckptd_generator_state(device_type: i8, index: i8) -> *mut c_void;
    fn ckptd_set_generator_state(device_type: i8, index: i8, state: *const c_void) -> *mut c_void;
}

/// What the generator of a device will draw from here on.
pub(super) struct GeneratorState {
    device: Device,
    state: Tensor,
}

impl GeneratorState {
    pub(super) fn of(device: Device) -> Result<GeneratorState, TchError> {
        let (device_type, index) = numbers(device)?;
        // SAFETY: it takes two numbers, and gives a new tensor of libtorch, which is this one's from here on.
        let state = unsafe { Tensor::from_ptr(checked(ckptd_generator_state(device_type, index))?.cast()) };
        Ok(GeneratorState { device, state })
    }

    /// Has it drawn again.
    pub(super) fn put_back(&self) -> Result<(), TchError> {
        let (device_type, index) = numbers(self.device)?;
        // SAFETY: a tensor of libtorch, alive during the call, which only reads it.
        checked(unsafe { ckptd_set_generator_state(device_type, index, self.state.as_ptr().cast()) }).map(drop)
    }
}

/// Type and index of a device, as c10 numbers them.
fn numbers(device: Device) -> Result<(i8, i8), TchError> {
    match device {
        Device::Cpu => Ok((0, -1)),
        Device::Cuda(index) => Ok((1, index as i8)),
        other => Err(TchError::Kind(format!("{other:?} has no generator that can be put back"))),
    }
}
