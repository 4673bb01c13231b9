//! An event file for TensorBoard in a folder.
//!
//! Invariant: of what is in the folder only event files that were written here are emptied or removed, and the new one
//! begins by voiding what the old one has shown, so that a TensorBoard that is open shows one curve.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use ckptd_core::config::Config;
use ckptd_core::error::{Error, Result};
use ckptd_history::record::{HistoryEvent, HistoryRecord};
use ckptd_history::tensorboard;

/// How the names of our own event files end.
const SUFFIX: &str = ".ckptd";

/// An event file that is written.
pub(super) struct EventFile {
    file: BufWriter<File>,
    path: PathBuf,
    points: u64,
    now_ms: i64,
}

impl EventFile {
    /// Makes the file, and the folder where it is missing.
    pub(super) fn create(folder: &Path) -> Result<EventFile> {
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

    /// Writes the job's settings as a text.
    pub(super) fn describe(&mut self, config: Option<&Config>) -> Result<()> {
        let json = config.and_then(|config| serde_json::to_string_pretty(config).ok());
        match json {
            Some(json) => self.write(&tensorboard::text(self.now_ms, "job", &format!("```json\n{json}\n```"))),
            None => Ok(()),
        }
    }

    pub(super) fn add(&mut self, record: &HistoryRecord) -> Result<()> {
        let Some(bytes) = tensorboard::record(record) else { return Ok(()) };
        let is_point = match record {
            HistoryRecord::Step(_) => true,
            HistoryRecord::Event(timed) => matches!(timed.event, HistoryEvent::Evaluated { .. }),
        };
        self.points += u64::from(is_point);
        self.write(&bytes)
    }

    pub(super) fn flush(&mut self) -> Result<()> {
        self.file.flush().map_err(|e| Error::io("writing", &self.path, e))
    }

    pub(super) fn points(&self) -> u64 {
        self.points
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(|e| Error::io("writing", &self.path, e))
    }
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
