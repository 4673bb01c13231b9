//! One text file as documents: plain text is one, records are one each; compressed files are unpacked on the way.
//!
//! Invariant: what was read is what was hashed before. Deliberately not here: blocks.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use ckptd_core::{Error, Result};

use super::json_lines;
use super::parquet_rows::{self, ParquetReader};
use super::text_decoder::TextDecoder;
use super::text_files::{TextFile, changed};

const READ_BYTES: usize = 256 << 10;

/// What no text begins with, and what to do about it.
const OTHERS: [(&[u8], &str); 11] = [
    (b"PARE", "encrypted Parquet; write it without encryption"),
    (b"PK\x03\x04", "a zip archive; unpack it"),
    (b"\xfd7zXZ\0", "compressed with xz; unpack it with unxz"),
    (b"BZh", "compressed with bzip2; unpack it with bunzip2"),
    (b"7z\xbc\xaf", "a 7z archive; unpack it"),
    (b"%PDF-", "a PDF; convert it with pdftotext"),
    (b"\x7fELF", "a program"),
    (b"\x89PNG", "a picture"),
    (b"\x89HDF", "HDF5; write its texts as JSONL"),
    (b"SQLite format 3\0", "a database; write its texts as JSONL"),
    (b"\x93NUMPY", "a numpy array; name it in [data] tokens if it holds token ids"),
];

/// What the texts of a file are in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TextKind {
    /// The file is one document.
    Plain,
    /// Each line is a JSON object with a document in one of its fields.
    JsonLines,
}

/// The kind of the file at `path`; `field` is `[data] field`.
pub(super) fn kind(path: &Path, field: Option<&str>) -> TextKind {
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    let name = name.strip_suffix(".gz").or_else(|| name.strip_suffix(".zst")).unwrap_or(&name);
    let is = |ending: &str| name.ends_with(ending);
    if is(".jsonl") || is(".ndjson") || is(".json") && field.is_some() { TextKind::JsonLines } else { TextKind::Plain }
}

/// A piece of a document.
pub(super) struct TextPiece {
    pub(super) text: String,
    /// The document ends with it.
    pub(super) is_last: bool,
}

/// One open file.
pub(super) enum TextReader<'a> {
    Stream(Box<StreamReader<'a>>),
    Parquet(Box<ParquetReader<'a>>),
}

/// A file that is read from its beginning to its end.
pub(super) struct StreamReader<'a> {
    file: &'a TextFile,
    bytes: Box<dyn Read + Send>,
    hashed: Arc<Mutex<blake3::Hasher>>,
    buffer: Vec<u8>,
    decoder: TextDecoder,
    /// Of records: their field, and the text that is not cut into lines yet.
    records: Option<json_lines::RecordReader>,
    has_ended: bool,
}

impl<'a> TextReader<'a> {
    /// Opens `file`; one of the first release is plain UTF-8 whatever it looks like.
    pub(super) fn open(file: &'a TextFile, field: Option<&str>, first_release: bool) -> Result<TextReader<'a>> {
        let fail = |e| Error::io("reading", &file.path, e);
        let opened = File::open(&file.path).map_err(fail)?;
        if !first_release && begins_with(&opened, parquet_rows::MAGIC).map_err(fail)? {
            return ParquetReader::open(file, field, opened).map(|rows| TextReader::Parquet(Box::new(rows)));
        }
        let hashed: Arc<Mutex<blake3::Hasher>> = Arc::default();
        let mut source = HashingReader { file: opened, hashed: Arc::clone(&hashed) };
        let bytes: Box<dyn Read + Send> = if first_release {
            Box::new(source)
        } else {
            let head = head(&mut source).map_err(fail)?;
            unpacked(head, source, file)?
        };
        let kind = if first_release { TextKind::Plain } else { kind(&file.path, field) };
        let records = (kind == TextKind::JsonLines).then(|| json_lines::RecordReader::new(field, &file.path));
        let (buffer, decoder) = (vec![0; READ_BYTES], TextDecoder::new(first_release));
        let stream = StreamReader { file, bytes, hashed, buffer, decoder, records, has_ended: false };
        Ok(TextReader::Stream(Box::new(stream)))
    }

    /// Bytes of the file that were read.
    pub(super) fn bytes_done(&self) -> u64 {
        match self {
            TextReader::Stream(stream) => stream.hashed.lock().unwrap_or_else(PoisonError::into_inner).count(),
            TextReader::Parquet(rows) => rows.bytes_done(),
        }
    }

    /// Bytes that were no text and were replaced, and records without a text.
    pub(super) fn losses(&self) -> (u64, u64) {
        match self {
            TextReader::Stream(stream) => {
                (stream.decoder.replaced, stream.records.as_ref().map_or(0, |records| records.empty))
            }
            TextReader::Parquet(rows) => (0, rows.empty),
        }
    }

    /// The next piece, or `None` after the last.
    pub(super) fn next(&mut self) -> Result<Option<TextPiece>> {
        match self {
            TextReader::Stream(stream) => stream.next(),
            TextReader::Parquet(rows) => Ok(rows.next()?.map(|text| TextPiece { text, is_last: true })),
        }
    }
}

impl StreamReader<'_> {
    fn next(&mut self) -> Result<Option<TextPiece>> {
        loop {
            if let Some(text) = self.records.as_mut().map_or(Ok(None), |records| records.next(self.has_ended))? {
                return Ok(Some(TextPiece { text, is_last: true }));
            }
            if self.has_ended {
                return Ok(None);
            }
            let text = self.read()?;
            match &mut self.records {
                Some(records) => records.push(&text),
                None => return Ok(Some(TextPiece { text, is_last: self.has_ended })),
            }
        }
    }

