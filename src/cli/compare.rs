//! `ckptd compare`: whether two snapshots hold the same state, and how far apart they are.
//!
//! Invariant: "the same" is bit for bit; the distances are computed in float64, whatever the tensors' type. One tensor
//! of each snapshot is in memory at a time.

use std::collections::BTreeMap;
use std::path::PathBuf;

use half::{bf16, f16};
use serde::Serialize;
use serde_json::Value;

use super::console::Console;
use super::target::CommandTarget;
use super::{exit_code, output};
use ckptd_core::dtype::DType;
use ckptd_core::error::{Error, Result};
use ckptd_core::progress::ProgressSink;
use ckptd_core::snapshot::{TensorMeta, TrainState};
use ckptd_core::store::SnapshotReader;

/// Compare two snapshots tensor by tensor; exit code 1 if anything differs.
///
/// A and B are files, or with --store also latest, best or a step number.
#[derive(clap::Args)]
pub struct CompareArgs {
    a: String,
    b: String,
    /// The store's folder, or the job file, that names like `latest` refer to.
    #[arg(long, value_name = "STORE|CONFIG")]
    store: Option<PathBuf>,
    #[arg(long)]
    json: bool,
}

/// `--json`.
#[derive(Serialize)]
struct Comparison {
    a: PathBuf,
    b: PathBuf,
    identical: bool,
    /// ||A-B||_2 over all tensors that both hold in the same shape; null if it is not finite.
    l2: f64,
    largest_difference: f64,
    /// The first tensor, in A's order, that differs.
    first_difference: Option<String>,
    tensors: Vec<Compared>,
    only_in_a: Vec<String>,
    only_in_b: Vec<String>,
    /// Differing values of the train state, by name.
    train_state: BTreeMap<String, [Value; 2]>,
}

#[derive(Serialize)]
struct Compared {
    tensor: String,
    identical: bool,
    l2: f64,
    largest_difference: f64,
    /// Why the two cannot be subtracted.
    mismatch: Option<String>,
}

pub fn execute(args: &CompareArgs) -> Result<u8> {
    let target = args.store.as_deref().map(CommandTarget::open).transpose()?;
    let open = |spec: &str| match (&target, std::path::Path::new(spec)) {
        (_, path) if path.is_file() => SnapshotReader::open(path),
        (Some(target), _) => SnapshotReader::open(&target.store.find(spec)?.path),
        (None, _) => Err(Error::NotFound(format!(
            "{spec} is no file; give a snapshot's file, or --store STORE with a name such as latest"
        ))),
    };
    let console = Console::start()?;
    let comparison = compare(&open(&args.a)?, &open(&args.b)?, &console)?;
    drop(console);
    output::show(args.json, &comparison, describe)?;
    Ok(if comparison.identical { exit_code::DONE } else { exit_code::CHECK_FAILED })
}

fn compare(a: &SnapshotReader, b: &SnapshotReader, progress: &dyn ProgressSink) -> Result<Comparison> {
    progress.begin("comparing", a.manifest().raw_bytes);
    let key = |meta: &TensorMeta| (meta.role, meta.name.clone());
    let mut in_b: BTreeMap<_, usize> =
        b.manifest().tensors.iter().enumerate().map(|(i, record)| (key(&record.meta), i)).collect();
    let (mut tensors, mut only_in_a) = (Vec::new(), Vec::new());
    let (mut squares, mut largest) = (0.0, 0.0);
    for (i, record) in a.manifest().tensors.iter().enumerate() {
        let Some(j) = in_b.remove(&key(&record.meta)) else {
            only_in_a.push(record.meta.label());
            continue;
        };
        let other = &b.manifest().tensors[j].meta;
        if (record.meta.dtype, &record.meta.shape) != (other.dtype, &other.shape) {
            tensors.push(mismatched(&record.meta, other));
            continue;
        }
        let distance = distance(record.meta.dtype, &a.read_tensor(i)?, &b.read_tensor(j)?);
        progress.advance(record.meta.bytes().unwrap_or(0))?;
        squares += distance.squares;
        largest = largest_of(largest, distance.largest);
        tensors.push(Compared {
            tensor: record.meta.label(),
            identical: distance.identical,
            l2: distance.squares.sqrt(),
            largest_difference: distance.largest,
            mismatch: None,
        });
    }
    let only_in_b: Vec<String> = in_b.into_values().map(|j| b.manifest().tensors[j].meta.label()).collect();
    let train_state = differences(&a.manifest().train, &b.manifest().train)?;
    let first_difference = tensors.iter().find(|t| !t.identical).map(|t| t.tensor.clone());
    Ok(Comparison {
        a: a.path().to_path_buf(),
        b: b.path().to_path_buf(),
        identical: first_difference.is_none() && only_in_a.is_empty() && only_in_b.is_empty() && train_state.is_empty(),
        l2: squares.sqrt(),
        largest_difference: largest,
        first_difference,
        tensors,
        only_in_a,
        only_in_b,
        train_state,
    })
}

