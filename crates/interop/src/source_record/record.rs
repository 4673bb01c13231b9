//! The record itself, as JSON.

use std::collections::HashMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::names;
use crate::plain::PlainValue;
use ckptd_core::config::OptimizerKind;
use ckptd_core::error::{Error, Result};
use ckptd_core::snapshot::CarriedFile;

const FORMAT: u32 = 1;

/// What a source says of its training.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SourceRecord {
    /// Of this description.
    pub format: u32,
    /// Steps that the source had made.
    pub step: u64,
    /// Its optimiser's groups.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub optimizer: Option<OptimizerRecord>,
    /// The `state_dict` of its learning rate's schedule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schedule: Option<PlainValue>,
    /// Trainer's trainer_state.json without its log.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub trainer_state: Map<String, Value>,
    /// Those of its TrainingArguments that decide how the training goes on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arguments: Option<PlainValue>,
}

/// The groups of an optimiser.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OptimizerRecord {
    /// Its rule.
    pub kind: OptimizerKind,
    /// In their order.
    pub groups: Vec<GroupRecord>,
}

/// One group.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GroupRecord {
    /// Its parameters in their order, by the names of the model.
    pub parameters: Vec<String>,
    /// All its other entries, as a dict.
    pub options: PlainValue,
}

impl OptimizerRecord {
    /// The groups in which an export lays the optimiser: `halves`, which are Trainer's, where all of each had
    /// the same options in the source; else the source's own.
    pub fn exported_groups<'a>(&'a self, halves: [Vec<&'a str>; 2]) -> Vec<(Vec<&'a str>, &'a PlainValue)> {
        let own = |group: &'a GroupRecord| (group.parameters.iter().map(String::as_str).collect(), &group.options);
        let options: HashMap<&str, &PlainValue> = self
            .groups
            .iter()
            .flat_map(|group| group.parameters.iter().map(move |name| (name.as_str(), &group.options)))
            .collect();
        let shared = |half: &[&str]| {
            let first = *options.get(half.first()?)?;
            half.iter().all(|name| options.get(name).is_some_and(|other| *other == first)).then_some(first)
        };
        match [shared(&halves[0]), shared(&halves[1])] {
            [Some(first), Some(second)] => halves.into_iter().zip([first, second]).collect(),
            _ => self.groups.iter().map(own).collect(),
        }
    }
}

impl SourceRecord {
    /// Whether the source has said anything.
    pub fn is_empty(&self) -> bool {
        self.optimizer.is_none() && self.schedule.is_none() && self.trainer_state.is_empty() && self.arguments.is_none()
    }

    /// As the file that a snapshot carries.
    ///
    /// # Errors
    /// [`Error::Other`] where it cannot be written as JSON.
    pub fn to_file(&self) -> Result<CarriedFile> {
        let record = SourceRecord { format: FORMAT, ..self.clone() };
        let mut json = serde_json::to_vec_pretty(&record)
            .map_err(|e| Error::Other(format!("writing {}: {e}", names::SOURCE_RECORD)))?;
        json.push(b'\n');
        Ok(CarriedFile { name: names::SOURCE_RECORD.into(), bytes: json.into() })
    }

    /// From the bytes of a carried file of the snapshot at `path`.
    ///
    /// # Errors
    /// [`Error::Malformed`] where it is none, or one of a later format.
    pub fn parse(bytes: &[u8], path: &Path) -> Result<SourceRecord> {
        let refuse = |reason: String| Error::malformed(path, format!("{}: {reason}", names::SOURCE_RECORD));
        let record: SourceRecord = serde_json::from_slice(bytes).map_err(|e| refuse(format!("not a record: {e}")))?;
        if record.format == FORMAT {
            Ok(record)
        } else {
            Err(refuse(format!("of format {}; this ckptd reads format {FORMAT}", record.format)))
        }
    }

    /// Among the files that a snapshot carries.
    ///
    /// # Errors
    /// As [`SourceRecord::parse`].
    pub fn of_files(files: &[CarriedFile], path: &Path) -> Result<Option<SourceRecord>> {
        let file = files.iter().find(|file| file.name == names::SOURCE_RECORD);
        file.map(|file| SourceRecord::parse(&file.bytes, path)).transpose()
    }

    /// An entry of the first group of its optimiser.
    pub(super) fn option(&self, key: &str) -> Option<&PlainValue> {
        self.optimizer.as_ref()?.groups.first()?.options.get(key)
    }

    /// One of its TrainingArguments.
    pub(super) fn argument(&self, key: &str) -> Option<&PlainValue> {
        self.arguments.as_ref()?.get(key)
    }

    /// A whole number of its trainer_state.json.
    pub(super) fn trainer_count(&self, key: &str) -> Option<u64> {
        self.trainer_state.get(key)?.as_u64()
    }
}
