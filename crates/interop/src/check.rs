//! The proofs that a state is what it should be: its statistics, and its distance from another one.
//!
//! - epsilon = ||theta_a - theta_b||_2, per tensor and over all of them: 0 says that loading gave back what was saved.
//! - values that are not finite, mean and standard deviation; for the embedding E also ||E_a - E_b||_F, which must not
//!   be 0 once E was changed on purpose (set to ones).
//! - sizes: S of the file against 4 P bytes of float32 parameters, and r = S / raw bytes.
//!
//! Sums are of doubles over blocks of a fixed size, so they do not depend on the number of threads. Deliberately
//! not here: distances (compare), and the logits, which the worker computes and [`ProbeReport`] holds.

use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::compare::{ComparedState, TensorPair, each_tensor};
use crate::gpt2_names;
use ckptd_core::dtype::{DType, numbers};
use ckptd_core::error::Result;
use ckptd_core::ids::StateRoot;
use ckptd_core::progress::ProgressSink;
use ckptd_core::snapshot::{Role, TensorMeta};
use ckptd_core::store::SnapshotReader;

/// Elements of a block: the blocks' sums are added up in their order.
const BLOCK: usize = 1 << 16;

#[derive(Clone, Debug, Serialize)]
pub struct CheckReport {
    pub path: PathBuf,
    pub against: Option<PathBuf>,
    pub step: u64,
    pub root: StateRoot,
    pub tensors: Vec<TensorCheck>,
    /// Tensors of one side only, as `role name`.
    pub only_here: Vec<String>,
    pub only_there: Vec<String>,
    pub parameters: u64,
    /// 4 P: the parameters alone as float32.
    pub parameter_bytes: u64,
    pub raw_bytes: u64,
    pub file_bytes: u64,
    /// `file_bytes / raw_bytes`.
    pub r: f64,
    pub nonfinite: u64,
    /// Over all tensors of both sides; null without another side, or where a difference is not finite.
    pub epsilon: Option<f64>,
    /// Every tensor of both sides is the same to the bit. Without another side: null.
    pub equal: Option<bool>,
    pub embedding: Option<EmbeddingCheck>,
    /// What the model answers, where it was asked.
    pub probe: Option<ProbeReport>,
}

#[derive(Clone, Debug, Serialize)]
pub struct TensorCheck {
    pub role: Role,
    pub name: String,
    pub dtype: DType,
    pub shape: Vec<u64>,
    pub nonfinite: u64,
    /// Of the finite values; the standard deviation with n - 1, as torch.std.
    pub mean: f64,
    pub std: f64,
    pub epsilon: Option<f64>,
    pub largest_difference: Option<f64>,
    /// The same bytes on both sides.
    pub equal: Option<bool>,
}

/// The test of the token embedding.
#[derive(Clone, Debug, Serialize)]
pub struct EmbeddingCheck {
    pub mean: f64,
    pub std: f64,
    pub all_ones: bool,
    /// ||Delta E||_F against the other side.
    pub distance: Option<f64>,
}

/// What the model answers to a fixed batch: its logits, as the worker computes them.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ProbeReport {
    pub rows: u64,
    pub positions: u64,
    /// Variance of the logits; null where one of them is not finite.
    pub sigma2: Option<f64>,
    /// max |y_here - y_there|; null without another side of the same vocabulary, or where it is not finite.
    pub delta: Option<f64>,
    /// They are what they were when the snapshot was taken, to the bit; null where it holds no hash of them.
    #[serde(rename = "as_saved")]
    pub matches_saved: Option<bool>,
    /// BLAKE3 of the logits.
    pub hash: String,
}

impl CheckReport {
    /// All parameters and answers are finite, and the answers are as they were. How far the other side is is no matter.
    pub fn is_sound(&self) -> bool {
        let finite = self.tensors.iter().all(|tensor| tensor.role != Role::Param || tensor.nonfinite == 0);
        let answers =
            self.probe.as_ref().is_none_or(|probe| probe.sigma2.is_some() && probe.matches_saved != Some(false));
        finite && answers
    }
}

