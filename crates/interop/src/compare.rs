//! How far two states are from each other: `ckptd compare` and `ckptd check` are two views of this.
//!
//! Invariant: "equal" is bit for bit; distances are computed in float64, whatever the tensors' types. Sums are added up
//! over blocks of a fixed size in their order, so they do not depend on the number of threads. One tensor of each side
//! is in memory at a time. Deliberately not here: statistics of one side (check), text for people (the commands).

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde::Serialize;
use serde_json::Value;

use crate::import::{self, LoadedSource};
use ckptd_core::dtype::{DType, numbers};
use ckptd_core::error::{Error, Result};
use ckptd_core::progress::ProgressSink;
use ckptd_core::snapshot::{Role, TensorMeta, TrainState};
use ckptd_core::store::SnapshotReader;

/// Elements of a block.
const BLOCK: usize = 1 << 16;

/// How far two tensors of the same shape are from each other.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TensorDistance {
    /// They have the same type and the same bytes.
    pub equal: bool,
    /// The sum of (a - b)^2; elements of the same type and bytes count as 0, NaN too. NaN where a difference is.
    pub squares: f64,
    /// The largest |a - b|; NaN where a difference is.
    pub largest: f64,
}

impl TensorDistance {
    const NONE: TensorDistance = TensorDistance { equal: true, squares: 0.0, largest: 0.0 };

    /// Between the bytes of two tensors, which have as many elements each.
    pub fn between(a: (DType, &[u8]), b: (DType, &[u8])) -> TensorDistance {
        if a == b {
            return TensorDistance::NONE;
        }
        let blocks = a.1.par_chunks(BLOCK * a.0.size()).zip(b.1.par_chunks(BLOCK * b.0.size()));
        let blocks: Vec<(f64, f64)> = blocks.map(|(x, y)| block_distance((a.0, x), (b.0, y))).collect();
        let (squares, largest) =
            blocks.into_iter().fold((0.0, 0.0), |sum, block| (sum.0 + block.0, largest_of(sum.1, block.1)));
        TensorDistance { equal: false, squares, largest }
    }

    /// ||a - b||_2
    pub fn l2(&self) -> f64 {
        self.squares.sqrt()
    }
}

/// The sum of squares and the largest difference of one block.
fn block_distance((a_type, a): (DType, &[u8]), (b_type, b): (DType, &[u8])) -> (f64, f64) {
    if (a_type, a) == (b_type, b) {
        return (0.0, 0.0);
    }
    let add = |(squares, largest): (f64, f64), difference: f64| {
        (squares + difference * difference, largest_of(largest, difference.abs()))
    };
    if (a_type, b_type) == (DType::I64, DType::I64) {
        let pairs = a.as_chunks().0.iter().zip(b.as_chunks().0);
        // Doubles have no room for all of their digits.
        let differences = pairs.map(|(x, y)| i128::from(i64::from_le_bytes(*x)) - i128::from(i64::from_le_bytes(*y)));
        return differences.map(|difference| difference as f64).fold((0.0, 0.0), add);
    }
    let elements = a.chunks_exact(a_type.size()).zip(b.chunks_exact(b_type.size()));
    let pairs = numbers(a_type, a).into_iter().zip(numbers(b_type, b)).zip(elements);
    let differences = pairs.filter(|(_, (x, y))| a_type != b_type || x != y).map(|((x, y), _)| x - y);
    differences.fold((0.0, 0.0), add)
}

/// NaN is the largest of all.
fn largest_of(a: f64, b: f64) -> f64 {
    if a.is_nan() || b.is_nan() { f64::NAN } else { a.max(b) }
}

/// One side of a comparison: tensors that are read one by one.
pub struct ComparedState {
    metas: Vec<TensorMeta>,
    index: HashMap<(Role, String), usize>,
    bytes: StateBytes,
}

enum StateBytes {
    Stored(Box<SnapshotReader>, usize),
    Loaded(Box<LoadedSource>),
}

