//! Parquet: one row, one document, of a column of strings.
//!
//! Invariant: what was read is what was hashed before, and all rows that the file says it has were read. Row groups are
//! read one after the other, and of each a page of one column at a time. Deliberately not here: other kinds of text.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use ckptd_core::os::stamp::FileStamp;
use ckptd_core::{Error, Result};
use parquet::basic::{Compression, ConvertedType, LogicalType, Type as PhysicalType};
use parquet::column::reader::{ColumnReaderImpl, get_typed_column_reader};
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::schema::types::{SchemaDescriptor, Type};

use super::json_lines::TEXT;
use super::parquet_footer::is_honest;
use super::text_files::{TextFile, changed};

/// What a Parquet file begins with.
pub(super) const MAGIC: &[u8] = b"PAR1";

/// Bytes of the file that are hashed with each row, and at a time.
const HASH_BYTES: usize = 1 << 20;

/// Columns that a message lists.
const MOST_NAMES: usize = 8;

/// One open file.
pub(super) struct ParquetReader<'a> {
    file: &'a TextFile,
    rows: SerializedFileReader<File>,
    /// The place of the column among all leaves of the schema, and its name.
    column: usize,
    name: String,
    /// The column in the row group that is being read, and the number of the next group.
    chunk: Option<ColumnReaderImpl<ByteArrayType>>,
    next_group: usize,
    /// Rows that were read, and rows that the groups so far must have.
    row: u64,
    expected_rows: u64,
    hashed: HashedFile,
    /// Rows whose text is null.
    pub(super) empty: u64,
}

