//! A training state that follows from its step alone, so that any snapshot can be held against what it must be.

use ckptd_core::dtype::DType;
use ckptd_core::ids::StateRoot;
use ckptd_core::snapshot::{CarriedFile, Metrics, Provenance, Role, Snapshot, Tensor, TensorMeta, TrainState};
use ckptd_core::store::format::{self, TensorRecord};

use crate::random::SeededRandom;

/// The only run of these stores.
pub const RUN: &str = "c4a05c4a05c4a05c4a05c4a05c4a05c4";

/// The state after `step` steps, its weights `elements` in number.
pub fn snapshot(step: u64, elements: usize) -> Snapshot {
    Snapshot {
        tensors: vec![
            Tensor::new(meta(Role::Param, elements), weights(step, elements)),
            Tensor::new(meta(Role::ExpAvg, elements), weights(step + 1_000_000, elements)),
        ],
        train: train(step),
        metrics: Metrics {
            train_loss: Some(4.0),
            val_loss: val_loss(step),
            val_step: Some(step),
            ..Metrics::default()
        },
        provenance: Provenance { ckptd: "chaos".into(), ..Provenance::default() },
        files: vec![CarriedFile { name: "config.json".into(), bytes: b"{}".to_vec().into() }],
    }
}

/// The validation loss of every third step.
pub fn val_loss(step: u64) -> Option<f64> {
    step.is_multiple_of(3).then(|| SeededRandom::new(step).below(1000) as f64 / 100.0)
}

/// The root that a snapshot of `step` must have.
pub fn root(step: u64, elements: usize) -> StateRoot {
    let record = |role, step| TensorRecord {
        meta: meta(role, elements),
        hash: blake3::hash(&weights(step, elements)).to_hex().to_string(),
    };
    format::root(&[record(Role::Param, step), record(Role::ExpAvg, step + 1_000_000)], &train(step))
}

fn meta(role: Role, elements: usize) -> TensorMeta {
    TensorMeta { role, name: "w".into(), dtype: DType::F32, shape: vec![elements as u64] }
}

fn weights(step: u64, elements: usize) -> Vec<u8> {
    let mut random = SeededRandom::new(step);
    (0..elements).flat_map(|_| ((random.below(2001) as f32 - 1000.0) * 1e-4).to_le_bytes()).collect()
}

fn train(step: u64) -> TrainState {
    TrainState { step, tokens_seen: step * 64, position: step, ..TrainState::default() }
}
