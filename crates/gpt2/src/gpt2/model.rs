//! Losses, logits and gradients of a GPT-2 from parameters that it is given.
//!
//! Invariant: what is computed depends on nothing but parameters, batch, threads, and where there is dropout on the
//! generator that the caller has seeded. Deliberately not here: the head's own arithmetic (`head`).

use ckptd_core::Result;
use ckptd_core::config::TrainSection;
use ckptd_interop::gpt2_config::{Activation, Gpt2Config};
use tch::{Device, IndexOp, Kind, TchError, Tensor};

use super::batch::{ModelGradients, TokenBatch};
use super::head::{GradientSum, LossHead, Unembedding};
use super::layer_norm::NormGradients;
use super::places::{FIRST_LAYER, WPE, WTE, block_params, last_norm_params, unembedding_index};
use super::products::{Bf16Products, WeightViews};
use crate::torch::TorchContext;

/// Whether dropout applies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ForwardMode {
    Train,
    Evaluate,
}

/// What of the forward pass the backward pass finds in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Activations {
    /// All that it needs.
    #[default]
    Kept,
    /// The input of each block; the block is computed again. The gradients are the same, bit for bit.
    Recomputed,
}

impl Activations {
    /// As a job wants it.
    pub fn of(train: &TrainSection) -> Activations {
        if train.activation_checkpointing { Activations::Recomputed } else { Activations::Kept }
    }
}

/// The model: a shape, and scratch memory that stays allocated from step to step.
pub struct Gpt2Model {
    pub(super) config: Gpt2Config,
    pub(super) device: Device,
    head: LossHead,
    norms: NormGradients,
    pub(super) activations: Activations,
}

impl Gpt2Model {
    pub fn new(config: Gpt2Config, device: Device) -> Gpt2Model {
        let (head, norms, activations) = Default::default();
        Gpt2Model { config, device, head, norms, activations }
    }

    /// The same model, with the gradients of its layer norms added up in this order.
    #[must_use]
    pub fn adding_norms(self, norms: NormGradients) -> Gpt2Model {
        Gpt2Model { norms, ..self }
    }

    /// The same model, with these activations in memory until the backward pass.
    #[must_use]
    pub fn keeping(self, activations: Activations) -> Gpt2Model {
        Gpt2Model { activations, ..self }
    }

    pub fn device(&self) -> Device {
        self.device
    }

    pub fn config(&self) -> &Gpt2Config {
        &self.config
    }

