//! PyTorch's side: `.pt` files, and the files beside the weights from which transformers' Trainer resumes.
//!
//! The optimiser's state is laid out as Trainer's: two groups, the decaying parameters first, each in the order of
//! the model's parameters. `torch.optim.AdamW` (or SGD) with these groups accepts it. A snapshot that was imported and
//! not trained since has the groups, the schedule and Trainer's state of its source.

use std::fs::File;
use std::path::Path;

use serde_json::json;

use super::hyper::{self, HyperParameters, SourceSays};
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
    let says = hyper::source_says(source)?;
    let step = source.manifest().train.step as i64;
    let optimizer = optimizer(source, &hyper, says.as_ref(), storages);
    let mut items = vec![("model", model), ("optimizer", optimizer), ("step", PtObject::Int(step))];
    if let Some(schedule) = says.as_ref().and_then(SourceSays::schedule) {
        items.push(("scheduler", schedule));
    }
    if let Some(record) = source.carried(names::SOURCE_RECORD)? {
        items.push((names::SOURCE_KEY, PtObject::str(String::from_utf8_lossy(&record))));
    }
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
    let says = hyper::source_says(source)?;
    let mut storages = PtStorages::default();
    let object = optimizer(source, &hyper, says.as_ref(), &mut storages);
    let path = folder.path(names::OPTIMIZER);
    let bytes = folder.part(names::OPTIMIZER, |file| storages.write(source, file, &path, &object, progress))?;
    let path = folder.path(names::SCHEDULER);
    let own = || scheduler(&hyper, source.manifest().train.step);
    let object = says.as_ref().and_then(SourceSays::schedule).unwrap_or_else(own);
    folder.part(names::SCHEDULER, |file| PtStorages::default().write(source, file, &path, &object, progress))?;
    folder.file(names::TRAINER_STATE, format!("{:#}\n", trainer_state(source, &hyper, says.as_ref())).as_bytes())?;
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
        /// Where float32, in which PyTorch counts, ends to count in ones.
        const LAST: u64 = 1 << 24;
        let (dtype, bytes) = match step {
            0..=LAST => (DType::F32, (step as f32).to_le_bytes().to_vec()),
            _ => (DType::F64, (step as f64).to_le_bytes().to_vec()),
        };
        self.contents.push(ExportPart::Bytes(bytes));
        PtObject::Tensor(TensorSlot { storage: self.contents.len() - 1, dtype, shape: Vec::new() })
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
pub(super) fn optimizer(
    source: &ExportSource,
    hyper: &HyperParameters,
    says: Option<&SourceSays>,
    storages: &mut PtStorages,
) -> PtObject {
    let params = source.params();
    let halves = gpt2_names::optimizer_groups(&params);
    let groups = says.and_then(|says| says.groups(halves)).unwrap_or_else(|| own_groups(source, &params, hyper));
    let moments = source.moments();
    let step = source.manifest().train.step;
    let (mut state, mut group_objects) = (Vec::new(), Vec::new());
    for (names, options) in groups {
        let mut numbers = Vec::with_capacity(names.len());
        for name in names {
            let index = state.len() as i64;
            let Some(param) = params.iter().find(|meta| meta.name == name) else { continue };
            let mut of_param = Vec::new();
            if moments.contains(&Role::ExpAvg) {
                of_param.push(("step", storages.step(step)));
            }
            for &role in &moments {
                let meta = TensorMeta { role, ..(*param).clone() };
                of_param.push((role.name(), storages.tensor(&meta, meta.dtype)));
            }
            state.push((PtObject::Int(index), PtObject::dict(of_param)));
            numbers.push(PtObject::Int(index));
        }
        let PtObject::Dict(mut options) = options else { continue };
        options.push((PtObject::str("params"), PtObject::List(numbers)));
        group_objects.push(PtObject::Dict(options));
    }
    // An optimiser that keeps nothing has no entries.
    let state = if moments.is_empty() { Vec::new() } else { state };
    PtObject::dict([("state", PtObject::Dict(state)), ("param_groups", PtObject::List(group_objects))])
}

/// Trainer's two groups.
fn own_groups<'a>(
    source: &ExportSource,
    params: &[&'a TensorMeta],
    hyper: &HyperParameters,
) -> Vec<(Vec<&'a str>, PtObject)> {
    let adam = source.moments().contains(&Role::ExpAvg);
    let (order, decaying) = gpt2_names::optimizer_order(params);
    let (first, second) = order.split_at(decaying);
    let group = |(places, decay): (&[usize], f64)| {
        let options = if adam { hyper.adamw_group(decay) } else { hyper.sgd_group(decay) };
        (places.iter().map(|&place| params[place].name.as_str()).collect(), PtObject::dict(options))
    };
    [(first, hyper.weight_decay), (second, 0.0)].map(group).into()
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

/// trainer_state.json: the source's where the snapshot was imported, brought up to date; Trainer goes by the steps that
/// stand there, not by its arguments.
fn trainer_state(source: &ExportSource, hyper: &HyperParameters, says: Option<&SourceSays>) -> serde_json::Value {
    let mut state = own_trainer_state(source, hyper);
    let Some((says, theirs)) = says.and_then(|says| Some((says, says.trainer_state()?))) else { return state };
    let now = ["global_step", "epoch", "num_input_tokens_seen", "max_steps", "train_batch_size", "log_history"];
    for (key, value) in theirs {
        if says.is_unchanged || !now.contains(&key.as_str()) {
            state[key] = value;
        }
    }
    state
}

fn own_trainer_state(source: &ExportSource, hyper: &HyperParameters) -> serde_json::Value {
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
        "save_steps": hyper.save_steps,
        // Trainer writes its own control here at its next save, and expects the entry to be there.
        "stateful_callbacks": {"TrainerControl": {"args": control, "attributes": {}}},
        "total_flos": 0.0,
        "train_batch_size": hyper.batch_size,
        "trial_name": null,
        "trial_params": null
    })
}
