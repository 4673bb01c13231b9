//! The file of a snapshot is a function of its state, its run and its time.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use ckptd_core::dtype::DType;
use ckptd_core::settings::TrainSettings;
use ckptd_core::snapshot::{CarriedFile, Metrics, Provenance, Role, Snapshot, Tensor, TensorMeta, TrainState};
use ckptd_core::store::{CommitOptions, Store, StoreLock, commit};

fn bytes(seed: u64, len: usize) -> impl Iterator<Item = u64> {
    let mut state = seed;
    std::iter::repeat_with(move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    })
    .take(len)
}

/// Floats as weights have them: small, of both signs, with exponents that repeat.
fn weights(seed: u64, count: usize) -> impl Iterator<Item = f32> {
    bytes(seed, count).map(|r| ((r >> 40) as f32 / (1 << 24) as f32 - 0.5) * if r & 7 == 0 { 0.3 } else { 0.02 })
}

fn tensor(role: Role, name: &str, dtype: DType, shape: &[u64], bytes: Vec<u8>) -> Tensor {
    Tensor::new(TensorMeta { role, name: name.into(), dtype, shape: shape.to_vec() }, bytes)
}

fn f32s(seed: u64, count: usize) -> Vec<u8> {
    weights(seed, count).flat_map(f32::to_le_bytes).collect()
}

fn squares(seed: u64, count: usize) -> Vec<u8> {
    weights(seed, count).flat_map(|w| (w * w * 1e-3).to_le_bytes()).collect()
}

fn upper_halves(seed: u64, count: usize) -> Vec<u8> {
    weights(seed, count).flat_map(|w| ((w.to_bits() >> 16) as u16).to_le_bytes()).collect()
}

fn state() -> Snapshot {
    let (rows, columns) = (1500u64, 1024u64);
    let count = (rows * columns) as usize;
    let mut tensors = Vec::new();
    for (role, seed) in [(Role::Param, 1), (Role::ExpAvg, 2)] {
        tensors.push(tensor(role, "transformer.wte.weight", DType::F32, &[rows, columns], f32s(seed, count)));
        tensors.push(tensor(role, "transformer.h.0.attn.c_attn.bias", DType::F32, &[768], f32s(seed + 10, 768)));
    }
    tensors.push(tensor(Role::ExpAvgSq, "transformer.wte.weight", DType::F32, &[rows, columns], squares(3, count)));
    tensors.push(tensor(Role::MomentumBuffer, "transformer.ln_f.weight", DType::F32, &[64], f32s(4, 64)));
    tensors.push(tensor(Role::Buffer, "half", DType::BF16, &[300, 1000], upper_halves(5, 300_000)));
    tensors.push(tensor(Role::Buffer, "f16", DType::F16, &[1000], upper_halves(6, 1000)));
    let doubles = weights(7, 5000).flat_map(|w| f64::from(w).to_le_bytes()).collect();
    tensors.push(tensor(Role::Buffer, "doubles", DType::F64, &[5000], doubles));
    let counts = (0..70_000i64).flat_map(i64::to_le_bytes).collect();
    tensors.push(tensor(Role::Buffer, "counts", DType::I64, &[70_000], counts));
    tensors.push(tensor(Role::Buffer, "mask", DType::Bool, &[4096], bytes(8, 4096).map(|r| (r & 1) as u8).collect()));
    tensors.push(tensor(Role::Buffer, "empty", DType::F32, &[0, 3], Vec::new()));
    tensors.push(tensor(Role::Buffer, "scalar", DType::F32, &[], 2.5f32.to_le_bytes().to_vec()));
    let settings =
        [("seed", "1337"), ("threads", "2"), ("train.learning_rate", "0.0003"), ("train.betas", "[0.9,0.95]")];
    Snapshot {
        tensors,
        train: TrainState {
            step: 1200,
            tokens_seen: 2_457_600,
            epoch: 3,
            position: 77,
            last_eval_step: 1100,
            best_val_loss: Some(3.25),
            settings: TrainSettings::from_iter(settings),
            ..TrainState::default()
        },
        metrics: Metrics { train_loss: Some(3.125), val_loss: Some(3.25), val_step: Some(1100), probe: None },
        provenance: Provenance {
            ckptd: "0.1.0".into(),
            libtorch: "2.11.0".into(),
            host: "host".into(),
            device: "cpu".into(),
            reason: "interval".into(),
        },
        files: vec![CarriedFile { name: "config.json".into(), bytes: Arc::new(b"{\"n_layer\": 2}\n".repeat(40)) }],
    }
}

/// Length, BLAKE3 of the file and root, per `[snapshot] level`, as release 0.1.0 wrote them.
const GOLDEN: [(u8, usize, &str); 4] = [
    (0, 19_651_453, "c19e72dacbb2444f653a094af95ee7d2c9d7aca8ab7eacd30f7fa7f6b7eef4ab"),
    (1, 15_681_055, "be6659ccb642b7ea78e875764d91dbc227a9de05a6cb999835c61e50c1823802"),
    (3, 15_715_038, "22ac533635080da6ef9b91116efcb90c57918362515a0193482f65ab8ba29dc8"),
    (9, 15_680_291, "6302f6933f78061591ad4cd973c959454f9d578839ceb2aaf1230ccf723eb70e"),
];
const ROOT: &str = "2bd98980e92ec476606aaa6f0b112b9f6144cd76be9dbce138977e41a45a498e";

#[test]
fn the_same_state_run_and_time_give_the_same_file_as_release_0_1_0() {
    for (level, length, hash) in GOLDEN {
        for threads in [1, 2] {
            let folder = tempfile::tempdir().unwrap();
            let store = Store::create(&folder.path().join("store")).unwrap();
            let options = CommitOptions {
                parent: Some("step-000000001100".into()),
                level,
                threads,
                created_at: Some(jiff::Timestamp::from_second(1_764_000_000).unwrap()),
                ..CommitOptions::new("0123456789abcdef0123456789abcdef", 7)
            };
            let committed = commit(&store, &StoreLock::inherited(), state(), &options).unwrap();
            let file = std::fs::read(&committed.path).unwrap();
            let found = (file.len(), blake3::hash(&file).to_hex().to_string(), committed.root);
            assert_eq!(found, (length, hash.into(), ROOT.into()), "level {level}, {threads} threads");
        }
    }
}
