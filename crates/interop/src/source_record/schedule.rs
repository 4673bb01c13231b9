//! The learning rates that a record stands for.
//!
//! transformers makes its schedules of functions, which no checkpoint holds: only TrainingArguments name them. So a
//! schedule is known where the arguments are there and name one of those below, and else it is said why it is not.

use std::f64::consts::PI;

use super::record::SourceRecord;
use crate::plain::PlainValue;

/// A schedule of transformers, as its `get_scheduler` makes it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct KnownSchedule {
    /// How it falls.
    pub shape: ScheduleShape,
    /// The rate that it rises to.
    pub peak: f64,
    /// Steps over which it rises, from 0 at the first of them.
    pub warmup: u64,
    /// Steps of the training.
    pub steps: u64,
}

/// How a learning rate falls after the warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScheduleShape {
    /// In a line to 0 after the last step.
    Linear,
    /// Half a cosine to 0 after the last step.
    Cosine,
    /// Not at all.
    Constant,
}

impl ScheduleShape {
    /// As `[train] schedule` has it.
    pub fn name(self) -> &'static str {
        match self {
            ScheduleShape::Linear => "linear",
            ScheduleShape::Cosine => "cosine",
            ScheduleShape::Constant => "constant",
        }
    }
}

impl KnownSchedule {
    /// The schedule of `record`.
    ///
    /// # Errors
    /// Why it is not known, or what it is that ckptd does not have.
    pub fn of(record: &SourceRecord) -> Result<KnownSchedule, String> {
        let peak = peak(record).ok_or("the source says no learning rate")?;
        let Some(kind) = record.argument("lr_scheduler_type").and_then(PlainValue::as_text) else {
            return match &record.schedule {
                Some(schedule) => Err(named_by_its_state(schedule)),
                None => Ok(KnownSchedule { shape: ScheduleShape::Constant, peak, warmup: 0, steps: u64::MAX }),
            };
        };
        let steps =
            record.trainer_count("max_steps").filter(|&steps| steps > 0).ok_or("the source names no max_steps")?;
        let kwargs = record.argument("lr_scheduler_kwargs");
        let plain = kwargs.is_none_or(|kwargs| matches!(kwargs, PlainValue::None | PlainValue::Dict(_)))
            && !matches!(kwargs, Some(PlainValue::Dict(items)) if !items.is_empty());
        let (shape, warmup) = match kind {
            "linear" if plain => (ScheduleShape::Linear, warmup(record, steps)),
            "cosine" if plain => (ScheduleShape::Cosine, warmup(record, steps)),
            "constant" => (ScheduleShape::Constant, 0),
            "constant_with_warmup" => (ScheduleShape::Constant, warmup(record, steps)),
            other => return Err(format!("it is transformers' {other:?}, which ckptd does not have")),
        };
        Ok(KnownSchedule { shape, peak, warmup, steps })
    }

    /// The rate of update `step`, from 0.
    pub fn rate(&self, step: u64) -> f64 {
        let (step_n, warmup, steps) = (step as f64, self.warmup as f64, self.steps as f64);
        if step < self.warmup {
            return self.peak * (step_n / warmup.max(1.0));
        }
        let progress = (step_n - warmup) / (steps - warmup).max(1.0);
        let share = match self.shape {
            ScheduleShape::Linear => ((steps - step_n) / (steps - warmup).max(1.0)).max(0.0),
            ScheduleShape::Cosine => (0.5 * (1.0 + (PI * progress).cos())).max(0.0),
            ScheduleShape::Constant => 1.0,
        };
        self.peak * share
    }
}

/// The rate that the schedule starts from.
pub(super) fn peak(record: &SourceRecord) -> Option<f64> {
    let base = record.schedule.as_ref().and_then(|schedule| schedule.get("base_lrs")?.as_items()?.first()?.as_float());
    base.or_else(|| record.option("initial_lr")?.as_float()).or_else(|| record.option("lr")?.as_float())
}

/// As `TrainingArguments.get_warmup_steps` has it: a number of steps, or a share of all of them.
fn warmup(record: &SourceRecord, steps: u64) -> u64 {
    let number = |key: &str| record.argument(key).and_then(PlainValue::as_float).filter(|&number| number > 0.0);
    let share = |share: f64| (steps as f64 * share).ceil() as u64;
    match (number("warmup_steps"), number("warmup_ratio")) {
        (Some(count), _) if count >= 1.0 => count as u64,
        (Some(part), _) | (None, Some(part)) => share(part),
        (None, None) => 0,
    }
}

/// What a schedule's state says of its kind.
fn named_by_its_state(state: &PlainValue) -> String {
    const MARKS: [(&str, &str); 8] = [
        ("lr_lambdas", "LambdaLR, whose functions no file holds"),
        ("T_max", "CosineAnnealingLR"),
        ("T_0", "CosineAnnealingWarmRestarts"),
        ("total_steps", "OneCycleLR"),
        ("milestones", "MultiStepLR or SequentialLR"),
        ("step_size", "StepLR"),
        ("num_bad_epochs", "ReduceLROnPlateau"),
        ("gamma", "ExponentialLR"),
    ];
    match MARKS.iter().find(|(key, _)| state.get(key).is_some()) {
        Some((_, name)) => format!("it is {name}"),
        None => "its kind does not stand in the file".into(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use serde_json::json;

    fn record(arguments: serde_json::Value) -> SourceRecord {
        let pairs: Vec<_> = arguments.as_object().unwrap().iter().map(|(k, v)| json!([k, v])).collect();
        let schedule = PlainValue::try_from(json!({"dict": [["base_lrs", [1e-3, 1e-3]], ["lr_lambdas", [null]]]}));
        SourceRecord {
            schedule: schedule.ok(),
            trainer_state: json!({"max_steps": 10}).as_object().unwrap().clone(),
            arguments: PlainValue::try_from(json!({ "dict": pairs })).ok(),
            ..SourceRecord::default()
        }
    }

    #[test]
    fn rates_are_those_that_trainer_logs() {
        // As transformers 5.23 logged them: 2 steps of warm-up, 10 steps, 1e-3.
        let linear = KnownSchedule::of(&record(json!({"lr_scheduler_type": "linear", "warmup_steps": 2}))).unwrap();
        let rates: Vec<f64> = (0..10).map(|step| linear.rate(step)).collect();
        let logged = [0.0, 5e-4, 1e-3, 8.75e-4, 7.5e-4, 6.25e-4, 5e-4, 3.75e-4, 2.5e-4, 1.25e-4];
        assert!(rates.iter().zip(logged).all(|(a, b)| (a - b).abs() < 1e-18), "{rates:?}");
        let cosine = KnownSchedule::of(&record(json!({"lr_scheduler_type": "cosine"}))).unwrap();
        assert_eq!((cosine.rate(0), cosine.warmup), (1e-3, 0));
        assert!((cosine.rate(5) - 5e-4).abs() < 1e-18);
        let share = json!({"lr_scheduler_type": "constant_with_warmup", "warmup_ratio": 0.25});
        let constant = KnownSchedule::of(&record(share)).unwrap();
        assert_eq!((constant.warmup, constant.rate(9)), (3, 1e-3));
    }

    #[test]
    fn what_is_not_known_is_named() {
        let why = |arguments| KnownSchedule::of(&record(arguments)).unwrap_err();
        assert!(why(json!({})).contains("LambdaLR"));
        assert!(why(json!({"lr_scheduler_type": "polynomial"})).contains("polynomial"));
        let kwargs = json!({"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"dict": [["num_cycles", 2.0]]}});
        assert!(why(kwargs).contains("cosine"));
    }
}
