//! Writing the history: batches at the end of a file that grows, and that file packed when it is long enough.
//!
//! Invariant: what was written stays readable, whatever fails: a write that fails is cut off again, a file whose sync
//! has failed is left alone and the next one begun, and a packed part is durable before the one it was made of goes.
//! What the disk does not take waits in memory up to a bound, then it is dropped and counted.

use std::fs::File;
use std::path::PathBuf;

use ckptd_core::error::{Error, Result};
use ckptd_core::os::dir::Dir;
use ckptd_core::os::fs;
use ckptd_core::store::layout::{self, Folder, HistoryPart};
use ckptd_core::store::{Store, StoreLock};

use crate::batch::RecordBatch;
use crate::frame;
use crate::packed;
use crate::part::{self, FileRest};
use crate::record::{HistoryEvent, HistoryRecord, TimedEvent};

/// When a file that grows is packed.
const PACK_ROWS: usize = 64 << 10;
const PACK_FRAMES: usize = if cfg!(feature = "faults") { 3 } else { 4096 };
const PACK_BYTES: u64 = 4 << 20;
/// What waits at most for a disk that takes nothing.
const WAITING_ROWS: usize = 64 << 10;
pub(crate) const WAITING_EVENTS: usize = 4096;
/// Of small batches every moment.
const LEVEL: i32 = 1;

/// The end of a store's history.
#[derive(Debug)]
pub struct HistoryWriter {
    folder: Dir,
    growing: Option<GrowingPart>,
    /// The number of the next file.
    next: u64,
    waiting: RecordBatch,
    dropped_steps: u64,
    dropped_events: u64,
    torn: Option<u64>,
}

#[derive(Debug)]
struct GrowingPart {
    number: u64,
    file: File,
    path: PathBuf,
    length: u64,
    frames: usize,
    rows: usize,
}