    /// Logits [rows, positions, vocab_size], without dropout, float32.
    pub fn logits<'a>(&self, weights: impl Into<WeightViews<'a>>, inputs: &Tensor) -> Result<Tensor> {
        let (_no_grad, weights) = (tch::no_grad_guard(), weights.into());
        let logits = || {
            let unembedding = self.unembedding(weights);
            let hidden = self.body(weights, &self.embed(weights, inputs)?, ForwardMode::Evaluate)?;
            unembedding.logits(&hidden)
        };
        logits().context("the forward pass")
    }

    /// The logits of the last position of one row of inputs, without dropout.
    pub fn next_logits<'a>(&self, weights: impl Into<WeightViews<'a>>, inputs: &Tensor) -> Result<Vec<f32>> {
        let (_no_grad, weights) = (tch::no_grad_guard(), weights.into());
        let logits = || {
            let unembedding = self.unembedding(weights);
            let hidden = self.body(weights, &self.embed(weights, inputs)?, ForwardMode::Evaluate)?;
            unembedding.logits(&hidden.f_narrow(1, -1, 1)?.f_reshape([1, -1])?)?.f_reshape(-1)
        };
        let logits = logits().context("the forward pass")?;
        Vec::try_from(&logits).context("reading the logits")
    }

    /// Mean cross entropy in nats per token, without dropout.
    pub fn loss<'a>(&mut self, weights: impl Into<WeightViews<'a>>, batch: &TokenBatch) -> Result<f64> {
        let (_no_grad, weights) = (tch::no_grad_guard(), weights.into());
        let hidden = self.embed(weights, &batch.inputs).and_then(|x| self.body(weights, &x, ForwardMode::Evaluate));
        let hidden = hidden.context("the forward pass")?;
        let unembedding = self.unembedding(weights);
        self.head.loss(&hidden, &unembedding, &batch.targets).context("the loss")
    }

    /// Mean cross entropy in nats per token of a micro-batch, with dropout. Adds the gradient of `weight` times this
    /// loss to `grads`; a step of n micro-batches weighs each by 1 / n. libtorch's generator is to be seeded before.
    pub fn loss_and_grads<'a>(
        &mut self,
        weights: impl Into<WeightViews<'a>>,
        batch: &TokenBatch,
        weight: f64,
        grads: &mut ModelGradients,
    ) -> Result<f64> {
        let weights = weights.into();
        let params = weights.params;
        // Autograd brings the gradients of the blocks and of the last layer norm.
        let body = FIRST_LAYER..last_norm_params(&self.config).end;
        let nothing = || Tensor::f_empty([0], (Kind::Float, self.device));
        if grads.tensors.len() != params.len() {
            let _no_grad = tch::no_grad_guard();
            let memory = |(index, param): (usize, &Tensor)| {
                if body.contains(&index) { nothing() } else { param.f_empty_like() }
            };
            let tensors: Result<_, _> = params.iter().enumerate().map(memory).collect();
            *grads = ModelGradients { tensors: tensors.context("allocating the gradients")?, filled: false };
        } else if !grads.filled {
            // Those of the step before are not to lie beside what this pass keeps, nor beside the new ones.
            for old in &mut grads.tensors[body] {
                *old = nothing().context("letting go of the gradients")?;
            }
        }
        let embedded = {
            let _no_grad = tch::no_grad_guard();
            self.embed(weights, &batch.inputs).context("the forward pass")?.set_requires_grad(true)
        };
        let loss = self.pass(weights, &embedded, batch, weight, grads)?;
        grads.filled = true;
        Ok(loss)
    }

    /// The loss, the head's gradient added to `grads`, and a scalar whose gradient with respect to `hidden` is the
    /// loss's.
    pub(super) fn head_backward(
        &mut self,
        weights: WeightViews<'_>,
        hidden: &Tensor,
        batch: &TokenBatch,
        weight: f64,
        grads: &mut ModelGradients,
    ) -> Result<(f64, Tensor), TchError> {
        let (loss, d_hidden) = {
            let _no_grad = tch::no_grad_guard();
            let unembedding = self.unembedding(weights);
            let index = unembedding_index(&self.config, weights.params.len());
            let d_unembedding = &mut grads.tensors[index];
            let sum_to = if grads.filled { GradientSum::Extend } else { GradientSum::Begin };
            self.head.loss_and_grads(
                &hidden.f_detach()?,
                &unembedding,
                &batch.targets,
                weight,
                d_unembedding,
                sum_to,
            )?
        };
        Ok((loss, (hidden * d_hidden).f_sum(Kind::Float)?))
    }

    /// The gradient of `surrogate` with respect to `input`; those of the parameters at `places` are added to `grads`.
    pub(super) fn differentiate(
        &self,
        surrogate: &Tensor,
        weights: WeightViews<'_>,
        places: std::ops::Range<usize>,
        input: &Tensor,
        grads: &mut ModelGradients,
    ) -> Result<Tensor, TchError> {
        let mut wanted: Vec<&Tensor> = weights.products[places.clone()].iter().collect();
        wanted.push(input);
        let mut fresh = Tensor::f_run_backward(&[surrogate], &wanted, false, false)?;
        let _no_grad = tch::no_grad_guard();
        let d_input = fresh.pop().ok_or_else(|| TchError::Torch("libtorch has given no gradient".into()))?;
        for (sum, gradient) in grads.tensors[places].iter_mut().zip(fresh) {
            if grads.filled {
                let _ = sum.f_add_(&gradient)?;
            } else {
                *sum = gradient.f_contiguous()?.f_to_kind(Kind::Float)?;
            }
        }
        Ok(d_input)
    }

    pub(super) fn embedding_backward(
        &self,
        d_embedded: &Tensor,
        inputs: &Tensor,
        grads: &mut ModelGradients,
    ) -> Result<(), TchError> {
        let _no_grad = tch::no_grad_guard();
        let c = self.config.n_embd;
        let positions = inputs.size()[1];
        if !grads.filled {
            let _ = grads.tensors[WPE].f_zero_()?;
            if !self.config.tie_word_embeddings {
                let _ = grads.tensors[WTE].f_zero_()?;
            }
        }
        let _ = grads.tensors[WPE].i(..positions).f_add_(&d_embedded.f_sum_dim_intlist(0i64, false, Kind::Float)?)?;
        let rows = d_embedded.f_reshape([-1, c])?;
        let ids = inputs.f_reshape(-1)?;
        let wte = &mut grads.tensors[WTE];
        // Either adds in a fixed order on its device; the other one would race there.
        let _ = match self.device {
            Device::Cpu => wte.f_index_add_(0, &ids, &rows)?,
            _ => wte.f_index_put_(&[Some(ids)], &rows, true)?,
        };
        Ok(())
    }

    /// [rows, positions, n_embd], before dropout.
    fn embed(&self, WeightViews { params, .. }: WeightViews<'_>, inputs: &Tensor) -> Result<Tensor, TchError> {
        let positions = inputs.size2()?.1;
        if positions > self.config.n_positions {
            let limit = self.config.n_positions;
            return Err(TchError::Shape(format!(
                "{positions} positions are more than the model's n_positions ({limit})"
            )));
        }
        Tensor::f_embedding(&params[WTE], inputs, -1, false, false)?.f_add(&params[WPE].f_narrow(0, 0, positions)?)
    }

    /// From the embedded tokens to the hidden states that the head reads, both [rows, positions, n_embd].
    fn body(&self, weights: WeightViews<'_>, embedded: &Tensor, mode: ForwardMode) -> Result<Tensor, TchError> {
        let mut x = embedded.shallow_clone();
        for layer in 0..self.config.n_layer as usize {
            x = self.block(weights, layer, x, mode)?;
        }
        self.last_norm(weights, &x)
    }

    /// The layer norm after the last block.
    pub(super) fn last_norm(&self, weights: WeightViews<'_>, x: &Tensor) -> Result<Tensor, TchError> {
        self.layer_norm(x, &weights.products[last_norm_params(&self.config)])
    }

    /// Block `layer` of `x`; the first one takes the embedded tokens, and drops some of them out.
    pub(super) fn block(
        &self,
        weights: WeightViews<'_>,
        layer: usize,
        x: Tensor,
        mode: ForwardMode,
    ) -> Result<Tensor, TchError> {
        let (config, params, bf16) = (&self.config, &weights.products[block_params(layer)], weights.bf16);
        let x = if layer == 0 { dropout(x, config.embd_pdrop, mode)? } else { x };
        let attended = self.attention(layer, (&params[2..6], bf16), &self.layer_norm(&x, params)?, mode)?;
        let x = x.f_add(&dropout(attended, config.resid_pdrop, mode)?)?;
        let inner = linear(&self.layer_norm(&x, &params[6..])?, &params[8..], bf16)?;
        let out = linear(&activate(config.activation_function, &inner)?, &params[10..], bf16)?;
        x.f_add(&dropout(out, config.resid_pdrop, mode)?)
    }

    fn attention(
        &self,
        layer: usize,
        (params, bf16): (&[Tensor], Bf16Products),
        x: &Tensor,
        mode: ForwardMode,
    ) -> Result<Tensor, TchError> {
        let config = &self.config;
        let (rows, positions, c) = x.size3()?;
        let split = |part: i64, qkv: &Tensor| {
            qkv.f_narrow(2, part * c, c)?.f_view([rows, positions, config.n_head, c / config.n_head])?.f_transpose(1, 2)
        };
        let qkv = linear(x, params, bf16)?;
        let kind = qkv.kind();
        let qkv = bf16.operand(&qkv)?;
        let dropout_p = if mode == ForwardMode::Train { config.attn_pdrop } else { 0.0 };
        let y = Tensor::f_scaled_dot_product_attention(
            &split(0, &qkv)?,
            &split(1, &qkv)?,
            &split(2, &qkv)?,
            None::<Tensor>,
            dropout_p,
            true,
            config.attention_scale(layer),
            false,
        )?;
        linear(&y.f_to_kind(kind)?.f_transpose(1, 2)?.f_reshape([rows, positions, c])?, &params[2..], bf16)
    }

    fn layer_norm(&self, x: &Tensor, params: &[Tensor]) -> Result<Tensor, TchError> {
        self.norms.layer_norm(x, params, self.config.layer_norm_epsilon)
    }

    fn unembedding(&self, weights: WeightViews<'_>) -> Unembedding {
        let matrix = &weights.products[unembedding_index(&self.config, weights.params.len())];
        Unembedding { matrix: matrix.shallow_clone(), bf16: weights.bf16 }
    }
}

