//! What a record means for a job's `[train]`: the lines that go on as the source did, and where a job differs.

use std::collections::BTreeSet;

use super::record::{OptimizerRecord, SourceRecord};
use super::schedule::{KnownSchedule, ScheduleShape, peak};
use crate::plain::PlainValue;
use ckptd_core::config::{OptimizerKind, TrainSection};
use ckptd_core::schedule::learning_rate;

/// Rates that are closer than this, as a share of the larger, differ by rounding.
const ROUNDING: f64 = 1e-9;

impl SourceRecord {
    /// The keys of `[train]` under which a job goes on as the source did, each as a line of TOML.
    pub fn train_lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        if let Some(OptimizerKind::Sgd) = self.optimizer.as_ref().map(|optimizer| optimizer.kind) {
            lines.push("optimizer = \"sgd\"".to_owned());
        }
        let figures = Figures::of(self);
        lines.extend(figures.learning_rate.map(|rate| format!("learning_rate = {rate}")));
        lines.extend(figures.betas.map(|[first, second]| format!("betas = [{first}, {second}]")));
        for (key, number) in figures.numbers() {
            lines.extend(number.map(|number| format!("{key} = {number}")));
        }
        if let (Some(_), Ok(schedule)) = (&self.schedule, KnownSchedule::of(self)) {
            lines.extend(schedule.train_lines(self.step));
        } else {
            lines.extend(figures.steps.map(|steps| format!("steps = {steps}")));
        }
        lines.extend(figures.batch_size.map(|rows| format!("batch_size = {rows}")));
        lines.extend(figures.grad_accumulation.map(|count| format!("grad_accumulation = {count}")));
        lines.extend(figures.grad_clip.map(|norm| format!("grad_clip = {norm}")));
        lines
    }

    /// Where a job of `train` would not go on as the source did, each as a clause.
    pub fn differences(&self, train: &TrainSection) -> Vec<String> {
        let figures = Figures::of(self);
        let mut lines = Vec::new();
        let mut differ = |key: &str, there: String, here: String| {
            if there != here {
                lines.push(format!("{key} was {there} in the source, and is {here} in [train]"));
            }
        };
        if let Some(optimizer) = &self.optimizer {
            differ("optimizer", name(optimizer.kind).into(), name(train.optimizer).into());
        }
        let is_adam = train.optimizer == OptimizerKind::Adamw;
        if let Some(rate) = figures.learning_rate {
            differ("learning_rate", rate.to_string(), train.learning_rate.to_string());
        }
        if let Some(betas) = figures.betas.filter(|_| is_adam) {
            differ("betas", format!("{betas:?}"), format!("{:?}", train.betas));
        }
        let here = [train.eps, train.weight_decay, train.momentum];
        let compared = [is_adam, true, !is_adam];
        for (((key, there), here), _) in figures.numbers().into_iter().zip(here).zip(compared).filter(|(_, c)| *c) {
            if let Some(there) = there {
                differ(key, there.to_string(), here.to_string());
            }
        }
        // A cosine has a step more here, at the rate 0 (`train_lines`).
        let is_followed = train.steps > self.step && self.schedule_difference(train).is_none();
        let steps = figures.steps.filter(|steps| !(is_followed && *steps + 1 == train.steps));
        let counts = [
            ("steps", steps, train.steps),
            ("batch_size", figures.batch_size, train.batch_size),
            ("grad_accumulation", figures.grad_accumulation, train.grad_accumulation),
        ];
        for (key, there, here) in counts {
            if let Some(there) = there {
                differ(key, there.to_string(), here.to_string());
            }
        }
        if let Some(norm) = figures.grad_clip {
            differ("grad_clip", norm.to_string(), train.grad_clip.to_string());
        }
        lines.extend(self.schedule_difference(train));
        lines.extend(self.optimizer.as_ref().map(group_differences).unwrap_or_default());
        lines
    }

    /// The first later step whose learning rate is not the source's, or why that is not known.
    fn schedule_difference(&self, train: &TrainSection) -> Option<String> {
        let here = |step| learning_rate(train, step);
        let schedule = match KnownSchedule::of(self) {
            Ok(schedule) => schedule,
            Err(why) => {
                self.schedule.as_ref()?;
                let next = self.option("lr").and_then(PlainValue::as_float);
                let next = next.map_or(String::new(), |rate| {
                    format!(
                        "; the learning rate of step {} was to be {rate}, and is {}",
                        self.step + 1,
                        here(self.step)
                    )
                });
                return Some(format!("the source's schedule is not followed: {why}{next}"));
            }
        };
        let last = train.steps.min(schedule.steps).min(self.step.saturating_add(1 << 20));
        let differs = |step: &u64| {
            let (there, here) = (schedule.rate(*step), here(*step));
            (there - here).abs() > ROUNDING * there.abs().max(here.abs())
        };
        let step = (self.step..last).find(differs)?;
        Some(format!(
            "the learning rate of step {} was to be {} by the source's schedule ({}, {} steps of warm-up), and is {} \
             by [train]'s",
            step + 1,
            schedule.rate(step),
            schedule.shape.name(),
            schedule.warmup,
            here(step)
        ))
    }
}

