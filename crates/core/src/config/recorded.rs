//! What of a job changes the arithmetic: the list of keys that the train state records, written and read back here.
//!
//! Invariant: each section is taken apart field by field, so that a new key does not compile before its author has
//! decided whether it changes the result. One that does is added with [`SettingsSection::add_later`] and the value that
//! reproduces what was computed before it; one that does not (bounds of memory, numbers of ranks, recomputation) is
//! named with `_`. Deliberately not here: the model's own keys, which its worker knows.
//!
//! [`SettingsSection::add_later`]: crate::settings::SettingsSection::add_later

use super::sections::{ComputePrecision, Config, DataSection, JobSection, TrainSection};
use crate::settings::{SettingKey, TrainSettings};

/// What a worker has made of the parts of a job that depend on the machine.
#[derive(Clone, Copy, Debug)]
pub struct ResolvedJob<'a> {
    /// `cpu` or `cuda`, without an index.
    pub device: &'static str,
    /// Threads of one operation, at least 1.
    pub threads: usize,
    /// The hash that stands for the training's tokens.
    pub data_content: &'a str,
}

impl Config {
    /// The settings of this job that change the arithmetic, without the model's.
    pub fn train_settings(&self, resolved: &ResolvedJob<'_>) -> TrainSettings {
        // What `device`, `threads` and the data come to on this machine stands in `resolved`.
        let JobSection { name: _, store: _, seed, device: _, threads: _ } = &self.job;
        // What texts, tokens and tokenizer come to stands for them all.
        let DataSection { text: _, field: _, tokens: _, tokens_dtype: _, tokenizer: _, validation, cache: _ } =
            &self.data;
        let mut settings = TrainSettings::default();
        self.train.record(&mut settings);
        settings.set_key(SettingKey::Seed, seed);
        settings.set_key(SettingKey::Device, resolved.device);
        settings.set_key(SettingKey::Threads, resolved.threads);
        settings.set_key(SettingKey::DataContent, resolved.data_content);
        settings.set_key(SettingKey::DataValidation, validation);
        settings
    }
}

const SECTION: &str = "train";

impl TrainSection {
    fn record(&self, settings: &mut TrainSettings) {
        let TrainSection {
            steps,
            batch_size,
            grad_accumulation,
            sequence_length,
            optimizer,
            learning_rate,
            schedule,
            warmup_steps,
            min_learning_rate,
            weight_decay,
            betas,
            eps,
            momentum,
            grad_clip,
            eval_every,
            eval_batches,
            precision,
            activation_checkpointing: _,
        } = self;
        let mut section = settings.section(SECTION);
        section.add("steps", steps);
        section.add("batch_size", batch_size);
        section.add("grad_accumulation", grad_accumulation);
        section.add("sequence_length", sequence_length);
        section.add("optimizer", optimizer);
        section.add("learning_rate", learning_rate);
        section.add("schedule", schedule);
        section.add("warmup_steps", warmup_steps);
        section.add("min_learning_rate", min_learning_rate);
        section.add("weight_decay", weight_decay);
        section.add("betas", betas);
        section.add("eps", eps);
        section.add("momentum", momentum);
        section.add("grad_clip", grad_clip);
        section.add("eval_every", eval_every);
        section.add("eval_batches", eval_batches);
        section.add_later("precision", precision, &ComputePrecision::Float32);
    }

