//! GPT-2 exactly as transformers' GPT2LMHeadModel: the same names, shapes and arithmetic, in float32, or with matrix
//! products and attention in bf16 as under torch's autocast.
//!
//! [`Gpt2Config`] is the shape; [`init`] fills the parameters; [`Gpt2Model`] computes losses, logits and gradients from
//! parameters that it is given (`capture::TrainingState::params`), in the order of [`Gpt2Config::parameters`].
//!
//! The body (blocks and last layer norm) is differentiated by libtorch's autograd. Its two ends are not: the head
//! turns logits into their own gradient in place, and the embedding's gradient is added row by row to the gradient
//! of the tied head, so that neither the logits nor the embedding's gradient (each 154 MB and more) exist twice. The
//! body is differentiated block by block (`passes`).
//!
//! Invariant: the results are a function of the parameters, the batch, the number of threads, and where there is
//! dropout of libtorch's generator, which the caller seeds. Deliberately not here: the update, and the state's memory.

mod batch;
mod generator;
mod head;
pub mod init;
mod layer_norm;
mod model;
mod passes;
mod places;
mod products;

pub use batch::{ModelGradients, TokenBatch};
pub use ckptd_interop::gpt2_config::{Activation, Gpt2Config, PRESETS};
pub use layer_norm::NormGradients;
pub use model::{Activations, Gpt2Model};
pub use products::{Bf16Products, ProductCasts, WeightViews};