/// Checks the snapshot file at `path`, and compares it with whatever lies at `against`: a snapshot, a `.pt` or
/// safetensors file, a bundle, a model folder.
pub fn check(path: &Path, against: Option<&Path>, threads: usize, progress: &dyn ProgressSink) -> Result<CheckReport> {
    let reader = SnapshotReader::open(path)?;
    let (manifest, file_bytes) = (reader.manifest().clone(), reader.file_bytes());
    let here = ComparedState::stored(reader, threads);
    let there = against.map(|against| ComparedState::open(against, threads, progress)).transpose()?;
    progress.begin("checking", manifest.raw_bytes);
    let mut tensors = Vec::new();
    let mut beside = None;
    each_tensor(&here, there.as_ref(), progress, |meta, bytes, pair| {
        let checked = tensor(meta, bytes, pair);
        if meta.role == Role::Param && meta.name == gpt2_names::EMBEDDING {
            beside = Some(embedding(meta, bytes, &checked));
        }
        tensors.push(checked);
    })?;
    let missing = |a: &ComparedState, b: &ComparedState| a.missing_in(b).map(TensorMeta::label).collect();
    let params = here.metas().iter().filter(|meta| meta.role == Role::Param);
    let parameters = params.filter_map(TensorMeta::elements).sum();
    let total =
        tensors.iter().filter_map(|t| t.equal.map(|_| t.epsilon.unwrap_or(f64::NAN).powi(2))).sum::<f64>().sqrt();
    Ok(CheckReport {
        path: path.to_path_buf(),
        against: against.map(Path::to_path_buf),
        step: manifest.train.step,
        root: manifest.root,
        only_here: there.as_ref().map_or(Vec::new(), |there| missing(&here, there)),
        only_there: there.as_ref().map_or(Vec::new(), |there| missing(there, &here)),
        parameters,
        parameter_bytes: 4 * parameters,
        raw_bytes: manifest.raw_bytes,
        file_bytes,
        r: file_bytes as f64 / manifest.raw_bytes.max(1) as f64,
        nonfinite: tensors.iter().map(|tensor| tensor.nonfinite).sum(),
        epsilon: (there.is_some() && total.is_finite()).then_some(total),
        equal: there.as_ref().map(|there| tensors.iter().all(|t| t.equal != Some(false)) && same_tensors(&here, there)),
        embedding: beside,
        probe: None,
        tensors,
    })
}

/// Whether the two have the same tensors, apart from an optimiser's state that one of them has nothing of.
fn same_tensors(a: &ComparedState, b: &ComparedState) -> bool {
    let covered = |a: &ComparedState, b: &ComparedState| {
        a.missing_in(b).all(|meta| meta.role != Role::Param && !b.has(meta.role))
    };
    covered(a, b) && covered(b, a)
}

fn tensor(meta: &TensorMeta, bytes: &[u8], pair: Option<TensorPair>) -> TensorCheck {
    let values = TensorValues { dtype: meta.dtype, bytes };
    let (count, sum) = values.sum(|x| (1.0, x));
    let mean = if count > 0.0 { sum / count } else { 0.0 };
    let (_, squares) = values.sum(|x| (1.0, (x - mean).powi(2)));
    let std = if count > 1.0 { (squares / (count - 1.0)).sqrt() } else { 0.0 };
    let nonfinite = values.len() as u64 - count as u64;
    let equal = pair.as_ref().map(|pair| pair.distance.is_some_and(|distance| distance.equal));
    // What is not finite here has no distance but from itself.
    let distance = pair.and_then(|pair| pair.distance).filter(|distance| distance.equal || nonfinite == 0);
    let finite = |number: f64| Some(number).filter(|number| number.is_finite());
    TensorCheck {
        role: meta.role,
        name: meta.name.clone(),
        dtype: meta.dtype,
        shape: meta.shape.clone(),
        nonfinite,
        mean,
        std,
        epsilon: distance.and_then(|distance| finite(distance.l2())),
        largest_difference: distance.and_then(|distance| finite(distance.largest)),
        equal,
    }
}

fn embedding(meta: &TensorMeta, bytes: &[u8], checked: &TensorCheck) -> EmbeddingCheck {
    let values = TensorValues { dtype: meta.dtype, bytes };
    let (ones, _) = values.sum(|x| (f64::from(u8::from(x == 1.0)), 0.0));
    EmbeddingCheck {
        mean: checked.mean,
        std: checked.std,
        all_ones: ones as usize == values.len(),
        distance: checked.epsilon,
    }
}

/// A tensor's bytes as numbers.
struct TensorValues<'a> {
    dtype: DType,
    bytes: &'a [u8],
}

impl TensorValues<'_> {
    fn len(&self) -> usize {
        self.bytes.len() / self.dtype.size()
    }

    fn blocks(&self) -> impl IndexedParallelIterator<Item = &[u8]> {
        self.bytes.par_chunks(BLOCK * self.dtype.size())
    }

    /// The sums of both parts of `term` over all finite values.
    fn sum(&self, term: impl Fn(f64) -> (f64, f64) + Sync) -> (f64, f64) {
        let block = |bytes: &[u8]| {
            let finite = numbers(self.dtype, bytes).into_iter().filter(|x| x.is_finite());
            finite.map(&term).fold((0.0, 0.0), |a, b| (a.0 + b.0, a.1 + b.1))
        };
        let blocks: Vec<(f64, f64)> = self.blocks().map(block).collect();
        blocks.into_iter().fold((0.0, 0.0), |a, b| (a.0 + b.0, a.1 + b.1))
    }
}
