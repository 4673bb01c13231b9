//! The language-model head with its loss: hidden states to logits to cross entropy, and back.
//!
//! Invariant: one buffer of logits, at most [`CHUNK_BYTES`] large, in which the loss's gradient replaces the logits.

use tch::{Kind, TchError, Tensor};

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

/// The buffer of logits, kept from step to step.
#[derive(Default)]
pub(super) struct LossHead {
    logits: Option<Tensor>,
}

impl LossHead {
    /// Mean cross entropy in nats of `hidden` [.., n_embd] against `targets` [..].
    pub(super) fn loss(&mut self, hidden: &Tensor, unembedding: &Tensor, targets: &Tensor) -> Result<f64, TchError> {
        let (hidden, targets) = (rows(hidden)?, targets.f_reshape(-1)?);
        let total = targets.size()[0];
        let mut sum = 0.0;
        for (start, length) in chunks(total, unembedding.size()[0]) {
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
        unembedding: &Tensor,
        targets: &Tensor,
        weight: f64,
        d_unembedding: &mut Tensor,
        sum_to: GradientSum,
    ) -> Result<(f64, Tensor), TchError> {
        let (flat, targets) = (rows(hidden)?, targets.f_reshape(-1)?);
        let total = targets.size()[0];
        let d_hidden = flat.f_empty_like()?;
        let mut sum = 0.0;
        for (start, length) in chunks(total, unembedding.size()[0]) {
            let (part, targets) = (flat.f_narrow(0, start, length)?, targets.f_narrow(0, start, length)?);
            let mut logits = self.logits(&part, unembedding)?;
            let (losses, lse) = cross_entropy(&logits, &targets)?;
            sum += losses.f_double_value(&[])?;
            // The gradient: softmax minus one at the target.
            let _ = logits.f_sub_(&lse)?.f_exp_()?;
            let minus_one = Tensor::f_full([length, 1], -1.0, (Kind::Float, logits.device()))?;
            let _ = logits.f_scatter_add_(1, &targets.f_unsqueeze(1)?, &minus_one)?;
            let _ = logits.f_mul_scalar_(weight / total as f64)?;
            let _ = logits.f_mm_out(&d_hidden.f_narrow(0, start, length)?, unembedding)?;
            let _ = if sum_to == GradientSum::Extend || start > 0 {
                d_unembedding.f_addmm_(&logits.f_tr()?, &part)?
            } else {
                logits.f_tr()?.f_mm_out(d_unembedding, &part)?
            };
        }
        Ok((sum / total as f64, d_hidden.f_view_as(hidden)?))
    }

    fn logits(&mut self, hidden: &Tensor, unembedding: &Tensor) -> Result<Tensor, TchError> {
        let (rows, vocabulary) = (hidden.size()[0], unembedding.size()[0]);
        let kept = self.logits.take().filter(|kept| kept.size()[1] == vocabulary && kept.size()[0] >= rows);
        let buffer = match kept {
            Some(buffer) => buffer,
            None => Tensor::f_empty([rows, vocabulary], (Kind::Float, hidden.device()))?,
        };
        let logits = buffer.f_narrow(0, 0, rows)?;
        self.logits = Some(buffer);
        hidden.f_mm_out(&logits, &unembedding.f_tr()?)
    }
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
