//! The settings of a training that change its arithmetic, as the train state keeps them: text by text.
//!
//! Invariant: the list is closed. A key of the first release always stands in it. A key that came later is left out at
//! the value that reproduces what the releases before it computed, so that no older `root` changes. What does not
//! change the result (bounds of memory, numbers of ranks, recomputation) never enters. Deliberately not here: which
//! keys of a job file are in it (`config`), the model's own keys (the worker), changes of the arithmetic itself
//! (`arithmetic`).

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Settings that are recorded, since they change the losses in the train state, and change no parameter.
const WATCHING: [&str; 2] = ["train.eval_every", "train.eval_batches"];

/// A key that stands in the settings of every training.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SettingKey {
    /// `[job] seed`, in decimal.
    Seed,
    /// `cpu` or `cuda`, without an index.
    Device,
    /// Threads of one operation, in decimal: they decide how sums are split.
    Threads,
    /// The hash that stands for the training's tokens.
    DataContent,
    /// `[data] validation`, the share that is held back.
    DataValidation,
}

impl SettingKey {
    /// As it stands in the settings.
    pub const fn name(self) -> &'static str {
        match self {
            SettingKey::Seed => "seed",
            SettingKey::Device => "device",
            SettingKey::Threads => "threads",
            SettingKey::DataContent => "data.content",
            SettingKey::DataValidation => "data.validation",
        }
    }
}

/// The settings that change the arithmetic, by name. JSON: an object of texts, sorted by key.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TrainSettings(BTreeMap<String, String>);

/// What one section of a job or a model says, under "section.key", each value as JSON.
pub struct SettingsSection<'a> {
    settings: &'a mut TrainSettings,
    section: &'static str,
}

impl TrainSettings {
    /// Whether nothing is known: a state imported from other programs, which do not say under which settings it came
    /// about.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The text under `key`.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    /// Key and text of each setting, sorted by key.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, text)| (key.as_str(), text.as_str()))
    }

    /// Replaces the text under `key`.
    pub fn set(&mut self, key: impl Into<String>, text: impl Into<String>) {
        let _ = self.0.insert(key.into(), text.into());
    }

    /// Replaces one of the keys that every training has.
    pub fn set_key(&mut self, key: SettingKey, text: impl ToString) {
        self.set(key.name(), text.to_string());
    }

    /// The keys of `section` ("train", "model"), to be added.
    pub fn section(&mut self, section: &'static str) -> SettingsSection<'_> {
        SettingsSection { settings: self, section }
    }

    /// Replaces `target` by what is recorded under "section.key"; leaves it where that is missing or of another type.
    pub fn read_into<T: DeserializeOwned>(&self, section: &str, key: &str, target: &mut T) {
        if let Some(value) = self.get(&format!("{section}.{key}")).and_then(|text| serde_json::from_str(text).ok()) {
            *target = value;
        }
    }

    /// The threads of one operation.
    pub fn threads(&self) -> Option<usize> {
        self.get(SettingKey::Threads.name())?.parse().ok()
    }

    /// The hash that stands for the training's tokens.
    pub fn data_content(&self) -> Option<&str> {
        self.get(SettingKey::DataContent.name())
    }

    /// [`differences`](TrainSettings::differences), without those that only say how a training is watched: another
    /// evaluation finds other losses, and the same parameters.
    pub fn changes_of_arithmetic(&self, now: &TrainSettings) -> Vec<String> {
        let watches = |line: &String| WATCHING.iter().any(|key| line.starts_with(&format!("{key}:")));
        self.differences(now).into_iter().filter(|line| !watches(line)).collect()
    }

    /// "seed: 1 then, 2 now" for each setting in which `self` (then) and `now` differ, sorted by key.
    pub fn differences(&self, now: &TrainSettings) -> Vec<String> {
        let mut keys: Vec<&String> = self.0.keys().chain(now.0.keys()).collect();
        keys.sort();
        keys.dedup();
        let text = |settings: &TrainSettings, key: &str| settings.get(key).unwrap_or("not set").to_owned();
        keys.into_iter()
            .map(|key| (key, text(self, key), text(now, key)))
            .filter(|(_, then, now)| then != now)
            .map(|(key, then, now)| format!("{key}: {then} then, {now} now"))
            .collect()
    }
}

impl SettingsSection<'_> {
    /// A key of the first release: it is always written.
    pub fn add<T: Serialize>(&mut self, key: &str, value: &T) {
        // Plain values always serialise; a missing entry would only be compared as missing.
        if let Ok(text) = serde_json::to_string(value) {
            self.settings.set(format!("{}.{key}", self.section), text);
        }
    }

    /// A key that came later: it is not written at `reproduces`, the value under which everything is computed as before
    /// the key existed.
    pub fn add_later<T: Serialize + PartialEq>(&mut self, key: &str, value: &T, reproduces: &T) {
        if value != reproduces {
            self.add(key, value);
        }
    }
}

impl<K: Into<String>, V: Into<String>> FromIterator<(K, V)> for TrainSettings {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(texts: I) -> TrainSettings {
        TrainSettings(texts.into_iter().map(|(key, text)| (key.into(), text.into())).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::TrainState;
    use crate::store::format;

    fn settings() -> TrainSettings {
        TrainSettings::from_iter([("seed", "1337"), ("threads", "2"), ("train.steps", "9")])
    }

    fn root(settings: TrainSettings) -> crate::ids::StateRoot {
        format::root(&[], &TrainState { settings, ..TrainState::default() })
    }

    #[test]
    fn a_later_key_at_the_value_that_reproduces_changes_no_root() {
        let mut later = settings();
        later.section("train").add_later("precision", &"f32", &"f32");
        assert_eq!(root(later), root(settings()));
    }

    #[test]
    fn a_later_key_at_another_value_changes_the_root_and_is_named() {
        let mut later = settings();
        later.section("train").add_later("precision", &"bf16", &"f32");
        assert_ne!(root(later.clone()), root(settings()));
        assert_eq!(settings().differences(&later), [r#"train.precision: not set then, "bf16" now"#]);
        assert_eq!(later.differences(&settings()), [r#"train.precision: "bf16" then, not set now"#]);
    }

    #[test]
    fn what_is_recorded_is_read_back_by_type_and_the_rest_stays() {
        let (mut steps, mut rate) = (1u64, 0.5f64);
        settings().read_into("train", "steps", &mut steps);
        settings().read_into("train", "learning_rate", &mut rate);
        assert_eq!((steps, rate, settings().threads()), (9, 0.5, Some(2)));
    }
}
