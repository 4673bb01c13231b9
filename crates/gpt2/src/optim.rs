//! The update: global-norm clipping, SGD and AdamW over the tensors of a [`TrainingState`], in one pass over memory.
//!
//! - SGD as torch.optim.SGD: b <- momentum b + (g + decay p), p <- p - lr b; without momentum there is no b.
//! - AdamW as torch.optim.AdamW: p <- p (1 - lr decay); m, v <- moving averages of g and g^2;
//!   p <- p - lr / (1 - beta1^t) m / (sqrt(v) / sqrt(1 - beta2^t) + eps), with t the step's number from 1.
//! - Weight decay falls on tensors of two dimensions (weights of linear layers and both embeddings), never on
//!   biases and layer norms.
//! - Clipping as torch.nn.utils.clip_grad_norm_: g <- g min(1, limit / (norm + 1e-6)), with the norm over all tensors.
//!
//! Invariant: the result is the same to the bit for any number of threads and any vector width: blocks are fixed,
//! sums are of doubles in the order of the blocks, and no multiplication is contracted with an addition.
//! Deliberately not here: the learning rate's schedule, and where the tensors live.

mod coefficients;
mod kernel;
mod optimizer;
mod tensors;

pub use kernel::NORM_BLOCK;
pub use optimizer::{ModelOptimizer, UpdateRule, UpdateShard, UpdateStep};
