//! Where the parameters' first values come from: GPT-2's scaled initialisation, or the tensors of a checkpoint.
//!
//! Invariant: either every parameter is filled exactly once, or the error names the tensors that do not fit.
//! Deliberately not here: reading files (`ckptd_interop`).

use std::collections::BTreeMap;

use ckptd_core::dtype;
use ckptd_core::snapshot::{Role, Tensor, TensorMeta};
use ckptd_core::{Error, Result};
use ckptd_interop::gpt2_config::Gpt2Config;
use ckptd_interop::gpt2_names::Gpt2Parameter;
use ckptd_interop::gpt2_reading::{self, ModelSays};
use tch::{Device, Kind};

use crate::capture::TensorDestination;
use crate::torch::TorchContext;

/// GPT-2's initialisation (transformers' `_init_weights`): weights from N(0, initializer_range), those of `c_proj`,
/// which feed the residual stream, narrower by sqrt(2 n_layer); layer norms one, biases zero. A pure function of
/// the seed and each tensor's name. It reseeds libtorch's generator.
pub fn random(config: &Gpt2Config, seed: u64, destinations: &mut [TensorDestination<'_>]) -> Result<()> {
    let range = config.initializer_range;
    for TensorDestination { meta, bytes, .. } in destinations.iter_mut().filter(|d| d.meta.role == Role::Param) {
        if !meta.name.ends_with(".weight") {
            bytes.fill(0);
        } else if meta.shape.len() < 2 {
            bytes.chunks_exact_mut(4).for_each(|value| value.copy_from_slice(&1f32.to_le_bytes()));
        } else {
            let narrow = Gpt2Parameter::parse(&meta.name).is_some_and(Gpt2Parameter::is_residual_projection);
            let std = if narrow { range / (2.0 * config.n_layer as f64).sqrt() } else { range };
            tch::manual_seed(tensor_seed(seed, &meta.name));
            let size = [(bytes.len() / 4) as i64];
            // SAFETY: the view ends before the borrow of `bytes` does, and mappings are aligned to 64 bytes.
            let view = unsafe { tch::Tensor::f_from_blob(bytes.as_ptr(), &size, &[], Kind::Float, Device::Cpu) };
            let mut view = view.context(format_args!("the initialisation of {}", meta.name))?;
            let _ = view.f_normal_(0.0, std).context(format_args!("the initialisation of {}", meta.name))?;
        }
    }
    Ok(())
}

/// A seed of its own for each tensor, so that the values do not depend on the order of the tensors.
fn tensor_seed(seed: u64, name: &str) -> i64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"ckptd-gpt2 initialisation").update(&seed.to_le_bytes()).update(name.as_bytes());
    let hash = hasher.finalize();
    hash.as_bytes().iter().take(8).fold(0u64, |seed, &byte| seed << 8 | u64::from(byte)) as i64
}

/// Fills the parameters from a checkpoint's tensors, as [`gpt2_reading::read`] takes them: float32, float16 or
/// bfloat16.
///
/// # Errors
/// [`Error::Config`] that names every missing, extra, doubled, misshapen or untied tensor. `origin` names the
/// checkpoint in it.
pub fn from_tensors(
    config: &Gpt2Config,
    tensors: &[Tensor],
    aliases: &[(String, String)],
    origin: &str,
    destinations: &mut [TensorDestination<'_>],
) -> Result<()> {
    let wrong = |what: String| Error::Config(format!("{origin} does not fit its config.json: {what}"));
    let says =
        ModelSays { config: Some(config.clone()), config_name: "its config.json".into(), aliases: aliases.to_vec() };
    let model = gpt2_reading::read(tensors.to_vec(), &says).map_err(wrong)?;
    let mut given: BTreeMap<String, Tensor> =
        model.into_tensors().into_iter().map(|tensor| (tensor.meta.name.clone(), tensor)).collect();
    for TensorDestination { meta, bytes, .. } in destinations.iter_mut().filter(|d| d.meta.role == Role::Param) {
        let tensor = given.remove(&meta.name).ok_or_else(|| wrong(format!("{} is missing", meta.name)))?;
        copy(&tensor, meta, bytes).map_err(wrong)?;
    }
    Ok(())
}

fn copy(tensor: &Tensor, meta: &TensorMeta, destination: &mut [u8]) -> Result<(), String> {
    let TensorMeta { name, shape, .. } = meta;
    if tensor.meta.shape != *shape {
        return Err(format!("{name} has the shape {:?}, expected {shape:?}", tensor.meta.shape));
    }
    let source: &[u8] = (*tensor.bytes).as_ref();
    let dtype = tensor.meta.dtype;
    if source.len() != destination.len() / 4 * dtype.size() {
        return Err(format!("{name} has {} bytes, which is not its shape's {dtype}", source.len()));
    }
    dtype::widen_into(destination, dtype, source)
        .ok_or_else(|| format!("{name} is {dtype}; F32, F16 and BF16 can be loaded"))
}
