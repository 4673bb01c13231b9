//! What commands write: text and JSON on stdout, complaints on stderr, tables.
//!
//! Invariant: a reader that went away (`ckptd list | head -1`) is no error.

use std::io::{ErrorKind, Write};

use serde::Serialize;

use ckptd_core::error::{Error, Result};

/// Writes `text` to stdout.
pub(super) fn text(text: &str) -> Result<()> {
    stream(text).map(drop)
}

/// Whether anybody reads stdout still.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reader {
    There,
    Gone,
}

/// Writes `text` to stdout, and says whether it was read.
pub(super) fn stream(text: &str) -> Result<Reader> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(Reader::There),
        Err(e) if e.kind() == ErrorKind::BrokenPipe => Ok(Reader::Gone),
        Err(e) => Err(written(e)),
    }
}

/// That stdout cannot be written: the disk of its file is no concern of a store.
fn written(error: std::io::Error) -> Error {
    Error::Other(format!("writing to standard output: {error}"))
}

/// Writes `document` to stdout, indented.
pub(super) fn json(document: &impl Serialize) -> Result<()> {
    let json = serde_json::to_string_pretty(document).map_err(|e| Error::Other(format!("writing JSON: {e}")))?;
    text(&format!("{json}\n"))
}

/// Writes `document` as JSON where that was asked for, else as what `describe` makes of it.
pub(super) fn show<T: Serialize>(as_json: bool, document: &T, describe: impl FnOnce(&T) -> String) -> Result<()> {
    if as_json { json(document) } else { text(&describe(document)) }
}

/// Writes a line to stderr.
pub(super) fn complain(line: &str) {
    // A failing stderr can be reported nowhere.
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}

/// What a list shows unless all of it is asked for.
pub(super) const FEW: usize = 3;

/// The first names and how many more there are, or all of them.
pub(super) fn few(names: &[String], is_all: bool) -> Vec<String> {
    let shown = if is_all { names.len() } else { FEW };
    let more = names.len().saturating_sub(shown);
    let rest = (more > 0).then(|| format!("and {more} more"));
    names.iter().take(shown).cloned().chain(rest).collect()
}

/// Columns that are as wide as they need to be, the last one ragged.
pub(super) fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain([head[column].len()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let line = |cells: Vec<&str>| {
        let padded: Vec<String> = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        format!("{}\n", padded.join("  ").trim_end())
    };
    let body = rows.iter().map(|row| line(row.iter().map(String::as_str).collect()));
    std::iter::once(line(head.to_vec())).chain(body).collect()
}

/// "24.2 MiB".
pub(super) fn size(bytes: u64) -> String {
    bytesize::ByteSize(bytes).to_string()
}

/// `bytes` as a share of the raw bytes: "81 %".
pub(super) fn percent(bytes: u64, raw_bytes: u64) -> String {
    format!("{:.0} %", 100.0 * bytes as f64 / raw_bytes.max(1) as f64)
}

/// How many times smaller than the raw bytes.
pub(super) fn ratio(raw_bytes: u64, bytes: u64) -> f64 {
    (raw_bytes as f64 / bytes.max(1) as f64 * 1e4).round() / 1e4
}

#[cfg(test)]
mod tests {
    #[test]
    fn columns_are_as_wide_as_their_widest_cell_and_lines_end_without_blanks() {
        let rows = [vec!["1".into(), "a".into()], vec!["1000000".into(), String::new()]];
        assert_eq!(super::table(&["STEP", "WHY"], &rows), "STEP     WHY\n1        a\n1000000\n");
    }
}
