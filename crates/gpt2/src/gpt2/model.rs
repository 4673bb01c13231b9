//! Losses, logits and gradients of a GPT-2 from parameters that it is given.
//!
//! Invariant: what is computed depends on nothing but parameters, batch, threads, and where there is dropout on the
//! generator that the caller has seeded. Deliberately not here: the head's own arithmetic (`head`).

use ckptd_core::Result;
use ckptd_interop::gpt2_config::{Activation, Gpt2Config};
use ckptd_interop::gpt2_names::BlockParameter;
use tch::{Device, IndexOp, Kind, TchError, Tensor};

use super::batch::{ModelGradients, TokenBatch};
use super::head::{GradientSum, LossHead};
use crate::torch::TorchContext;

/// Tensors of a block; `Gpt2Config::parameters` lists them in this order.
const PER_LAYER: usize = BlockParameter::ALL.len();
const WTE: usize = 0;
const WPE: usize = 1;
const FIRST_LAYER: usize = 2;

/// Whether dropout applies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ForwardMode {
    Train,
    Evaluate,
}

/// The model: a shape, and scratch memory that stays allocated from step to step.
pub struct Gpt2Model {
    config: Gpt2Config,
    device: Device,
    head: LossHead,
}

impl Gpt2Model {
    pub fn new(config: Gpt2Config, device: Device) -> Gpt2Model {
        Gpt2Model { config, device, head: LossHead::default() }
    }

    pub fn device(&self) -> Device {
        self.device
    }

    pub fn config(&self) -> &Gpt2Config {
        &self.config
    }

    /// Logits [rows, positions, vocab_size], without dropout.
    pub fn logits(&self, params: &[Tensor], inputs: &Tensor) -> Result<Tensor> {
        let _no_grad = tch::no_grad_guard();
        let logits = || {
            let hidden = self.body(params, &self.embed(params, inputs)?, ForwardMode::Evaluate)?;
            hidden.f_matmul(&self.unembedding(params).f_transpose(0, 1)?)
        };
        logits().context("the forward pass")
    }

    /// The logits of the last position of one row of inputs, without dropout.
    pub fn next_logits(&self, params: &[Tensor], inputs: &Tensor) -> Result<Vec<f32>> {
        let _no_grad = tch::no_grad_guard();
        let logits = || {
            let hidden = self.body(params, &self.embed(params, inputs)?, ForwardMode::Evaluate)?;
            let last = hidden.f_narrow(1, -1, 1)?.f_reshape([1, -1])?;
            last.f_matmul(&self.unembedding(params).f_transpose(0, 1)?)?.f_reshape(-1)
        };
        let logits = logits().context("the forward pass")?;
        Vec::try_from(&logits).context("reading the logits")
    }

    /// Mean cross entropy in nats per token, without dropout.
    pub fn loss(&mut self, params: &[Tensor], batch: &TokenBatch) -> Result<f64> {
        let _no_grad = tch::no_grad_guard();
        let hidden = self.embed(params, &batch.inputs).and_then(|x| self.body(params, &x, ForwardMode::Evaluate));
        let hidden = hidden.context("the forward pass")?;
        let unembedding = self.unembedding(params);
        self.head.loss(&hidden, &unembedding, &batch.targets).context("the loss")
    }

    /// Mean cross entropy in nats per token of a micro-batch, with dropout. Adds the gradient of `weight` times this
    /// loss to `grads`; a step of n micro-batches weighs each by 1 / n. libtorch's generator is to be seeded before.
    pub fn loss_and_grads(
        &mut self,
        params: &[Tensor],
        batch: &TokenBatch,
        weight: f64,
        grads: &mut ModelGradients,
    ) -> Result<f64> {
        if grads.tensors.len() != params.len() {
            let _no_grad = tch::no_grad_guard();
            let body = self.body_params();
            let memory = |(index, param): (usize, &Tensor)| {
                if body.contains(&index) {
                    // Autograd brings these.
                    Tensor::f_empty([0], (Kind::Float, self.device))
                } else {
                    param.f_empty_like()
                }
            };
            let tensors: Result<_, _> = params.iter().enumerate().map(memory).collect();
            *grads = ModelGradients { tensors: tensors.context("allocating the gradients")?, filled: false };
        }
        let embedded = {
            let _no_grad = tch::no_grad_guard();
            self.embed(params, &batch.inputs).context("the forward pass")?.set_requires_grad(true)
        };
        let hidden = self.body(params, &embedded, ForwardMode::Train).context("the forward pass")?;
        let (loss, surrogate) = self.head_backward(params, &hidden, batch, weight, grads).context("the loss")?;
        drop(hidden);
        self.body_backward(params, &embedded, surrogate, batch, grads).context("the backward pass")?;
        grads.filled = true;
        Ok(loss)
    }

