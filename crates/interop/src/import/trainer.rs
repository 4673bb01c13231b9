//! The files of a Trainer beside its model: trainer_state.json, scheduler.pt, and what of training_args.bin is plain.
//!
//! training_args.bin is the pickle of an object with everything in it. It is read as every other pickle: nothing is
//! made or called; of the values that the object would be made from, those below are taken.

use std::path::Path;

use serde_json::{Map, Value};

use super::optimizer_state::plain;
use crate::limits::ReadLimits;
use crate::mapped::read_small;
use crate::plain::PlainValue;
use crate::source_record::SourceRecord;
use crate::torch_pt::{PtFile, PtValue};
use crate::{names, python_json};
use ckptd_core::error::{Error, Result};

const MAX_TRAINER_STATE_BYTES: u64 = 64 << 20;

/// Those that decide how a training goes on, and no name, path or key of an account.
const ARGUMENTS: [&str; 24] = [
    "lr_scheduler_type",
    "lr_scheduler_kwargs",
    "warmup_steps",
    "warmup_ratio",
    "max_steps",
    "num_train_epochs",
    "learning_rate",
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "max_grad_norm",
    "optim",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "seed",
    "data_seed",
    "bf16",
    "fp16",
    "label_smoothing_factor",
    "save_steps",
    "logging_steps",
    "eval_steps",
    "group_by_length",
];

/// What the files of a Trainer say.
#[derive(Default)]
pub(super) struct TrainerSays {
    /// Steps of the weights beside them.
    pub step: Option<u64>,
    pub tokens_seen: u64,
    pub train_loss: Option<f64>,
    /// Schedule, trainer_state.json and arguments.
    pub record: SourceRecord,
    /// What the user should know.
    pub notes: Vec<String>,
}

/// What the Trainer's files in `dir` say, as far as they are there.
pub(super) fn read(dir: &Path, limits: &ReadLimits) -> Result<TrainerSays> {
    let mut says = TrainerSays::default();
    let state = dir.join(names::TRAINER_STATE);
    if state.exists() {
        trainer_state(&mut says, &state)?;
    }
    let kept = [names::SCHEDULER, names::ACCELERATE_SCHEDULER].map(|name| dir.join(name));
    if let Some(schedule) = kept.into_iter().find(|path| path.exists()) {
        let file = PtFile::open(&schedule, limits)?;
        says.record.schedule = plain_dict(&file, file.value());
    }
    let arguments = dir.join(names::TRAINING_ARGS);
    if arguments.exists() {
        match PtFile::open_objects(&arguments, limits) {
            Ok(file) => says.record.arguments = chosen(&file),
            Err(why) => says.notes.push(format!("the kind of schedule is not known: {why}")),
        }
    }
    Ok(says)
}

/// Those entries of a dict that are plain.
fn plain_dict(file: &PtFile, value: &PtValue) -> Option<PlainValue> {
    let items = value.as_dict()?.iter().filter_map(|(key, value)| Some((plain(file, key)?, plain(file, value)?)));
    Some(PlainValue::Dict(items.collect()))
}

fn chosen(file: &PtFile) -> Option<PlainValue> {
    let state = &file.value().as_object()?.state;
    let take = |key: &&str| Some((PlainValue::Text((*key).to_owned()), plain(file, state.get(key)?)?));
    Some(PlainValue::Dict(ARGUMENTS.iter().filter_map(take).collect()))
}

fn trainer_state(says: &mut TrainerSays, path: &Path) -> Result<()> {
    let refuse = |reason: String| Error::malformed(path, reason);
    let bytes = read_small(path, MAX_TRAINER_STATE_BYTES)?;
    let mut state: Map<String, Value> =
        python_json::parse(&bytes).map_err(|e| refuse(format!("not the state of a Trainer: {e}; is it cut?")))?;
    let step = state.get("global_step").and_then(Value::as_u64);
    says.step = Some(step.ok_or_else(|| refuse("not the state of a Trainer: it has no global_step".into()))?);
    says.tokens_seen = state.get("num_input_tokens_seen").and_then(Value::as_u64).unwrap_or(0);
    let log = state.remove("log_history");
    let log = log.as_ref().and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    says.train_loss = log.iter().rev().find_map(|entry| entry.get("loss")?.as_f64());
    says.record.trainer_state = state;
    Ok(())
}
