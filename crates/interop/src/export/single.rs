//! One safetensors file: the model's tensors under their own names, so that any loader of safetensors takes it as a
//! state dict, and with the optimiser its state as `optimizer.<moment>.<parameter>`.

use std::fs::File;
use std::path::Path;

use super::Options;
use super::source::{Part, Source, exported_dtype};
use crate::safetensors::{self, Item};
use crate::state::State;
use ckptd_core::error::{Error, Result};
use ckptd_core::progress::ProgressSink;
use ckptd_core::snapshot::TensorMeta;

/// Before `<moment>.<parameter>`.
pub const OPTIMIZER_PREFIX: &str = "optimizer.";
/// The key of the state's description in the header.
pub const STATE_KEY: &str = "ckptd";
/// The key of the model's config.json in the header.
pub const CONFIG_KEY: &str = "config";

pub fn write(
    source: &Source,
    file: &mut File,
    path: &Path,
    options: &Options,
    progress: &dyn ProgressSink,
) -> Result<u64> {
    let (model, params) = (source.model(), source.params());
    let moments = if options.with_optimizer { source.moments() } else { Vec::new() };
    let moments: Vec<TensorMeta> = moments
        .into_iter()
        .flat_map(|role| params.iter().map(move |meta| TensorMeta { role, ..(*meta).clone() }))
        .collect();
    let all: Vec<&TensorMeta> = model.iter().copied().chain(&moments).collect();
    let item = |(index, meta): (usize, &&TensorMeta)| match index < model.len() {
        true => Item { name: meta.name.clone(), dtype: exported_dtype(meta, options.dtype), shape: meta.shape.clone() },
        false => {
            let name = format!("{OPTIMIZER_PREFIX}{}.{}", meta.role, meta.name);
            Item { name, dtype: meta.dtype, shape: meta.shape.clone() }
        }
    };
    let items: Vec<Item> = all.iter().enumerate().map(item).collect();
    let mut metadata = vec![("format", "pt".to_owned())];
    if let Some(config) = source.config_json()? {
        metadata.push((CONFIG_KEY, config));
    }
    if model.iter().all(|meta| exported_dtype(meta, options.dtype) == meta.dtype) {
        let json = State::new(source.manifest()).to_json()?;
        let json = String::from_utf8(json).map_err(|e| Error::Other(format!("writing the state: {e}")))?;
        metadata.push((STATE_KEY, json));
    }
    let total = items.iter().map(Item::bytes).sum();
    progress.begin("tensors", total);
    let content = |order: &[usize], take: &mut dyn FnMut(usize, &[u8]) -> Result<()>| {
        let parts: Vec<Part> = order.iter().map(|&i| Part::Tensor(all[i].clone(), items[i].dtype)).collect();
        source.stream(&parts, &mut |part, piece| take(order[part], piece))
    };
    safetensors::write(file, path, &items, &metadata, content, progress)?;
    Ok(total)
}