    fn read(&mut self) -> Result<String> {
        let path = &self.file.path;
        let n = loop {
            match self.bytes.read(&mut self.buffer) {
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e)
                    if matches!(
                        e.kind(),
                        ErrorKind::InvalidData | ErrorKind::InvalidInput | ErrorKind::Other | ErrorKind::UnexpectedEof
                    ) && e.raw_os_error().is_none() =>
                {
                    return Err(Error::Config(format!(
                        "[data] text: {} cannot be unpacked: {e}; is it cut?",
                        path.display()
                    )));
                }
                result => break result.map_err(|e| Error::io("reading", path, e))?,
            }
        };
        self.has_ended = n == 0;
        let mut text = String::new();
        self.decoder.push(&self.buffer[..n], self.has_ended, &mut text);
        if self.has_ended {
            let hash = self.hashed.lock().unwrap_or_else(PoisonError::into_inner).finalize();
            if hash != self.file.hash {
                return Err(changed(path));
            }
        }
        self.decoder.check(path, self.has_ended)?;
        Ok(text)
    }
}

/// Hashes what goes through it.
struct HashingReader {
    file: File,
    hashed: Arc<Mutex<blake3::Hasher>>,
}

impl Read for HashingReader {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let n = self.file.read(buffer)?;
        self.hashed.lock().unwrap_or_else(PoisonError::into_inner).update(&buffer[..n]);
        Ok(n)
    }
}

/// Whether the file begins so; its position stays.
fn begins_with(file: &File, magic: &[u8]) -> std::io::Result<bool> {
    let mut head = vec![0; magic.len()];
    match file.read_exact_at(&mut head, 0) {
        Ok(()) => Ok(head == magic),
        Err(e) if e.kind() == ErrorKind::UnexpectedEof => Ok(false),
        Err(e) => Err(e),
    }
}

/// The first bytes of a file.
fn head(source: &mut HashingReader) -> std::io::Result<Vec<u8>> {
    let mut head = Vec::new();
    source.take(16).read_to_end(&mut head)?;
    Ok(head)
}

/// The bytes of a file whose first ones are `head`, unpacked.
fn unpacked(head: Vec<u8>, rest: HashingReader, file: &TextFile) -> Result<Box<dyn Read + Send>> {
    if let Some((_, what)) = OTHERS.iter().find(|(magic, _)| head.starts_with(magic)) {
        let path = file.path.display();
        return Err(Error::Config(format!("[data] text: {path} is no text but {what}, or take it out of [data] text")));
    }
    let (is_gzip, is_zstd) = (head.starts_with(b"\x1f\x8b"), head.starts_with(b"\x28\xb5\x2f\xfd"));
    let all = std::io::Cursor::new(head).chain(rest);
    Ok(if is_gzip {
        Box::new(flate2::read::MultiGzDecoder::new(all))
    } else if is_zstd {
        Box::new(zstd::stream::read::Decoder::new(all).map_err(|e| Error::io("unpacking", &file.path, e))?)
    } else {
        Box::new(all)
    })
}
