//! Weights for inference: a shape and its parameters, from a snapshot or from anything that can be imported.
//!
//! Deliberately not here: the training state with its moments (`capture`, `job`).

use std::path::Path;

use ckptd_core::config::{ComputePrecision, Config};
use ckptd_core::progress::NoProgress;
use ckptd_core::snapshot::{CarriedFile, Role, TensorMeta};
use ckptd_core::store::{SnapshotChoice, SnapshotReader, Store};
use ckptd_core::{Error, Result};
use ckptd_interop::{import, names};
use tch::{Device, Kind, Tensor};

use crate::capture::TensorDestination;
use crate::gpt2::{Gpt2Config, init};
use crate::torch::TorchContext;

pub struct ModelWeights {
    pub config: Gpt2Config,
    /// In the order of [`Gpt2Config::parameters`], on the CPU.
    pub params: Vec<Tensor>,
    /// The small files that came with them: config.json, tokenizer.json.
    pub files: Vec<CarriedFile>,
    /// The steps that they were trained for, where that is known.
    pub step: Option<u64>,
    /// The fingerprint of the logits that the snapshot holds; see [`crate::probe`].
    pub probe: Option<String>,
    /// The threads that it was trained with.
    pub threads: Option<usize>,
    /// What its products were computed in.
    pub precision: ComputePrecision,
}

/// What `spec` means in `store`, a store's folder or a job file, and what it passes over.
pub fn choose(store: &Path, spec: &str) -> Result<SnapshotChoice> {
    let folder = if store.is_dir() { store.to_path_buf() } else { Config::load(store)?.job.store };
    Store::open(&folder)?.choose(spec)
}

/// Opens the model at `path`: a snapshot, a model folder, a `.pt` or safetensors file, a bundle.
pub fn open(path: &Path, threads: usize) -> Result<ModelWeights> {
    if import::is_snapshot(path)? { from_snapshot(path, threads) } else { from_others(path) }
}

fn from_snapshot(path: &Path, threads: usize) -> Result<ModelWeights> {
    let reader = SnapshotReader::open(path)?;
    let mut files = Vec::new();
    for record in &reader.manifest().files {
        let bytes = reader.read_file(&record.name)?.unwrap_or_default();
        files.push(CarriedFile { name: record.name.clone(), bytes: bytes.into() });
    }
    let (config, params) = fill(&files, path, |_, destinations| {
        let tensors = &reader.manifest().tensors;
        let mut wanted = Vec::with_capacity(destinations.len());
        for destination in destinations {
            let index = tensors.iter().position(|tensor| tensor.meta == *destination.meta);
            let missing =
                || Error::mismatch(path, format!("{} does not fit its config.json", destination.meta.label()));
            wanted.push((index.ok_or_else(missing)?, &mut *destination.bytes));
        }
        reader.read_into(wanted, threads.max(1))
    })?;
    let manifest = reader.manifest();
    let trained = Config::default().train.with_recorded(&manifest.train.settings);
    Ok(ModelWeights {
        config,
        params,
        files,
        step: Some(manifest.train.step),
        probe: manifest.metrics.probe.clone(),
        threads: manifest.train.settings.threads(),
        precision: trained.precision,
    })
}

fn from_others(path: &Path) -> Result<ModelWeights> {
    let mut loaded = import::load_model(path, &NoProgress)?;
    loaded.snapshot.tensors.retain(|tensor| matches!(tensor.meta.role, Role::Param | Role::Buffer));
    let files = std::mem::take(&mut loaded.snapshot.files);
    let origin = path.display().to_string();
    let tensors = &loaded.snapshot.tensors;
    let (config, params) =
        fill(&files, path, |config, destinations| init::from_tensors(config, tensors, &[], &origin, destinations))?;
    let step = Some(loaded.snapshot.train.step).filter(|&step| step > 0);
    Ok(ModelWeights { config, params, files, step, probe: None, threads: None, precision: ComputePrecision::Float32 })
}

/// Parameters of the shape that the carried config.json describes, filled by `fill`.
fn fill(
    files: &[CarriedFile],
    origin: &Path,
    fill: impl FnOnce(&Gpt2Config, &mut [TensorDestination<'_>]) -> Result<()>,
) -> Result<(Gpt2Config, Vec<Tensor>)> {
    let json = files.iter().find(|file| file.name == names::CONFIG).ok_or_else(|| {
        Error::mismatch(origin, "it has no config.json, so that the model's shape is not known; import it with --model")
    })?;
    let name = format!("{}: config.json", origin.display());
    let config = Gpt2Config::from_json(&String::from_utf8_lossy(&json.bytes), &name)?;
    let metas = config.parameters();
    let params: Vec<Tensor> = metas.iter().map(zeros).collect::<Result<_>>()?;
    let mut destinations: Vec<TensorDestination> =
        metas.iter().zip(&params).map(|(meta, tensor)| memory(meta, tensor)).collect();
    fill(&config, &mut destinations)?;
    drop(destinations);
    Ok((config, params))
}

fn zeros(meta: &TensorMeta) -> Result<Tensor> {
    let shape: Vec<i64> = meta.shape.iter().map(|&d| d as i64).collect();
    Tensor::f_zeros(shape.as_slice(), (Kind::Float, Device::Cpu)).context(format_args!("allocating {}", meta.name))
}

fn memory<'a>(meta: &'a TensorMeta, tensor: &'a Tensor) -> TensorDestination<'a> {
    let bytes = 4 * tensor.numel();
    // SAFETY: a contiguous float32 tensor of the CPU, which has no other view yet and outlives the borrow.
    let bytes = unsafe { std::slice::from_raw_parts_mut(tensor.data_ptr().cast::<u8>(), bytes) };
    TensorDestination { meta, offset: 0, bytes }
}
