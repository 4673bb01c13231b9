//! The hyper-parameters that PyTorch keeps in an optimiser's groups: from the settings that a snapshot names, else from
//! the job's config, else ckptd's defaults. A snapshot that stands as it was imported has those of its source, to the
//! letter, and the source's groups ([`SourceSays`]).

use serde_json::{Map, Value};

use super::source::ExportSource;
use crate::plain::PlainValue;
use crate::source_record::SourceRecord;
use crate::torch_pt::pickler::PtObject;
use ckptd_core::config::Config;
use ckptd_core::error::Result;
use ckptd_core::schedule;
use ckptd_core::store::Manifest;

pub(super) struct HyperParameters {
    pub learning_rate: f64,
    /// The learning rate of the next update.
    pub rate_now: f64,
    pub weight_decay: f64,
    pub steps: u64,
    pub batch_size: u64,
    /// Steps between evaluations.
    pub eval_steps: u64,
    /// Steps between snapshots.
    pub save_steps: u64,
    betas: [f64; 2],
    eps: f64,
    momentum: f64,
}

impl HyperParameters {
    pub(super) fn of(manifest: &Manifest, job: Option<&Config>) -> HyperParameters {
        let train = job.map(|job| job.train.clone()).unwrap_or_default().with_recorded(&manifest.train.settings);
        HyperParameters {
            learning_rate: train.learning_rate,
            rate_now: schedule::learning_rate(&train, manifest.train.step),
            weight_decay: train.weight_decay,
            steps: train.steps,
            batch_size: train.batch_size,
            eval_steps: if train.eval_every == 0 { 500 } else { train.eval_every },
            save_steps: job.and_then(|job| job.snapshot.every_steps).unwrap_or(500),
            betas: train.betas,
            eps: train.eps,
            momentum: train.momentum,
        }
    }

    /// A group of `torch.optim.AdamW`, without its parameters.
    pub(super) fn adamw_group(&self, weight_decay: f64) -> Vec<(&'static str, PtObject)> {
        vec![
            ("weight_decay", PtObject::Float(weight_decay)),
            ("lr", PtObject::Float(self.rate_now)),
            ("betas", PtObject::Tuple(self.betas.map(PtObject::Float).into())),
            ("eps", PtObject::Float(self.eps)),
            ("amsgrad", PtObject::Bool(false)),
            ("maximize", PtObject::Bool(false)),
            ("foreach", PtObject::None),
            ("capturable", PtObject::Bool(false)),
            ("differentiable", PtObject::Bool(false)),
            ("fused", PtObject::None),
            ("decoupled_weight_decay", PtObject::Bool(true)),
            ("initial_lr", PtObject::Float(self.learning_rate)),
        ]
    }

    /// A group of `torch.optim.SGD`, without its parameters.
    pub(super) fn sgd_group(&self, weight_decay: f64) -> Vec<(&'static str, PtObject)> {
        vec![
            ("weight_decay", PtObject::Float(weight_decay)),
            ("lr", PtObject::Float(self.rate_now)),
            ("momentum", PtObject::Float(self.momentum)),
            ("dampening", PtObject::Int(0)),
            ("nesterov", PtObject::Bool(false)),
            ("maximize", PtObject::Bool(false)),
            ("foreach", PtObject::None),
            ("differentiable", PtObject::Bool(false)),
            ("fused", PtObject::None),
            ("initial_lr", PtObject::Float(self.learning_rate)),
        ]
    }
}

/// What the source of an import said of its training.
pub(super) struct SourceSays {
    /// Its record.
    pub record: SourceRecord,
    /// No step was made since.
    pub is_unchanged: bool,
}

/// What the snapshot carries of the program that it was imported from.
pub(super) fn source_says(source: &ExportSource) -> Result<Option<SourceSays>> {
    let Some(bytes) = source.carried(crate::names::SOURCE_RECORD)? else { return Ok(None) };
    let record = SourceRecord::parse(&bytes, source.path())?;
    let train = &source.manifest().train;
    let is_unchanged = train.settings.is_empty() && train.step == record.step;
    Ok(Some(SourceSays { record, is_unchanged }))
}

impl SourceSays {
    /// The groups of the source's optimiser, each with the names of its parameters, where no step was made since and
    /// they are those of `halves`, which are Trainer's groups.
    pub(super) fn groups<'a>(&'a self, halves: [Vec<&'a str>; 2]) -> Option<Vec<(Vec<&'a str>, PtObject)>> {
        let optimizer = self.record.optimizer.as_ref().filter(|_| self.is_unchanged)?;
        let mut named: Vec<&str> =
            optimizer.groups.iter().flat_map(|group| group.parameters.iter().map(String::as_str)).collect();
        named.sort_unstable();
        let mut parameters = halves.concat();
        parameters.sort_unstable();
        if named != parameters {
            return None;
        }
        let groups = optimizer.exported_groups(halves).into_iter();
        groups.map(|(names, options)| Some((names, object(options)?))).collect()
    }

    /// The schedule's state, where no step was made since.
    pub(super) fn schedule(&self) -> Option<PtObject> {
        self.record.schedule.as_ref().filter(|_| self.is_unchanged).and_then(object)
    }

    /// Trainer's state of the source, without its log.
    pub(super) fn trainer_state(&self) -> Option<Map<String, Value>> {
        Some(self.record.trainer_state.clone()).filter(|state| !state.is_empty())
    }
}

/// A plain value as an object of a pickle.
fn object(value: &PlainValue) -> Option<PtObject> {
    let all = |items: &[PlainValue]| items.iter().map(object).collect::<Option<Vec<_>>>();
    Some(match value {
        PlainValue::None => PtObject::None,
        PlainValue::Bool(truth) => PtObject::Bool(*truth),
        PlainValue::Int(number) => PtObject::Int(*number),
        PlainValue::Float(number) => PtObject::Float(*number),
        PlainValue::Text(text) => PtObject::str(text.as_str()),
        PlainValue::List(items) => PtObject::List(all(items)?),
        PlainValue::Tuple(items) => PtObject::Tuple(all(items)?),
        PlainValue::Dict(items) => {
            let pair = |(key, value): &(PlainValue, PlainValue)| Some((object(key)?, object(value)?));
            PtObject::Dict(items.iter().map(pair).collect::<Option<_>>()?)
        }
    })
}
