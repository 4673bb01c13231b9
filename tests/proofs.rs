//! `ckptd compare` and `ckptd check` say the same numbers in the same JSON as the releases before: tests/golden.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::{Command, Stdio};

use ckptd_core::dtype::DType;
use ckptd_core::snapshot::{Metrics, Provenance, Role, Snapshot, Tensor, TensorMeta, TrainState};
use ckptd_core::store::{CommitOptions, Store, commit};

const RUN: &str = "0123456789abcdef0123456789abcdef";

fn tensor(role: Role, name: &str, dtype: DType, shape: &[u64], bytes: Vec<u8>) -> Tensor {
    Tensor::new(TensorMeta { role, name: name.into(), dtype, shape: shape.to_vec() }, bytes)
}

fn f32s(values: impl IntoIterator<Item = f32>) -> Vec<u8> {
    values.into_iter().flat_map(f32::to_le_bytes).collect()
}

/// One side of a comparison; `other` of them differs from the first in every way that there is.
fn state(other: bool) -> Snapshot {
    let d = u8::from(other);
    let f = f32::from(d);
    let param = |name, shape: &[u64], bytes| tensor(Role::Param, name, DType::F32, shape, bytes);
    // Two blocks of numbers whose sums are exact in any order.
    let long = f32s((0..70_000).map(|i| (i % 7) as f32 * 0.5 - f * (i % 3) as f32));
    let mut tensors = vec![
        param("transformer.wte.weight", &[5, 3], f32s((0..15).map(|i| i as f32 * 0.125 + f * (i % 4) as f32))),
        param("same", &[4], f32s([1.0, -2.0, 3.0, f32::MIN_POSITIVE])),
        param("sign", &[2], f32s([0.0, if other { -0.0 } else { 0.0 }])),
        param("nan.here", &[3], f32s([f32::NAN, 1.0, 2.0 + f])),
        param("nan.there", &[2], f32s([if other { f32::NAN } else { 0.0 }, 1.0])),
        param("infinite", &[2], f32s([if other { f32::INFINITY } else { 1.0 }, 1.0])),
        param("nan.same", &[2], f32s([f32::NAN, 7.0])),
        param("shaped", if other { &[2, 3] } else { &[6] }, f32s([1.0; 6])),
        param("empty", &[0, 3], Vec::new()),
        tensor(Role::ExpAvg, "transformer.wte.weight", DType::F32, &[70_000], long),
        tensor(
            Role::Buffer,
            "f64",
            DType::F64,
            &[2],
            [1.5f64, 2.0 + 0.1 * f64::from(f)].map(f64::to_le_bytes).concat(),
        ),
        tensor(
            Role::Buffer,
            "f16",
            DType::F16,
            &[2],
            [0x3c00u16, 0x4000 + u16::from(d)].map(u16::to_le_bytes).concat(),
        ),
        tensor(
            Role::Buffer,
            "bf16",
            DType::BF16,
            &[2],
            [0x3f80u16, 0x4000 + u16::from(d)].map(u16::to_le_bytes).concat(),
        ),
        tensor(
            Role::Buffer,
            "i64",
            DType::I64,
            &[2],
            [-3i64, 1 << 40].map(|i| (i + i64::from(d)).to_le_bytes()).concat(),
        ),
        tensor(Role::Buffer, "i32", DType::I32, &[1], (i32::MIN + i32::from(d)).to_le_bytes().to_vec()),
        tensor(Role::Buffer, "i16", DType::I16, &[1], (i16::from(d) - 5).to_le_bytes().to_vec()),
        tensor(Role::Buffer, "i8", DType::I8, &[2], vec![0x80, 0x7f - d]),
        tensor(Role::Buffer, "u8", DType::U8, &[2], vec![0xff - d, 1]),
        tensor(Role::Buffer, "bool", DType::Bool, &[2], vec![1, d]),
    ];
    tensors.push(if other {
        tensor(Role::Buffer, "typed", DType::BF16, &[2], [0x3f80u16, 0x4000].map(u16::to_le_bytes).concat())
    } else {
        tensor(Role::Buffer, "typed", DType::F32, &[2], f32s([1.0, 2.5]))
    });
    let own = if other { ["z.there", "b.there"] } else { ["z.here", "b.here"] };
    tensors.extend(own.map(|name| param(name, &[1], f32s([1.0]))));
    let mut train = TrainState { step: 10 + u64::from(d), tokens_seen: 640, position: 5, ..TrainState::default() };
    train.best_val_loss = other.then_some(3.25);
    train.settings.set("seed", "1337");
    train.settings.set("train.learning_rate", format!("0.{}", 1 + d));
    let provenance = Provenance { ckptd: "test".into(), ..Provenance::default() };
    Snapshot { tensors, train, metrics: Metrics::default(), provenance, files: Vec::new() }
}

/// The document of a command, with the folder of the stores left out of it.
fn document(folder: &Path, arguments: &[&str], code: i32) -> String {
    let output =
        Command::new(env!("CARGO_BIN_EXE_ckptd")).args(arguments).current_dir(folder).stdin(Stdio::null()).output();
    let output = output.unwrap();
    assert_eq!(output.status.code(), Some(code), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().replace(&format!("{}/", folder.display()), "")
}

fn stores() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, other) in [("a", false), ("b", true)] {
        let store = Store::create(&folder.path().join(name)).unwrap();
        let lock = store.lock("a test").unwrap();
        // The file has the time in as many digits as it needs, so that its size depends on it.
        let created_at = Some("2026-01-02T03:04:05.123456789Z".parse().unwrap());
        commit(&store, &lock, state(other), &CommitOptions { created_at, ..CommitOptions::new(RUN, 1) }).unwrap();
    }
    folder
}

#[test]
fn compare_says_the_numbers_of_the_releases_before() {
    let folder = stores();
    let (a, b) = ("a/snapshots/step-000000000010.ckpt", "b/snapshots/step-000000000011.ckpt");
    assert_eq!(document(folder.path(), &["compare", "--json", a, b], 1), include_str!("golden/compare.json"));
    assert_eq!(document(folder.path(), &["compare", "--json", a, a], 0), include_str!("golden/compare-same.json"));
}

#[test]
fn check_says_the_numbers_of_the_releases_before() {
    let folder = stores();
    let b = "b/snapshots/step-000000000011.ckpt";
    assert_eq!(document(folder.path(), &["check", "--json", "a", "10"], 1), include_str!("golden/check.json"));
    let against = document(folder.path(), &["check", "--json", "a", "10", "--against", b], 1);
    assert_eq!(against, include_str!("golden/check-against.json"));
}
