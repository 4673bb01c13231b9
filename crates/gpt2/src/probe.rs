//! A fingerprint of the logits: what a model computes for given tokens, to be compared with other implementations and
//! other snapshots.
//!
//! The probe is a batch that follows from the vocabulary alone. The hash of its logits says of a machine whether the
//! same parameters give the same logits there, to the last bit, as where a snapshot was taken: another kind of
//! processor or another libtorch shows in it. Deliberately not here: sampling text (`generate`).

use std::path::{Path, PathBuf};

use ckptd_core::config::ComputePrecision;
use ckptd_core::os::process::processors;
use ckptd_core::snapshot::{Role, Tensor as SnapshotTensor};
use ckptd_core::{Error, Result};
use ckptd_interop::check::ProbeReport;
use tch::{Device, Kind, Tensor};

use crate::gpt2::{Gpt2Config, Gpt2Model, ProductCasts};
use crate::process;
use crate::rng;
use crate::torch::TorchContext;
use crate::weights::{self, ModelWeights};

/// Small enough to be computed beside a training, and more than one row, so that batches are covered.
const ROWS: i64 = 2;
const POSITIONS: i64 = 8;

#[derive(clap::Args)]
pub struct LogitsArguments {
    /// A model folder, a snapshot, a .pt or safetensors file, or a bundle.
    #[arg(long)]
    pub model: PathBuf,
    /// A JSON array of rows of token ids, all of one length.
    #[arg(long)]
    pub tokens: PathBuf,
    /// Where the logits go: float32, little-endian, [rows, positions, vocab_size].
    #[arg(long)]
    pub out: PathBuf,
    /// Threads; 0: one per processor.
    #[arg(long, default_value_t = 0)]
    pub threads: usize,
}

#[derive(clap::Args)]
pub struct ProbeArguments {
    /// A model folder, a snapshot, a .pt or safetensors file, or a bundle.
    #[arg(long)]
    pub model: PathBuf,
    /// A model whose logits are compared with its own.
    #[arg(long)]
    pub against: Option<PathBuf>,
    /// Threads; 0: as many as the snapshot was trained with, else one per processor.
    #[arg(long, default_value_t = 0)]
    pub threads: usize,
}

/// Writes the logits that `arguments` ask for.
pub fn logits(arguments: &LogitsArguments) -> Result<()> {
    let threads = process::set_threads(arguments.threads)?;
    let ModelWeights { config, params, .. } = weights::open(&arguments.model, threads)?;
    let rows = read_rows(&arguments.tokens, &config)?;
    let flat: Vec<i64> = rows.concat();
    let inputs =
        Tensor::f_from_slice(&flat).and_then(|t| t.f_view([rows.len() as i64, -1])).context("making the batch")?;
    let logits = Gpt2Model::new(config, Device::Cpu).logits(&params, &inputs)?;
    std::fs::write(&arguments.out, bytes(&logits)?).map_err(|e| Error::io("writing", &arguments.out, e))
}

/// Prints what `arguments` ask for as JSON; `ckptd check --outputs` reads it.
pub fn probe(arguments: &ProbeArguments) -> Result<()> {
    let readers = processors();
    let model = weights::open(&arguments.model, readers)?;
    let against = arguments.against.as_deref().map(|path| weights::open(path, readers)).transpose()?;
    process::set_threads(if arguments.threads == 0 { model.threads.unwrap_or(0) } else { arguments.threads })?;
    let fingerprint = LogitsFingerprint::of(&model.config, &model.params, Device::Cpu, model.precision)?;
    let delta = match &against {
        Some(other) if other.config.vocab_size != model.config.vocab_size => None,
        Some(other) => {
            let there = LogitsFingerprint::of(&other.config, &other.params, Device::Cpu, model.precision)?;
            Some(fingerprint.largest_difference(&there)).filter(|delta| delta.is_finite())
        }
        None => None,
    };
    let hash = fingerprint.hash();
    let probe = ProbeReport {
        rows: ROWS as u64,
        positions: POSITIONS.min(model.config.n_positions) as u64,
        sigma2: Some(fingerprint.variance()).filter(|sigma2| sigma2.is_finite()),
        delta,
        matches_saved: model.probe.map(|saved| saved == hash),
        hash,
    };
    let json = serde_json::to_string(&probe).map_err(|e| Error::Other(format!("writing JSON: {e}")))?;
    println!("{json}");
    Ok(())
}

/// The logits of the probe, as bytes of float32.
pub struct LogitsFingerprint(Vec<u8>);

