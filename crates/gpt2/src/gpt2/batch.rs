//! What goes into a step of the model, and the gradients that come out of it.

use ckptd_core::{Error, Result};
use tch::{Device, Tensor};

use crate::torch::TorchContext;

/// Token ids and what each position has to predict, both int64 and [rows, positions], on the model's device.
pub struct TokenBatch {
    pub inputs: Tensor,
    pub targets: Tensor,
}

impl TokenBatch {
    /// `inputs` and `targets` row by row; `targets[i]` is the token that follows `inputs[i]`.
    pub fn new(inputs: &[i64], targets: &[i64], rows: usize, device: Device) -> Result<TokenBatch> {
        if rows == 0 || inputs.is_empty() || inputs.len() != targets.len() || !inputs.len().is_multiple_of(rows) {
            let (n, m) = (inputs.len(), targets.len());
            return Err(Error::Other(format!("a batch of {rows} rows cannot hold {n} inputs and {m} targets")));
        }
        let tensor = |ids: &[i64]| Tensor::f_from_slice(ids)?.f_view([rows as i64, -1])?.f_to_device(device);
        Ok(TokenBatch {
            inputs: tensor(inputs).context("making a batch")?,
            targets: tensor(targets).context("making a batch")?,
        })
    }

    /// Positions whose loss counts.
    pub fn tokens(&self) -> u64 {
        self.inputs.numel() as u64
    }
}

/// The gradient of the mean loss with respect to every parameter, summed over the micro-batches since `clear`.
#[derive(Default)]
pub struct ModelGradients {
    pub(super) tensors: Vec<Tensor>,
    /// They hold a sum, to which the next micro-batch is added.
    pub(super) filled: bool,
}

impl ModelGradients {
    /// In the order of [`Gpt2Config::parameters`]; empty before the first backward pass.
    pub fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    /// Begins a new sum. The memory stays.
    pub fn clear(&mut self) {
        self.filled = false;
    }
}
