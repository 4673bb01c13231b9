//! The history on its way to another machine: its parts as bytes, one file of them for a bundle, and what of them a
//! store lacks taken into it.
//!
//! Invariant: nothing of a store's own history is replaced or removed; what is known already is not written again, so
//! that an older history changes nothing. What comes from elsewhere is decoded before it is written, within limits.
//! Deliberately not here: where it travels (ckptd-interop, ckptd-remote).

use std::io::Write;
use std::path::Path;

use ckptd_core::error::{Error, Result};
use ckptd_core::os::dir::Dir;
use ckptd_core::os::fs;
use ckptd_core::store::layout::{self, Folder, HistoryPart};
use ckptd_core::store::{Store, StoreLock};
use ckptd_core::text::counted;

use crate::batch::RecordBatch;
use crate::bytes::Malformed;
use crate::frame::{self, FrameOutcome};
use crate::packed;
use crate::part::{self, FileRest};
use crate::record::{HistoryEvent, HistoryRecord, TimedEvent};
use crate::sessions::{KnownSessions, SessionFilter, is_of_file};
use crate::writer::{HistoryWriter, WAITING_EVENTS};

/// Most bytes of a part, and of what is in it: both are far more than a part is packed at.
pub const MAX_PART_BYTES: u64 = 16 << 20;
const MAX_PART_CONTENT: usize = 48 << 20;
/// Steps and events that are written at a time: a writer takes as many events.
const BATCH_RECORDS: usize = WAITING_EVENTS;

/// A part of a history, on its way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TravellingPart {
    /// Whether it is complete and packed; else it is the beginning of a file that grows.
    pub is_packed: bool,
    /// What is in its file, as far as that is whole.
    pub bytes: Vec<u8>,
}

/// What became of a history that came to a store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TakenHistory {
    /// Steps that the store did not have.
    pub steps: u64,
    /// What could not be taken, in sentences.
    pub problems: Vec<String>,
    /// Some of it is of use to another machine, or to a later release: whoever has it should keep it.
    pub is_partial: bool,
}

/// The numbers of the parts of the history of `store`, in order.
///
/// # Errors
/// Those of reading the folder.
pub fn part_numbers(store: &Store) -> Result<Vec<u64>> {
    let Some(folder) = folder_of(store)? else { return Ok(Vec::new()) };
    let mut numbers: Vec<u64> =
        folder.files()?.iter().filter_map(|name| layout::parse_history_file(name)).map(|part| part.number).collect();
    numbers.sort_unstable();
    numbers.dedup();
    Ok(numbers)
}

/// Part number `number` of the history of `store`, which may be written to meanwhile; `None` where nothing is in it.
///
/// # Errors
/// Those of reading it.
pub fn read_part(store: &Store, number: u64) -> Result<Option<TravellingPart>> {
    let Some(folder) = folder_of(store)? else { return Ok(None) };
    let read = |is_packed| folder.read_small(&layout::history_file(HistoryPart { number, is_packed }), MAX_PART_BYTES);
    let packed = |bytes| TravellingPart { is_packed: true, bytes };
    if let Some(bytes) = read(true)? {
        return Ok(Some(packed(bytes)));
    }
    if let Some(mut bytes) = read(false)? {
        let length = part::parse_growing(&bytes).length;
        bytes.truncate(usize::try_from(length).unwrap_or(usize::MAX));
        return Ok((!bytes.is_empty()).then_some(TravellingPart { is_packed: false, bytes }));
    }
    // It was packed between the two.
    Ok(read(true)?.map(packed))
}

