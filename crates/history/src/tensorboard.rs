//! Event files that TensorBoard 2 reads: one curve over all sessions.
//!
//! Each record is a protocol buffer between two checksums (CRC-32C, masked). A resume from an earlier step is a
//! SessionLog START at the next step: by TensorBoard's own rule that voids the points from there on.
//! Deliberately not here: files.

use crate::record::{HistoryEvent, HistoryRecord, StepRow};

/// What every event file's name begins with.
pub const FILE_PREFIX: &str = "events.out.tfevents.";
const VERSION: &str = "brain.Event:2";
/// SessionLog.SessionStatus.START
const START: u64 = 1;
/// DataType.DT_FLOAT and DT_STRING
const FLOAT: u64 = 1;
const STRING: u64 = 7;

/// The record that a file begins with.
pub fn file_version(at_ms: i64) -> Vec<u8> {
    let mut event = Message::event(at_ms, 0);
    event.text(3, VERSION);
    framed(&event.0)
}

/// What was shown from `step` on is void.
pub fn restart(at_ms: i64, step: u64) -> Vec<u8> {
    let mut log = Message::default();
    log.number(1, START);
    let mut event = Message::event(at_ms, step);
    event.bytes(7, &log.0);
    framed(&event.0)
}

/// A text, which is shown as Markdown.
pub fn text(at_ms: i64, tag: &str, text: &str) -> Vec<u8> {
    let mut plugin = Message::default();
    plugin.text(1, "text");
    let mut metadata = Message::default();
    metadata.bytes(1, &plugin.0);
    let mut tensor = Message::default();
    tensor.number(1, STRING);
    // A scalar: a shape without dimensions.
    tensor.bytes(2, &[]);
    tensor.text(8, text);
    let mut value = Message::default();
    value.text(1, &format!("{tag}/text_summary"));
    value.bytes(9, &metadata.0);
    value.bytes(8, &tensor.0);
    summary(at_ms, 0, &[value])
}

/// The value of a hyperparameter.
#[derive(Clone, Debug, PartialEq)]
pub enum HyperValue {
    /// A number.
    Number(f64),
    /// A text.
    Text(String),
    /// True or false.
    Truth(bool),
}

/// Hyperparameters, for TensorBoard's HPARAMS: an HParamsPluginData with a SessionStartInfo.
pub fn hyperparameters(at_ms: i64, values: &[(String, HyperValue)]) -> Vec<u8> {
    let mut session = Message::default();
    for (name, value) in values {
        let mut message = Message::default();
        match value {
            HyperValue::Number(number) => message.double(2, *number),
            HyperValue::Text(text) => message.text(3, text),
            HyperValue::Truth(truth) => message.number(4, u64::from(*truth)),
        }
        let mut entry = Message::default();
        entry.text(1, name);
        entry.bytes(2, &message.0);
        session.bytes(1, &entry.0);
    }
    session.double(5, at_ms as f64 / 1e3);
    let mut data = Message::default();
    data.bytes(3, &session.0);
    let mut plugin = Message::default();
    plugin.text(1, "hparams");
    plugin.bytes(2, &data.0);
    let mut metadata = Message::default();
    metadata.bytes(1, &plugin.0);
    // A tensor of no floats, since a value has to be one.
    let (mut shape, mut tensor) = (Message::default(), Message::default());
    shape.bytes(2, &[]);
    tensor.number(1, FLOAT);
    tensor.bytes(2, &shape.0);
    let mut value = Message::default();
    value.text(1, "_hparams_/session_start_info");
    value.bytes(9, &metadata.0);
    value.bytes(8, &tensor.0);
    summary(at_ms, 0, &[value])
}

/// What TensorBoard shows of a record; `None`: nothing.
pub fn record(record: &HistoryRecord) -> Option<Vec<u8>> {
    match record {
        HistoryRecord::Step(row) => Some(step(row)),
        HistoryRecord::Event(timed) => match &timed.event {
            HistoryEvent::Evaluated { step, val_loss, .. } => {
                let loss = val_loss.unwrap_or(f64::NAN) as f32;
                Some(summary(timed.at_ms, *step, &[scalar("loss/validation", loss)]))
            }
            HistoryEvent::Resumed { step, .. } => Some(restart(timed.at_ms, step.saturating_add(1))),
            _ => None,
        },
    }
}

fn step(row: &StepRow) -> Vec<u8> {
    let mut values = vec![scalar("loss/train", row.loss), scalar("learning_rate", row.learning_rate)];
    values.extend(row.grad_norm.map(|norm| scalar("grad_norm", norm)));
    values.extend(row.tokens_per_second().map(|speed| scalar("tokens_per_second", speed as f32)));
    summary(row.at_ms, row.step, &values)
}

fn summary(at_ms: i64, step: u64, values: &[Message]) -> Vec<u8> {
    let mut summary = Message::default();
    values.iter().for_each(|value| summary.bytes(1, &value.0));
    let mut event = Message::event(at_ms, step);
    event.bytes(5, &summary.0);
    framed(&event.0)
}

fn scalar(tag: &str, value: f32) -> Message {
    let mut message = Message::default();
    message.text(1, tag);
    message.float(2, value);
    message
}

/// A record as it stands in a file.
fn framed(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    [length.as_slice(), &masked(&length), data, &masked(data)].concat()
}

fn masked(bytes: &[u8]) -> [u8; 4] {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
}

/// A protocol buffer.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn event(at_ms: i64, step: u64) -> Message {
        let mut event = Message::default();
        event.double(1, at_ms as f64 / 1e3);
        event.number(2, step);
        event
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn number(&mut self, field: u64, value: u64) {
        self.varint(field << 3);
        self.varint(value);
    }

    fn double(&mut self, field: u64, value: f64) {
        self.varint(field << 3 | 1);
        self.0.extend(value.to_le_bytes());
    }

    fn bytes(&mut self, field: u64, bytes: &[u8]) {
        self.varint(field << 3 | 2);
        self.varint(bytes.len() as u64);
        self.0.extend(bytes);
    }

    fn text(&mut self, field: u64, text: &str) {
        self.bytes(field, text.as_bytes());
    }

    fn float(&mut self, field: u64, value: f32) {
        self.varint(field << 3 | 5);
        self.0.extend(value.to_le_bytes());
    }
}
