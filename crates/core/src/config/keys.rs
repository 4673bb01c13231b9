//! Every key of the job file: what it takes, in a form that a value can be held against and that people can read.
//!
//! Invariant: the table has exactly the keys of `config/ckptd.toml`, and each example is a value that is allowed; tests
//! hold it to both. Deliberately not here: rules between keys (`check`), what other programs call them (`foreign`).

use std::time::Duration;

use super::hooks::HookMoment;

/// A key with what it takes.
#[derive(Clone, Copy, Debug)]
pub(super) struct KeySpec {
    pub section: &'static str,
    pub key: &'static str,
    pub kind: ValueKind,
    /// A value that is allowed, as it stands in the file.
    pub example: &'static str,
}

/// What a key takes.
#[derive(Clone, Copy, Debug)]
pub(super) enum ValueKind {
    /// A whole number in this range.
    Whole {
        least: u64,
        most: u64,
    },
    /// A whole number in this range, or the word beside it.
    WholeOr {
        least: u64,
        most: u64,
        or: &'static str,
    },
    /// A number in this range; `open` ends are not part of it.
    Number {
        least: f64,
        most: f64,
        open: OmittedEnd,
    },
    /// Two numbers from 0 to below 1.
    Shares,
    Bool,
    /// Any text.
    Text,
    /// A path of a file or folder.
    Path,
    /// A list of texts.
    Texts,
    /// One of these texts.
    Choice(&'static [&'static str]),
    /// One of these texts, or a command: a list of texts.
    ChoiceOrTexts(&'static [&'static str]),
    /// "auto", "cpu", "cuda" or "cuda:N".
    Device,
    /// A duration in this range, as text; or the word beside it.
    Duration {
        least: Duration,
        most: Duration,
        or: Option<&'static str>,
    },
    /// A moment, as text.
    Moment,
    /// A number of bytes of at least this, as text.
    Size {
        least: u64,
        or: &'static [&'static str],
    },
    /// An address that begins with http://
    Url,
    /// The address of a remote, without credentials.
    Remote,
    /// The address of a service, without credentials.
    Service,
    /// An address of this machine with a port.
    Listen,
    /// A program with its arguments for each of some moments.
    Hooks,
    /// One of these texts, or a share above 0 and below 1, as text.
    ShareOr(&'static [&'static str]),
}

/// Which end of a range is not part of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OmittedEnd {
    Neither,
    Least,
    Most,
}

