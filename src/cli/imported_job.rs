//! The text of a job file that goes on from an import: what the snapshot says of its training, as `[train]` has it, and
//! in words the few things that no file says.
//!
//! Invariant: where the texts are given, the job runs as it is written. Deliberately not here: reading the source
//! (interop), job files for a training that begins (`job_text`).

use std::ffi::OsStr;
use std::path::Path;

use serde_json::Value;

use super::job_text::seen_from;
use ckptd_core::config::TrainSection;
use ckptd_core::error::Result;
use ckptd_core::settings::{SettingKey, TrainSettings};
use ckptd_core::store::SnapshotReader;
use ckptd_interop::names;
use ckptd_interop::source_record::SourceRecord;

/// Steps of a training whose source does not say how many it has.
const STEPS: u64 = 1000;
const TEXT_IS_UNKNOWN: &str = "# The one thing that the imported files do not say: the texts to train on.\n\
                               # text = [\"data/*.txt\"]\n";

/// An import that is to be gone on with.
pub(super) struct ImportedJob<'a> {
    /// The job file to be.
    pub file: &'a Path,
    /// The name of its store, which lies beside it; `None`: the usual one.
    pub store: Option<&'a OsStr>,
    /// What was imported, for people.
    pub told: &'a str,
    /// Where the model came from.
    pub from: &'a Path,
    /// Tokens to train on, where they are not beside the model.
    pub tokens: Option<&'a Path>,
    /// Texts to train on, as the command line has them.
    pub texts: &'a [String],
}

impl ImportedJob<'_> {
    /// The job file's text; `None` where the snapshot does not say the shape of its model.
    pub(super) fn text(&self, snapshot: &SnapshotReader) -> Result<Option<String>> {
        let manifest = snapshot.manifest();
        let Some(config) = snapshot.read_file(names::CONFIG)? else { return Ok(None) };
        let config: Value = serde_json::from_slice(&config).unwrap_or_default();
        let source = snapshot.read_file(names::SOURCE_RECORD)?;
        let source = source.map(|bytes| SourceRecord::parse(&bytes, snapshot.path())).transpose()?;
        let step = manifest.train.step;
        let train = match source {
            _ if !manifest.train.settings.is_empty() => recorded(&manifest.train.settings),
            Some(source) => with_the_rest(source.train_lines(), step, &config),
            None => with_the_rest(vec!["learning_rate = 5e-5".to_owned()], step, &config),
        };
        let has_tokenizer = manifest.files.iter().any(|file| [names::TOKENIZER, "vocab.json"].contains(&&*file.name));
        Ok(Some(format!(
            "# To go on from step {step} of {}: ckptd run {}\n# `ckptd init` without --from writes every key with its \
             default.\n\n{}[model]\nfrom = {:?}\n\n[data]\n{}\n[train]\n{}\n",
            self.told,
            self.file.display(),
            self.job_section(&manifest.train.settings),
            seen_from(self.file, &self.from.to_string_lossy())?,
            self.data_lines(&manifest.train.settings, has_tokenizer)?,
            train.join("\n"),
        )))
    }

    /// `[job]`, where anything in it is not the usual.
    fn job_section(&self, settings: &TrainSettings) -> String {
        let mut lines = Vec::new();
        if let Some(store) = self.store {
            lines.push(format!("store = {:?}", store.to_string_lossy()));
        }
        for key in [SettingKey::Seed, SettingKey::Threads] {
            lines.extend(settings.get(key.name()).map(|text| format!("{} = {text}", key.name())));
        }
        lines.extend(settings.get(SettingKey::Device.name()).map(|device| format!("device = {device:?}")));
        if lines.is_empty() { String::new() } else { format!("[job]\n{}\n\n", lines.join("\n")) }
    }

    fn data_lines(&self, settings: &TrainSettings, has_tokenizer: bool) -> Result<String> {
        let packed = self.tokens.map_or_else(|| self.from.join(names::TOKENS), Path::to_path_buf);
        let mut lines = match self.texts {
            [] if packed.is_file() => format!("tokens = {:?}\n", seen_from(self.file, &packed.to_string_lossy())?),
            [] => TEXT_IS_UNKNOWN.to_owned(),
            texts => {
                let texts = texts.iter().map(|text| Ok(format!("{:?}", seen_from(self.file, text)?)));
                format!("text = [{}]\n", texts.collect::<Result<Vec<_>>>()?.join(", "))
            }
        };
        if !has_tokenizer && !packed.is_file() {
            lines.push_str(
                "# The import has no tokenizer; the model's own is needed, or one is trained on the texts.\n",
            );
            lines.push_str("# tokenizer = \"tokenizer.json\"\n");
        }
        let validation = settings.get(SettingKey::DataValidation.name());
        lines.extend(validation.map(|share| format!("validation = {share}\n")));
        Ok(lines)
    }
}

/// The `[train]` under which the snapshot came about, as far as it is not the default.
fn recorded(settings: &TrainSettings) -> Vec<String> {
    let usual = serde_json::to_value(TrainSection::default()).unwrap_or_default();
    let keys = settings.iter().filter_map(|(key, text)| Some((key.strip_prefix("train.")?, text)));
    let is_other = |(key, text): &(&str, &str)| {
        *key == "steps" || usual.get(key) != serde_json::from_str::<Value>(text).ok().as_ref()
    };
    keys.filter(is_other).map(|(key, text)| format!("{key} = {text}")).collect()
}

/// `lines` of a source from elsewhere with what it leaves open.
fn with_the_rest(mut lines: Vec<String>, step: u64, config: &Value) -> Vec<String> {
    let has = |lines: &[String], key: &str| lines.iter().any(|line| line.starts_with(&format!("{key} = ")));
    if !has(&lines, "steps") {
        let said = if step > 0 { format!("; it had made {step}") } else { String::new() };
        lines.push(format!("steps = {}  # the source does not say how many{said}", step + STEPS));
    }
    if step > 0 && !has(&lines, "schedule") {
        lines.push("schedule = \"constant\"  # the source's is not known".to_owned());
        lines.push("warmup_steps = 0".to_owned());
    }
    let positions = config.get("n_positions").and_then(Value::as_u64).unwrap_or(u64::MAX);
    let length = TrainSection::default().sequence_length.min(positions);
    lines.push(format!("sequence_length = {length}  # the source does not say it"));
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_source_leaves_open_is_filled_in_and_said() {
        let config = serde_json::json!({"n_positions": 64});
        let lines = with_the_rest(vec!["learning_rate = 0.001".into()], 20, &config);
        assert!(lines.contains(&"steps = 1020  # the source does not say how many; it had made 20".to_owned()));
        assert!(lines[2].starts_with("schedule = \"constant\"") && lines[4].starts_with("sequence_length = 64"));
        let fresh = with_the_rest(vec!["steps = 9".into()], 0, &Value::Null);
        assert_eq!(fresh, ["steps = 9", "sequence_length = 256  # the source does not say it"]);
    }

    #[test]
    fn recorded_settings_are_those_that_are_not_the_default() {
        let settings: TrainSettings =
            [("train.steps", "1000"), ("train.eps", "1e-8"), ("train.betas", "[0.9,0.99]"), ("seed", "3")]
                .into_iter()
                .collect();
        assert_eq!(recorded(&settings), ["betas = [0.9,0.99]", "steps = 1000"]);
    }
}
