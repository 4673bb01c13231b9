//! GPT-2 exactly as transformers' GPT2LMHeadModel: the same names, shapes and arithmetic, in float32.
//!
//! [`Gpt2Config`] is the shape; [`init`] fills the parameters; [`Gpt2Model`] computes losses, logits and gradients from
//! parameters that it is given (`capture::TrainingState::params`), in the order of [`Gpt2Config::parameters`].
//!
//! The body (blocks and last layer norm) is differentiated by libtorch's autograd. Its two ends are not: the head
//! turns logits into their own gradient in place, and the embedding's gradient is added row by row to the gradient
//! of the tied head, so that neither the logits nor the embedding's gradient (each 154 MB and more) exist twice.
//!
//! Invariant: the results are a function of the parameters, the batch, the number of threads, and where there is
//! dropout of libtorch's generator, which the caller seeds. Deliberately not here: the update, and the state's memory.

mod config;
mod head;
pub mod init;

use ckptd_core::{Error, Result};
use tch::{Device, IndexOp, Kind, TchError, Tensor};

pub use config::{Activation, Gpt2Config, PRESETS};

use crate::torch::TorchContext;

/// Tensors of a block; `Gpt2Config::parameters` lists them in this order.
const PER_LAYER: usize = 12;
const WTE: usize = 0;
const WPE: usize = 1;
const FIRST_LAYER: usize = 2;

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
    tensors: Vec<Tensor>,
    filled: bool,
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

/// The model: a shape, and scratch memory that stays allocated from step to step.
pub struct Gpt2Model {
    config: Gpt2Config,
    device: Device,
    head: head::LossHead,
}

impl Gpt2Model {
    pub fn new(config: Gpt2Config, device: Device) -> Gpt2Model {
        Gpt2Model { config, device, head: head::LossHead::default() }
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
            let hidden = self.body(params, &self.embed(params, inputs)?, false)?;
            hidden.f_matmul(&self.unembedding(params).f_transpose(0, 1)?)
        };
        logits().context("the forward pass")
    }

    /// The logits of the last position of one row of inputs, without dropout.
    pub fn next_logits(&self, params: &[Tensor], inputs: &Tensor) -> Result<Vec<f32>> {
        let _no_grad = tch::no_grad_guard();
        let logits = || {
            let hidden = self.body(params, &self.embed(params, inputs)?, false)?;
            let last = hidden.f_narrow(1, -1, 1)?.f_reshape([1, -1])?;
            last.f_matmul(&self.unembedding(params).f_transpose(0, 1)?)?.f_reshape(-1)
        };
        let logits = logits().context("the forward pass")?;
        Vec::try_from(&logits).context("reading the logits")
    }

    /// Mean cross entropy in nats a token, without dropout.
    pub fn loss(&mut self, params: &[Tensor], batch: &TokenBatch) -> Result<f64> {
        let _no_grad = tch::no_grad_guard();
        let hidden = self.embed(params, &batch.inputs).and_then(|x| self.body(params, &x, false));
        let hidden = hidden.context("the forward pass")?;
        let unembedding = self.unembedding(params);
        self.head.loss(&hidden, &unembedding, &batch.targets).context("the loss")
    }

    /// Mean cross entropy in nats a token of a micro-batch, with dropout. Adds the gradient of `weight` times this
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
            let memory = |(index, param): (usize, &Tensor)| match body.contains(&index) {
                // Autograd brings these.
                true => Tensor::f_empty([0], (Kind::Float, self.device)),
                false => param.f_empty_like(),
            };
            let tensors: Result<_, _> = params.iter().enumerate().map(memory).collect();
            *grads = ModelGradients { tensors: tensors.context("allocating the gradients")?, filled: false };
        }
        let embedded = {
            let _no_grad = tch::no_grad_guard();
            self.embed(params, &batch.inputs).context("the forward pass")?.set_requires_grad(true)
        };
        let hidden = self.body(params, &embedded, true).context("the forward pass")?;
        let (loss, surrogate) = self.head_backward(params, &hidden, batch, weight, grads).context("the loss")?;
        drop(hidden);
        self.body_backward(params, &embedded, surrogate, batch, grads).context("the backward pass")?;
        grads.filled = true;
        Ok(loss)
    }

    /// The loss, the head's gradient added to `grads`, and a scalar whose gradient with respect to `hidden` is the loss's.
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
            self.head.loss_and_grads(
                &hidden.f_detach()?,
                &unembedding,
                &batch.targets,
                weight,
                d_unembedding,
                grads.filled,
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
    fn body(&self, params: &[Tensor], embedded: &Tensor, train: bool) -> Result<Tensor, TchError> {
        let mut x = dropout(embedded.shallow_clone(), self.config.embd_pdrop, train)?;
        let (layers, rest) = params[FIRST_LAYER..].split_at(PER_LAYER * self.config.n_layer as usize);
        for (layer, params) in layers.chunks_exact(PER_LAYER).enumerate() {
            x = self.block(layer, params, x, train)?;
        }
        self.layer_norm(&x, rest)
    }

    fn block(&self, layer: usize, params: &[Tensor], x: Tensor, train: bool) -> Result<Tensor, TchError> {
        let config = &self.config;
        let attended = self.attention(layer, &params[2..6], &self.layer_norm(&x, params)?, train)?;
        let x = x.f_add(&dropout(attended, config.resid_pdrop, train)?)?;
        let inner = linear(&self.layer_norm(&x, &params[6..])?, &params[8..])?;
        let out = linear(&config.activation_function.apply(&inner)?, &params[10..])?;
        x.f_add(&dropout(out, config.resid_pdrop, train)?)
    }

    fn attention(&self, layer: usize, params: &[Tensor], x: &Tensor, train: bool) -> Result<Tensor, TchError> {
        let config = &self.config;
        let (rows, positions, c) = x.size3()?;
        let split = |part: i64, qkv: &Tensor| {
            qkv.f_narrow(2, part * c, c)?.f_view([rows, positions, config.n_head, c / config.n_head])?.f_transpose(1, 2)
        };
        let qkv = linear(x, params)?;
        let dropout_p = if train { config.attn_pdrop } else { 0.0 };
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

impl Activation {
    fn apply(self, x: &Tensor) -> Result<Tensor, TchError> {
        match self {
            Activation::GeluTanh => x.f_gelu("tanh"),
            Activation::Gelu => x.f_gelu("none"),
            Activation::Relu => x.f_relu(),
            Activation::Silu => x.f_silu(),
            Activation::Tanh => x.f_tanh(),
        }
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

fn dropout(x: Tensor, p: f64, train: bool) -> Result<Tensor, TchError> {
    if train && p > 0.0 { x.f_dropout(p, true) } else { Ok(x) }
}