    /// The loss, the head's gradient added to `grads`, and a scalar whose gradient with respect to `hidden` is the
    /// loss's.
    fn head_backward(
        &mut self,
        params: &[Tensor],
        hidden: &Tensor,
        batch: &TokenBatch,
        weight: f64,
        grads: &mut ModelGradients,
    ) -> Result<(f64, Tensor), TchError> {
        let (loss, d_hidden) = {
            let _no_grad = tch::no_grad_guard();
            let unembedding = self.unembedding(params);
            let index = self.unembedding_index(params);
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

    fn body_backward(
        &self,
        params: &[Tensor],
        embedded: &Tensor,
        surrogate: Tensor,
        batch: &TokenBatch,
        grads: &mut ModelGradients,
    ) -> Result<(), TchError> {
        let body = self.body_params();
        let mut wanted: Vec<&Tensor> = params[body.clone()].iter().collect();
        wanted.push(embedded);
        let mut fresh = Tensor::f_run_backward(&[surrogate], &wanted, false, false)?;
        let _no_grad = tch::no_grad_guard();
        if let Some(d_embedded) = fresh.pop() {
            self.embedding_backward(&d_embedded, &batch.inputs, grads)?;
        }
        for (sum, gradient) in grads.tensors[body].iter_mut().zip(fresh) {
            if grads.filled {
                let _ = sum.f_add_(&gradient)?;
            } else {
                *sum = gradient.f_contiguous()?;
            }
        }
        Ok(())
    }

    /// What autograd differentiates: the blocks and the last layer norm.
    fn body_params(&self) -> std::ops::Range<usize> {
        FIRST_LAYER..FIRST_LAYER + PER_LAYER * self.config.n_layer as usize + 2
    }

    fn embedding_backward(
        &self,
        d_embedded: &Tensor,
        inputs: &Tensor,
        grads: &mut ModelGradients,
    ) -> Result<(), TchError> {
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
    fn embed(&self, params: &[Tensor], inputs: &Tensor) -> Result<Tensor, TchError> {
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
    fn body(&self, params: &[Tensor], embedded: &Tensor, mode: ForwardMode) -> Result<Tensor, TchError> {
        let mut x = dropout(embedded.shallow_clone(), self.config.embd_pdrop, mode)?;
        let (layers, rest) = params[FIRST_LAYER..].split_at(PER_LAYER * self.config.n_layer as usize);
        for (layer, params) in layers.chunks_exact(PER_LAYER).enumerate() {
            x = self.block(layer, params, x, mode)?;
        }
        self.layer_norm(&x, rest)
    }

    fn block(&self, layer: usize, params: &[Tensor], x: Tensor, mode: ForwardMode) -> Result<Tensor, TchError> {
        let config = &self.config;
        let attended = self.attention(layer, &params[2..6], &self.layer_norm(&x, params)?, mode)?;
        let x = x.f_add(&dropout(attended, config.resid_pdrop, mode)?)?;
        let inner = linear(&self.layer_norm(&x, &params[6..])?, &params[8..])?;
        let out = linear(&activate(config.activation_function, &inner)?, &params[10..])?;
        x.f_add(&dropout(out, config.resid_pdrop, mode)?)
    }

    fn attention(&self, layer: usize, params: &[Tensor], x: &Tensor, mode: ForwardMode) -> Result<Tensor, TchError> {
        let config = &self.config;
        let (rows, positions, c) = x.size3()?;
        let split = |part: i64, qkv: &Tensor| {
            qkv.f_narrow(2, part * c, c)?.f_view([rows, positions, config.n_head, c / config.n_head])?.f_transpose(1, 2)
        };
        let qkv = linear(x, params)?;
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
        linear(&y.f_transpose(1, 2)?.f_reshape([rows, positions, c])?, &params[2..])
    }

    fn layer_norm(&self, x: &Tensor, params: &[Tensor]) -> Result<Tensor, TchError> {
        let (weight, bias) = (Some(&params[0]), Some(&params[1]));
        x.f_layer_norm([self.config.n_embd], weight, bias, self.config.layer_norm_epsilon, false)
    }

    fn unembedding_index(&self, params: &[Tensor]) -> usize {
        if self.config.tie_word_embeddings { WTE } else { params.len() - 1 }
    }

    /// [vocab_size, n_embd].
    fn unembedding(&self, params: &[Tensor]) -> Tensor {
        params[self.unembedding_index(params)].shallow_clone()
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

/// transformers' Conv1D: x W + b with W [in, out].
fn linear(x: &Tensor, params: &[Tensor]) -> Result<Tensor, TchError> {
    let (weight, bias) = (&params[0], &params[1]);
    let mut shape = x.size();
    let (rows, inner) = (shape.iter().rev().skip(1).product::<i64>(), weight.size()[0]);
    if let Some(last) = shape.last_mut() {
        *last = weight.size()[1];
    }
    bias.f_addmm(&x.f_view([rows, inner])?, weight)?.f_view(shape.as_slice())
}

fn dropout(x: Tensor, p: f64, mode: ForwardMode) -> Result<Tensor, TchError> {
    if mode == ForwardMode::Train && p > 0.0 { x.f_dropout(p, true) } else { Ok(x) }
}
