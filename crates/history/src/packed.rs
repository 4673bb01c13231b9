//! A packed part of the history: what was written batch by batch, in long columns and with a summary in front.
//!
//! Invariant: the index alone says what is in the part; rows are read only where single steps are asked for.

use serde::{Deserialize, Serialize};

use crate::batch::{PlacedEvent, RecordBatch, decode_events, encode_events};
use crate::bucket::{self, Bucket};
use crate::bytes::{ByteSink, ByteSource, Malformed};
use crate::columns;
use crate::frame;

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