impl ComparedState {
    /// The tensors of a snapshot, read on `threads` threads.
    pub fn stored(reader: SnapshotReader, threads: usize) -> ComparedState {
        let metas = reader.manifest().tensors.iter().map(|record| record.meta.clone()).collect();
        ComparedState::new(metas, StateBytes::Stored(Box::new(reader), threads))
    }

    /// The tensors of whatever lies at `path`: a snapshot, a `.pt` or safetensors file, a bundle, a model folder.
    pub fn open(path: &Path, threads: usize, progress: &dyn ProgressSink) -> Result<ComparedState> {
        if import::is_snapshot(path)? {
            return Ok(ComparedState::stored(SnapshotReader::open(path)?, threads));
        }
        let loaded = import::load_model(path, progress)?;
        let metas = loaded.snapshot.tensors.iter().map(|tensor| tensor.meta.clone()).collect();
        Ok(ComparedState::new(metas, StateBytes::Loaded(Box::new(loaded))))
    }

    fn new(metas: Vec<TensorMeta>, bytes: StateBytes) -> ComparedState {
        let index = metas.iter().enumerate().map(|(i, meta)| ((meta.role, meta.name.clone()), i)).collect();
        ComparedState { metas, index, bytes }
    }

    /// All tensors, in the state's order.
    pub fn metas(&self) -> &[TensorMeta] {
        &self.metas
    }

    /// The tensor of the same role and name.
    pub fn find(&self, meta: &TensorMeta) -> Option<usize> {
        self.index.get(&(meta.role, meta.name.clone())).copied()
    }

    /// Whether there is a tensor of this role.
    pub fn has(&self, role: Role) -> bool {
        self.metas.iter().any(|meta| meta.role == role)
    }

    /// The tensors that `other` has not, in this state's order.
    pub fn missing_in<'a>(&'a self, other: &'a ComparedState) -> impl Iterator<Item = &'a TensorMeta> {
        self.metas.iter().filter(|meta| other.find(meta).is_none())
    }

    /// The bytes of tensor `index`.
    pub fn read(&self, index: usize) -> Result<Vec<u8>> {
        match &self.bytes {
            StateBytes::Stored(reader, threads) => {
                let mut bytes = vec![0; self.metas[index].bytes().unwrap_or(0) as usize];
                reader.read_into(vec![(index, &mut bytes)], *threads)?;
                Ok(bytes)
            }
            StateBytes::Loaded(loaded) => Ok((*loaded.snapshot.tensors[index].bytes).as_ref().to_vec()),
        }
    }
}

/// A tensor as both sides have it.
pub struct TensorPair<'a> {
    /// The other side's.
    pub other: &'a TensorMeta,
    /// `None` where the shapes differ.
    pub distance: Option<TensorDistance>,
}

/// Gives `take` every tensor of `a` in its order, with its bytes, and with its pair where `b` has the tensor too.
pub fn each_tensor<'a>(
    a: &'a ComparedState,
    b: Option<&'a ComparedState>,
    progress: &dyn ProgressSink,
    mut take: impl FnMut(&'a TensorMeta, &[u8], Option<TensorPair<'a>>),
) -> Result<()> {
    for (index, meta) in a.metas.iter().enumerate() {
        let bytes = a.read(index)?;
        let found = b.and_then(|b| b.find(meta).map(|other| (b, other)));
        let pair = match found {
            Some((b, found)) => {
                let other = &b.metas[found];
                let distance = if other.shape == meta.shape {
                    Some(TensorDistance::between((meta.dtype, &bytes), (other.dtype, &b.read(found)?)))
                } else {
                    None
                };
                Some(TensorPair { other, distance })
            }
            None => None,
        };
        take(meta, &bytes, pair);
        progress.advance(bytes.len() as u64)?;
    }
    Ok(())
}

