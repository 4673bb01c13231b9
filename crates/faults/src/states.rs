//! Small training states that are a pure function of (seed, sequence number), so that every byte that comes back can be
//! compared without having kept it.

use std::sync::Arc;

use ckptd_core::dtype::DType;
use ckptd_core::settings::TrainSettings;
use ckptd_core::snapshot::{CarriedFile, Metrics, Provenance, Role, Snapshot, Tensor, TensorMeta, TrainState};
use ckptd_history::record::StepRow;
use ckptd_testkit::random::SeededRandom;

/// Optimiser steps of the state with this sequence number.
pub fn step_of(seq: u64) -> u64 {
    seq * 10
}

/// The row of the history that goes with the state.
pub fn row(seed: u64, seq: u64) -> StepRow {
    let mut random = SeededRandom::of(&[seed, seq, 2]);
    StepRow {
        step: step_of(seq),
        at_ms: seq as i64,
        loss: random.below(1 << 20) as f32,
        learning_rate: random.below(1 << 20) as f32,
        grad_norm: Some(random.below(1 << 20) as f32),
        micros: random.below(1 << 40),
        tokens: random.below(1 << 40),
    }
}

/// Every fifth state is unhealthy.
pub fn healthy(seq: u64) -> bool {
    seq % 5 != 4
}

/// Every other state was evaluated.
pub fn val_loss(seed: u64, seq: u64) -> Option<f64> {
    seq.is_multiple_of(2).then(|| 1.0 + SeededRandom::of(&[seed, seq, 1]).below(4000) as f64 / 1000.0)
}

/// The tensors of a GPT-2 of one layer, so that it can be exported and imported like a real one.
const GPT2: [(&str, &[u64]); 16] = [
    ("transformer.wte.weight", &[40, 12]),
    ("transformer.wpe.weight", &[16, 12]),
    ("transformer.h.0.ln_1.weight", &[12]),
    ("transformer.h.0.ln_1.bias", &[12]),
    ("transformer.h.0.attn.c_attn.weight", &[12, 36]),
    ("transformer.h.0.attn.c_attn.bias", &[36]),
    ("transformer.h.0.attn.c_proj.weight", &[12, 12]),
    ("transformer.h.0.attn.c_proj.bias", &[12]),
    ("transformer.h.0.ln_2.weight", &[12]),
    ("transformer.h.0.ln_2.bias", &[12]),
    ("transformer.h.0.mlp.c_fc.weight", &[12, 48]),
    ("transformer.h.0.mlp.c_fc.bias", &[48]),
    ("transformer.h.0.mlp.c_proj.weight", &[48, 12]),
    ("transformer.h.0.mlp.c_proj.bias", &[12]),
    ("transformer.ln_f.weight", &[12]),
    ("transformer.ln_f.bias", &[12]),
];
const CONFIG: &str =
    r#"{"model_type": "gpt2", "vocab_size": 40, "n_positions": 16, "n_embd": 12, "n_layer": 1, "n_head": 2}"#;

pub fn snapshot(seed: u64, seq: u64) -> Snapshot {
    let mut random = SeededRandom::of(&[seed, seq, 2]);
    let mut tensors = Vec::new();
    for role in [Role::Param, Role::ExpAvg, Role::ExpAvgSq] {
        for (name, shape) in GPT2 {
            let meta = TensorMeta { role, name: name.into(), dtype: DType::F32, shape: shape.to_vec() };
            let value = |random: &mut SeededRandom| (random.next() as u32 >> 8) as f32 / (1 << 24) as f32 - 0.5;
            let bytes = (0..shape.iter().product()).flat_map(|_: u64| value(&mut random).to_le_bytes()).collect();
            tensors.push(Tensor::new(meta, bytes));
        }
    }
    let step = step_of(seq);
    let settings = TrainSettings::from_iter([("seed", seed.to_string())]);
    Snapshot {
        tensors,
        train: TrainState { step, tokens_seen: step * 64, position: step % 7, settings, ..TrainState::default() },
        metrics: Metrics {
            train_loss: Some(if healthy(seq) { 2.0 } else { f64::NAN }),
            val_loss: val_loss(seed, seq),
            val_step: val_loss(seed, seq).map(|_| step),
            probe: None,
        },
        provenance: Provenance::default(),
        files: vec![CarriedFile { name: "config.json".into(), bytes: Arc::new(CONFIG.into()) }],
    }
}

/// Whether two states are the same to the bit.
pub fn equal(a: &Snapshot, b: &Snapshot) -> bool {
    let tensor = |(a, b): (&Tensor, &Tensor)| a.meta == b.meta && (*a.bytes).as_ref() == (*b.bytes).as_ref();
    let file = |(a, b): (&CarriedFile, &CarriedFile)| a.name == b.name && a.bytes == b.bytes;
    a.train == b.train
        && a.tensors.len() == b.tensors.len()
        && a.files.len() == b.files.len()
        && a.tensors.iter().zip(&b.tensors).all(tensor)
        && a.files.iter().zip(&b.files).all(file)
}
