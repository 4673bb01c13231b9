//! A batch: some steps and events in the order in which they came, as the content of a frame.

use serde::{Deserialize, Serialize};

use crate::bytes::{ByteSink, ByteSource, Malformed};
use crate::columns;
use crate::record::{HistoryRecord, StepRow, TimedEvent};

/// An event with its place among the steps.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlacedEvent {
    /// How many steps came before it.
    pub row: u64,
    /// What happened.
    #[serde(flatten)]
    pub event: TimedEvent,
}

/// Some steps and events.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RecordBatch {
    /// The steps.
    pub rows: Vec<StepRow>,
    /// The events.
    pub events: Vec<PlacedEvent>,
}

impl RecordBatch {
    /// Takes `record` in behind what is there.
    pub fn push(&mut self, record: HistoryRecord) {
        match record {
            HistoryRecord::Step(row) => self.rows.push(row),
            HistoryRecord::Event(event) => self.events.push(PlacedEvent { row: self.rows.len() as u64, event }),
        }
    }

    /// Takes all of `other` in behind what is there.
    pub fn append(&mut self, other: RecordBatch) {
        let before = self.rows.len() as u64;
        self.rows.extend(other.rows);
        self.events.extend(other.events.into_iter().map(|placed| PlacedEvent { row: placed.row + before, ..placed }));
    }

    /// All of it, in order.
    pub fn into_records(self) -> impl Iterator<Item = HistoryRecord> {
        let (mut rows, mut events) = (self.rows.into_iter(), self.events.into_iter().peekable());
        let mut row = 0u64;
        std::iter::from_fn(move || {
            let comes_now = |placed: &PlacedEvent| placed.row <= row;
            if let Some(placed) = events.next_if(comes_now) {
                return Some(HistoryRecord::Event(placed.event));
            }
            row += 1;
            rows.next().map(HistoryRecord::Step)
        })
    }

    /// Whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty() && self.events.is_empty()
    }

    /// As bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut sink = ByteSink::default();
        sink.block(&columns::encode(&self.rows));
        sink.0.extend(encode_events(&self.events));
        sink.0
    }

    /// Of bytes that [`RecordBatch::encode`] made.
    ///
    /// # Errors
    /// What is wrong with them, as a clause.
    pub fn decode(bytes: &[u8]) -> Result<RecordBatch, Malformed> {
        let mut source = ByteSource(bytes);
        let rows = columns::decode(source.block()?)?;
        let events = decode_events(source.0, rows.len() as u64)?;
        Ok(RecordBatch { rows, events })
    }
}

/// Events as lines of JSON.
pub fn encode_events(events: &[PlacedEvent]) -> Vec<u8> {
    // Plain values with names as keys can always be written.
    let line = |event: &PlacedEvent| serde_json::to_vec(event).unwrap_or_default().into_iter().chain([b'\n']);
    events.iter().flat_map(line).collect()
}

/// The events in lines that [`encode_events`] made, among so many rows.
///
/// # Errors
/// What is wrong with them, as a clause.
pub fn decode_events(lines: &[u8], rows: u64) -> Result<Vec<PlacedEvent>, Malformed> {
    let mut events = Vec::new();
    for line in lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        events.push(serde_json::from_slice::<PlacedEvent>(line).map_err(|_| "an event in it cannot be read")?);
    }
    let is_placed = events.iter().all(|event| event.row <= rows) && events.is_sorted_by_key(|event| event.row);
    if is_placed { Ok(events) } else { Err("its events are out of order") }
}