/// `ckptd compare --json`.
#[derive(Clone, Debug, Serialize)]
pub struct CompareReport {
    /// The file of A.
    pub a: PathBuf,
    /// The file of B.
    pub b: PathBuf,
    /// Same tensors and same train state, bit for bit.
    pub identical: bool,
    /// ||A-B||_2 over all tensors that both hold in the same type and shape; null if it is not finite.
    pub l2: f64,
    /// The largest difference of two elements; null if it is not finite.
    pub largest_difference: f64,
    /// The first tensor, in A's order, that differs.
    pub first_difference: Option<String>,
    /// The tensors that both hold, in A's order.
    pub tensors: Vec<TensorComparison>,
    /// Tensors of A alone, as `role name`.
    pub only_in_a: Vec<String>,
    /// Tensors of B alone.
    pub only_in_b: Vec<String>,
    /// Differing values of the train state, by name.
    pub train_state: BTreeMap<String, [Value; 2]>,
}

/// One tensor of a [`CompareReport`].
#[derive(Clone, Debug, Serialize)]
pub struct TensorComparison {
    /// `role name`.
    pub tensor: String,
    /// Same type, shape and bytes.
    pub identical: bool,
    /// ||a - b||_2; null if it is not finite.
    pub l2: f64,
    /// The largest |a - b|; null if it is not finite.
    pub largest_difference: f64,
    /// Why the two cannot be subtracted.
    pub mismatch: Option<String>,
}

/// Compares two snapshots tensor by tensor, reading on `threads` threads.
pub fn compare(
    a: SnapshotReader,
    b: SnapshotReader,
    threads: usize,
    progress: &dyn ProgressSink,
) -> Result<CompareReport> {
    progress.begin("comparing", a.manifest().raw_bytes);
    let train_state = train_differences(&a.manifest().train, &b.manifest().train)?;
    let paths = [a.path().to_path_buf(), b.path().to_path_buf()];
    let (a, b) = (ComparedState::stored(a, threads), ComparedState::stored(b, threads));
    let mut tensors = Vec::new();
    let (mut squares, mut largest) = (0.0, 0.0);
    each_tensor(&a, Some(&b), progress, |meta, _, pair| {
        let Some(TensorPair { other, distance }) = pair else { return };
        tensors.push(match distance.filter(|_| meta.dtype == other.dtype) {
            Some(distance) => {
                squares += distance.squares;
                largest = largest_of(largest, distance.largest);
                compared(meta, distance)
            }
            None => mismatched(meta, other),
        });
    })?;
    let only_in_a: Vec<String> = a.missing_in(&b).map(TensorMeta::label).collect();
    let mut only_in_b: Vec<&TensorMeta> = b.missing_in(&a).collect();
    only_in_b.sort_by_key(|meta| (meta.role, &meta.name));
    let first_difference = tensors.iter().find(|tensor| !tensor.identical).map(|tensor| tensor.tensor.clone());
    let [a, b] = paths;
    Ok(CompareReport {
        a,
        b,
        identical: first_difference.is_none() && only_in_a.is_empty() && only_in_b.is_empty() && train_state.is_empty(),
        l2: squares.sqrt(),
        largest_difference: largest,
        first_difference,
        tensors,
        only_in_a,
        only_in_b: only_in_b.into_iter().map(TensorMeta::label).collect(),
        train_state,
    })
}

fn compared(meta: &TensorMeta, distance: TensorDistance) -> TensorComparison {
    TensorComparison {
        tensor: meta.label(),
        identical: distance.equal,
        l2: distance.l2(),
        largest_difference: distance.largest,
        mismatch: None,
    }
}

fn mismatched(a: &TensorMeta, b: &TensorMeta) -> TensorComparison {
    let kind = |meta: &TensorMeta| format!("{} {:?}", meta.dtype, meta.shape);
    TensorComparison {
        tensor: a.label(),
        identical: false,
        l2: f64::NAN,
        largest_difference: f64::NAN,
        mismatch: Some(format!("{} against {}", kind(a), kind(b))),
    }
}

