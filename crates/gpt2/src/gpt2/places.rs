//! Where each parameter stands in the order of [`Gpt2Config::parameters`], and what reads it.

use std::ops::Range;

use ckptd_interop::gpt2_config::Gpt2Config;
use ckptd_interop::gpt2_names::BlockParameter;

/// Tensors of a block.
pub(super) const PER_LAYER: usize = BlockParameter::ALL.len();
pub(super) const WTE: usize = 0;
pub(super) const WPE: usize = 1;
pub(super) const FIRST_LAYER: usize = 2;

/// The parameters of block `layer`.
pub(super) fn block_params(layer: usize) -> Range<usize> {
    let first = FIRST_LAYER + PER_LAYER * layer;
    first..first + PER_LAYER
}

/// Those of the layer norm after the last block.
pub(super) fn last_norm_params(config: &Gpt2Config) -> Range<usize> {
    let first = block_params(config.n_layer as usize).start;
    first..first + 2
}

/// Which of `count` parameters the head reads.
pub(super) fn unembedding_index(config: &Gpt2Config, count: usize) -> usize {
    if config.tie_word_embeddings { WTE } else { count - 1 }
}

/// Whether a matrix product of a block reads the parameter at `index`: the weights and biases of its four projections.
pub(super) fn is_product_operand(config: &Gpt2Config, index: usize) -> bool {
    let blocks = FIRST_LAYER..last_norm_params(config).start;
    let is_norm = |at: usize| [0, 1, 6, 7].contains(&at);
    blocks.contains(&index) && !is_norm((index - FIRST_LAYER) % PER_LAYER)
}
