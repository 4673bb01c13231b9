//! PyTorch's side: `.pt` files, and the files beside the weights from which transformers' Trainer resumes.
//!
//! The optimiser's state is laid out as Trainer's: two groups, the decaying parameters first, each in the order of
//! the model's parameters. `torch.optim.AdamW` (or SGD) with these groups accepts it.

use std::fs::File;
use std::path::Path;

use serde_json::json;

use super::hyper::HyperParameters;
use super::options::ExportOptions;
use super::source::{ExportPart, ExportSource, exported_dtype, is_linear};
use super::target::ExportFolder;
use crate::export_record::ExportRecord;
use crate::torch_pt::pickler::{PtObject, TensorSlot};
use crate::torch_pt::writer;
use crate::{gpt2_names, names};
use ckptd_core::dtype::DType;
use ckptd_core::error::Result;
use ckptd_core::progress::ProgressSink;
use ckptd_core::snapshot::{Role, TensorMeta};

/// The `.pt` file: a state dict, or with the optimiser a dict of `model`, `optimizer`, `step` and what else is needed
/// to go on.
pub(super) fn write(
    source: &ExportSource,
    file: &mut File,
    path: &Path,
    options: &ExportOptions,
    progress: &dyn ProgressSink,
) -> Result<u64> {
    let mut storages = PtStorages::default();
    let model = state_dict(source, options.dtype, &mut storages);
    let object = if options.with_optimizer { checkpoint(source, model, options, &mut storages)? } else { model };
    storages.write(source, file, path, &object, progress)
}

/// The model's state dict with the optimiser's state and what else is needed to go on.
pub(super) fn checkpoint(
    source: &ExportSource,
    model: PtObject,
    options: &ExportOptions,
    storages: &mut PtStorages,
) -> Result<PtObject> {
    let hyper = HyperParameters::of(source.manifest(), options.job.as_ref());
    let step = source.manifest().train.step as i64;
    let mut items =
        vec![("model", model), ("optimizer", optimizer(source, &hyper, storages)), ("step", PtObject::Int(step))];
    if let Some(config) = source.config_json()? {
        items.push((names::CONFIG_KEY, PtObject::str(config)));
    }
    if source.is_exact_as(options.dtype) {
        let json = ExportRecord::new(source.manifest()).to_json()?;
        items.push((names::RECORD_KEY, PtObject::str(String::from_utf8_lossy(&json))));
    }
    Ok(PtObject::dict(items))
}

/// optimizer.pt, scheduler.pt and trainer_state.json; returns the bytes of the tensors in them.
pub(super) fn write_trainer_files(
    source: &ExportSource,
    folder: &mut ExportFolder,
    options: &ExportOptions,
    progress: &dyn ProgressSink,
) -> Result<u64> {
    let hyper = HyperParameters::of(source.manifest(), options.job.as_ref());
    let mut storages = PtStorages::default();
    let object = optimizer(source, &hyper, &mut storages);
    let path = folder.path(names::OPTIMIZER);
    let bytes = folder.part(names::OPTIMIZER, |file| storages.write(source, file, &path, &object, progress))?;
    let path = folder.path(names::SCHEDULER);
    let object = scheduler(&hyper, source.manifest().train.step);
    folder.part(names::SCHEDULER, |file| PtStorages::default().write(source, file, &path, &object, progress))?;
    folder.file(names::TRAINER_STATE, format!("{:#}\n", trainer_state(source, &hyper)).as_bytes())?;
    Ok(bytes)
}

/// What each storage of an archive holds.
#[derive(Default)]
pub(super) struct PtStorages {
    /// In the order of the storages' numbers.
    pub(super) contents: Vec<ExportPart>,
    /// Weights of linear layers lie as `nn.Linear` keeps them.
    pub(super) linear: bool,
}

impl PtStorages {
    fn tensor(&mut self, meta: &TensorMeta, dtype: DType) -> PtObject {
        let mut shape = meta.shape.clone();
        self.contents.push(if self.linear && is_linear(meta) {
            shape.reverse();
            ExportPart::Transposed(meta.clone(), dtype)
        } else {
            ExportPart::Tensor(meta.clone(), dtype)
        });
        PtObject::Tensor(TensorSlot { storage: self.contents.len() - 1, dtype, shape })
    }

    /// The step counter that AdamW keeps beside each parameter's moments.
    fn step(&mut self, step: u64) -> PtObject {
        self.contents.push(ExportPart::Bytes((step as f32).to_le_bytes().to_vec()));
        PtObject::Tensor(TensorSlot { storage: self.contents.len() - 1, dtype: DType::F32, shape: Vec::new() })
    }

    pub(super) fn write(
        self,
        source: &ExportSource,
        file: &mut File,
        path: &Path,
        object: &PtObject,
        progress: &dyn ProgressSink,
    ) -> Result<u64> {
        let sizes: Vec<u64> = self.contents.iter().map(ExportPart::bytes).collect();
        let total = sizes.iter().sum();
        if total > 1 << 20 {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            progress.begin(&name, total);
        }
        writer::write(file, path, object, &sizes, |take| source.stream(&self.contents, take), progress)?;
        Ok(total)
    }
}

