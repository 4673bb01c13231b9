//! Layer norm under each arithmetic: libtorch's own, and one whose gradients do not depend on threads.
//!
//! Invariant: both give the same values forward. Deliberately not here: the kernel (`kernels/layer_norm.cc`).

use std::ffi::c_void;

use tch::{Device, TchError, Tensor};

use crate::torch::checked;

unsafe extern "C" {
    fn ckptd_layer_norm(x: *const c_void, weight: *const c_void, bias: *const c_void, epsilon: f64) -> *mut c_void;
}

/// In which order the gradients of a layer norm's weight and bias are added up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NormGradients {
    /// As libtorch does: each thread its rows.
    #[default]
    PerThread,
    /// By fixed blocks of rows, whatever the number of threads, in host memory; elsewhere as libtorch does.
    FixedBlocks,
}

impl NormGradients {
    /// The layer norm over the last dimension of `x`, `params` being weight and bias.
    pub(super) fn layer_norm(self, x: &Tensor, params: &[Tensor], epsilon: f64) -> Result<Tensor, TchError> {
        let (weight, bias) = (&params[0], &params[1]);
        if self == NormGradients::PerThread || x.device() != Device::Cpu {
            return x.f_layer_norm(weight.size().as_slice(), Some(weight), Some(bias), epsilon, false);
        }
        // SAFETY: three tensors of libtorch, float32 in host memory as all of the model's, alive during the call.
        let made =
            unsafe { ckptd_layer_norm(x.as_ptr().cast(), weight.as_ptr().cast(), bias.as_ptr().cast(), epsilon) };
        // SAFETY: a new tensor of libtorch, which is this one's from here on.
        Ok(unsafe { Tensor::from_ptr(checked(made)?.cast()) })
    }
}