impl HistoryWriter {
    /// Opens the history of `store` to write behind what is there. The half of a batch that a killed process left is
    /// cut off.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn open(store: &Store, _lock: &StoreLock) -> Result<HistoryWriter> {
        let folder = store.folder(Folder::History)?;
        let parts: Vec<HistoryPart> =
            folder.files()?.iter().filter_map(|name| layout::parse_history_file(name)).collect();
        let next = parts.iter().map(|part| part.number + 1).max().unwrap_or(0);
        let mut growing: Vec<u64> = parts.iter().filter(|part| !part.is_packed).map(|part| part.number).collect();
        growing.sort_unstable();
        let mut writer = HistoryWriter {
            folder,
            growing: None,
            next,
            waiting: RecordBatch::default(),
            dropped_steps: 0,
            dropped_events: 0,
            torn: None,
        };
        for number in growing {
            let is_packed = parts.contains(&HistoryPart { number, is_packed: true });
            if is_packed {
                // A process was killed between the two steps of packing; the first one may not be durable yet.
                writer.folder.sync()?;
                writer.folder.remove(&layout::history_file(HistoryPart { number, is_packed: false }))?;
            } else if number + 1 == next {
                writer.growing = writer.open_growing(number)?;
            }
        }
        Ok(writer)
    }

    /// So many bytes were cut off its end when it was opened.
    pub fn torn(&self) -> Option<u64> {
        self.torn
    }

    /// Opens the last file where it can be gone on with.
    fn open_growing(&mut self, number: u64) -> Result<Option<GrowingPart>> {
        let name = layout::history_file(HistoryPart { number, is_packed: false });
        let Some(found) = part::read_growing(&self.folder, number)? else { return Ok(None) };
        if let FileRest::Damaged(_) = found.rest {
            // It stays as it is, and is read as far as it can be.
            return Ok(None);
        }
        let (file, path) = (self.folder.open_kept(&name)?, self.folder.join(&name));
        if let FileRest::Torn(bytes) = found.rest {
            fs::truncate(&file, found.length, &path)?;
            self.torn = Some(bytes);
        }
        let rows = found.batch.rows.len();
        Ok(Some(GrowingPart { number, file, path, length: found.length, frames: found.frames, rows }))
    }

    /// Takes `record`, to be written with the next batch.
    pub fn push(&mut self, record: HistoryRecord) {
        let is_full = match &record {
            HistoryRecord::Step(_) => self.waiting.rows.len() >= WAITING_ROWS,
            HistoryRecord::Event(_) => self.waiting.events.len() >= WAITING_EVENTS,
        };
        match (&record, is_full) {
            (_, false) => self.waiting.push(record),
            (HistoryRecord::Step(_), true) => self.dropped_steps += 1,
            (HistoryRecord::Event(_), true) => self.dropped_events += 1,
        }
    }

    /// Counts records as lost that never came here.
    pub fn count_lost(&mut self, steps: u64, events: u64) {
        self.dropped_steps += steps;
        self.dropped_events += events;
    }

    /// Writes what waits, durably. `now_ms` is the time of what it has to say itself.
    ///
    /// # Errors
    /// Those of the file system: what could not be written waits on.
    pub fn flush(&mut self, now_ms: i64) -> Result<()> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        let (steps, events) = (self.dropped_steps, self.dropped_events);
        let mut batch = self.waiting.clone();
        if steps + events > 0 {
            let event = HistoryEvent::Gap { steps, events };
            batch.push(HistoryRecord::Event(TimedEvent { at_ms: now_ms, event }));
        }
        self.write(&batch)?;
        self.waiting = RecordBatch::default();
        (self.dropped_steps, self.dropped_events) = (0, 0);
        self.sync()?;
        self.pack_if_long()
    }

    fn write(&mut self, batch: &RecordBatch) -> Result<()> {
        let growing = match self.growing.take() {
            Some(growing) => growing,
            None => self.begin()?,
        };
        let bytes = frame::encode(frame::BATCH, &batch.encode(), LEVEL);
        let bytes = bytes.map_err(|e| Error::Other(format!("packing a batch of the history: {e}")))?;
        let head: &[u8] = if growing.length == 0 { &frame::FILE_HEAD } else { &[] };
        let bytes = [head, &bytes].concat();
        if let Err(error) = fs::write_all_at(&growing.file, &bytes, growing.length, &growing.path) {
            // Half a batch at its end would be read as torn; where not even this works, the next file is begun.
            if fs::truncate(&growing.file, growing.length, &growing.path).is_ok() {
                self.growing = Some(growing);
            }
            return Err(error);
        }
        let length = growing.length + bytes.len() as u64;
        let rows = growing.rows + batch.rows.len();
        self.growing = Some(GrowingPart { length, frames: growing.frames + 1, rows, ..growing });
        Ok(())
    }

    /// Makes the next file.
    fn begin(&mut self) -> Result<GrowingPart> {
        let number = self.next;
        let name = layout::history_file(HistoryPart { number, is_packed: false });
        let (file, path) = (self.folder.create_file(&name)?, self.folder.join(&name));
        self.next += 1;
        self.folder.sync()?;
        Ok(GrowingPart { number, file, path, length: 0, frames: 0, rows: 0 })
    }

    fn sync(&mut self) -> Result<()> {
        let Some(growing) = &self.growing else { return Ok(()) };
        let synced = fs::sync_file(&growing.file, &growing.path);
        if synced.is_err() {
            // Of this file nothing more can be promised.
            self.growing = None;
        }
        synced
    }

    /// Packs the file that grows once it is long enough.
    fn pack_if_long(&mut self) -> Result<()> {
        let is_long = |growing: &GrowingPart| {
            growing.rows >= PACK_ROWS || growing.frames >= PACK_FRAMES || growing.length >= PACK_BYTES
        };
        let Some(growing) = self.growing.take_if(|growing| is_long(growing)) else { return Ok(()) };
        let part = |is_packed| layout::history_file(HistoryPart { number: growing.number, is_packed });
        let Some(found) = part::read_growing(&self.folder, growing.number)? else { return Ok(()) };
        if found.rest != FileRest::Nothing || found.length != growing.length {
            return Err(Error::damaged(&growing.path, "it is not what was written; it stays as it is"));
        }
        let packed = packed::encode(&found.batch);
        let packed = packed.map_err(|e| Error::Other(format!("packing {}: {e}", growing.path.display())))?;
        self.folder.write_durably(&part(true), &packed)?;
        self.folder.remove(&part(false))
    }
}
