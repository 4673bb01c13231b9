//! JSONL: one record a line, one document a record.
//!
//! Deliberately not here: bytes and files.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use ckptd_core::{Error, Result};
use serde_json::{Map, Value};

/// The field of the text where nothing else is said.
pub(super) const TEXT: &str = "text";

/// Cuts text into records.
pub(super) struct RecordReader {
    field: String,
    path: PathBuf,
    text: String,
    /// Bytes of the text that were handed out.
    done: usize,
    line: u64,
    /// Records whose field is null.
    pub(super) empty: u64,
}

impl RecordReader {
    /// Of the file at `path`; `field` is `[data] field`.
    pub(super) fn new(field: Option<&str>, path: &Path) -> RecordReader {
        let field = field.unwrap_or(TEXT).to_owned();
        RecordReader { field, path: path.to_path_buf(), text: String::new(), done: 0, line: 0, empty: 0 }
    }

    pub(super) fn push(&mut self, text: &str) {
        self.text.drain(..self.done);
        self.done = 0;
        self.text.push_str(text);
    }

    /// The text of the next record that is whole; `has_ended` when nothing more comes.
    pub(super) fn next(&mut self, has_ended: bool) -> Result<Option<String>> {
        loop {
            let rest = &self.text[self.done..];
            let line = match rest.find('\n') {
                Some(end) => &rest[..end + 1],
                None if has_ended && !rest.is_empty() => rest,
                None => return Ok(None),
            };
            self.line += 1;
            let (length, is_blank) = (line.len(), line.trim().is_empty());
            let found = if is_blank { None } else { self.document(line)? };
            self.done += length;
            self.empty += u64::from(!is_blank && found.is_none());
            if found.is_some() {
                return Ok(found);
            }
        }
    }

    fn document(&self, line: &str) -> Result<Option<String>> {
        let place = || format!("[data] text: {}, line {}", self.path.display(), self.line);
        let record: Map<String, Value> = parse(line)
            .map_err(|e| Error::Config(format!("{}: not a JSON object: {e}; mend the line or take it out", place())))?;
        match record.get(&self.field) {
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(Value::Null) => Ok(None),
            Some(other) => Err(Error::Config(format!(
                "{}: {:?} is {}, not text; name the field of the text: [data] field = \"...\"",
                place(),
                self.field,
                kind(other)
            ))),
            None => {
                let keys: Vec<&str> = record.keys().take(8).map(String::as_str).collect();
                Err(Error::Config(format!(
                    "{}: it has no {:?}; it has {}: name the field of the text: [data] field = {:?}",
                    place(),
                    self.field,
                    keys.join(", "),
                    keys.first().unwrap_or(&"text")
                )))
            }
        }
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// Python's json writes NaN and Infinity, which are no JSON.
fn parse(line: &str) -> serde_json::Result<Map<String, Value>> {
    serde_json::from_str(line).or_else(|error| match without_nan(line) {
        Cow::Owned(changed) => serde_json::from_str(&changed),
        Cow::Borrowed(_) => Err(error),
    })
}

/// `line` with null for NaN, Infinity and -Infinity outside of strings.
fn without_nan(line: &str) -> Cow<'_, str> {
    let (mut changed, mut kept, mut is_string, mut at) = (String::new(), 0, false, 0);
    let bytes = line.as_bytes();
    while at < bytes.len() {
        match bytes[at] {
            b'"' => is_string = !is_string,
            b'\\' if is_string => at += 1,
            _ if !is_string => {
                if let Some(word) = ["NaN", "-Infinity", "Infinity"].iter().find(|word| line[at..].starts_with(*word)) {
                    changed.push_str(&line[kept..at]);
                    changed.push_str("null");
                    at += word.len();
                    kept = at;
                    continue;
                }
            }
            _ => {}
        }
        at += 1;
        while at < bytes.len() && !line.is_char_boundary(at) {
            at += 1;
        }
    }
    if changed.is_empty() { Cow::Borrowed(line) } else { Cow::Owned(changed + &line[kept..]) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn all(pieces: &[&str], field: Option<&str>) -> Result<Vec<String>, String> {
        let mut reader = RecordReader::new(field, Path::new("/d/a.jsonl"));
        let mut found = Vec::new();
        for (index, piece) in pieces.iter().enumerate() {
            reader.push(piece);
            while let Some(text) = reader.next(index + 1 == pieces.len()).map_err(|e| e.to_string())? {
                found.push(text);
            }
        }
        Ok(found)
    }

    #[test]
    fn each_line_is_a_document_however_the_pieces_fall() {
        let pieces = ["{\"text\": \"on", "e\\ntwo\"}\r\n\n{\"id\": 3, \"t", "ext\": \"\u{e9}\"}\n{\"text\":\"last\"}"];
        assert_eq!(all(&pieces, None).unwrap(), ["one\ntwo", "\u{e9}", "last"]);
        assert_eq!(all(&["{\"a\": \"x\", \"text\": 1}\n"], Some("a")).unwrap(), ["x"]);
    }

    #[test]
    fn numbers_as_python_writes_them_do_not_matter() {
        let line =
            "{\"score\": NaN, \"low\": -Infinity, \"text\": \"NaN \\\" Infinity\", \"u\": [Infinity, \"\u{e9}\"]}";
        assert_eq!(all(&[line], None).unwrap(), ["NaN \" Infinity"]);
    }

    #[test]
    fn a_line_that_is_no_record_is_refused_with_file_line_and_what_to_do() {
        for (lines, named) in [
            ("{\"text\": \"a\"}\n\n{\"text\": ", "/d/a.jsonl, line 3: not a JSON object"),
            ("[1]", "line 1: not a JSON object"),
            ("{\"body\": \"a\", \"id\": 1}", "it has body, id: name the field of the text: [data] field = \"body\""),
            ("{\"text\": [1]}", "\"text\" is a list, not text"),
        ] {
            let error = all(&[lines], None).unwrap_err();
            assert!(error.contains(named), "{error}");
        }
    }
}