fn mismatched(a: &TensorMeta, b: &TensorMeta) -> Compared {
    let kind = |meta: &TensorMeta| format!("{} {:?}", meta.dtype, meta.shape);
    Compared {
        tensor: a.label(),
        identical: false,
        l2: f64::NAN,
        largest_difference: f64::NAN,
        mismatch: Some(format!("{} against {}", kind(a), kind(b))),
    }
}

struct Distance {
    identical: bool,
    squares: f64,
    largest: f64,
}

fn distance(dtype: DType, a: &[u8], b: &[u8]) -> Distance {
    if a == b {
        return Distance { identical: true, squares: 0.0, largest: 0.0 };
    }
    let (mut squares, mut largest) = (0.0, 0.0);
    let size = dtype.size();
    for (x, y) in a.chunks_exact(size).zip(b.chunks_exact(size)).filter(|(x, y)| x != y) {
        let difference = difference(dtype, x, y).abs();
        squares += difference * difference;
        largest = largest_of(largest, difference);
    }
    Distance { identical: false, squares, largest }
}

/// NaN is the largest of all.
fn largest_of(a: f64, b: f64) -> f64 {
    if a.is_nan() || b.is_nan() { f64::NAN } else { a.max(b) }
}

/// x - y of two little-endian elements.
fn difference(dtype: DType, x: &[u8], y: &[u8]) -> f64 {
    match dtype {
        DType::F64 => f64::from_le_bytes(array(x)) - f64::from_le_bytes(array(y)),
        DType::F32 => f64::from(f32::from_le_bytes(array(x))) - f64::from(f32::from_le_bytes(array(y))),
        DType::F16 => f16::from_le_bytes(array(x)).to_f64() - f16::from_le_bytes(array(y)).to_f64(),
        DType::BF16 => bf16::from_le_bytes(array(x)).to_f64() - bf16::from_le_bytes(array(y)).to_f64(),
        DType::I64 => (i128::from(i64::from_le_bytes(array(x))) - i128::from(i64::from_le_bytes(array(y)))) as f64,
        DType::I32 => f64::from(i32::from_le_bytes(array(x))) - f64::from(i32::from_le_bytes(array(y))),
        DType::I16 => f64::from(i16::from_le_bytes(array(x))) - f64::from(i16::from_le_bytes(array(y))),
        DType::I8 => f64::from(i8::from_le_bytes(array(x))) - f64::from(i8::from_le_bytes(array(y))),
        DType::U8 | DType::Bool => f64::from(x[0]) - f64::from(y[0]),
    }
}

/// The bytes of one element, whose number is the dtype's size.
fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    std::array::from_fn(|i| bytes[i])
}

