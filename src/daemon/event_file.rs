//! An event file for TensorBoard in a folder.
//!
//! Invariant: of what is in the folder only event files that were written here are emptied or removed; one that takes
//! the place of others begins by voiding what they have shown, so that a TensorBoard that is open shows one curve.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde_json::Value;

use ckptd_core::config::Config;
use ckptd_core::error::{Error, Result};
use ckptd_history::record::{HistoryEvent, HistoryRecord};
use ckptd_history::tensorboard::{self, HyperValue};

/// How the names of our own event files end.
const SUFFIX: &str = ".ckptd";

/// An event file that is written.
pub struct EventFile {
    file: BufWriter<File>,
    path: PathBuf,
    points: u64,
    now_ms: i64,
}

impl EventFile {
    /// Makes a file that goes on where those in the folder end, and says whether it is the first one.
    pub fn append(folder: &Path) -> Result<(EventFile, bool)> {
        let (file, old) = EventFile::begin(folder)?;
        Ok((file, old.is_empty()))
    }

    /// Makes the file in the place of those that were written before, and the folder where it is missing.
    pub fn create(folder: &Path) -> Result<EventFile> {
        let (mut events, old) = EventFile::begin(folder)?;
        let newest = old.iter().filter_map(|name| second_of(name)).max().unwrap_or(0);
        let now_ms = events.now_ms;
        events.write(&tensorboard::restart(now_ms, 0))?;
        events.flush()?;
        for name in &old {
            let path = folder.join(name);
            if second_of(name) == Some(newest) {
                // A TensorBoard that reads it goes on to the next one only as long as it is there.
                let emptied = File::options().write(true).open(&path).and_then(|file| file.set_len(0));
                emptied.map_err(|e| Error::io("emptying", &path, e))?;
            } else {
                std::fs::remove_file(&path).map_err(|e| Error::io("removing", &path, e))?;
            }
        }
        Ok(events)
    }

    /// The file, and the names of those that were there.
    fn begin(folder: &Path) -> Result<(EventFile, Vec<String>)> {
        std::fs::create_dir_all(folder).map_err(|e| Error::io("making folder", folder, e))?;
        let old = own_files(folder)?;
        let now_ms = Timestamp::now().as_millisecond();
        // TensorBoard reads the files of a folder by their names, and one that is named before the last it read never.
        let newest = old.iter().filter_map(|name| second_of(name)).max().unwrap_or(0);
        let second = (now_ms / 1000).max(newest + 1);
        let path = folder.join(format!("{}{second:010}{SUFFIX}", tensorboard::FILE_PREFIX));
        let file = File::create_new(&path).map_err(|e| Error::io("creating", &path, e))?;
        let mut events = EventFile { file: BufWriter::new(file), path, points: 0, now_ms };
        events.write(&tensorboard::file_version(now_ms))?;
        Ok((events, old))
    }

    /// Writes the job's settings, as a text and as hyperparameters.
    pub fn describe(&mut self, config: Option<&Config>) -> Result<()> {
        let Some(config) = config else { return Ok(()) };
        let settings = serde_json::to_value(config).unwrap_or_default();
        let json = serde_json::to_string_pretty(&settings).unwrap_or_default();
        self.write(&tensorboard::text(self.now_ms, "job", &format!("```json\n{json}\n```")))?;
        self.write(&tensorboard::hyperparameters(self.now_ms, &hyperparameters(&settings)))
    }

    pub fn add(&mut self, record: &HistoryRecord) -> Result<()> {
        let Some(bytes) = tensorboard::record(record) else { return Ok(()) };
        let is_point = match record {
            HistoryRecord::Step(_) => true,
            HistoryRecord::Event(timed) => matches!(timed.event, HistoryEvent::Evaluated { .. }),
        };
        self.points += u64::from(is_point);
        self.write(&bytes)
    }

    pub fn flush(&mut self) -> Result<()> {
        self.file.flush().map_err(|e| Error::io("writing", &self.path, e))
    }

    pub fn points(&self) -> u64 {
        self.points
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(|e| Error::io("writing", &self.path, e))
    }
}

/// What changes the training, as "section.key".
fn hyperparameters(settings: &Value) -> Vec<(String, HyperValue)> {
    let keys =
        |section: &'static str| settings[section].as_object().into_iter().flatten().map(move |pair| (section, pair));
    let all = keys("model").chain(keys("train")).chain(keys("job").filter(|(_, (key, _))| *key == "seed"));
    all.filter_map(|(section, (key, value))| {
        let value = match value {
            Value::Null => return None,
            Value::Bool(value) => HyperValue::Truth(*value),
            Value::Number(number) => HyperValue::Number(number.as_f64()?),
            Value::String(text) => HyperValue::Text(text.clone()),
            other => HyperValue::Text(other.to_string()),
        };
        Some((format!("{section}.{key}"), value))
    })
    .collect()
}

/// Names of the event files in `folder` that were written here.
fn own_files(folder: &Path) -> Result<Vec<String>> {
    let entries = std::fs::read_dir(folder).map_err(|e| Error::io("reading folder", folder, e))?;
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    Ok(names.filter(|name| second_of(name).is_some()).collect())
}

/// The second in the name of one of our event files.
fn second_of(name: &str) -> Option<i64> {
    name.strip_prefix(tensorboard::FILE_PREFIX)?.strip_suffix(SUFFIX)?.parse().ok()
}
