//! Activation checkpointing: of the forward pass only the input of each block stays, and the backward pass computes the
//! block again.
//!
//! Invariant: loss and gradients are those of a backward pass that finds everything in memory, bit for bit: a block is
//! computed again from the same input, under the generator's state from before it, and differentiated as the same
//! graph. Deliberately not here: what a block computes (`model`).

use ckptd_core::Result;
use tch::{Kind, TchError, Tensor};

use super::batch::{ModelGradients, TokenBatch};
use super::generator::GeneratorState;
use super::model::{ForwardMode, Gpt2Model};
use super::places::{block_params, last_norm_params};
use super::products::WeightViews;
use crate::torch::TorchContext;

/// What a block is computed from.
struct BlockInput {
    x: Tensor,
    generator: GeneratorState,
}

impl Gpt2Model {
    /// The loss of a micro-batch from its embedded tokens, and its gradients added to `grads`.
    pub(super) fn recomputed(
        &mut self,
        weights: WeightViews<'_>,
        embedded: &Tensor,
        batch: &TokenBatch,
        weight: f64,
        grads: &mut ModelGradients,
    ) -> Result<f64> {
        let (inputs, last) = self.forward_by_blocks(weights, embedded).context("the forward pass")?;
        let hidden = self.last_norm(weights, &last).context("the forward pass")?;
        let (loss, surrogate) = self.head_backward(weights, &hidden, batch, weight, grads).context("the loss")?;
        drop(hidden);
        let done = self.differentiate(&surrogate, weights, last_norm_params(&self.config), &last, grads);
        let d_last = done.context("the backward pass")?;
        drop((last, surrogate));
        let done = self.backward_by_blocks(weights, inputs, d_last, grads);
        let d_embedded = done.context("the backward pass")?;
        self.embedding_backward(&d_embedded, &batch.inputs, grads).context("the backward pass")?;
        Ok(loss)
    }

    /// The inputs of all blocks, and what the last one gives.
    fn forward_by_blocks(
        &self,
        weights: WeightViews<'_>,
        embedded: &Tensor,
    ) -> Result<(Vec<BlockInput>, Tensor), TchError> {
        let (mut inputs, mut x) = (Vec::new(), embedded.shallow_clone());
        for layer in 0..self.config.n_layer as usize {
            let generator = GeneratorState::of(self.device)?;
            // With its graph, which goes at once: libtorch may choose other kernels without one.
            let out = self.block(weights, layer, x.shallow_clone(), ForwardMode::Train)?;
            inputs.push(BlockInput { x, generator });
            x = out.f_detach()?.f_set_requires_grad(true)?;
        }
        Ok((inputs, x))
    }

    /// From the gradient of what the last block gives to that of the embedded tokens.
    fn backward_by_blocks(
        &self,
        weights: WeightViews<'_>,
        inputs: Vec<BlockInput>,
        d_last: Tensor,
        grads: &mut ModelGradients,
    ) -> Result<Tensor, TchError> {
        let after = GeneratorState::of(self.device)?;
        let mut d_out = d_last;
        for (layer, BlockInput { x, generator }) in inputs.into_iter().enumerate().rev() {
            generator.put_back()?;
            let out = self.block(weights, layer, x.shallow_clone(), ForwardMode::Train)?;
            // Its gradient with respect to `out` is `d_out`, to the bit.
            let surrogate = out.f_mul(&d_out)?.f_sum(Kind::Float)?;
            drop((out, d_out));
            d_out = self.differentiate(&surrogate, weights, block_params(layer), &x, grads)?;
        }
        after.put_back()?;
        Ok(d_out)
    }
}
