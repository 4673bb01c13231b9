//! One file of the history, read: its events and its summary at once, its rows when they are asked for.

use std::fs::File;
use std::path::{Path, PathBuf};

use ckptd_core::error::{Error, Result};
use ckptd_core::os::dir::Dir;
use ckptd_core::os::fs;
use ckptd_core::store::layout::{self, HistoryPart};

use crate::batch::{PlacedEvent, RecordBatch};
use crate::bucket::{self, Bucket};
use crate::columns;
use crate::frame::{self, FrameOutcome};
use crate::packed::{self, BlockPlace, PartIndex};
use crate::record::StepRow;

/// Longest file that grows: it is packed long before.
const MAX_GROWING: u64 = 1 << 30;

/// Buckets of a part that grows.
const BUCKETS: usize = 1024;

/// A part of the history.
#[derive(Debug)]
pub struct PartReading {
    /// Which one.
    pub number: u64,
    /// Its events, among its rows.
    pub events: Vec<PlacedEvent>,
    /// How many steps it has.
    pub rows: u64,
    /// What they are like, in order.
    pub buckets: Vec<Bucket>,
    source: RowSource,
}

#[derive(Debug)]
enum RowSource {
    Memory(Vec<StepRow>),
    Blocks { file: File, path: PathBuf, from: u64, blocks: Vec<BlockPlace> },
}

/// A file that grows, as far as it is whole.
#[derive(Debug, Default)]
pub struct GrowingFile {
    /// What is in it.
    pub batch: RecordBatch,
    /// Up to where it is whole.
    pub length: u64,
    /// Its frames.
    pub frames: usize,
    /// What follows on that.
    pub rest: FileRest,
}

/// What follows on what is whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FileRest {
    /// Nothing.
    #[default]
    Nothing,
    /// So many bytes of a batch whose writing was interrupted, or is under way.
    Torn(u64),
    /// Something that is no batch.
    Damaged(&'static str),
}

/// Reads a file that grows.
///
/// # Errors
/// Those of reading; that it is damaged is no error.
pub fn read_growing(folder: &Dir, number: u64) -> Result<Option<GrowingFile>> {
    let name = layout::history_file(HistoryPart { number, is_packed: false });
    Ok(folder.read_small(&name, MAX_GROWING)?.map(|bytes| parse_growing(&bytes)))
}

/// The content of a file that grows.
pub fn parse_growing(bytes: &[u8]) -> GrowingFile {
    let mut file = GrowingFile::default();
    let Some(mut rest) = bytes.strip_prefix(&frame::FILE_HEAD) else {
        file.rest = match bytes {
            [] => FileRest::Nothing,
            _ if frame::FILE_HEAD.starts_with(bytes) => FileRest::Torn(bytes.len() as u64),
            _ => FileRest::Damaged("it does not begin as a history of this release"),
        };
        return file;
    };
    while !rest.is_empty() {
        let (kind, content, bytes) = match frame::at(rest) {
            FrameOutcome::Whole { kind, packed, bytes } => (kind, packed.unpack(), bytes),
            FrameOutcome::Torn => {
                file.rest = FileRest::Torn(rest.len() as u64);
                break;
            }
            FrameOutcome::Damaged => {
                file.rest = FileRest::Damaged("a batch is not what was written");
                break;
            }
        };
        if kind == frame::BATCH {
            match content.and_then(|content| RecordBatch::decode(&content)) {
                Ok(batch) => file.batch.append(batch),
                Err(what) => {
                    file.rest = FileRest::Damaged(what);
                    break;
                }
            }
        }
        file.frames += 1;
        rest = &rest[bytes..];
    }
    file.length = (bytes.len() - rest.len()) as u64;
    file
}

impl PartReading {
    /// Of a file that grows.
    pub fn growing(number: u64, batch: RecordBatch) -> PartReading {
        let RecordBatch { rows, events } = batch;
        let size = rows.len().div_ceil(BUCKETS).max(1);
        let (buckets, count) = (bucket::of_rows(&rows, size), rows.len() as u64);
        PartReading { number, events, rows: count, buckets, source: RowSource::Memory(rows) }
    }

    /// Of a packed file; `None` where it is not there.
    ///
    /// # Errors
    /// Those of reading, and [`Error::Damaged`].
    pub fn packed(folder: &Dir, number: u64) -> Result<Option<PartReading>> {
        let name = layout::history_file(HistoryPart { number, is_packed: true });
        if folder.stat(&name)?.is_none() {
            return Ok(None);
        }
        let path = folder.join(&name);
        let file = fs::open_path(&path)?;
        let mut head = [0; frame::FILE_HEAD.len() + frame::FRAME_HEAD];
        fs::read_exact_at(&file, &mut head, 0, &path)?;
        let (magic, frame_head) = head.split_at(frame::FILE_HEAD.len());
        if magic != frame::FILE_HEAD {
            return Err(Error::damaged(&path, "it does not begin as a history of this release"));
        }
        let index = read_frame(&file, &path, magic.len() as u64, frame::length(frame_head), frame::INDEX)?;
        let from = (magic.len() + frame::length(frame_head).unwrap_or_default()) as u64;
        let PartIndex { blocks, events, buckets } =
            packed::decode_index(&index).map_err(|what| Error::damaged(&path, what))?;
        let rows = blocks.iter().map(|block| block.rows).sum();
        Ok(Some(PartReading { number, events, rows, buckets, source: RowSource::Blocks { file, path, from, blocks } }))
    }

    /// Hands its rows out, block by block.
    ///
    /// # Errors
    /// Those of reading, of damaged blocks, and of `take`.
    pub fn each_block(&self, take: &mut dyn FnMut(&[StepRow]) -> Result<()>) -> Result<()> {
        match &self.source {
            RowSource::Memory(rows) => take(rows),
            RowSource::Blocks { file, path, from, blocks } => {
                for block in blocks {
                    let length = usize::try_from(block.bytes).ok();
                    let content = read_frame(file, path, from.saturating_add(block.offset), length, frame::ROWS)?;
                    let rows = columns::decode(&content).map_err(|what| Error::damaged(path, what))?;
                    if rows.len() as u64 != block.rows {
                        return Err(Error::damaged(path, "a block of it has another number of rows"));
                    }
                    take(&rows)?;
                }
                Ok(())
            }
        }
    }
}

/// The content of the frame at `offset`.
fn read_frame(file: &File, path: &Path, offset: u64, length: Option<usize>, kind: u32) -> Result<Vec<u8>> {
    let damaged = |what| Error::damaged(path, what);
    let left = fs::length(file, path)?.saturating_sub(offset);
    let length = length.filter(|length| *length as u64 <= left).ok_or_else(|| damaged("it ends within its data"))?;
    let mut bytes = vec![0; length];
    fs::read_exact_at(file, &mut bytes, offset, path)?;
    match frame::at(&bytes) {
        FrameOutcome::Whole { kind: found, packed, .. } if found == kind => packed.unpack().map_err(damaged),
        FrameOutcome::Whole { .. } => Err(damaged("a part of it is of another kind")),
        FrameOutcome::Torn | FrameOutcome::Damaged => Err(damaged("a part of it is not what was written")),
    }
}
