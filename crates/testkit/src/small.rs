//! Small stores and snapshots, whose tensors look like a training's.

use std::os::unix::fs::FileExt;
use std::path::Path;

use ckptd_core::dtype::DType;
use ckptd_core::progress::NoProgress;
use ckptd_core::settings::TrainSettings;
use ckptd_core::snapshot::{CarriedFile, Metrics, Provenance, Role, Snapshot, Tensor, TensorMeta, TrainState};
use ckptd_core::store::{CommitOptions, Committed, Store, StoreLock, commit};

pub const RUN: &str = "0123456789abcdef0123456789abcdef";

/// Bytes that look like trained weights: normals of a scale that differs by row.
pub fn floats(seed: u64, rows: usize, cols: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut uniform = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 24) as f32
    };
    let mut bytes = Vec::with_capacity(rows * cols * 4);
    for row in 0..rows {
        let scale = 0.02 * (1.0 + (row % 7) as f32);
        for _ in 0..cols {
            let normal = (0..4).map(|_| uniform() - 0.5).sum::<f32>();
            bytes.extend_from_slice(&(normal * scale).to_le_bytes());
        }
    }
    bytes
}

pub fn tensor(role: Role, name: &str, shape: &[u64], bytes: Vec<u8>) -> Tensor {
    Tensor::new(TensorMeta { role, name: name.into(), dtype: DType::F32, shape: shape.to_vec() }, bytes)
}

/// A small state after `step` steps; other steps have other bytes.
pub fn snapshot(step: u64, rows: usize) -> Snapshot {
    let matrix = |role, salt| tensor(role, "h.0.weight", &[rows as u64, 48], floats(step * 31 + salt, rows, 48));
    let squares = |salt| {
        floats(step * 31 + salt, rows, 48)
            .chunks(4)
            .flat_map(|b| {
                let x = f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
                (x * x).to_le_bytes()
            })
            .collect()
    };
    Snapshot {
        tensors: vec![
            matrix(Role::Param, 1),
            matrix(Role::ExpAvg, 2),
            tensor(Role::ExpAvgSq, "h.0.weight", &[rows as u64, 48], squares(3)),
            tensor(Role::Param, "h.0.bias", &[48], floats(step, 1, 48)),
            tensor(Role::Param, "empty", &[0, 3], Vec::new()),
            Tensor::new(
                TensorMeta { role: Role::Buffer, name: "steps".into(), dtype: DType::I64, shape: vec![] },
                step.to_le_bytes().to_vec(),
            ),
        ],
        train: TrainState {
            step,
            tokens_seen: step * 512,
            position: step,
            best_val_loss: Some(3.5),
            settings: TrainSettings::from_iter([("seed", "1337")]),
            ..TrainState::default()
        },
        metrics: Metrics { train_loss: Some(4.0), ..Metrics::default() },
        provenance: Provenance { ckptd: "test".into(), ..Provenance::default() },
        files: vec![CarriedFile { name: "config.json".into(), bytes: b"{\"n_layer\": 1}".to_vec().into() }],
    }
}

pub fn store() -> (tempfile::TempDir, Store) {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::create(&folder.path().join("store")).unwrap();
    store.set_run_id(&StoreLock::inherited(), RUN).unwrap();
    (folder, store)
}

pub fn save(store: &Store, step: u64, seq: u64) -> Committed {
    commit(store, &StoreLock::inherited(), snapshot(step, 64), &CommitOptions::new(RUN, seq)).unwrap()
}

/// Commits and verifies.
pub fn save_verified(store: &Store, step: u64, seq: u64) -> Committed {
    let committed = save(store, step, seq);
    store.verify(&store.find(&committed.id).unwrap(), 1, &NoProgress).unwrap();
    committed
}

/// Damages a file as a failing disk would.
pub fn flip_a_byte(path: &Path) {
    let file = std::fs::File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, 100).unwrap();
    file.write_all_at(&[byte[0] ^ 1], 100).unwrap();
}
