//! A history as rows for other programs: JSON or CSV.
//!
//! Invariant: a row is written whole. Deliberately not here: which rows there are.

use std::fmt::Write;

use jiff::Timestamp;
use serde::Serialize;

use super::output::{self, Reader};
use ckptd_core::error::{Error, Result};
use ckptd_history::reader::HistoryItem;
use ckptd_history::record::{HistoryEvent, HistoryRecord, StepRow};

/// Bytes that are written at once.
const PIECE: usize = 64 << 10;
const COLUMNS: &str = "step,time,session,loss,learning_rate,grad_norm,tokens_per_second,validation_loss,abandoned\n";

/// How rows are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RowForm {
    /// One JSON document.
    Array,
    /// One JSON document per line.
    Lines,
    Csv,
}

/// One object in `--json`; the names are a contract.
#[derive(Serialize)]
struct RowObject<'a> {
    time: Timestamp,
    /// The number of the session, from 1.
    session: u64,
    #[serde(flatten)]
    what: RowContent<'a>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    abandoned: bool,
}

#[derive(Serialize)]
#[serde(untagged)]
enum RowContent<'a> {
    Step {
        event: &'static str,
        step: u64,
        loss: Option<f32>,
        learning_rate: f32,
        grad_norm: Option<f32>,
        tokens_per_second: Option<f64>,
    },
    Event(&'a HistoryEvent),
}

/// Rows on their way to stdout.
pub(super) struct HistoryRows {
    form: RowForm,
    text: String,
    is_first: bool,
    session: u64,
}

impl HistoryRows {
    pub(super) fn new(form: RowForm) -> HistoryRows {
        let text = if form == RowForm::Csv { COLUMNS.to_owned() } else { String::new() };
        HistoryRows { form, text, is_first: true, session: 0 }
    }

    /// Writes a row, soon. [`Error::Abandoned`]: nobody reads it.
    pub(super) fn add(&mut self, item: &HistoryItem) -> Result<()> {
        if let HistoryRecord::Event(timed) = &item.record {
            self.session += u64::from(matches!(timed.event, HistoryEvent::SessionStarted { .. }));
        }
        match self.form {
            RowForm::Csv => self.add_csv(item),
            RowForm::Array | RowForm::Lines => self.add_json(item)?,
        }
        if self.text.len() > PIECE && self.flush()? == Reader::Gone {
            return Err(Error::Abandoned);
        }
        Ok(())
    }

    /// Writes what is left of what there is now.
    pub(super) fn end(&mut self) -> Result<Reader> {
        if self.form == RowForm::Array {
            self.text.push_str(if self.is_first { "[]\n" } else { "\n]\n" });
        }
        self.flush()
    }

    /// Writes what waits.
    pub(super) fn flush(&mut self) -> Result<Reader> {
        let text = std::mem::take(&mut self.text);
        if text.is_empty() { Ok(Reader::There) } else { output::stream(&text) }
    }

    fn add_json(&mut self, item: &HistoryItem) -> Result<()> {
        let (time, what) = match &item.record {
            HistoryRecord::Step(row) => (time(row.at_ms), of_step(row)),
            HistoryRecord::Event(timed) if timed.event == HistoryEvent::Other => return Ok(()),
            HistoryRecord::Event(timed) => (time(timed.at_ms), RowContent::Event(&timed.event)),
        };
        let object = RowObject { time, session: self.session, what, abandoned: item.is_abandoned };
        let json = serde_json::to_string(&object).map_err(|e| Error::Other(format!("writing JSON: {e}")))?;
        let (before, after) = match (self.form, self.is_first) {
            (RowForm::Array, true) => ("[\n", ""),
            (RowForm::Array, false) => (",\n", ""),
            _ => ("", "\n"),
        };
        self.is_first = false;
        // Writing to a text cannot fail.
        let _ = write!(self.text, "{before}{json}{after}");
        Ok(())
    }

    fn add_csv(&mut self, item: &HistoryItem) {
        let (session, abandoned) = (self.session, if item.is_abandoned { "true" } else { "" });
        let figure = |value: Option<f32>| value.filter(|v| v.is_finite()).map_or(String::new(), |v| v.to_string());
        let _ = match &item.record {
            HistoryRecord::Step(row) => writeln!(
                self.text,
                "{},{},{session},{},{},{},{},,{abandoned}",
                row.step,
                time(row.at_ms),
                figure(Some(row.loss)),
                row.learning_rate,
                figure(row.grad_norm),
                row.tokens_per_second().map_or(String::new(), |speed| format!("{speed:.1}")),
            ),
            HistoryRecord::Event(timed) => match &timed.event {
                HistoryEvent::Evaluated { step, val_loss, .. } => {
                    let loss = val_loss.map_or(String::new(), |loss| loss.to_string());
                    writeln!(self.text, "{step},{},{session},,,,,{loss},{abandoned}", time(timed.at_ms))
                }
                _ => Ok(()),
            },
        };
    }
}

fn of_step(row: &StepRow) -> RowContent<'_> {
    RowContent::Step {
        event: "step",
        step: row.step,
        loss: Some(row.loss).filter(|loss| loss.is_finite()),
        learning_rate: row.learning_rate,
        grad_norm: row.grad_norm.filter(|norm| norm.is_finite()),
        tokens_per_second: row.tokens_per_second().map(|speed| (speed * 10.0).round() / 10.0),
    }
}

/// A time that no file can make an error.
pub(super) fn time(at_ms: i64) -> Timestamp {
    Timestamp::from_millisecond(at_ms).unwrap_or(Timestamp::UNIX_EPOCH)
}
