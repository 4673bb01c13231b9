//! What a worker of GPT-2 holds in memory at its peak, as a formula whose constants were measured.
//!
//! Beside the state it has what a snapshot may hold while the training writes elsewhere (`[snapshot] memory`),
//! gradients and, for one micro-batch, what the backward pass needs of the forward one. Deliberately not here:
//! measuring it.

use std::path::Path;

use serde_json::Value;

use crate::mapped::read_small;
use crate::names;
use ckptd_core::config::{OptimizerKind, SnapshotMemory, TrainSection};
use ckptd_core::error::{Error, Result};

/// Bytes of a float32.
const FLOAT: u64 = 4;
/// The program with libtorch's libraries (305 MiB), its threads' stacks and allocators.
const PROGRAM: u64 = 400 << 20;
/// Floats per token and layer that the backward pass needs, in widths of the model: the inputs of its operations.
const KEPT_WIDTHS: u64 = 32;
/// The same where attention drops out: libtorch 2.11 computes it in single operations then.
const KEPT_WIDTHS_DROPOUT: u64 = 42;
/// Floats per token, layer and head that dropout in attention needs for each position that is attended to.
const KEPT_SCORES_DROPOUT: u64 = 3;
/// What the block that is computed again needs, its gradients and the holes between them included, in blocks.
const RECOMPUTED_BLOCKS: u64 = 3;
/// Logits are computed in pieces of at most this many bytes.
const LOGITS: u64 = 256 << 20;
/// Blocks of a snapshot on its way to the device.
const SNAPSHOT: u64 = 64 << 20;

/// Sums of gradients that are there at once beside the one that is computed: they are added as a binary counter counts.
fn sums(micro_batches: u64) -> u64 {
    if micro_batches > 1 { u64::from((micro_batches - 1).ilog2()) + 1 } else { 0 }
}

/// The sizes of a GPT-2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModelShape {
    pub layers: u64,
    pub heads: u64,
    /// Floats of a hidden state.
    pub width: u64,
    /// Floats between the two halves of an MLP.
    pub inner: u64,
    /// Tokens that it knows.
    pub vocabulary: u64,
    /// Tokens that it sees at most.
    pub positions: u64,
    /// Whether a training drops out attention weights.
    pub drops_attention: bool,
}

const MAX_CONFIG_BYTES: u64 = 1 << 20;
/// The sizes of transformers' `GPT2Config`, where a config.json leaves them out.
const USUAL: ModelShape = ModelShape {
    layers: 12,
    heads: 12,
    width: 768,
    inner: 3072,
    vocabulary: 50257,
    positions: 1024,
    drops_attention: true,
};

impl ModelShape {
    /// Of the model folder `dir`, as its config.json says.
    ///
    /// # Errors
    /// Those of reading, and [`Error::Malformed`] for what is no JSON object.
    pub fn of_folder(dir: &Path) -> Result<ModelShape> {
        let path = dir.join(names::CONFIG);
        let bytes = read_small(&path, MAX_CONFIG_BYTES)?;
        let json: Value =
            serde_json::from_slice(&bytes).map_err(|e| Error::malformed(&path, format!("not JSON: {e}")))?;
        let size = |names: [&str; 2], usual: u64| {
            names.iter().find_map(|name| json.get(name)?.as_u64()).filter(|size| *size > 0).unwrap_or(usual)
        };
        let width = size(["n_embd", "hidden_size"], USUAL.width);
        Ok(ModelShape {
            layers: size(["n_layer", "num_hidden_layers"], USUAL.layers),
            heads: size(["n_head", "num_attention_heads"], USUAL.heads),
            width,
            inner: size(["n_inner", "intermediate_size"], width.saturating_mul(4)),
            vocabulary: size(["vocab_size", "vocab_size"], USUAL.vocabulary),
            positions: size(["n_positions", "max_position_embeddings"], USUAL.positions),
            drops_attention: json.get("attn_pdrop").and_then(Value::as_f64) != Some(0.0),
        })
    }

    /// Of a preset's name.
    pub fn of_preset(name: &str) -> Option<ModelShape> {
        let sized = |width, layers, heads| ModelShape { layers, heads, width, inner: 4 * width, ..USUAL };
        match name {
            "gpt2" => Some(USUAL),
            "gpt2-medium" => Some(sized(1024, 24, 16)),
            "gpt2-large" => Some(sized(1280, 36, 20)),
            "gpt2-xl" => Some(sized(1600, 48, 25)),
            "gpt2-mini" => {
                Some(ModelShape { vocabulary: 4096, positions: 256, drops_attention: false, ..sized(192, 4, 6) })
            }
            _ => None,
        }
    }

    /// Numbers in its parameters, the tied head counted once.
    pub fn parameters(&self) -> u64 {
        let ModelShape { layers, width, inner, vocabulary, positions, .. } = *self;
        let attention = 4 * width * width + 4 * width;
        let mlp = 2 * width * inner + inner + width;
        (vocabulary + positions) * width + layers * (attention + mlp + 4 * width) + 2 * width
    }

    /// Bytes of a state: parameters, and what the optimiser keeps.
    pub fn state_bytes(&self, train: &TrainSection) -> u64 {
        let copies = match train.optimizer {
            OptimizerKind::Adamw => 3,
            OptimizerKind::Sgd if train.momentum > 0.0 => 2,
            OptimizerKind::Sgd => 1,
        };
        copies * FLOAT * self.parameters()
    }

    /// Bytes that a worker holds at its peak, about, where nothing else is asked for.
    pub fn peak_bytes(&self, train: &TrainSection) -> u64 {
        self.peak_bytes_of_rank(train, SnapshotMemory::Auto, 1)
    }

    /// [`ModelShape::peak_bytes`] under `[snapshot] memory`, of one of the ranks that hold what the optimiser keeps in
    /// so many shards.
    pub fn peak_bytes_of_rank(&self, train: &TrainSection, memory: SnapshotMemory, shards: u64) -> u64 {
        let tokens = train.batch_size.saturating_mul(train.sequence_length);
        let (widths, scores) =
            if self.drops_attention { (KEPT_WIDTHS_DROPOUT, KEPT_SCORES_DROPOUT) } else { (KEPT_WIDTHS, 0) };
        let block = widths / 2 * (self.width + self.inner / 4) + scores * self.heads * train.sequence_length;
        let per_token = if train.activation_checkpointing {
            // The inputs of all, and the one that is computed again.
            self.layers * self.width + RECOMPUTED_BLOCKS * block
        } else {
            self.layers * block
        };
        let kept = tokens.saturating_mul(per_token).saturating_mul(FLOAT);
        let logits = tokens.saturating_mul(self.vocabulary).saturating_mul(FLOAT).min(LOGITS);
        let gradients = (1 + sums(train.grad_accumulation)).saturating_mul(FLOAT * self.parameters());
        let parameters = FLOAT * self.parameters();
        let held = parameters + (self.state_bytes(train) - parameters).div_ceil(shards.max(1));
        [PROGRAM, SNAPSHOT, held, memory.bytes(held), gradients, kept, logits].into_iter().fold(0, u64::saturating_add)
    }
}