/// `GPT2LMHeadModel.state_dict()`: with the head under its own name where it is tied, in the embedding's storage.
pub(super) fn state_dict(source: &ExportSource, dtype: Option<DType>, storages: &mut PtStorages) -> PtObject {
    let mut items = Vec::new();
    let mut embedding = None;
    for meta in source.model() {
        let tensor = storages.tensor(meta, exported_dtype(meta, dtype));
        if meta.name == gpt2_names::EMBEDDING {
            embedding = Some(tensor.clone());
        }
        items.push((PtObject::str(meta.name.as_str()), tensor));
    }
    if let Some(embedding) = embedding.filter(|_| source.is_tied()) {
        items.push((PtObject::str(gpt2_names::HEAD), embedding));
    }
    PtObject::OrderedDict(items)
}

/// `Optimizer.state_dict()`
pub(super) fn optimizer(source: &ExportSource, hyper: &HyperParameters, storages: &mut PtStorages) -> PtObject {
    let params = source.params();
    let moments = source.moments();
    let step = source.manifest().train.step;
    let (order, decaying) = gpt2_names::optimizer_order(&params);
    let mut state = Vec::new();
    for (index, &param) in order.iter().enumerate() {
        let mut of_param = Vec::new();
        if moments.contains(&Role::ExpAvg) {
            of_param.push(("step", storages.step(step)));
        }
        for &role in &moments {
            let meta = TensorMeta { role, ..params[param].clone() };
            of_param.push((role.name(), storages.tensor(&meta, meta.dtype)));
        }
        if !of_param.is_empty() {
            state.push((PtObject::Int(index as i64), PtObject::dict(of_param)));
        }
    }
    let adam = moments.contains(&Role::ExpAvg);
    let groups = [(0..decaying, hyper.weight_decay), (decaying..order.len(), 0.0)];
    let groups = groups.map(|(range, decay)| {
        let mut group = if adam { hyper.adamw_group(decay) } else { hyper.sgd_group(decay) };
        group.push(("params", PtObject::List(range.map(|i| PtObject::Int(i as i64)).collect())));
        PtObject::dict(group)
    });
    PtObject::dict([("state", PtObject::Dict(state)), ("param_groups", PtObject::List(groups.into()))])
}

/// `LambdaLR.state_dict()` after `step` steps. The lambdas themselves come from the Trainer's arguments.
fn scheduler(hyper: &HyperParameters, step: u64) -> PtObject {
    let both = |rate: f64| PtObject::List(vec![PtObject::Float(rate); 2]);
    PtObject::dict([
        ("base_lrs", both(hyper.learning_rate)),
        ("last_epoch", PtObject::Int(step as i64)),
        ("_step_count", PtObject::Int(step as i64 + 1)),
        ("_is_initial", PtObject::Bool(false)),
        ("_get_lr_called_within_step", PtObject::Bool(false)),
        ("_last_lr", both(hyper.rate_now)),
        ("lr_lambdas", PtObject::List(vec![PtObject::None, PtObject::None])),
    ])
}

fn trainer_state(source: &ExportSource, hyper: &HyperParameters) -> serde_json::Value {
    let manifest = source.manifest();
    let (train, metrics) = (&manifest.train, &manifest.metrics);
    let mut last = json!({"epoch": train.epoch as f64, "learning_rate": hyper.rate_now, "step": train.step});
    if let Some(loss) = metrics.train_loss.filter(|loss| loss.is_finite()) {
        last["loss"] = json!(loss);
    }
    let control: serde_json::Map<String, serde_json::Value> =
        ["should_epoch_stop", "should_evaluate", "should_log", "should_save", "should_training_stop"]
            .into_iter()
            .map(|key| (key.to_owned(), json!(false)))
            .collect();
    // Trainer goes by the steps that stand here, not by its arguments.
    json!({
        "best_global_step": null,
        "best_metric": train.best_val_loss.filter(|loss| loss.is_finite()),
        "best_model_checkpoint": null,
        "epoch": train.epoch as f64,
        "eval_steps": hyper.eval_steps,
        "global_step": train.step,
        "is_hyper_param_search": false,
        "is_local_process_zero": true,
        "is_world_process_zero": true,
        "log_history": [last],
        "logging_steps": 1,
        "max_steps": hyper.steps,
        "num_input_tokens_seen": train.tokens_seen,
        "num_train_epochs": 1,
        "save_steps": 500,
        // Trainer writes its own control here at its next save, and expects the entry to be there.
        "stateful_callbacks": {"TrainerControl": {"args": control, "attributes": {}}},
        "total_flos": 0.0,
        "train_batch_size": hyper.batch_size,
        "trial_name": null,
        "trial_params": null
    })
}
