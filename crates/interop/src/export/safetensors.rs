//! One safetensors file: the model's tensors under their own names, so that any loader of safetensors takes it as a
//! state dict, and with the optimiser its state as `optimizer.<moment>.<parameter>`.

use std::fs::File;
use std::path::Path;

use super::options::ExportOptions;
use super::source::{ExportPart, ExportSource, exported_dtype};
use crate::export_record::ExportRecord;
use crate::names;
use crate::safetensors::{self, TensorSpec};
use ckptd_core::error::{Error, Result};
use ckptd_core::progress::ProgressSink;
use ckptd_core::snapshot::TensorMeta;

pub(super) fn write(
    source: &ExportSource,
    file: &mut File,
    path: &Path,
    options: &ExportOptions,
    progress: &dyn ProgressSink,
) -> Result<u64> {
    let (model, params) = (source.model(), source.params());
    let moments = if options.with_optimizer { source.moments() } else { Vec::new() };
    let moments: Vec<TensorMeta> = moments
        .into_iter()
        .flat_map(|role| params.iter().map(move |meta| TensorMeta { role, ..(*meta).clone() }))
        .collect();
    let all: Vec<&TensorMeta> = model.iter().copied().chain(&moments).collect();
    let item = |(index, meta): (usize, &&TensorMeta)| {
        if index < model.len() {
            TensorSpec {
                name: meta.name.clone(),
                dtype: exported_dtype(meta, options.dtype),
                shape: meta.shape.clone(),
            }
        } else {
            let name = names::moment(meta.role, &meta.name);
            TensorSpec { name, dtype: meta.dtype, shape: meta.shape.clone() }
        }
    };
    let items: Vec<TensorSpec> = all.iter().enumerate().map(item).collect();
    let mut metadata = vec![("format", "pt".to_owned())];
    if let Some(config) = source.config_json()? {
        metadata.push((names::CONFIG_KEY, config));
    }
    if source.is_exact_as(options.dtype) {
        let json = ExportRecord::new(source.manifest()).to_json()?;
        let json = String::from_utf8(json).map_err(|e| Error::Other(format!("writing the state: {e}")))?;
        metadata.push((names::RECORD_KEY, json));
    }
    if let Some(record) = source.carried(names::SOURCE_RECORD)?.filter(|_| options.with_optimizer) {
        metadata.push((names::SOURCE_KEY, String::from_utf8_lossy(&record).into_owned()));
    }
    let total = items.iter().map(TensorSpec::bytes).sum();
    progress.begin("tensors", total);
    let content = |order: &[usize], take: &mut dyn FnMut(usize, &[u8]) -> Result<()>| {
        let parts: Vec<ExportPart> =
            order.iter().map(|&i| ExportPart::Tensor(all[i].clone(), items[i].dtype)).collect();
        source.stream(&parts, &mut |part, piece| take(order[part], piece))
    };
    safetensors::write(file, path, &items, &metadata, content, progress)?;
    Ok(total)
}