/// The values of two train states that differ, by name; settings as `settings.<key>`.
fn train_differences(a: &TrainState, b: &TrainState) -> Result<BTreeMap<String, [Value; 2]>> {
    let (mut a, mut b) = (flat(a)?, flat(b)?);
    let names: Vec<String> = a.keys().chain(b.keys()).cloned().collect();
    let mut different = BTreeMap::new();
    for name in names {
        let pair = [a.remove(&name).unwrap_or_default(), b.remove(&name).unwrap_or_default()];
        if pair[0] != pair[1] {
            different.insert(name, pair);
        }
    }
    Ok(different)
}

/// The values of a train state by name.
fn flat(state: &TrainState) -> Result<BTreeMap<String, Value>> {
    let value = serde_json::to_value(state).map_err(|e| Error::Other(format!("comparing train states: {e}")))?;
    let mut values = BTreeMap::new();
    for (name, value) in value.as_object().into_iter().flatten() {
        if let Value::Object(settings) = value {
            values.extend(settings.iter().map(|(key, value)| (format!("{name}.{key}"), value.clone())));
        } else {
            values.insert(name.clone(), value.clone());
        }
    }
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn f32s(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|v| v.to_le_bytes()).collect()
    }

    #[test]
    fn distances_are_those_of_the_numbers_and_sameness_that_of_the_bits() {
        let distance = |a: &[f32], b: &[f32]| TensorDistance::between((DType::F32, &f32s(a)), (DType::F32, &f32s(b)));
        let d = distance(&[1.0, 2.0, 3.0], &[1.0, 5.0, -1.0]);
        assert_eq!((d.equal, d.squares, d.largest), (false, 25.0, 4.0));
        let zeros = distance(&[0.0], &[-0.0]);
        assert_eq!((zeros.equal, zeros.squares), (false, 0.0));
        let nan = distance(&[f32::NAN, 1.0], &[0.0, 0.0]);
        assert!(nan.largest.is_nan() && nan.squares.is_nan());
        assert!(distance(&[f32::NAN], &[f32::NAN]).equal);
        assert_eq!(distance(&[f32::NAN, 1.0], &[f32::NAN, 3.0]).l2(), 2.0);
    }

    #[test]
    fn every_type_of_element_is_subtracted_as_what_it_is() {
        use DType::*;
        let one = |dtype| match dtype {
            F64 => 1f64.to_le_bytes().to_vec(),
            F32 => 1f32.to_le_bytes().to_vec(),
            F16 => 0x3c00u16.to_le_bytes().to_vec(),
            BF16 => 0x3f80u16.to_le_bytes().to_vec(),
            other => [&[1][..], &[0; 7]].concat()[..other.size()].to_vec(),
        };
        for dtype in [F64, F32, F16, BF16, I64, I32, I16, I8, U8, Bool] {
            let zero = vec![0; dtype.size()];
            assert_eq!(TensorDistance::between((dtype, &zero), (dtype, &one(dtype))).squares, 1.0, "{dtype}");
            assert_eq!(TensorDistance::between((dtype, &one(dtype)), (F64, &one(F64))).squares, 0.0, "{dtype}");
        }
        let far = TensorDistance::between((I64, &i64::MIN.to_le_bytes()), (I64, &i64::MAX.to_le_bytes()));
        assert!((far.largest - 2f64.powi(64)).abs() < 1e4);
    }

    #[test]
    fn sums_do_not_depend_on_the_number_of_threads() {
        let values = |seed: u32| (0..300_000u32).map(move |i| (i.wrapping_mul(seed) % 9973) as f32 / 7.0);
        let (a, b): (Vec<f32>, Vec<f32>) = (values(31).collect(), values(57).collect());
        let of = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
            let distance = || TensorDistance::between((DType::F32, &f32s(&a)), (DType::F32, &f32s(&b)));
            pool.map(|pool| pool.install(distance).squares.to_bits()).ok()
        };
        assert_eq!(of(1), of(3));
    }
}
