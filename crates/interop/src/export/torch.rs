//! PyTorch's side: `.pt` files, and the files beside the weights from which transformers' Trainer resumes.
//!
//! The optimiser's state is laid out as Trainer's: two groups, the decaying parameters first, each in the order of
//! the model's parameters. `torch.optim.AdamW` (or SGD) with these groups accepts it.

use std::fs::File;
use std::path::Path;

use serde_json::json;

use super::folder::Folder;
use super::hyper::Hyper;
use super::source::{Part, Source, exported_dtype};
use super::{Options, single};
use crate::model;
use crate::state::State;
use crate::torch_pt::pickler::{Object, TensorSlot};
use crate::torch_pt::writer;
use ckptd_core::dtype::DType;
use ckptd_core::error::Result;
use ckptd_core::progress::ProgressSink;
use ckptd_core::snapshot::{Role, TensorMeta};

pub const OPTIMIZER: &str = "optimizer.pt";
pub const SCHEDULER: &str = "scheduler.pt";
pub const TRAINER_STATE: &str = "trainer_state.json";
pub const TRAINER_FILES: [&str; 3] = [OPTIMIZER, SCHEDULER, TRAINER_STATE];

/// The `.pt` file: a state dict, or with the optimiser a dict of `model`, `optimizer`, `step` and what else is needed
/// to go on.
pub fn write(
    source: &Source,
    file: &mut File,
    path: &Path,
    options: &Options,
    progress: &dyn ProgressSink,
) -> Result<u64> {
    let mut storages = Storages::default();
    let model = state_dict(source, options.dtype, &mut storages);
    let object = match options.with_optimizer {
        false => model,
        true => {
            let hyper = Hyper::of(source.manifest(), options.job.as_ref());
            let step = source.manifest().train.step as i64;
            let mut items = vec![
                ("model", model),
                ("optimizer", optimizer(source, &hyper, &mut storages)),
                ("step", Object::Int(step)),
            ];
            if let Some(config) = source.config_json()? {
                items.push((single::CONFIG_KEY, Object::str(config)));
            }
            if source.model().iter().all(|meta| exported_dtype(meta, options.dtype) == meta.dtype) {
                let json = State::new(source.manifest()).to_json()?;
                items.push((single::STATE_KEY, Object::str(String::from_utf8_lossy(&json))));
            }
            Object::dict(items)
        }
    };
    storages.write(source, file, path, &object, progress)
}

/// optimizer.pt, scheduler.pt and trainer_state.json; returns the bytes of the tensors in them.
pub(super) fn write_trainer_files(
    source: &Source,
    folder: &mut Folder,
    options: &Options,
    progress: &dyn ProgressSink,
) -> Result<u64> {
    let hyper = Hyper::of(source.manifest(), options.job.as_ref());
    let mut storages = Storages::default();
    let object = optimizer(source, &hyper, &mut storages);
    let path = folder.dir.join(OPTIMIZER);
    let bytes = folder.part(OPTIMIZER, |file| storages.write(source, file, &path, &object, progress))?;
    let path = folder.dir.join(SCHEDULER);
    let object = scheduler(&hyper, source.manifest().train.step);
    folder.part(SCHEDULER, |file| Storages::default().write(source, file, &path, &object, progress))?;
    folder.file(TRAINER_STATE, format!("{:#}\n", trainer_state(source, &hyper)).as_bytes())?;
    Ok(bytes)
}

/// What each storage of an archive holds.
#[derive(Default)]
struct Storages {
    contents: Vec<Part>,
}

impl Storages {
    fn tensor(&mut self, meta: &TensorMeta, dtype: DType) -> Object {
        self.contents.push(Part::Tensor(meta.clone(), dtype));
        Object::Tensor(TensorSlot { storage: self.contents.len() - 1, dtype, shape: meta.shape.clone() })
    }

    /// The step counter that AdamW keeps beside each parameter's moments.
    fn step(&mut self, step: u64) -> Object {
        self.contents.push(Part::Bytes((step as f32).to_le_bytes().to_vec()));
        Object::Tensor(TensorSlot { storage: self.contents.len() - 1, dtype: DType::F32, shape: Vec::new() })
    }

    fn write(
        self,
        source: &Source,
        file: &mut File,
        path: &Path,
        object: &Object,
        progress: &dyn ProgressSink,
    ) -> Result<u64> {
        let bytes = |content: &Part| match content {
            Part::Tensor(meta, dtype) => meta.elements().unwrap_or(0) * dtype.size() as u64,
            Part::Bytes(bytes) => bytes.len() as u64,
        };
        let sizes: Vec<u64> = self.contents.iter().map(bytes).collect();
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
fn state_dict(source: &Source, dtype: Option<DType>, storages: &mut Storages) -> Object {
    let mut items = Vec::new();
    let mut embedding = None;
    for meta in source.model() {
        let tensor = storages.tensor(meta, exported_dtype(meta, dtype));
        if meta.name == model::EMBEDDING {
            embedding = Some(tensor.clone());
        }
        items.push((Object::str(meta.name.as_str()), tensor));
    }
    if let Some(embedding) = embedding.filter(|_| source.is_tied()) {
        items.push((Object::str(model::HEAD), embedding));
    }
    Object::OrderedDict(items)
}

/// `Optimizer.state_dict()`
fn optimizer(source: &Source, hyper: &Hyper, storages: &mut Storages) -> Object {
    let params = source.params();
    let moments = source.moments();
    let step = source.manifest().train.step;
    let (order, decaying) = model::optimizer_order(&params);
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
            state.push((Object::Int(index as i64), Object::dict(of_param)));
        }
    }
    let adam = moments.contains(&Role::ExpAvg);
    let groups = [(0..decaying, hyper.weight_decay), (decaying..order.len(), 0.0)];
    let groups = groups.map(|(range, decay)| {
        let mut group = if adam { hyper.adamw_group(decay) } else { hyper.sgd_group(decay) };
        group.push(("params", Object::List(range.map(|i| Object::Int(i as i64)).collect())));
        Object::dict(group)
    });
    Object::dict([("state", Object::Dict(state)), ("param_groups", Object::List(groups.into()))])
}

/// `LambdaLR.state_dict()` after `step` steps. The lambdas themselves come from the Trainer's arguments.
fn scheduler(hyper: &Hyper, step: u64) -> Object {
    let both = |rate: f64| Object::List(vec![Object::Float(rate); 2]);
    Object::dict([
        ("base_lrs", both(hyper.learning_rate)),
        ("last_epoch", Object::Int(step as i64)),
        ("_step_count", Object::Int(step as i64 + 1)),
        ("_is_initial", Object::Bool(false)),
        ("_get_lr_called_within_step", Object::Bool(false)),
        ("_last_lr", both(hyper.rate_now)),
        ("lr_lambdas", Object::List(vec![Object::None, Object::None])),
    ])
}

fn trainer_state(source: &Source, hyper: &Hyper) -> serde_json::Value {
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