fn differences(a: &TrainState, b: &TrainState) -> Result<BTreeMap<String, [Value; 2]>> {
    let flat = |state: &TrainState| -> Result<BTreeMap<String, Value>> {
        let value = serde_json::to_value(state).map_err(|e| Error::Other(format!("comparing train states: {e}")))?;
        let mut values = BTreeMap::new();
        for (name, value) in value.as_object().into_iter().flatten() {
            match value {
                Value::Object(settings) => {
                    values.extend(settings.iter().map(|(key, v)| (format!("{name}.{key}"), v.clone())))
                }
                value => drop(values.insert(name.clone(), value.clone())),
            }
        }
        Ok(values)
    };
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

fn describe(comparison: &Comparison) -> String {
    let mut text = format!("A {}\nB {}\n", comparison.a.display(), comparison.b.display());
    if comparison.identical {
        return text
            + &format!(
                "identical: {} tensors and the train state, bit for bit; ||A-B||_2 = 0\n",
                comparison.tensors.len()
            );
    }
    for name in &comparison.only_in_a {
        text.push_str(&format!("only in A: {name}\n"));
    }
    for name in &comparison.only_in_b {
        text.push_str(&format!("only in B: {name}\n"));
    }
    for (name, [a, b]) in &comparison.train_state {
        text.push_str(&format!("train state {name}: {a} against {b}\n"));
    }
    let different: Vec<&Compared> = comparison.tensors.iter().filter(|t| !t.identical).collect();
    let rows: Vec<Vec<String>> = different
        .iter()
        .map(|t| match &t.mismatch {
            Some(mismatch) => vec![t.tensor.clone(), mismatch.clone()],
            None => vec![t.tensor.clone(), format!("{:.6e}", t.l2), format!("{:.6e}", t.largest_difference)],
        })
        .collect();
    if !rows.is_empty() {
        text.push_str(&output::table(&["TENSOR", "||A-B||_2", "LARGEST"], &rows));
    }
    text + &format!(
        "{} of {} tensors differ, first {}; ||A-B||_2 = {:.6e}, largest difference {:.6e}\n",
        different.len(),
        comparison.tensors.len(),
        comparison.first_difference.as_deref().unwrap_or("none"),
        comparison.l2,
        comparison.largest_difference,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_are_those_of_the_numbers_and_sameness_that_of_the_bits() {
        let f32s = |values: &[f32]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
        let d = distance(DType::F32, &f32s(&[1.0, 2.0, 3.0]), &f32s(&[1.0, 5.0, -1.0]));
        assert_eq!((d.identical, d.squares, d.largest), (false, 25.0, 4.0));
        let zeros = distance(DType::F32, &f32s(&[0.0]), &f32s(&[-0.0]));
        assert_eq!((zeros.identical, zeros.squares), (false, 0.0));
        let nan = distance(DType::F32, &f32s(&[f32::NAN, 1.0]), &f32s(&[0.0, 0.0]));
        assert!(nan.largest.is_nan() && nan.squares.is_nan());
        let same_nan = distance(DType::F32, &f32s(&[f32::NAN]), &f32s(&[f32::NAN]));
        assert!(same_nan.identical);
    }

    #[test]
    fn every_type_of_element_is_subtracted_as_what_it_is() {
        let one = |dtype| match dtype {
            DType::F64 => 1f64.to_le_bytes().to_vec(),
            DType::F32 => 1f32.to_le_bytes().to_vec(),
            DType::F16 => f16::ONE.to_le_bytes().to_vec(),
            DType::BF16 => bf16::ONE.to_le_bytes().to_vec(),
            other => [&[1][..], &[0; 7]].concat()[..other.size()].to_vec(),
        };
        use DType::*;
        for dtype in [F64, F32, F16, BF16, I64, I32, I16, I8, U8, Bool] {
            let zero = vec![0; dtype.size()];
            assert_eq!(distance(dtype, &zero, &one(dtype)).squares, 1.0, "{dtype}");
        }
        let far = distance(I64, &i64::MIN.to_le_bytes(), &i64::MAX.to_le_bytes());
        assert!((far.largest - 2f64.powi(64)).abs() < 1e4);
    }
}
