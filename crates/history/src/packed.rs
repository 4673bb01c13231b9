//! A packed part of the history: what was written batch by batch, in long columns and with a summary in front.
//!
//! Invariant: the index alone says what is in the part; rows are read only where single steps are asked for.

use serde::{Deserialize, Serialize};

use crate::batch::{PlacedEvent, RecordBatch, decode_events, encode_events};
use crate::bucket::{self, Bucket};
use crate::bytes::{ByteSink, ByteSource, Malformed};
use crate::columns;
use crate::frame::{self, FrameOutcome};

/// Rows of one block.
const BLOCK_ROWS: usize = 16 << 10;
/// Rows of one bucket of the summary.
const BUCKET_ROWS: usize = 256;
/// A part is packed once, and by a thread that nobody waits for.
const LEVEL: i32 = 9;

/// Where rows are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockPlace {
    /// Bytes from the end of the index.
    pub offset: u64,
    /// Bytes of its frame.
    pub bytes: u64,
    /// How many they are.
    pub rows: u64,
}

/// What is in a packed part.
#[derive(Clone, Debug, PartialEq)]
pub struct PartIndex {
    /// Where its rows are.
    pub blocks: Vec<BlockPlace>,
    /// Its events.
    pub events: Vec<PlacedEvent>,
    /// What its rows are like.
    pub buckets: Vec<Bucket>,
}

/// A whole part as a file.
///
/// # Errors
/// Where it cannot be compressed.
pub fn encode(batch: &RecordBatch) -> std::io::Result<Vec<u8>> {
    let (mut places, mut blocks) = (Vec::new(), Vec::new());
    for rows in batch.rows.chunks(BLOCK_ROWS) {
        let block = frame::encode(frame::ROWS, &columns::encode(rows), LEVEL)?;
        places.push(BlockPlace { offset: blocks.len() as u64, bytes: block.len() as u64, rows: rows.len() as u64 });
        blocks.extend(block);
    }
    let mut index = ByteSink::default();
    index.block(&serde_json::to_vec(&places)?);
    index.block(&bucket::encode(&bucket::of_rows(&batch.rows, BUCKET_ROWS)));
    index.0.extend(encode_events(&batch.events));
    Ok([frame::FILE_HEAD.to_vec(), frame::encode(frame::INDEX, &index.0, LEVEL)?, blocks].concat())
}

/// A whole part of the bytes of its file.
///
/// # Errors
/// What is wrong with them, as a clause.
pub fn decode(bytes: &[u8]) -> Result<RecordBatch, Malformed> {
    let rest = bytes.strip_prefix(&frame::FILE_HEAD).ok_or("it does not begin as a history of this release")?;
    let (index, length) = content(rest, frame::INDEX)?;
    let PartIndex { blocks, events, .. } = decode_index(&index)?;
    let (rest, mut rows, mut offset) = (&rest[length..], Vec::new(), 0);
    for block in blocks {
        // One behind the other, so that none is decoded twice.
        let bytes = usize::try_from(block.offset).ok().filter(|at| *at == offset).and_then(|at| rest.get(at..));
        let (content, length) = content(bytes.ok_or("its rows are not where it says")?, frame::ROWS)?;
        let of_block = columns::decode(&content)?;
        if of_block.len() as u64 != block.rows {
            return Err("a block of it has another number of rows");
        }
        rows.extend(of_block);
        offset += length;
    }
    Ok(RecordBatch { rows, events })
}

/// The content of the frame at the beginning of `bytes`, and its length.
fn content(bytes: &[u8], wanted: u32) -> Result<(Vec<u8>, usize), Malformed> {
    match frame::at(bytes) {
        FrameOutcome::Whole { kind, packed, bytes } if kind == wanted => Ok((packed.unpack()?, bytes)),
        _ => Err("a part of it is not what was written"),
    }
}

/// The index in the content of its frame.
///
/// # Errors
/// What is wrong with it, as a clause.
pub fn decode_index(content: &[u8]) -> Result<PartIndex, Malformed> {
    let mut source = ByteSource(content);
    let blocks: Vec<BlockPlace> = serde_json::from_slice(source.block()?).map_err(|_| "its index cannot be read")?;
    let buckets = bucket::decode(source.block()?)?;
    let rows =
        blocks.iter().try_fold(0u64, |rows, block| rows.checked_add(block.rows)).ok_or("its rows are too many")?;
    let events = decode_events(source.0, rows)?;
    let in_buckets = buckets.iter().try_fold(0u64, |rows, bucket| rows.checked_add(bucket.rows));
    if in_buckets != Some(rows) {
        return Err("its summary is not that of its rows");
    }
    Ok(PartIndex { blocks, events, buckets })
}
