//! The language-model head with its loss: hidden states to logits to cross entropy, and back.
//!
//! Invariant: one buffer of logits, at most [`CHUNK_BYTES`] large, in which the loss's gradient replaces the logits.

use tch::{Device, Kind, TchError, Tensor};

use super::products::Bf16Products;

/// Rows are taken in chunks of about this many bytes of logits.
const CHUNK_BYTES: i64 = 256 << 20;

/// What becomes of what the gradient's memory holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum GradientSum {
    /// It is overwritten.
    Begin,
    /// It is added to.
    Extend,
}

/// What makes logits of hidden states.
pub(super) struct Unembedding {
    /// [vocab_size, n_embd], in the precision of the products.
    pub matrix: Tensor,
    pub bf16: Bf16Products,
}

impl Unembedding {
    /// The logits of `hidden` [.., n_embd], float32.
    pub(super) fn logits(&self, hidden: &Tensor) -> Result<Tensor, TchError> {
        let kind = self.matrix.kind();
        let operand = |operand: &Tensor| self.bf16.operand(operand);
        let logits = operand(&hidden.f_to_kind(kind)?)?.f_matmul(&operand(&self.matrix)?.f_transpose(0, 1)?)?;
        logits.f_to_kind(kind)?.f_to_kind(Kind::Float)
    }
}

/// The buffers, kept from step to step.
#[derive(Default)]
pub(super) struct LossHead {
    logits: Option<Tensor>,
    /// Where products are in bf16: their logits, then the gradient as products read it.
    rounded: Option<Tensor>,
    /// There, too: the unembedding's gradient.
    d_unembedding: Option<Tensor>,
}

impl LossHead {
    /// Mean cross entropy in nats of `hidden` [.., n_embd] against `targets` [..].
    pub(super) fn loss(
        &mut self,
        hidden: &Tensor,
        unembedding: &Unembedding,
        targets: &Tensor,
    ) -> Result<f64, TchError> {
        let (hidden, targets) = (rows(hidden)?.f_to_kind(unembedding.matrix.kind())?, targets.f_reshape(-1)?);
        let total = targets.size()[0];
        let mut sum = 0.0;
        for (start, length) in chunks(total, unembedding.matrix.size()[0]) {
            let logits = self.logits(&hidden.f_narrow(0, start, length)?, unembedding)?;
            let (losses, _) = cross_entropy(&logits, &targets.f_narrow(0, start, length)?)?;
            sum += losses.f_double_value(&[])?;
        }
        Ok(sum / total as f64)
    }

    /// The same, and the gradient of `weight` times it: with respect to `hidden` returned in its shape, with respect
    /// to `unembedding` written to `d_unembedding` as `sum_to` says.
    pub(super) fn loss_and_grads(
        &mut self,
        hidden: &Tensor,
        unembedding: &Unembedding,
        targets: &Tensor,
        weight: f64,
        d_unembedding: &mut Tensor,
        sum_to: GradientSum,
    ) -> Result<(f64, Tensor), TchError> {
        let (flat, targets) = (rows(hidden)?.f_to_kind(unembedding.matrix.kind())?, targets.f_reshape(-1)?);
        let total = targets.size()[0];
        let d_hidden = flat.f_empty_like()?;
        let mut sum = 0.0;
        for (start, length) in chunks(total, unembedding.matrix.size()[0]) {
            let (part, targets) = (flat.f_narrow(0, start, length)?, targets.f_narrow(0, start, length)?);
            let mut logits = self.logits(&part, unembedding)?;
            let (losses, lse) = cross_entropy(&logits, &targets)?;
            sum += losses.f_double_value(&[])?;
            // The gradient: softmax minus one at the target.
            let _ = logits.f_sub_(&lse)?.f_exp_()?;
            let minus_one = Tensor::f_full([length, 1], -1.0, (Kind::Float, logits.device()))?;
            let _ = logits.f_scatter_add_(1, &targets.f_unsqueeze(1)?, &minus_one)?;
            let _ = logits.f_mul_scalar_(weight / total as f64)?;
            let gradient = self.as_operand(&logits, unembedding)?;
            unembedding.bf16.write(&d_hidden.f_narrow(0, start, length)?, &gradient, &unembedding.matrix)?;
            let extends = sum_to == GradientSum::Extend || start > 0;
            self.unembedding_backward(&gradient, &part, d_unembedding, (unembedding.bf16, extends))?;
        }
        Ok((sum / total as f64, d_hidden.f_to_kind(Kind::Float)?.f_view_as(hidden)?))
    }