impl KnownSchedule {
    /// The keys of `[train]` that give the rates of all steps after `done`, where there are such.
    fn train_lines(&self, done: u64) -> Vec<String> {
        if done < self.warmup {
            // ckptd's warm-up begins above 0, that of transformers at 0: no number of steps makes them equal.
            return vec![format!("steps = {}", self.steps)];
        }
        let falling = self.steps.saturating_sub(self.warmup).max(1) as f64;
        // The rate of both is 0 one step after the last. A line that ends one step earlier, higher, is the same line;
        // of a cosine there is no such piece, so it has a step more, at rate 0.
        let (steps, end) = match self.shape {
            ScheduleShape::Linear => (self.steps, 1.0 / falling),
            ScheduleShape::Cosine => (self.steps + 1, 0.0),
            ScheduleShape::Constant => (self.steps, 1.0),
        };
        vec![
            format!("schedule = \"{}\"", self.shape.name()),
            format!("steps = {steps}"),
            format!("warmup_steps = {}", self.warmup),
            format!("min_learning_rate = {end}"),
        ]
    }
}

/// What of a record has a counterpart in `[train]`.
struct Figures {
    learning_rate: Option<f64>,
    betas: Option<[f64; 2]>,
    eps: Option<f64>,
    /// The largest of all groups: some decay, others never do.
    weight_decay: Option<f64>,
    momentum: Option<f64>,
    steps: Option<u64>,
    batch_size: Option<u64>,
    grad_accumulation: Option<u64>,
    grad_clip: Option<f64>,
}

impl Figures {
    fn of(record: &SourceRecord) -> Figures {
        let number = |key: &str| record.option(key).and_then(PlainValue::as_float);
        let pair = record.option("betas").and_then(PlainValue::as_items);
        let betas = pair.and_then(|pair| Some([pair.first()?.as_float()?, pair.get(1)?.as_float()?]));
        let groups = record.optimizer.as_ref().map(|optimizer| optimizer.groups.as_slice()).unwrap_or_default();
        let decays = groups.iter().filter_map(|group| group.options.get("weight_decay")?.as_float());
        Figures {
            learning_rate: peak(record),
            betas,
            eps: number("eps"),
            weight_decay: decays.reduce(f64::max),
            momentum: number("momentum"),
            steps: record.trainer_count("max_steps").filter(|&steps| steps > 0),
            batch_size: record.trainer_count("train_batch_size"),
            grad_accumulation: record.argument("gradient_accumulation_steps").and_then(PlainValue::as_count),
            grad_clip: record.argument("max_grad_norm").and_then(PlainValue::as_float),
        }
    }

    fn numbers(&self) -> [(&'static str, Option<f64>); 3] {
        [("eps", self.eps), ("weight_decay", self.weight_decay), ("momentum", self.momentum)]
    }
}

fn name(kind: OptimizerKind) -> &'static str {
    match kind {
        OptimizerKind::Adamw => "adamw",
        OptimizerKind::Sgd => "sgd",
    }
}

/// What no `[train]` can say: figures that differ from group to group, and decay on other parameters than ckptd's.
fn group_differences(optimizer: &OptimizerRecord) -> Vec<String> {
    let mut lines = Vec::new();
    for key in ["lr", "betas", "eps", "momentum"] {
        let values: BTreeSet<String> =
            optimizer.groups.iter().filter_map(|group| shown(group.options.get(key)?)).collect();
        if values.len() > 1 {
            let values = values.into_iter().take(4).collect::<Vec<_>>().join(", ");
            lines.push(format!("{key} differed between the source's groups ({values}); here all parameters have one"));
        }
    }
    lines.extend(decay_difference(optimizer));
    lines
}

fn shown(value: &PlainValue) -> Option<String> {
    match value {
        PlainValue::List(items) | PlainValue::Tuple(items) => {
            Some(items.iter().filter_map(shown).collect::<Vec<_>>().join(" and "))
        }
        value => value.as_float().map(|number| number.to_string()),
    }
}