impl ValueKind {
    /// What is allowed, as a clause.
    pub(super) fn allowed(&self) -> String {
        let quoted = |texts: &[&str]| texts.iter().map(|text| format!("{text:?}")).collect::<Vec<_>>().join(", ");
        match *self {
            ValueKind::Whole { least, most: u64::MAX } => format!("a whole number from {least}"),
            ValueKind::Whole { least, most } => format!("a whole number from {least} to {most}"),
            ValueKind::WholeOr { least, most, or } => format!("a whole number from {least} to {most}, or {or:?}"),
            ValueKind::Number { least, most, open } => match (open, most.is_finite()) {
                (OmittedEnd::Least, false) => format!("a number above {least}"),
                (_, false) => format!("a number from {least}"),
                (OmittedEnd::Most, true) => format!("a number from {least} to below {most}"),
                (_, true) => format!("a number from {least} to {most}"),
            },
            ValueKind::Shares => "two numbers from 0 to below 1, in brackets".into(),
            ValueKind::Bool => "true or false".into(),
            ValueKind::Text => "text in quotes".into(),
            ValueKind::Path => "a path in quotes".into(),
            ValueKind::Texts => "a list of texts, in brackets".into(),
            ValueKind::Choice(texts) => format!("one of {}", quoted(texts)),
            ValueKind::ChoiceOrTexts(texts) => format!("one of {}, or a command as a list of texts", quoted(texts)),
            ValueKind::Device => "\"auto\", \"cpu\", or \"cuda:N\" with N from 0".into(),
            ValueKind::Duration { least, most, or } => {
                let or = or.map_or_else(String::new, |word| format!(", or {word:?}"));
                let exact = crate::text::exact_duration;
                let range = match (least, most) {
                    (Duration::ZERO, _) => "above 0".to_owned(),
                    (least, Duration::MAX) => format!("of at least {}", exact(least)),
                    (least, most) => format!("from {} to {}", exact(least), exact(most)),
                };
                format!("a duration {range} with its unit, in quotes{or}")
            }
            ValueKind::Moment => "a moment with its offset, or a time on this machine's clock, in quotes".into(),
            ValueKind::Size { least: 0, or: [] } => "a size with its unit, in quotes".into(),
            ValueKind::Size { least: 0, or } => format!("one of {}, or a size with its unit, in quotes", quoted(or)),
            ValueKind::Size { least, .. } => format!("a size of at least {least} bytes with its unit, in quotes"),
            ValueKind::Url => "an address that begins with http://, in quotes".into(),
            ValueKind::Remote => "an address such as s3://bucket/job, gs://, az://, sftp:// or file://, in quotes and \
                                  without a credential, which it would show in logs"
                .into(),
            ValueKind::Service => "an address such as https://minio.example:9000, in quotes and without a credential, \
                                   which it would show in logs"
                .into(),
            ValueKind::Listen => "an address of this machine with a port, such as 127.0.0.1:8377, in quotes".into(),
            ValueKind::Hooks => {
                let names = HookMoment::NAMES.join(", ");
                format!("a program with its arguments for any of {names}, as in {{ failed = [\"notify\"] }}")
            }
            ValueKind::ShareOr(texts) => format!("one of {}, or a share above 0 and below 1, in quotes", quoted(texts)),
        }
    }
}

const fn whole(section: &'static str, key: &'static str, least: u64, most: u64, example: &'static str) -> KeySpec {
    KeySpec { section, key, kind: ValueKind::Whole { least, most }, example }
}

const fn number(
    section: &'static str,
    key: &'static str,
    (least, most, open): (f64, f64, OmittedEnd),
    example: &'static str,
) -> KeySpec {
    KeySpec { section, key, kind: ValueKind::Number { least, most, open }, example }
}

const fn spec(section: &'static str, key: &'static str, kind: ValueKind, example: &'static str) -> KeySpec {
    KeySpec { section, key, kind, example }
}

const fn duration(section: &'static str, key: &'static str, least_ms: u64, example: &'static str) -> KeySpec {
    let kind = ValueKind::Duration { least: Duration::from_millis(least_ms), most: Duration::MAX, or: None };
    KeySpec { section, key, kind, example }
}

const ANY: u64 = u64::MAX;
const POSITIVE: (f64, f64, OmittedEnd) = (0.0, f64::INFINITY, OmittedEnd::Least);
const NOT_NEGATIVE: (f64, f64, OmittedEnd) = (0.0, f64::INFINITY, OmittedEnd::Neither);
const SHARE: (f64, f64, OmittedEnd) = (0.0, 1.0, OmittedEnd::Most);
const EVERY: ValueKind =
    ValueKind::Duration { least: Duration::from_millis(100), most: Duration::MAX, or: Some("auto") };
const LEASE: ValueKind =
    ValueKind::Duration { least: Duration::from_secs(1), most: Duration::from_secs(3600), or: Some("none") };
const SIZE: ValueKind = ValueKind::Size { least: 0, or: &[] };
const RATE: ValueKind = ValueKind::Size { least: 1024, or: &[] };
const MEMORY: ValueKind = ValueKind::Size { least: 0, or: &["auto", "unlimited"] };
const ID_TYPES: ValueKind = ValueKind::Choice(&["uint16", "uint32", "int32", "int64"]);
const LAUNCHERS: ValueKind = ValueKind::ChoiceOrTexts(&["none", "torchrun", "mpirun", "srun"]);
const LEVELS: ValueKind = ValueKind::Choice(&["error", "warn", "info", "debug"]);