fn folder_of(store: &Store) -> Result<Option<Dir>> {
    match store.folder(Folder::History) {
        Ok(folder) => Ok(Some(folder)),
        // An earlier release has written none.
        Err(Error::NotFound(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Writes the whole history of `store` to `out`, as one file. Returns what of it cannot be read, in sentences.
///
/// # Errors
/// Those of `out`, and of reading the folder.
pub fn write_file(store: &Store, out: &mut dyn Write) -> Result<Vec<String>> {
    let writing = |e| Error::io("writing", Path::new("the history"), e);
    out.write_all(&frame::FILE_HEAD).map_err(writing)?;
    let mut problems = Vec::new();
    for number in part_numbers(store)? {
        match read_part(store, number) {
            Ok(Some(TravellingPart { is_packed, bytes })) => {
                let kind = if is_packed { frame::PACKED_PART } else { frame::GROWING_PART };
                // It is compressed already.
                let frame = frame::encode(kind, &bytes, 1).map_err(writing)?;
                out.write_all(&frame).map_err(writing)?;
            }
            Ok(None) => {}
            Err(error) => problems.push(error.to_string()),
        }
    }
    Ok(problems)
}

/// Takes what `store` lacks of the history in the file at `path`, which [`write_file`] has written.
///
/// # Errors
/// Those of reading it, [`Error::Damaged`], and those of the store.
pub fn take_file(path: &Path, (store, lock): (&Store, &StoreLock), now_ms: i64) -> Result<TakenHistory> {
    let file = fs::open_path(path)?;
    let (length, mut at) = (fs::length(&file, path)?, frame::FILE_HEAD.len() as u64);
    let damaged = |what| Error::damaged(path, what);
    let read = |bytes: &mut [u8], at: u64| {
        if length.saturating_sub(at) < bytes.len() as u64 {
            return Err(damaged("it ends within a part"));
        }
        fs::read_exact_at(&file, bytes, at, path)
    };
    let mut magic = [0; frame::FILE_HEAD.len()];
    read(&mut magic, 0)?;
    if magic != frame::FILE_HEAD {
        return Err(damaged("it does not begin as a history of this release"));
    }
    let mut intake = HistoryIntake::begin(store, lock, now_ms)?;
    while at < length {
        let mut head = [0; frame::FRAME_HEAD];
        read(&mut head, at)?;
        let frame_bytes = frame::length(&head).filter(|bytes| *bytes as u64 <= MAX_PART_BYTES + (1 << 20));
        let mut bytes = vec![0; frame_bytes.ok_or_else(|| damaged("it holds what is no part"))?];
        read(&mut bytes, at)?;
        at += bytes.len() as u64;
        let FrameOutcome::Whole { kind, packed, .. } = frame::at(&bytes) else {
            return Err(damaged("a part of it is not what was written"));
        };
        let is_packed = match kind {
            frame::PACKED_PART => true,
            frame::GROWING_PART => false,
            _ => continue,
        };
        if packed.raw_bytes() as u64 > MAX_PART_BYTES {
            return Err(damaged("a part of it is longer than any is"));
        }
        intake.take(&TravellingPart { is_packed, bytes: packed.unpack().map_err(damaged)? }, &path.display())?;
    }
    Ok(intake.finish())
}

/// Takes the parts of a history into a store, in their order.
#[derive(Debug)]
pub struct HistoryIntake<'a> {
    store: &'a Store,
    lock: &'a StoreLock,
    now_ms: i64,
    filter: SessionFilter,
    /// The store had no history, and parts become its own as they are.
    adopts: bool,
    writer: Option<HistoryWriter>,
    /// The number of the next part.
    next: u64,
    taken: TakenHistory,
}

impl<'a> HistoryIntake<'a> {
    /// Into `store`, at the time `now_ms`.
    ///
    /// # Errors
    /// Those of reading what the store has.
    pub fn begin(store: &'a Store, lock: &'a StoreLock, now_ms: i64) -> Result<HistoryIntake<'a>> {
        let adopts = part_numbers(store)?.is_empty();
        let known = if adopts { KnownSessions::default() } else { KnownSessions::of(store)? };
        let (filter, taken) = (SessionFilter::new(known), TakenHistory::default());
        Ok(HistoryIntake { store, lock, now_ms, filter, adopts, writer: None, next: 0, taken })
    }

    /// Takes the next part, which came from `place`. One that is damaged is a problem, and the next one is taken.
    ///
    /// # Errors
    /// Those of writing to the store.
    pub fn take(&mut self, part: &TravellingPart, place: &dyn std::fmt::Display) -> Result<()> {
        let batch = match decode(part) {
            Ok(batch) => batch,
            Err(what) => {
                self.taken.is_partial = true;
                self.lacks(format!("a part of the history at {place} is not taken: {what}"));
                return Ok(());
            }
        };
        let of_file = |record: &HistoryRecord| matches!(record, HistoryRecord::Event(event) if is_of_file(event));
        let (mut count, mut lacking) = (0, Vec::new());
        for record in batch.into_records().filter(|record| !of_file(record)) {
            count += 1;
            if self.filter.lacks(&record) {
                lacking.push(record);
            }
        }
        // From the first part on of which something is known already, the rest is put behind it.
        self.adopts &= lacking.len() == count;
        if self.adopts { self.adopt(part, &lacking) } else { self.merge(lacking) }
    }

    /// Notes that something did not come, in a sentence.
    pub fn lacks(&mut self, problem: String) {
        self.taken.problems.push(problem);
    }

    fn adopt(&mut self, part: &TravellingPart, records: &[HistoryRecord]) -> Result<()> {
        if records.is_empty() {
            return Ok(());
        }
        let name = layout::history_file(HistoryPart { number: self.next, is_packed: part.is_packed });
        self.store.folder(Folder::History)?.write_durably(&name, &part.bytes)?;
        self.next += 1;
        self.taken.steps += records.iter().map(steps).sum::<u64>();
        Ok(())
    }

    fn merge(&mut self, lacking: Vec<HistoryRecord>) -> Result<()> {
        let mut records = lacking.into_iter().peekable();
        while records.peek().is_some() {
            let writer = match &mut self.writer {
                Some(writer) => writer,
                None => self.writer.insert(open(self.store, self.lock, self.now_ms)?),
            };
            for record in records.by_ref().take(BATCH_RECORDS) {
                self.taken.steps += steps(&record);
                writer.push(record);
            }
            writer.flush(self.now_ms)?;
        }
        Ok(())
    }

    /// What was taken.
    pub fn finish(mut self) -> TakenHistory {
        if self.filter.left_behind() > 0 {
            self.taken.is_partial = true;
            let sessions = counted(self.filter.left_behind(), "session");
            self.lacks(format!(
                "the history of {sessions} is not taken: this store has later ones already, which nothing can be put \
                 before"
            ));
        }
        self.taken
    }
}

fn steps(record: &HistoryRecord) -> u64 {
    u64::from(matches!(record, HistoryRecord::Step(_)))
}

/// The end of the store's own history, with what was torn of it told as the next session would.
fn open(store: &Store, lock: &StoreLock, now_ms: i64) -> Result<HistoryWriter> {
    let mut writer = HistoryWriter::open(store, lock)?;
    if let Some(bytes) = writer.torn() {
        writer.push(HistoryRecord::Event(TimedEvent { at_ms: now_ms, event: HistoryEvent::Torn { bytes } }));
    }
    Ok(writer)
}

/// What is in a part from elsewhere.
fn decode(part: &TravellingPart) -> Result<RecordBatch, Malformed> {
    limit_content(&part.bytes)?;
    if part.is_packed {
        return packed::decode(&part.bytes);
    }
    let file = part::parse_growing(&part.bytes);
    match file.rest {
        FileRest::Nothing => Ok(file.batch),
        FileRest::Torn(_) => Err("it ends within a batch"),
        FileRest::Damaged(what) => Err(what),
    }
}

/// Refuses what would become far more than a part holds.
fn limit_content(bytes: &[u8]) -> Result<(), Malformed> {
    let mut rest = bytes.strip_prefix(&frame::FILE_HEAD).ok_or("it does not begin as a history of this release")?;
    let mut content = 0usize;
    while let FrameOutcome::Whole { packed, bytes, .. } = frame::at(rest) {
        content = content.saturating_add(packed.raw_bytes());
        rest = &rest[bytes..];
    }
    if content <= MAX_PART_CONTENT { Ok(()) } else { Err("it holds more than a part can") }
}
