//! A snapshot can be read without ckptd: docs/format.md is enough for a reader in another language.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::Path;

use ckptd_core::dtype::DType;
use ckptd_core::snapshot::{CarriedFile, Role, Snapshot, Tensor, TensorMeta};
use ckptd_core::store::{CommitOptions, Committed, SnapshotReader, Store, StoreLock, commit};
use ckptd_testkit::python;
use ckptd_testkit::small;
use ckptd_testkit::small::{RUN, floats, snapshot, store};

const ROLES: [Role; 6] = [Role::Param, Role::ExpAvg, Role::ExpAvgSq, Role::MomentumBuffer, Role::Buffer, Role::State];
const DTYPES: [DType; 10] = [
    DType::F64,
    DType::F32,
    DType::F16,
    DType::BF16,
    DType::I64,
    DType::I32,
    DType::I16,
    DType::I8,
    DType::U8,
    DType::Bool,
];

/// Shapes that meet every rule on chunks and rows: scalar, empty, one row, rows that cross chunks, three dimensions,
/// exactly one chunk of four-byte elements, many chunks.
const SHAPES: [&[u64]; 8] = [&[], &[0, 3], &[1, 5000], &[700, 300], &[7, 11, 13], &[131_072], &[1500, 768], &[2, 1]];

/// Bytes of all kinds that the codec tells apart, by `seed`: numbers like weights, one value, few values, noise.
fn bytes(dtype: DType, length: usize, seed: u64) -> Vec<u8> {
    let random = |n: usize| floats(seed, n / 256 + 1, 64)[..n].to_vec();
    match (seed % 4, dtype) {
        (0, DType::F32) => random(length),
        (1, DType::F32) => random(length).chunks(4).flat_map(|b| [b[0], b[1], b[2], b[3] & 0x7f]).collect(),
        (0 | 1, DType::F64) => {
            let singles = random(length / 2);
            singles
                .chunks(4)
                .flat_map(|b| f64::from(f32::from_le_bytes([b[0], b[1], b[2], b[3]])).to_le_bytes())
                .collect()
        }
        (0 | 1, DType::BF16) => random(2 * length).chunks(4).flat_map(|b| [b[2], b[3]]).collect(),
        (_, DType::Bool) => random(length).iter().map(|b| b & 1).collect(),
        (2, _) => vec![seed as u8; length],
        (3, _) => random(length).iter().map(|b| b & 3).collect(),
        _ => random(length).iter().enumerate().map(|(i, b)| b ^ (i as u8).wrapping_mul(31)).collect(),
    }
}

/// Every dtype in every shape in turn in every role.
fn everything() -> Snapshot {
    let mut tensors = Vec::new();
    for (i, dtype) in DTYPES.into_iter().enumerate() {
        for (j, shape) in SHAPES.into_iter().enumerate() {
            let seed = (i * 3 + j) as u64;
            let role = ROLES[(i + j) % ROLES.len()];
            // A name beyond ASCII, with what JSON escapes.
            let meta = TensorMeta { role, name: format!("é \"{i}\"\t\u{1}.{j}"), dtype, shape: shape.to_vec() };
            let length = meta.bytes().unwrap() as usize;
            tensors.push(Tensor::new(meta, bytes(dtype, length, seed)));
        }
    }
    // Moments of matrices are stored in ways of their own; so is what is nowhere negative.
    let signed = floats(9, 900, 768);
    let positive: Vec<u8> = signed.chunks(4).flat_map(|b| [b[0], b[1], b[2], b[3] & 0x7f]).collect();
    tensors.push(small::tensor(Role::Param, "signed", &[900, 768], signed.clone()));
    tensors.push(small::tensor(Role::Param, "positive", &[900, 768], positive.clone()));
    tensors.push(small::tensor(Role::ExpAvg, "signed", &[900, 768], signed));
    tensors.push(small::tensor(Role::ExpAvgSq, "positive", &[900, 768], positive));
    let file = |name: &str, bytes: Vec<u8>| CarriedFile { name: name.into(), bytes: bytes.into() };
    let mut saved = Snapshot { tensors, ..snapshot(1200, 8) };
    saved.files =
        vec![file("config.json", b"{}".to_vec()), file("empty", Vec::new()), file("a b", floats(3, 300, 768))];
    saved.train.best_val_loss = Some(3.0e-7);
    saved.train.settings.set("quote \" and \u{1f}", "é\\\n");
    saved.metrics.train_loss = Some(f64::NAN);
    saved
}

fn commit_to(store: &Store, saved: &Snapshot, seq: u64, level: u8) -> Committed {
    let options =
        CommitOptions { level, threads: 2, parent: Some("0".repeat(64).into()), ..CommitOptions::new(RUN, seq) };
    commit(store, &StoreLock::inherited(), saved.clone(), &options).unwrap()
}

/// What the reader in Python says of the file, after writing its raw bytes to `folder`.
fn read_in_python(path: &Path, folder: &Path) -> serde_json::Value {
    let said = python::run("ckptd_reader.py", &[path, Path::new("--json"), Path::new("--extract"), folder]);
    serde_json::from_str(&said).unwrap()
}

#[test]
fn a_reader_that_knows_only_the_documents_reads_every_byte_of_every_tensor() {
    let (folder, store) = store();
    for (seq, level, version) in [(1, 0, 1), (2, 1, 2), (3, 9, 2)] {
        let mut saved = everything();
        // What makes a file one of version 2.
        saved.tensors.retain(|tensor| version == 2 || tensor.meta.role != Role::State);
        let committed = commit_to(&store, &saved, seq, level);
        let manifest = read_in_python(&committed.path, folder.path());
        assert_eq!(manifest["format"], version);
        let ours = SnapshotReader::open(&committed.path).unwrap();
        assert_eq!(manifest["root"], committed.root.as_str());
        assert_eq!(manifest["file_hash"], blake3::Hash::from_bytes(ours.file_hash()).to_hex().as_str());
        assert_eq!((&manifest["seq"], &manifest["healthy"]), (&seq.into(), &false.into()));
        assert_eq!(manifest["train"], serde_json::to_value(&saved.train).unwrap());
        let raw = |number: usize| std::fs::read(folder.path().join(format!("{number}.bin"))).unwrap();
        for (number, tensor) in saved.tensors.iter().enumerate() {
            let read = &manifest["tensors"][number];
            let meta: TensorMeta = serde_json::from_value(read.clone()).unwrap();
            assert_eq!(meta, tensor.meta);
            let bytes: &[u8] = (*tensor.bytes).as_ref();
            assert!(raw(number) == bytes, "level {level}: {} differs", meta.label());
            assert_eq!(read["hash"], blake3::hash(bytes).to_hex().as_str(), "{}", meta.label());
        }
        for (number, file) in saved.files.iter().enumerate() {
            assert_eq!(manifest["files"][number]["name"], file.name);
            assert!(raw(saved.tensors.len() + number) == *file.bytes, "level {level}: {} differs", file.name);
        }
    }
}

#[test]
fn the_snapshot_of_this_test_meets_every_coding_of_the_codec() {
    let (_folder, store) = store();
    let committed = commit_to(&store, &everything(), 1, 1);
    let stats = SnapshotReader::open(&committed.path).unwrap().chunk_stats().unwrap();
    let met: std::collections::BTreeSet<&str> = stats.iter().map(|chunk| chunk.coding).collect();
    let all = ["constant", "planes", "raw", "split", "split-positive", "whitened", "whitened-positive", "zstd"];
    assert_eq!(met.into_iter().collect::<Vec<_>>(), all);
}
