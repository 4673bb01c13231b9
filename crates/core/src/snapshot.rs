//! What a snapshot is, free of any framework: named tensors as dtype, shape and bytes, the train state, the provenance.
//!
//! Invariant: nothing here knows how a snapshot is stored, or what trains. Bytes are little-endian and row-major.
//! Deliberately not here: files (store), libtorch (the trainer crate).

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::arithmetic::ArithmeticNumber;
use crate::dtype::DType;
use crate::error::Result;
use crate::settings::TrainSettings;

/// What a tensor is to the training; optimiser state carries PyTorch's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// A parameter of the model.
    Param,
    /// Adam's moving average of gradients.
    ExpAvg,
    /// Adam's moving average of squared gradients.
    ExpAvgSq,
    /// SGD's momentum.
    MomentumBuffer,
    /// A tensor of the model that is not trained.
    Buffer,
    /// Any other tensor that decides how the training goes on; its name says what it is. Only files of version 2 hold
    /// one.
    State,
}

impl Role {
    /// As it stands in files.
    pub const fn name(self) -> &'static str {
        match self {
            Role::Param => "param",
            Role::ExpAvg => "exp_avg",
            Role::ExpAvgSq => "exp_avg_sq",
            Role::MomentumBuffer => "momentum_buffer",
            Role::Buffer => "buffer",
            Role::State => "state",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A tensor without its bytes. `(role, name)` is unique in a snapshot: the moments of a parameter carry its name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TensorMeta {
    /// What it is to the training.
    pub role: Role,
    /// The parameter's name; a moment has its parameter's.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Dimensions, the slowest first; empty for a scalar.
    pub shape: Vec<u64>,
}

impl TensorMeta {
    /// Number of elements, or `None` where the product overflows.
    pub fn elements(&self) -> Option<u64> {
        self.shape.iter().try_fold(1u64, |n, &d| n.checked_mul(d))
    }

    /// Number of bytes, or `None` where it overflows.
    pub fn bytes(&self) -> Option<u64> {
        self.elements()?.checked_mul(self.dtype.size() as u64)
    }

    /// Length of a row of a matrix (last dimension), or 0 for anything that is not a matrix.
    pub fn row_elements(&self) -> u64 {
        match self.shape.as_slice() {
            [rows, cols] if *rows > 1 => *cols,
            _ => 0,
        }
    }

    /// `param transformer.wte.weight` for messages.
    pub fn label(&self) -> String {
        format!("{} {}", self.role, self.name)
    }
}

/// The bytes of a tensor, held for as long as they are needed: a capture's handle, a mapping, a plain vector.
pub type TensorBytes = Arc<dyn AsRef<[u8]> + Send + Sync>;

/// The bytes of a tensor that lie elsewhere, or in parts, and are read while a snapshot is written.
pub trait DistantBytes: Send + Sync {
    /// Reads as many bytes as `into` has, from `offset` on. Both keep to the chunks of a snapshot.
    ///
    /// # Errors
    /// Where they cannot be had; the snapshot is given up then.
    fn read(&self, offset: u64, into: &mut [u8]) -> Result<()>;
}

/// A tensor whose bytes lie elsewhere.
#[derive(Clone)]
pub struct DistantTensor {
    /// Role, name, type and shape.
    pub meta: TensorMeta,
    /// As many as `meta` says.
    pub bytes: Arc<dyn DistantBytes>,
}

/// A tensor with its bytes (row-major, little-endian).
#[derive(Clone)]
pub struct Tensor {
    /// Role, name, type and shape.
    pub meta: TensorMeta,
    /// As many as `meta` says.
    pub bytes: TensorBytes,
}

impl Tensor {
    /// A tensor that owns its bytes, as many as `meta` says.
    pub fn new(meta: TensorMeta, bytes: Vec<u8>) -> Tensor {
        Tensor { meta, bytes: Arc::new(bytes) }
    }

    /// Whether the other one has the same type, shape and bytes, whatever it is called.
    pub fn has_values_of(&self, other: &Tensor) -> bool {
        self.meta.dtype == other.meta.dtype
            && self.meta.shape == other.meta.shape
            && (*self.bytes).as_ref() == (*other.bytes).as_ref()
    }
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tensor").field("meta", &self.meta).finish_non_exhaustive()
    }
}

/// Everything besides tensors that decides how the training goes on. All of it enters `root`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TrainState {
    /// Optimiser steps completed.
    pub step: u64,
    /// Tokens whose loss has entered an update.
    pub tokens_seen: u64,
    /// Passes over the training data completed.
    pub epoch: u64,
    /// Samples of the current epoch consumed.
    pub position: u64,
    /// Step of the last evaluation that was completed; 0 if none.
    pub last_eval_step: u64,
    /// Lowest validation loss so far.
    pub best_val_loss: Option<f64>,
    /// The settings that change the arithmetic (seed, batch size, optimiser, threads, data hash, ...), by name. A
    /// resume under other values is refused unless the user accepts it.
    pub settings: TrainSettings,
    /// The arithmetic that the training is computed under. The first one is not written.
    #[serde(default, skip_serializing_if = "ArithmeticNumber::is_first")]
    pub arithmetic: ArithmeticNumber,
}

/// Figures of the moment. They do not enter `root`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Metrics {
    /// Mean loss of the last step, in nats per token.
    pub train_loss: Option<f64>,
    /// Loss of the last evaluation, in nats per token.
    pub val_loss: Option<f64>,
    /// Step at which `val_loss` was measured.
    pub val_step: Option<u64>,
    /// BLAKE3, as hex, of the logits that the worker's probe gave; see `[snapshot] probe`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probe: Option<String>,
}

/// Where a snapshot comes from. It does not enter `root`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Provenance {
    /// ckptd's version.
    pub ckptd: String,
    /// libtorch's version.
    pub libtorch: String,
    /// Name of the machine.
    pub host: String,
    /// "cpu" or "cuda:N".
    pub device: String,
    /// Why it was taken: "interval", "signal", "final", ...
    pub reason: String,
}

/// A small file that travels with the snapshot (config.json, tokenizer.json), by its plain name.
#[derive(Clone)]
pub struct CarriedFile {
    /// Without a folder.
    pub name: String,
    /// Its content.
    pub bytes: Arc<Vec<u8>>,
}

/// One consistent cut of a training: what a commit writes and a resume reads.
#[derive(Clone)]
pub struct Snapshot {
    /// In the order in which they are written.
    pub tensors: Vec<Tensor>,
    /// All else that decides how the training goes on.
    pub train: TrainState,
    /// Figures of the moment.
    pub metrics: Metrics,
    /// Where it comes from.
    pub provenance: Provenance,
    /// Small files that travel along.
    pub files: Vec<CarriedFile>,
}
