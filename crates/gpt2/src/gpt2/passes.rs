//! A micro-batch forward and backward, block by block.
//!
//! Each block is differentiated by itself: what it kept of the forward pass goes before the gradients of the next one
//! come. With activation checkpointing only the input of each block stays of the forward pass, and the backward pass
//! computes the block again.
//!
//! Invariant: loss and gradients are those of one backward pass through all blocks, bit for bit, whatever stays in
//! memory: a block is computed again from the same input, under the generator's state from before it, and
//! differentiated as the same graph. Deliberately not here: what a block computes (`model`).

use ckptd_core::Result;
use tch::{Kind, TchError, Tensor};

use super::batch::{ModelGradients, TokenBatch};
use super::generator::GeneratorState;
use super::model::{Activations, ForwardMode, Gpt2Model};
use super::places::{block_params, last_norm_params};
use super::products::WeightViews;
use crate::torch::TorchContext;

/// A block of the forward pass, for the backward one.
struct PassedBlock {
    x: Tensor,
    out: BlockOutput,
}

/// What came of it.
enum BlockOutput {
    /// With its graph and all that this holds.
    Kept(Tensor),
    /// To be computed again, under the generator's state from before.
    Again(GeneratorState),
}

impl Gpt2Model {
    /// The loss of a micro-batch from its embedded tokens, and its gradients added to `grads`.
    pub(super) fn pass(
        &mut self,
        weights: WeightViews<'_>,
        embedded: &Tensor,
        batch: &TokenBatch,
        weight: f64,
        grads: &mut ModelGradients,
    ) -> Result<f64> {
        let (passed, last) = self.forward_by_blocks(weights, embedded).context("the forward pass")?;
        let hidden = self.last_norm(weights, &last).context("the forward pass")?;
        let (loss, surrogate) = self.head_backward(weights, &hidden, batch, weight, grads).context("the loss")?;
        drop(hidden);
        let done = self.differentiate(&surrogate, weights, last_norm_params(&self.config), &last, grads);
        let d_last = done.context("the backward pass")?;
        drop((last, surrogate));
        let done = self.backward_by_blocks(weights, passed, d_last, grads);
        let d_embedded = done.context("the backward pass")?;
        self.embedding_backward(&d_embedded, &batch.inputs, grads).context("the backward pass")?;
        Ok(loss)
    }

    /// All blocks, and what the last one gives.
    fn forward_by_blocks(
        &self,
        weights: WeightViews<'_>,
        embedded: &Tensor,
    ) -> Result<(Vec<PassedBlock>, Tensor), TchError> {
        let (mut passed, mut x) = (Vec::new(), embedded.shallow_clone());
        for layer in 0..self.config.n_layer as usize {
            let before = match self.activations {
                Activations::Kept => None,
                Activations::Recomputed => Some(GeneratorState::of(self.device)?),
            };
            // With its graph, also where that goes at once: libtorch may choose other kernels without one.
            let out = self.block(weights, layer, x.shallow_clone(), ForwardMode::Train)?;
            let next = out.f_detach()?.f_set_requires_grad(true)?;
            passed.push(PassedBlock { x, out: before.map_or(BlockOutput::Kept(out), BlockOutput::Again) });
            x = next;
        }
        Ok((passed, x))
    }

    /// From the gradient of what the last block gives to that of the embedded tokens.
    fn backward_by_blocks(
        &self,
        weights: WeightViews<'_>,
        passed: Vec<PassedBlock>,
        d_last: Tensor,
        grads: &mut ModelGradients,
    ) -> Result<Tensor, TchError> {
        let after = match self.activations {
            Activations::Kept => None,
            Activations::Recomputed => Some(GeneratorState::of(self.device)?),
        };
        let mut d_out = d_last;
        for (layer, PassedBlock { x, out }) in passed.into_iter().enumerate().rev() {
            let out = match out {
                BlockOutput::Kept(out) => out,
                BlockOutput::Again(generator) => {
                    generator.put_back()?;
                    self.block(weights, layer, x.shallow_clone(), ForwardMode::Train)?
                }
            };
            // Its gradient with respect to `out` is `d_out`, to the bit.
            let surrogate = out.f_mul(&d_out)?.f_sum(Kind::Float)?;
            drop((out, d_out));
            d_out = self.differentiate(&surrogate, weights, block_params(layer), &x, grads)?;
        }
        after.map_or(Ok(()), |after| after.put_back())?;
        Ok(d_out)
    }
}