    /// Float32 logits, of products in the precision of the operands.
    fn logits(&mut self, hidden: &Tensor, unembedding: &Unembedding) -> Result<Tensor, TchError> {
        let size = [hidden.size()[0], unembedding.matrix.size()[0]];
        let logits = kept(&mut self.logits, size, Kind::Float, hidden.device())?;
        if unembedding.matrix.kind() == Kind::Float {
            return hidden.f_mm_out(&logits, &unembedding.matrix.f_tr()?);
        }
        let rounded = kept(&mut self.rounded, size, unembedding.matrix.kind(), hidden.device())?;
        unembedding.bf16.write(&rounded, hidden, &unembedding.matrix.f_tr()?)?;
        let mut widened = logits.shallow_clone();
        widened.f_copy_(&rounded)?;
        Ok(logits)
    }

    /// The gradient of the logits in the precision of the products.
    fn as_operand(&mut self, gradient: &Tensor, unembedding: &Unembedding) -> Result<Tensor, TchError> {
        if unembedding.matrix.kind() == Kind::Float {
            return Ok(gradient.shallow_clone());
        }
        let size = [gradient.size()[0], gradient.size()[1]];
        let mut rounded = kept(&mut self.rounded, size, unembedding.matrix.kind(), gradient.device())?;
        rounded.f_copy_(gradient)?;
        Ok(rounded)
    }

    /// `gradient` transposed times `hidden`, added to `sum` or in its place.
    fn unembedding_backward(
        &mut self,
        gradient: &Tensor,
        hidden: &Tensor,
        sum: &mut Tensor,
        (bf16, extends): (Bf16Products, bool),
    ) -> Result<(), TchError> {
        let gradient = gradient.f_tr()?;
        if hidden.kind() == Kind::Float {
            let _ = if extends { sum.f_addmm_(&gradient, hidden)? } else { gradient.f_mm_out(sum, hidden)? };
            return Ok(());
        }
        let size = [gradient.size()[0], hidden.size()[1]];
        let product = kept(&mut self.d_unembedding, size, hidden.kind(), hidden.device())?;
        bf16.write(&product, &gradient, hidden)?;
        if extends {
            let _ = sum.f_add_(&product)?;
            return Ok(());
        }
        sum.f_copy_(&product)
    }
}

/// The first rows of a buffer that is kept, or made anew where it does not fit.
fn kept(buffer: &mut Option<Tensor>, size: [i64; 2], kind: Kind, device: Device) -> Result<Tensor, TchError> {
    let [rows, columns] = size;
    let memory = match buffer.take().filter(|memory| memory.size()[1] == columns && memory.size()[0] >= rows) {
        Some(memory) => memory,
        None => Tensor::f_empty(size, (kind, device))?,
    };
    let part = memory.f_narrow(0, 0, rows)?;
    *buffer = Some(memory);
    Ok(part)
}

fn rows(hidden: &Tensor) -> Result<Tensor, TchError> {
    let width = hidden.size().last().copied().unwrap_or(1);
    hidden.f_reshape([-1, width])
}

/// (first row, rows) of each chunk.
fn chunks(rows: i64, vocabulary: i64) -> impl Iterator<Item = (i64, i64)> {
    let most = (CHUNK_BYTES / 4 / vocabulary).max(1);
    (0..rows).step_by(most as usize).map(move |start| (start, most.min(rows - start)))
}

/// The sum of the rows' losses, and log sum exp of each row [rows, 1].
fn cross_entropy(logits: &Tensor, targets: &Tensor) -> Result<(Tensor, Tensor), TchError> {
    let lse = logits.f_logsumexp(1i64, true)?;
    let picked = logits.f_gather(1, &targets.f_unsqueeze(1)?, false)?;
    Ok((lse.f_sub(&picked)?.f_sum(Kind::Double)?, lse))
}