/// All keys, section by section, in the order of `config/ckptd.toml`.
pub(super) const KEYS: &[KeySpec] = &[
    spec("job", "name", ValueKind::Text, "\"finetune\""),
    spec("job", "store", ValueKind::Path, "\"checkpoints/finetune\""),
    whole("job", "seed", 0, ANY, "1337"),
    spec("job", "device", ValueKind::Device, "\"auto\""),
    whole("job", "threads", 0, 1024, "0"),
    spec("model", "from", ValueKind::Path, "\"models/gpt2\""),
    spec("model", "preset", ValueKind::Text, "\"gpt2-mini\""),
    number("model", "dropout", SHARE, "0.1"),
    spec("data", "text", ValueKind::Texts, "[\"data/*.txt\"]"),
    spec("data", "field", ValueKind::Text, "\"content\""),
    spec("data", "tokens", ValueKind::Path, "\"tokens.bin\""),
    spec("data", "tokens_dtype", ID_TYPES, "\"uint16\""),
    spec("data", "tokenizer", ValueKind::Path, "\"models/gpt2\""),
    number("data", "validation", (0.0, 0.5, OmittedEnd::Neither), "0.05"),
    spec("data", "cache", ValueKind::Path, "\"cache\""),
    whole("train", "steps", 1, ANY, "10000"),
    whole("train", "batch_size", 1, 65536, "8"),
    whole("train", "grad_accumulation", 1, 65536, "1"),
    whole("train", "sequence_length", 2, 1 << 20, "256"),
    spec("train", "optimizer", ValueKind::Choice(&["adamw", "sgd"]), "\"adamw\""),
    number("train", "learning_rate", POSITIVE, "0.0003"),
    spec("train", "schedule", ValueKind::Choice(&["cosine", "linear", "constant"]), "\"cosine\""),
    whole("train", "warmup_steps", 0, ANY, "50"),
    number("train", "min_learning_rate", (0.0, 1.0, OmittedEnd::Neither), "0.1"),
    number("train", "weight_decay", NOT_NEGATIVE, "0.1"),
    spec("train", "betas", ValueKind::Shares, "[0.9, 0.95]"),
    number("train", "eps", POSITIVE, "1e-8"),
    number("train", "momentum", SHARE, "0.9"),
    number("train", "grad_clip", NOT_NEGATIVE, "1.0"),
    whole("train", "eval_every", 0, ANY, "100"),
    whole("train", "eval_batches", 0, ANY, "8"),
    spec("train", "precision", ValueKind::Choice(&["float32", "bf16"]), "\"bf16\""),
    spec("train", "activation_checkpointing", ValueKind::Bool, "true"),
    spec("snapshot", "every", EVERY, "\"5m\""),
    whole("snapshot", "every_steps", 1, ANY, "200"),
    duration("snapshot", "mtbf", 1000, "\"6h\""),
    number("snapshot", "max_overhead", (0.0001, 0.5, OmittedEnd::Neither), "0.01"),
    whole("snapshot", "level", 0, 19, "1"),
    whole("snapshot", "encode_threads", 0, 256, "0"),
    spec("snapshot", "memory", MEMORY, "\"auto\""),
    spec("snapshot", "probe", ValueKind::Bool, "true"),
    whole("retention", "keep_last", 2, ANY, "3"),
    whole("retention", "keep_best", 0, ANY, "1"),
    whole("retention", "keep_every_steps", 1, ANY, "10000"),
    whole("retention", "keep_hourly", 0, ANY, "0"),
    whole("retention", "keep_daily", 0, ANY, "0"),
    spec("retention", "max_bytes", SIZE, "\"50GiB\""),
    spec("remote", "url", ValueKind::Remote, "\"s3://bucket/job\""),
    spec("remote", "endpoint", ValueKind::Service, "\"https://minio.example:9000\""),
    spec("remote", "send", ValueKind::Choice(&["every", "best", "final"]), "\"every\""),
    spec("remote", "max_rate", RATE, "\"10MiB\""),
    spec("remote", "lease", LEASE, "\"1m\""),
    spec("remote", "verify", ValueKind::ShareOr(&["auto", "whole"]), "\"auto\""),
    whole("remote", "keep_last", 2, ANY, "3"),
    whole("remote", "keep_best", 0, ANY, "1"),
    whole("remote", "keep_every_steps", 1, ANY, "10000"),
    whole("remote", "keep_hourly", 0, ANY, "0"),
    whole("remote", "keep_daily", 0, ANY, "0"),
    spec("remote", "max_bytes", SIZE, "\"50GiB\""),
    spec("ranks", "launcher", LAUNCHERS, "\"mpirun\""),
    spec("ranks", "count", ValueKind::WholeOr { least: 1, most: 1024, or: "auto" }, "1"),
    spec("ranks", "shard_optimizer", ValueKind::Bool, "true"),
    spec("ranks", "backend", ValueKind::Choice(&["gloo", "mpi"]), "\"gloo\""),
    duration("session", "budget", 0, "\"11h45m\""),
    spec("session", "deadline", ValueKind::Moment, "\"2030-11-24 23:00\""),
    number("session", "margin", (1.0, 100.0, OmittedEnd::Neither), "1.5"),
    duration("session", "grace", 0, "\"30s\""),
    spec("session", "notice_file", ValueKind::Path, "\"stop\""),
    spec("session", "slurm", ValueKind::Bool, "true"),
    spec("session", "systemd", ValueKind::Bool, "true"),
    spec("session", "aws", ValueKind::Bool, "true"),
    spec("session", "gcp", ValueKind::Bool, "true"),
    spec("session", "azure", ValueKind::Bool, "true"),
    spec("session", "aws_url", ValueKind::Url, "\"http://169.254.169.254\""),
    spec("session", "gcp_url", ValueKind::Url, "\"http://metadata.google.internal\""),
    spec("session", "azure_url", ValueKind::Url, "\"http://169.254.169.254\""),
    spec("worker", "command", ValueKind::Texts, "[\"ckptd-gpt2\"]"),
    spec("worker", "script", ValueKind::Texts, "[\"python\", \"train.py\"]"),
    whole("worker", "max_restarts", 0, u32::MAX as u64, "10"),
    duration("worker", "hang_timeout", 1000, "\"10m\""),
    spec("worker", "spare", ValueKind::Bool, "false"),
    spec("status", "socket", ValueKind::Path, "\"status.sock\""),
    spec("status", "http", ValueKind::Listen, "\"127.0.0.1:8377\""),
    spec("status", "http_open", ValueKind::Bool, "true"),
    spec("status", "http_token_file", ValueKind::Path, "\"page.token\""),
    spec("status", "http_hosts", ValueKind::Texts, "[\"train.example.org\"]"),
    spec("status", "metrics_file", ValueKind::Path, "\"/var/lib/prometheus/node-exporter/ckptd.prom\""),
    spec("hooks", "on", ValueKind::Hooks, "{ failed = [\"notify\"] }"),
    duration("hooks", "timeout", 100, "\"30s\""),
    spec("log", "level", LEVELS, "\"info\""),
    spec("log", "tensorboard", ValueKind::Bool, "true"),
];

/// The key `key` of `[section]`.
pub(super) fn find(section: &str, key: &str) -> Option<&'static KeySpec> {
    KEYS.iter().find(|spec| spec.section == section && spec.key == key)
}

/// The sections, in order.
pub(super) fn sections() -> Vec<&'static str> {
    let mut sections: Vec<&str> = KEYS.iter().map(|spec| spec.section).collect();
    sections.dedup();
    sections
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::config::TEMPLATE;

    #[test]
    fn the_table_has_exactly_the_keys_of_the_commented_file() {
        let mut documented = Vec::new();
        let mut section = "";
        for line in TEMPLATE.lines() {
            if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
                section = name;
            } else if let Some((key, _)) = line.trim_start_matches('#').split_once(" = ")
                && !key.contains(' ')
            {
                documented.push(format!("{section}.{key}"));
            }
        }
        let mut table: Vec<String> = KEYS.iter().map(|spec| format!("{}.{}", spec.section, spec.key)).collect();
        documented.sort();
        table.sort();
        assert_eq!(table, documented);
    }
}