impl LogitsFingerprint {
    /// Of a model whose parameters lie on `device`, with products in `precision`. The bits depend on the number of
    /// threads.
    pub fn of(
        config: &Gpt2Config,
        params: &[Tensor],
        device: Device,
        precision: ComputePrecision,
    ) -> Result<LogitsFingerprint> {
        let positions = POSITIONS.min(config.n_positions);
        let id = |index: i64| {
            let [word] = rng::words("probe", [index as u64]);
            (word % config.vocab_size as u64) as i64
        };
        let ids: Vec<i64> = (0..ROWS * positions).map(id).collect();
        let inputs = Tensor::f_from_slice(&ids).and_then(|t| t.f_view([ROWS, positions])?.f_to_device(device));
        let (mut casts, inputs) = (ProductCasts::new(precision), inputs.context("making the probe")?);
        let logits = Gpt2Model::new(config.clone(), device).logits(casts.views(config, params)?, &inputs)?;
        bytes(&logits).map(LogitsFingerprint)
    }

    /// BLAKE3 of the logits, as hex.
    pub fn hash(&self) -> String {
        blake3::hash(&self.0).to_hex().to_string()
    }

    fn values(&self) -> impl Iterator<Item = f64> {
        self.0.as_chunks().0.iter().map(|bytes| f64::from(f32::from_le_bytes(*bytes)))
    }

    /// With n - 1, as torch.var.
    fn variance(&self) -> f64 {
        let count = (self.0.len() / 4) as f64;
        let mean = self.values().sum::<f64>() / count;
        self.values().map(|value| (value - mean).powi(2)).sum::<f64>() / (count - 1.0)
    }

    fn largest_difference(&self, other: &LogitsFingerprint) -> f64 {
        let differences = self.values().zip(other.values()).map(|(a, b)| (a - b).abs());
        // `max` would pass over a NaN.
        differences.fold(0.0, |largest, d| if d > largest || d.is_nan() { d } else { largest })
    }
}

/// Computes the probe of a captured state, on the thread that commits it: the training is not held up.
pub struct LogitsProbe {
    pub config: Gpt2Config,
    pub device: Device,
    /// As many as the training has: they decide the last bits.
    pub threads: usize,
    /// The training's.
    pub precision: ComputePrecision,
}

impl LogitsProbe {
    /// The fingerprint of the parameters among `tensors`, which are in the order of the model's.
    pub fn hash(&self, tensors: &[SnapshotTensor]) -> Result<String> {
        process::set_threads(self.threads)?;
        let params: Vec<&SnapshotTensor> = tensors.iter().filter(|tensor| tensor.meta.role == Role::Param).collect();
        let views: Vec<Tensor> = params.iter().map(|tensor| self.view(tensor)).collect::<Result<_>>()?;
        LogitsFingerprint::of(&self.config, &views, self.device, self.precision).map(|fingerprint| fingerprint.hash())
    }

    fn view(&self, tensor: &SnapshotTensor) -> Result<Tensor> {
        let shape: Vec<i64> = tensor.meta.shape.iter().map(|&d| d as i64).collect();
        let bytes: &[u8] = (*tensor.bytes).as_ref();
        // SAFETY: float32 of this shape, as the state has it, held by the capture for longer than the view.
        let view = unsafe { Tensor::f_from_blob(bytes.as_ptr(), &shape, &[], Kind::Float, Device::Cpu) };
        view.and_then(|view| view.f_to_device(self.device)).context(format_args!("reading {}", tensor.meta.name))
    }
}

fn bytes(logits: &Tensor) -> Result<Vec<u8>> {
    let mut bytes = vec![0; 4 * logits.numel()];
    let copied = logits.f_to_device(Device::Cpu).and_then(|l| l.f_contiguous()?.f_to_kind(Kind::Float));
    copied.and_then(|l| l.f_copy_data_u8(&mut bytes, logits.numel())).context("reading the logits")?;
    Ok(bytes)
}

fn read_rows(path: &Path, config: &Gpt2Config) -> Result<Vec<Vec<i64>>> {
    let wrong = |what: String| Error::Config(format!("{}: {what}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|e| Error::io("reading", path, e))?;
    let rows: Vec<Vec<i64>> = serde_json::from_str(&text).map_err(|e| wrong(format!("not rows of token ids: {e}")))?;
    let length = rows.first().map_or(0, Vec::len);
    if length == 0 || rows.iter().any(|row| row.len() != length) {
        return Err(wrong("the rows must be of one length, at least 1".into()));
    }
    match rows.iter().flatten().find(|&&id| id < 0 || id >= config.vocab_size) {
        Some(id) => Err(wrong(format!("token {id} is not in the vocabulary of {}", config.vocab_size))),
        None => Ok(rows),
    }
}