impl<'a> ParquetReader<'a> {
    /// Opens `file`; `field` is `[data] field`.
    pub(super) fn open(file: &'a TextFile, field: Option<&str>, opened: File) -> Result<ParquetReader<'a>> {
        let hashed = HashedFile::new(file, &opened)?;
        let name = field.unwrap_or(TEXT).to_owned();
        let refuse = |what: String| {
            let path = file.path.display();
            Error::Config(format!("[data] text: {path} cannot be read as Parquet: {what}; is it cut? Write it anew"))
        };
        if !is_honest(&opened).map_err(|e| Error::io("reading", &file.path, e))? {
            return Err(refuse("its footer is damaged".into()));
        }
        let rows = guarded(|| SerializedFileReader::new(opened)).map_err(refuse)?;
        let column = find(rows.metadata().file_metadata().schema_descr(), &name)
            .map_err(|what| Error::Config(format!("[data] text: {}: {what}", file.path.display())))?;
        let (next_group, row, expected_rows, empty) = (0, 0, 0, 0);
        Ok(ParquetReader { file, rows, column, name, chunk: None, next_group, row, expected_rows, hashed, empty })
    }

    /// Bytes of the file that were read.
    pub(super) fn bytes_done(&self) -> u64 {
        self.hashed.bytes_done
    }

    /// The text of the next row that has one, or `None` after the last.
    pub(super) fn next(&mut self) -> Result<Option<String>> {
        loop {
            self.hashed.advance(self.file)?;
            if self.chunk.is_none() && self.next_group < self.rows.num_row_groups() {
                self.open_group()?;
            }
            let Some(chunk) = &mut self.chunk else { return self.hashed.finish(self.file).map(|()| None) };
            let (mut levels, mut values) = (Vec::new(), Vec::<ByteArray>::new());
            let (rows, ..) = guarded(|| chunk.read_records(1, Some(&mut levels), None, &mut values))
                .map_err(|what| self.refuse(self.row + 1, &what))?;
            if rows == 0 {
                self.finish_group()?;
                continue;
            }
            self.row += 1;
            let Some(value) = values.first() else {
                self.empty += 1;
                continue;
            };
            let text = std::str::from_utf8(value.data());
            let refuse = |e| self.refuse(self.row, &format!("it is no UTF-8 ({e})"));
            return text.map(|text| Some(text.to_owned())).map_err(refuse);
        }
    }

    fn open_group(&mut self) -> Result<()> {
        let (rows, group, column) = (&self.rows, self.next_group, self.column);
        let packing = rows.metadata().row_group(group).column(column).compression();
        if matches!(packing, Compression::BROTLI(_) | Compression::LZO) {
            let what = format!("it is packed with {packing}, which is not read; pack it with zstd or snappy");
            return Err(self.refuse(self.row + 1, &what));
        }
        let open = || {
            let group = rows.get_row_group(group)?;
            let chunk = group.get_column_reader(column).map(get_typed_column_reader)?;
            Ok((chunk, u64::try_from(group.metadata().num_rows())?))
        };
        let (chunk, count) = guarded(open).map_err(|what| self.refuse(self.row + 1, &what))?;
        self.chunk = Some(chunk);
        self.next_group += 1;
        self.expected_rows = self.expected_rows.saturating_add(count);
        Ok(())
    }

    fn finish_group(&mut self) -> Result<()> {
        self.chunk = None;
        if self.row == self.expected_rows {
            return Ok(());
        }
        let what = format!("{} rows were read, and the file says that there are {}", self.row, self.expected_rows);
        Err(self.refuse(self.row, &what))
    }

    fn refuse(&self, row: u64, what: &str) -> Error {
        Error::Config(format!(
            "[data] text: {}, column {:?}, row {row}: {what}; write the file anew, or take it out of [data] text",
            self.file.path.display(),
            self.name
        ))
    }
}

/// What `read` comes to. A damaged file can make the reader of Parquet panic.
fn guarded<T>(read: impl FnOnce() -> parquet::errors::Result<T>) -> std::result::Result<T, String> {
    match catch_unwind(AssertUnwindSafe(read)) {
        Ok(Ok(found)) => Ok(found),
        Ok(Err(ParquetError::General(what) | ParquetError::EOF(what) | ParquetError::NYI(what))) => Err(what),
        Ok(Err(e)) => Err(e.to_string()),
        Err(_) => Err("it is damaged".into()),
    }
}

/// The leaf that is the column `name` of strings.
fn find(schema: &SchemaDescriptor, name: &str) -> std::result::Result<usize, String> {
    let fields = schema.root_schema().get_fields();
    let texts: Vec<&str> = fields.iter().filter(|field| is_text(field)).map(|field| field.name()).collect();
    let remedy = match texts.as_slice() {
        [] => "no column of it is text; take it out of [data] text".to_owned(),
        [first, ..] => {
            let list = texts.iter().take(MOST_NAMES).copied().collect::<Vec<_>>().join(", ");
            let rest = texts.len().saturating_sub(MOST_NAMES);
            let more = if rest > 0 { format!(" and {rest} more") } else { String::new() };
            format!("its columns of text are {list}{more}: name one: [data] field = {first:?}")
        }
    };
    let Some(field) = fields.iter().find(|field| field.name() == name) else {
        return Err(format!("it has no column {name:?}; {remedy}"));
    };
    let is_it = |leaf: &usize| schema.column(*leaf).path().parts() == [name];
    match (0..schema.num_columns()).find(is_it) {
        Some(leaf) if is_text(field) => Ok(leaf),
        _ => Err(format!("column {name:?} is {}, not text; {remedy}", kind(field))),
    }
}

/// Whether `field` holds a string or null in each row.
fn is_text(field: &Type) -> bool {
    let info = field.get_basic_info();
    let is_string =
        info.logical_type_ref() == Some(&LogicalType::String) || info.converted_type() == ConvertedType::UTF8;
    is_string && field.is_primitive() && !is_repeated(field) && field.get_physical_type() == PhysicalType::BYTE_ARRAY
}

fn is_repeated(field: &Type) -> bool {
    let info = field.get_basic_info();
    info.has_repetition() && info.repetition() == parquet::basic::Repetition::REPEATED
}

/// What is no text, in words.
fn kind(field: &Type) -> String {
    let info = field.get_basic_info();
    match info.converted_type() {
        ConvertedType::LIST => "a list".into(),
        ConvertedType::MAP | ConvertedType::MAP_KEY_VALUE => "a map".into(),
        _ if is_repeated(field) => "a list".into(),
        _ if field.is_group() => "a struct".into(),
        ConvertedType::NONE => match field.get_physical_type() {
            PhysicalType::BYTE_ARRAY | PhysicalType::FIXED_LEN_BYTE_ARRAY => "bytes".into(),
            PhysicalType::BOOLEAN => "true or false".into(),
            PhysicalType::INT96 => "a time".into(),
            PhysicalType::INT32 | PhysicalType::INT64 | PhysicalType::FLOAT | PhysicalType::DOUBLE => {
                format!("a number ({})", field.get_physical_type())
            }
        },
        other => format!("of the type {other}"),
    }
}

/// The hash of a file that is read in places, made along the way.
struct HashedFile {
    file: File,
    stamp: FileStamp,
    hasher: blake3::Hasher,
    buffer: Vec<u8>,
    bytes_done: u64,
    has_ended: bool,
}

impl HashedFile {
    fn new(file: &TextFile, opened: &File) -> Result<HashedFile> {
        let fail = |e| Error::io("reading", &file.path, e);
        let stamp = FileStamp::from(&opened.metadata().map_err(fail)?);
        let opened = opened.try_clone().map_err(fail)?;
        let (hasher, buffer) = (blake3::Hasher::new(), vec![0; HASH_BYTES]);
        Ok(HashedFile { file: opened, stamp, hasher, buffer, bytes_done: 0, has_ended: false })
    }

    /// Hashes the next piece.
    fn advance(&mut self, file: &TextFile) -> Result<()> {
        if self.has_ended {
            return Ok(());
        }
        match self.file.read_at(&mut self.buffer, self.bytes_done) {
            Ok(n) => {
                self.hasher.update(&self.buffer[..n]);
                self.bytes_done += n as u64;
                self.has_ended = n == 0;
                Ok(())
            }
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => Ok(()),
            Err(e) => Err(Error::io("reading", &file.path, e)),
        }
    }

    /// Hashes the rest; an error where the file is not what was hashed before, or has changed since it was opened.
    fn finish(&mut self, file: &TextFile) -> Result<()> {
        while !self.has_ended {
            self.advance(file)?;
        }
        let metadata = self.file.metadata().map_err(|e| Error::io("reading", &file.path, e))?;
        if self.hasher.finalize() != file.hash || FileStamp::from(&metadata) != self.stamp {
            return Err(changed(&file.path));
        }
        Ok(())
    }
}