/// Where the source's weight decay falls on other parameters than ckptd's: on matrices, which are all but biases and
/// layer norms.
fn decay_difference(optimizer: &OptimizerRecord) -> Option<String> {
    let decays = |group: &super::GroupRecord| group.options.get("weight_decay")?.as_float().map(|decay| decay != 0.0);
    if !optimizer.groups.iter().any(|group| decays(group) == Some(true)) {
        return None;
    }
    let is_matrix = |name: &str| !name.ends_with(".bias") && !name.contains("ln_");
    let (mut more, mut less) = (Vec::new(), Vec::new());
    for group in &optimizer.groups {
        let there = decays(group).unwrap_or(false);
        for name in group.parameters.iter().filter(|name| is_matrix(name) != there) {
            if there { more.push(name.as_str()) } else { less.push(name.as_str()) }
        }
    }
    let list = |names: &[&str]| match names {
        [] => "none".to_owned(),
        [one] => (*one).to_owned(),
        [first, rest @ ..] => format!("{first} and {} others", rest.len()),
    };
    if more.is_empty() && less.is_empty() {
        return None;
    }
    Some(format!(
        "weight decay fell on other parameters in the source: also on {}, not on {}; here it falls on matrices, never \
         on biases and layer norms",
        list(&more),
        list(&less)
    ))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::source_record::GroupRecord;
    use ckptd_core::config::ScheduleKind;
    use serde_json::json;

    fn record(kind: &str, warmup: u64, step: u64) -> SourceRecord {
        let dict = |items: serde_json::Value| PlainValue::try_from(json!({ "dict": items })).unwrap();
        let options = json!([["lr", 1e-4], ["betas", {"tuple": [0.8, 0.9]}], ["eps", 1e-7], ["weight_decay", 0.05]]);
        let parameters = vec!["transformer.wte.weight".to_owned()];
        SourceRecord {
            step,
            optimizer: Some(OptimizerRecord {
                kind: OptimizerKind::Adamw,
                groups: vec![GroupRecord { parameters, options: dict(options) }],
            }),
            schedule: Some(dict(json!([["base_lrs", [2e-3]]]))),
            trainer_state: json!({"max_steps": 40, "train_batch_size": 3}).as_object().unwrap().clone(),
            arguments: Some(dict(json!([["lr_scheduler_type", kind], ["warmup_steps", warmup]]))),
            ..SourceRecord::default()
        }
    }

    /// A job with the lines that the record gives.
    fn job(record: &SourceRecord) -> TrainSection {
        let text = format!("[train]\n{}\n", record.train_lines().join("\n"));
        let table: toml::Table = text.parse().unwrap();
        let mut train = TrainSection { warmup_steps: 0, grad_clip: 1.0, ..TrainSection::default() };
        let lines = table["train"].as_table().unwrap();
        let float = |key: &str| lines.get(key).and_then(|v| v.as_float().or(v.as_integer().map(|n| n as f64)));
        let count = |key: &str| lines.get(key).and_then(toml::Value::as_integer).map(|n| n as u64);
        train.learning_rate = float("learning_rate").unwrap();
        train.betas = [0.8, 0.9];
        train.eps = float("eps").unwrap();
        train.weight_decay = float("weight_decay").unwrap();
        train.steps = count("steps").unwrap();
        train.batch_size = count("batch_size").unwrap();
        train.warmup_steps = count("warmup_steps").unwrap();
        train.min_learning_rate = float("min_learning_rate").unwrap();
        train.schedule = match lines["schedule"].as_str().unwrap() {
            "linear" => ScheduleKind::Linear,
            "cosine" => ScheduleKind::Cosine,
            _ => ScheduleKind::Constant,
        };
        train
    }

    #[test]
    fn a_job_by_the_lines_has_the_sources_rate_at_every_later_step() {
        for (kind, warmup) in [("linear", 0), ("linear", 4), ("cosine", 0), ("cosine", 4), ("constant_with_warmup", 4)]
        {
            let record = record(kind, warmup, 5);
            let (train, schedule) = (job(&record), KnownSchedule::of(&record).unwrap());
            for step in 5..40 {
                let (here, there) = (learning_rate(&train, step), schedule.rate(step));
                assert!((here - there).abs() <= 1e-15 * there.max(1e-3), "{kind} {warmup} {step}: {here} {there}");
            }
            assert_eq!(record.differences(&train), Vec::<String>::new(), "{kind}");
        }
    }

    #[test]
    fn each_figure_that_differs_is_a_line_of_its_own() {
        let record = record("linear", 0, 5);
        let train = TrainSection { learning_rate: 1e-3, batch_size: 8, weight_decay: 0.0, ..job(&record) };
        let differences = record.differences(&train);
        let starts = |what: &str| differences.iter().filter(|line| line.starts_with(what)).count();
        assert_eq!(differences.len(), 4, "{differences:?}");
        assert_eq!(
            [starts("learning_rate was 0.002"), starts("batch_size was 3"), starts("weight_decay was 0.05")],
            [1; 3]
        );
        assert_eq!(starts("the learning rate of step 6 was to be 0.00175"), 1, "{differences:?}");
    }

    #[test]
    fn decay_on_other_parameters_and_figures_of_groups_are_told() {
        let group = |name: &str, lr: f64, decay: f64| GroupRecord {
            parameters: vec![name.into()],
            options: PlainValue::try_from(json!({"dict": [["lr", lr], ["weight_decay", decay]]})).unwrap(),
        };
        let told = |groups| group_differences(&OptimizerRecord { kind: OptimizerKind::Adamw, groups });
        let wte = || group("transformer.wte.weight", 0.1, 0.1);
        assert!(told(vec![wte(), group("transformer.h.0.ln_1.bias", 0.1, 0.0)]).is_empty());
        let norms = told(vec![wte(), group("transformer.h.0.ln_1.weight", 0.1, 0.1)]);
        assert!(norms.len() == 1 && norms[0].contains("also on transformer.h.0.ln_1.weight, not on none"), "{norms:?}");
        let rates = told(vec![wte(), group("transformer.h.0.ln_1.bias", 0.2, 0.0)]);
        assert!(rates[0].contains("lr differed between the source's groups (0.1, 0.2)"), "{rates:?}");
    }
}