fn activate(activation: Activation, x: &Tensor) -> Result<Tensor, TchError> {
    match activation {
        Activation::GeluTanh => x.f_gelu("tanh"),
        Activation::Gelu => x.f_gelu("none"),
        Activation::Relu => x.f_relu(),
        Activation::Silu => x.f_silu(),
        Activation::Tanh => x.f_tanh(),
    }
}

/// transformers' Conv1D: x W + b with W [in, out], in the precision of W.
fn linear(x: &Tensor, params: &[Tensor], bf16: Bf16Products) -> Result<Tensor, TchError> {
    let (weight, kind) = (&params[0], params[0].kind());
    let mut shape = x.size();
    let (rows, inner) = (shape.iter().rev().skip(1).product::<i64>(), weight.size()[0]);
    if let Some(last) = shape.last_mut() {
        *last = weight.size()[1];
    }
    let x = bf16.operand(&x.f_to_kind(kind)?)?.f_view([rows, inner])?;
    let sum = bf16.operand(&params[1])?.f_addmm(&x, &bf16.operand(weight)?)?;
    sum.f_to_kind(kind)?.f_view(shape.as_slice())
}

fn dropout(x: Tensor, p: f64, mode: ForwardMode) -> Result<Tensor, TchError> {
    if mode == ForwardMode::Train && p > 0.0 { x.f_dropout(p, true) } else { Ok(x) }
}
