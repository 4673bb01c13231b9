//! Which values of a job file make sense.
//!
//! Invariant: a message is "[section] key: what it must be". Deliberately not here: whether files exist.

use std::time::Duration;

use super::sections::{Config, SnapshotEvery, TrainSection};
use crate::text::TextValue;

impl Config {
    /// The first value that makes no sense.
    pub(super) fn validate(&self) -> Result<(), String> {
        self.validate_inputs()?;
        validate_train(&self.train, self.data.validation)?;
        self.validate_session()
    }

    fn validate_inputs(&self) -> Result<(), String> {
        let (job, model, data) = (&self.job, &self.model, &self.data);
        check(
            matches!(job.device.as_str(), "auto" | "cpu" | "cuda")
                || job.device.strip_prefix("cuda:").is_some_and(|n| n.parse::<u8>().is_ok()),
            "[job] device: must be \"auto\", \"cpu\" or \"cuda:N\"",
        )?;
        check(job.threads <= 1024, "[job] threads: must be at most 1024")?;
        check(
            model.from.is_some() != model.preset.is_some(),
            "[model]: give either from = \"a Hugging Face folder\" or preset = \"gpt2-mini\" (or another preset)",
        )?;
        check(model.dropout.is_none_or(|p| (0.0..1.0).contains(&p)), "[model] dropout: must be from 0 to below 1")?;
        check(
            data.text.is_empty() == data.tokens.is_some(),
            "[data]: give either text = [\"globs\"] or tokens = \"file.bin\"",
        )?;
        check(
            data.tokens_dtype.is_none() || data.tokens.is_some(),
            "[data] tokens_dtype: it is the type of the ids in tokens = \"file.bin\", which is not given",
        )?;
        check(
            data.field.is_none() || !data.text.is_empty(),
            "[data] field: it is a field of the records in text = [\"data/*.jsonl\"], which is not given",
        )?;
        check((0.0..=0.5).contains(&data.validation), "[data] validation: must be from 0 to 0.5")
    }

    fn validate_session(&self) -> Result<(), String> {
        let too_often =
            matches!(self.snapshot.every, SnapshotEvery::Interval(interval) if interval < Duration::from_millis(100));
        check(!too_often, "[snapshot] every: must be at least 100ms")?;
        check(self.session.budget != Some(TextValue(Duration::ZERO)), "[session] budget: must be positive")?;
        check(
            (1.0..=100.0).contains(&self.session.margin),
            "[session] margin: must be from 1 to 100, a factor on what the final snapshot costs",
        )?;
        check(
            self.snapshot.mtbf.is_none_or(|mtbf| mtbf.0 >= Duration::from_secs(1)),
            "[snapshot] mtbf: must be at least 1s",
        )?;
        check(
            (0.0001..=0.5).contains(&self.snapshot.max_overhead),
            "[snapshot] max_overhead: must be from 0.0001 to 0.5, a share of the training time",
        )?;
        check(self.snapshot.every_steps != Some(0), "[snapshot] every_steps: must be at least 1")?;
        check(self.snapshot.level <= 19, "[snapshot] level: must be from 0 to 19")?;
        check(self.snapshot.encode_threads <= 256, "[snapshot] encode_threads: must be at most 256")?;
        check(self.retention.keep_last >= 2, "[retention] keep_last: must be at least 2, so that one can fail")?;
        check(self.retention.keep_every_steps != Some(0), "[retention] keep_every_steps: must be at least 1")?;
        check(!self.session.grace.0.is_zero(), "[session] grace: must be positive")?;
        for (key, url) in [
            ("aws_url", &self.session.aws_url),
            ("gcp_url", &self.session.gcp_url),
            ("azure_url", &self.session.azure_url),
        ] {
            // Metadata services speak plain HTTP, on an address of the machine's own.
            check(url.starts_with("http://"), &format!("[session] {key}: must begin with http://"))?;
        }
        check(self.worker.hang_timeout.0 >= Duration::from_secs(1), "[worker] hang_timeout: must be at least 1s")
    }
}

fn validate_train(train: &TrainSection, validation: f64) -> Result<(), String> {
    check(train.steps > 0, "[train] steps: must be at least 1")?;
    check((1..=65536).contains(&train.batch_size), "[train] batch_size: must be from 1 to 65536")?;
    check((1..=65536).contains(&train.grad_accumulation), "[train] grad_accumulation: must be from 1 to 65536")?;
    check((2..=1 << 20).contains(&train.sequence_length), "[train] sequence_length: must be from 2 to 1048576")?;
    let positive = |x: f64| x.is_finite() && x > 0.0;
    let share = |x: f64| (0.0..1.0).contains(&x);
    check(positive(train.learning_rate), "[train] learning_rate: must be positive")?;
    check((0.0..=1.0).contains(&train.min_learning_rate), "[train] min_learning_rate: must be from 0 to 1")?;
    check(train.weight_decay.is_finite() && train.weight_decay >= 0.0, "[train] weight_decay: must not be negative")?;
    check(share(train.betas[0]) && share(train.betas[1]), "[train] betas: both must be from 0 to below 1")?;
    check(positive(train.eps), "[train] eps: must be positive")?;
    check(share(train.momentum), "[train] momentum: must be from 0 to below 1")?;
    check(train.grad_clip.is_finite() && train.grad_clip >= 0.0, "[train] grad_clip: must not be negative")?;
    check(
        train.eval_every == 0 || validation > 0.0,
        "[train] eval_every: needs [data] validation > 0; set eval_every = 0 to train without evaluation",
    )?;
    check(train.eval_every == 0 || train.eval_batches > 0, "[train] eval_batches: must be at least 1")
}

fn check(ok: bool, what: &str) -> Result<(), String> {
    if ok { Ok(()) } else { Err(what.to_owned()) }
}
