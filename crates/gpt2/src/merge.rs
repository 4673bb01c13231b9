//! An adapter of PEFT merged into its base model, with the operations and in the order of PEFT's `merge_and_unload`: to
//! the last bit what it makes of the base model in float32 with as many threads.
//!
//! Deliberately not here: which steps a merge has (interop's `adapter`), the snapshot (import).

use std::fs::File;
use std::path::{Path, PathBuf};

use ckptd_core::dtype::{self, DType};
use ckptd_core::progress::NoProgress;
use ckptd_core::snapshot::{CarriedFile, Tensor as SnapshotTensor, TensorMeta};
use ckptd_core::{Error, Result};
use ckptd_interop::adapter::{LoraAdapter, MergePlan, MergeReport, MergeStep};
use ckptd_interop::import::{self, LoadOptions};
use ckptd_interop::limits::ReadLimits;
use ckptd_interop::safetensors::{self, TensorSpec};
use ckptd_interop::{gpt2_names, hf, names};
use tch::{Kind, Tensor};

use crate::gpt2::Gpt2Config;
use crate::process;
use crate::torch::TorchContext;

#[derive(clap::Args)]
pub struct MergeArguments {
    /// The folder of the adapter.
    #[arg(long)]
    pub adapter: PathBuf,
    /// Its base model: a model folder, or anything else that can be imported with its config.
    #[arg(long)]
    pub base: PathBuf,
    /// The folder that the merged model is written to; it must be there.
    #[arg(long)]
    pub out: PathBuf,
    /// Threads; 0: one per processor.
    #[arg(long, default_value_t = 0)]
    pub threads: usize,
}

/// Writes the merged model as a Hugging Face folder, and prints what was done as JSON.
pub fn merge(arguments: &MergeArguments) -> Result<()> {
    process::set_threads(arguments.threads)?;
    let limits = ReadLimits::default();
    let adapter = LoraAdapter::open(&arguments.adapter, &limits)?;
    let options = LoadOptions { weights_only: true, ..LoadOptions::new(&limits) };
    let mut base = import::load(&arguments.base, &options, &NoProgress)?;
    let metas: Vec<TensorMeta> = base.snapshot.tensors.iter().map(|tensor| tensor.meta.clone()).collect();
    let plan = adapter.plan(&metas)?;
    if plan.splits_head {
        split_head(&mut base.snapshot.tensors);
    }
    for file in files(&arguments.adapter, base.snapshot.files, &plan, &arguments.base)? {
        let path = arguments.out.join(&file.name);
        std::fs::write(&path, &*file.bytes).map_err(|e| Error::io("writing", &path, e))?;
    }
    write(&arguments.out.join(names::WEIGHTS), &base.snapshot.tensors, &plan)?;
    let report = MergeReport { layers: plan.layers, splits_head: plan.splits_head };
    let json = serde_json::to_string(&report).map_err(|e| Error::Other(format!("writing the report: {e}")))?;
    println!("{json}");
    Ok(())
}

/// Gives the head, which was the embedding, the same values as a parameter of its own.
fn split_head(tensors: &mut Vec<SnapshotTensor>) {
    let embedding = tensors.iter().find(|tensor| tensor.meta.name == gpt2_names::EMBEDDING).cloned();
    tensors.extend(embedding.map(|embedding| SnapshotTensor {
        meta: TensorMeta { name: gpt2_names::HEAD.into(), ..embedding.meta },
        bytes: embedding.bytes,
    }));
}

/// The small files of the merged model: those of the base, and the tokenizer of the adapter where it has one.
fn files(adapter: &Path, base: Vec<CarriedFile>, plan: &MergePlan, origin: &Path) -> Result<Vec<CarriedFile>> {
    let mut files = base;
    for path in hf::companions(adapter) {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let bytes = std::fs::read(&path).map_err(|e| Error::io("reading", &path, e))?;
        files.retain(|file| file.name != name);
        files.push(CarriedFile { name, bytes: bytes.into() });
    }
    let config = files.iter_mut().find(|file| file.name == names::CONFIG).ok_or_else(|| {
        Error::mismatch(origin, "it has no config.json, so that the model's shape is not known; name a model folder")
    })?;
    if plan.splits_head {
        let text = String::from_utf8_lossy(&config.bytes).into_owned();
        let untied = Gpt2Config { tie_word_embeddings: false, ..Gpt2Config::from_json(&text, names::CONFIG)? };
        config.bytes = untied.to_json().into_bytes().into();
    }
    Ok(files)
}

fn write(path: &Path, tensors: &[SnapshotTensor], plan: &MergePlan) -> Result<()> {
    let spec = |SnapshotTensor { meta, .. }: &SnapshotTensor| TensorSpec {
        name: meta.name.clone(),
        dtype: meta.dtype,
        shape: meta.shape.clone(),
    };
    let items: Vec<TensorSpec> = tensors.iter().map(spec).collect();
    let file = File::create_new(path).map_err(|e| Error::io("creating", path, e))?;
    let content = |order: &[usize], put: &mut dyn FnMut(usize, &[u8]) -> Result<()>| {
        order.iter().try_for_each(|&index| match merged(&tensors[index], plan)? {
            Some(values) => put(index, memory(&values)),
            None => put(index, (*tensors[index].bytes).as_ref()),
        })
    };
    safetensors::write(&file, path, &items, &[("format", "pt".to_owned())], content, &NoProgress).map(drop)
}

/// The parameter after the steps on it; `None` where there are none.
fn merged(base: &SnapshotTensor, plan: &MergePlan) -> Result<Option<Tensor>> {
    let mut value: Option<Tensor> = None;
    for step in plan.steps.iter().filter(|step| step.name() == base.meta.name) {
        let doing = || format!("the merge of {}", base.meta.name);
        let delta = match step {
            MergeStep::Replace { tensor, .. } => {
                value = Some(as_float(tensor)?);
                continue;
            }
            MergeStep::LowRank { down, up, scale, is_turned, .. } => {
                let product = as_float(up)?.f_matmul(&as_float(down)?).context(doing())?;
                let product = if *is_turned { product.f_tr().context(doing())? } else { product };
                product.f_mul_scalar(*scale).context(doing())?
            }
            MergeStep::Add { tensor, scale, .. } => as_float(tensor)?.f_mul_scalar(*scale).context(doing())?,
        };
        let mut before = match value {
            Some(value) => value,
            None => as_float(base)?,
        };
        value = Some(before.f_add_(&delta).context(doing())?);
    }
    Ok(value)
}

/// Its values in float32, as PEFT loads an adapter and the import the base.
fn as_float(tensor: &SnapshotTensor) -> Result<Tensor> {
    let SnapshotTensor { meta, bytes } = tensor;
    let bytes = dtype::convert((**bytes).as_ref(), meta.dtype, DType::F32)
        .ok_or_else(|| Error::Other(format!("{} is {}; F32, F16 and BF16 are merged", meta.name, meta.dtype.name())))?;
    let shape: Vec<i64> = meta.shape.iter().map(|&size| size as i64).collect();
    Tensor::f_from_data_size(&bytes, &shape, Kind::Float).context(format_args!("reading {}", meta.name))
}

/// The bytes of a contiguous float32 tensor of the CPU.
fn memory(tensor: &Tensor) -> &[u8] {
    // SAFETY: the tensor is contiguous, float32 and of the CPU, as its base was; the bytes live as long as it does.
    unsafe { std::slice::from_raw_parts(tensor.data_ptr().cast::<u8>(), 4 * tensor.numel()) }
}
