//! Snapshot files whose hashes are all right and whose contents are not.

use ckptd_core::codec::CHUNK_BYTES;
use ckptd_core::dtype::DType;
use ckptd_core::snapshot::{Metrics, Provenance, Role, Snapshot, Tensor, TensorMeta, TrainState};
use ckptd_core::store::{CommitOptions, Store, StoreLock, commit, format};
use serde_json::{Value, json};

use super::Case;
use super::targets::{parts_of, sealed};

const RUN: &str = "0123456789abcdef0123456789abcdef";

/// The parts of a small snapshot: chunks, table, manifest.
fn parts(bytes: Vec<u8>) -> (Vec<u8>, Vec<u8>, Value) {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::create(&folder.path().join("store")).unwrap();
    let shape = vec![bytes.len() as u64 / 4];
    let meta = TensorMeta { role: Role::Param, name: "transformer.wte.weight".into(), dtype: DType::F32, shape };
    let train = TrainState { step: 3, ..TrainState::default() };
    let (metrics, provenance) = (Metrics::default(), Provenance::default());
    let state = Snapshot { tensors: vec![Tensor::new(meta, bytes)], train, metrics, provenance, files: Vec::new() };
    let path = commit(&store, &StoreLock::inherited(), state, &CommitOptions::new(RUN, 1)).unwrap().path;
    let parts = parts_of(&std::fs::read(path).unwrap()).unwrap();
    let length = |at: usize| u32::from_le_bytes(parts[at..at + 4].try_into().unwrap()) as usize;
    let (chunks, table) = (9 + length(1), 9 + length(1) + length(5));
    (parts[9..chunks].to_vec(), parts[chunks..table].to_vec(), serde_json::from_slice(&parts[table..]).unwrap())
}

fn seal(chunks: &[u8], table: &[u8], manifest: &[u8]) -> Vec<u8> {
    let lengths = [chunks.len() as u32, table.len() as u32].map(u32::to_le_bytes);
    sealed(&[lengths.as_flattened(), chunks, table, manifest].concat())
}

fn with(what: &str, expect: &'static str, change: impl FnOnce(&mut Value)) -> Case {
    let (chunks, table, mut manifest) = parts(vec![1; 4096]);
    change(&mut manifest);
    Case::file(&format!("snapshot: {what}"), expect, seal(&chunks, &table, manifest.to_string().as_bytes()))
}

pub fn cases() -> Vec<Case> {
    let (chunks, table, manifest) = parts(vec![1; 4096]);
    let json = manifest.to_string();
    let mut long = format::parse_table(&table);
    long[0].encoded += 1;
    let doubled = [table.clone(), table.clone()].concat();
    vec![
        with("a shape of one chunk more", "chunks in the table", |m| {
            m["tensors"][0]["shape"] = json!([CHUNK_BYTES / 4 + 1]);
            m["raw_bytes"] = json!(CHUNK_BYTES + 4);
        }),
        with("a shape that overflows", "overflows", |m| m["tensors"][0]["shape"] = json!([1u64 << 40, 1u64 << 40])),
        with("a tensor twice", "stands twice", |m| {
            let tensor = m["tensors"][0].clone();
            m["tensors"] = json!([tensor, tensor]);
        }),
        with("a file elsewhere", "no name for a carried file", |m| {
            m["files"] = json!([{"name": "a/x", "bytes": 0, "hash": ""}]);
        }),
        with("another root", "root is not the hash", |m| m["train"]["step"] = json!(4)),
        with("another tensor's hash", "do not make its hash", |m| m["tensors"][0]["hash"] = json!("0".repeat(64))),
        with("a manifest of another version", "a newer ckptd wrote this", |m| m["format"] = json!(format::VERSION + 1)),
        with("a wrong sum", "the manifest says", |m| m["raw_bytes"] = json!(7)),
        Case::file("snapshot: a manifest that is no JSON", "does not parse", seal(&chunks, &table, b"{\"format\":")),
        Case::file("snapshot: no chunks", "do not add up", seal(&[], &table, json.as_bytes())),
        Case::file(
            "snapshot: a chunk longer than the chunks",
            "",
            seal(&chunks, &format::table_bytes(&long), json.as_bytes()),
        ),
        Case::file("snapshot: a table twice", "2 chunks in the table", seal(&chunks, &doubled, json.as_bytes())),
        Case::file("snapshot: noise for a chunk", "", seal(&vec![0x5a; chunks.len()], &table, json.as_bytes())),
        Case::file(
            "snapshot: more than justified",
            "4096 bytes of tensors are not justified",
            seal(&chunks, &table, json.as_bytes()),
        )
        .under(|l| (l.expansion, l.expansion_bytes) = (0, 4095)),
    ]
}