    /// This section with what `settings` recorded in place of its own values.
    pub fn with_recorded(mut self, settings: &TrainSettings) -> TrainSection {
        let TrainSection {
            steps,
            batch_size,
            grad_accumulation,
            sequence_length,
            optimizer,
            learning_rate,
            schedule,
            warmup_steps,
            min_learning_rate,
            weight_decay,
            betas,
            eps,
            momentum,
            grad_clip,
            eval_every,
            eval_batches,
            precision,
            activation_checkpointing: _,
        } = &mut self;
        settings.read_into(SECTION, "steps", steps);
        settings.read_into(SECTION, "batch_size", batch_size);
        settings.read_into(SECTION, "grad_accumulation", grad_accumulation);
        settings.read_into(SECTION, "sequence_length", sequence_length);
        settings.read_into(SECTION, "optimizer", optimizer);
        settings.read_into(SECTION, "learning_rate", learning_rate);
        settings.read_into(SECTION, "schedule", schedule);
        settings.read_into(SECTION, "warmup_steps", warmup_steps);
        settings.read_into(SECTION, "min_learning_rate", min_learning_rate);
        settings.read_into(SECTION, "weight_decay", weight_decay);
        settings.read_into(SECTION, "betas", betas);
        settings.read_into(SECTION, "eps", eps);
        settings.read_into(SECTION, "momentum", momentum);
        settings.read_into(SECTION, "grad_clip", grad_clip);
        settings.read_into(SECTION, "eval_every", eval_every);
        settings.read_into(SECTION, "eval_batches", eval_batches);
        settings.read_into(SECTION, "precision", precision);
        self
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const JOB: &str = r#"
        job = { seed = 42, threads = 3, device = "cpu" }
        model = { preset = "gpt2-mini", dropout = 0.1 }
        data = { text = ["a"], validation = 0.0 }
        [train]
        steps = 30
        batch_size = 4
        grad_accumulation = 2
        sequence_length = 64
        optimizer = "sgd"
        learning_rate = 1.25e-3
        schedule = "linear"
        warmup_steps = 7
        min_learning_rate = 0.3
        weight_decay = 1e-2
        betas = [0.8, 0.999]
        eps = 1e-9
        momentum = 0.9
        grad_clip = 0.0
        eval_every = 0
        eval_batches = 5
    "#;

    fn job() -> Config {
        Config::parse(JOB, "/job.toml".as_ref()).unwrap()
    }

    fn settings(job: &Config) -> TrainSettings {
        job.train_settings(&ResolvedJob { device: "cpu", threads: 3, data_content: "c0ffee" })
    }

    #[test]
    fn the_list_is_the_first_releases_to_the_letter() {
        let golden = [
            ("data.content", "c0ffee"),
            ("data.validation", "0"),
            ("device", "cpu"),
            ("seed", "42"),
            ("threads", "3"),
            ("train.batch_size", "4"),
            ("train.betas", "[0.8,0.999]"),
            ("train.eps", "1e-9"),
            ("train.eval_batches", "5"),
            ("train.eval_every", "0"),
            ("train.grad_accumulation", "2"),
            ("train.grad_clip", "0.0"),
            ("train.learning_rate", "0.00125"),
            ("train.min_learning_rate", "0.3"),
            ("train.momentum", "0.9"),
            ("train.optimizer", "\"sgd\""),
            ("train.schedule", "\"linear\""),
            ("train.sequence_length", "64"),
            ("train.steps", "30"),
            ("train.warmup_steps", "7"),
            ("train.weight_decay", "0.01"),
        ];
        let settings = settings(&job());
        assert_eq!(settings.iter().collect::<Vec<_>>(), golden);
        // As that release made them: the whole section as JSON, but for the keys that came later.
        let whole = serde_json::to_value(&job().train).unwrap();
        let later = ["precision", "activation_checkpointing"];
        for (key, value) in whole.as_object().unwrap().iter().filter(|(key, _)| !later.contains(&key.as_str())) {
            assert_eq!(settings.get(&format!("train.{key}")), Some(value.to_string().as_str()));
        }
    }

    #[test]
    fn every_key_that_is_written_is_read_back() {
        assert_eq!(TrainSection::default().with_recorded(&settings(&job())), job().train);
        let mut job = job();
        job.train.precision = ComputePrecision::Bf16;
        assert_eq!(TrainSection::default().with_recorded(&settings(&job)), job.train);
        assert_eq!(settings(&job).get("train.precision"), Some("\"bf16\""));
        assert_eq!(job.train.clone().with_recorded(&TrainSettings::default()), job.train);
    }
}
