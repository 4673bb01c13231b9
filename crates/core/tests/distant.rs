//! Tensors whose bytes lie elsewhere become the same snapshot, and parts of tensors are read as what was written.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use ckptd_core::codec::CHUNK_BYTES;
use ckptd_core::dtype::DType;
use ckptd_core::snapshot::{DistantBytes, DistantTensor, Role, Snapshot, Tensor, TensorMeta};
use ckptd_core::store::{CommitOptions, SnapshotReader, Store, StoreLock, commit, commit_with};
use ckptd_core::{Error, Result};

/// Values of a tensor on another machine, of which nothing at or beyond `lost` can be had.
struct FarValues {
    bytes: Vec<u8>,
    lost: u64,
}

impl DistantBytes for FarValues {
    fn read(&self, offset: u64, into: &mut [u8]) -> Result<()> {
        if offset + into.len() as u64 > self.lost {
            return Err(Error::Other("rank 1 is gone".into()));
        }
        into.copy_from_slice(&self.bytes[offset as usize..offset as usize + into.len()]);
        Ok(())
    }
}

fn tensor(role: Role, name: &str, values: usize) -> Tensor {
    let meta = TensorMeta { role, name: name.into(), dtype: DType::F32, shape: vec![values as u64] };
    let bytes = (0..values).flat_map(|i| ((i as f32 * 0.37).sin() * 1e-3).to_le_bytes()).collect();
    Tensor::new(meta, bytes)
}

fn tensors() -> Vec<Tensor> {
    let chunk = CHUNK_BYTES / 4;
    let sizes = [("a", 3 * chunk + 5), ("b", 7), ("c", chunk), ("d", 2 * chunk - 1)];
    let roles = [Role::Param, Role::ExpAvg];
    roles.into_iter().flat_map(|role| sizes.map(|(name, size)| tensor(role, name, size))).collect()
}

fn snapshot(tensors: Vec<Tensor>) -> Snapshot {
    Snapshot {
        tensors,
        train: Default::default(),
        metrics: Default::default(),
        provenance: Default::default(),
        files: vec![],
    }
}

fn far(lost: u64) -> Vec<DistantTensor> {
    let moments = tensors().into_iter().filter(|tensor| tensor.meta.role != Role::Param);
    let far = moments.map(|tensor| {
        let bytes = (*tensor.bytes).as_ref().to_vec();
        DistantTensor { meta: tensor.meta, bytes: Arc::new(FarValues { bytes, lost }) }
    });
    far.collect()
}

#[test]
fn distant_tensors_make_the_same_snapshot_and_one_that_is_lost_makes_none() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::create(folder.path()).unwrap();
    let lock = StoreLock::inherited();
    let options = |seq| CommitOptions { threads: 3, ..CommitOptions::new("0".repeat(32), seq) };
    let here = commit(&store, &lock, snapshot(tensors()), &options(1)).unwrap();
    let params = || snapshot(tensors().into_iter().filter(|tensor| tensor.meta.role == Role::Param).collect());
    let there = commit_with(&store, &lock, params(), far(u64::MAX), &options(2)).unwrap();
    assert_eq!((here.root, here.raw_bytes), (there.root, there.raw_bytes));
    let [one, other] = [&here.path, &there.path].map(|path| SnapshotReader::open(path).unwrap());
    assert_eq!(one.manifest().tensors, other.manifest().tensors);
    other.check_all(2, &ckptd_core::progress::NoProgress).unwrap();

    let lost = commit_with(&store, &lock, params(), far(CHUNK_BYTES as u64), &options(3)).unwrap_err();
    assert!(lost.to_string().contains("rank 1 is gone"), "{lost}");
    assert_eq!(store.entries().unwrap().len(), 2, "nothing of it is left");
}

#[test]
fn parts_of_tensors_are_read_as_they_were_written() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::create(folder.path()).unwrap();
    let options = CommitOptions::new("0".repeat(32), 1);
    let done = commit(&store, &StoreLock::inherited(), snapshot(tensors()), &options).unwrap();
    let reader = SnapshotReader::open(&done.path).unwrap();
    let whole = reader.read_tensor(0).unwrap();
    let (mut middle, mut end) = (vec![0; 2 * CHUNK_BYTES], vec![0; CHUNK_BYTES + 20]);
    let wanted = vec![(0, CHUNK_BYTES as u64, middle.as_mut_slice()), (3, CHUNK_BYTES as u64, &mut [])];
    reader.read_parts(wanted, 2).unwrap();
    assert_eq!(middle, whole[CHUNK_BYTES..3 * CHUNK_BYTES]);
    reader.read_parts(vec![(0, 2 * CHUNK_BYTES as u64, end.as_mut_slice())], 2).unwrap();
    assert_eq!(end, whole[2 * CHUNK_BYTES..]);
    for (item, offset, length) in [(0, 4, CHUNK_BYTES), (0, 0, CHUNK_BYTES - 4), (1, CHUNK_BYTES as u64, 28)] {
        let mut memory = vec![0; length];
        assert!(reader.read_parts(vec![(item, offset, memory.as_mut_slice())], 1).is_err(), "{item} {offset} {length}");
    }
}
