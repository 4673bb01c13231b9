//! Small training states that are a pure function of (seed, sequence number), so that every byte that comes back can be
//! compared without having kept it.

use std::collections::BTreeMap;
use std::sync::Arc;

use ckptd::snapshot::{CarriedFile, DType, Metrics, Provenance, Role, Snapshot, Tensor, TensorMeta, TrainState};

/// SplitMix64.
#[derive(Clone)]
pub struct Random(pub u64);

impl Random {
    pub fn of(parts: &[u64]) -> Random {
        let mut random = Random(0x9e37_79b9);
        for part in parts {
            random = Random(random.next() ^ part);
        }
        random
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }
}

/// Optimiser steps of the state with this sequence number.
pub fn step_of(seq: u64) -> u64 {
    seq * 10
}

/// Every fifth state is unhealthy.
pub fn healthy(seq: u64) -> bool {
    seq % 5 != 4
}

/// Every other state was evaluated.
pub fn val_loss(seed: u64, seq: u64) -> Option<f64> {
    (seq % 2 == 0).then(|| 1.0 + Random::of(&[seed, seq, 1]).below(4000) as f64 / 1000.0)
}

pub fn snapshot(seed: u64, seq: u64) -> Snapshot {
    let mut random = Random::of(&[seed, seq, 2]);
    let mut tensors = Vec::new();
    for layer in 0..3 {
        for role in [Role::Param, Role::ExpAvg, Role::ExpAvgSq] {
            let (rows, columns) = (8 + random.below(20), 24 + random.below(24));
            let name = format!("h.{layer}.weight");
            let meta = TensorMeta { role, name, dtype: DType::F32, shape: vec![rows, columns] };
            let value = |random: &mut Random| (random.next() as u32 >> 8) as f32 / (1 << 24) as f32 - 0.5;
            let bytes = (0..rows * columns).flat_map(|_| value(&mut random).to_le_bytes()).collect();
            tensors.push(Tensor::new(meta, bytes));
        }
    }
    let step = step_of(seq);
    let settings = BTreeMap::from([("seed".to_owned(), seed.to_string())]);
    Snapshot {
        tensors,
        train: TrainState { step, tokens_seen: step * 64, position: step % 7, settings, ..TrainState::default() },
        metrics: Metrics {
            train_loss: Some(if healthy(seq) { 2.0 } else { f64::NAN }),
            val_loss: val_loss(seed, seq),
            val_step: val_loss(seed, seq).map(|_| step),
        },
        provenance: Provenance::default(),
        files: vec![CarriedFile { name: "config.json".into(), bytes: Arc::new(format!("{{\"seq\": {seq}}}").into()) }],
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
