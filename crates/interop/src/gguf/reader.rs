//! Reads GGUF files: their tensors in place of a memory mapping.
//!
//! Invariant: every count and length is held against the bytes that are left before anything is allocated for it; the
//! tensors lie within the file.

use std::path::Path;

use super::value::{ALIGNMENT, ALIGNMENT_KEY, GgufValue, MAGIC, TYPES};
use crate::limits::ReadLimits;
use crate::mapped::MappedFile;
use crate::safetensors::check_name;
use ckptd_core::error::{Error, Result};
use ckptd_core::snapshot::{Role, Tensor, TensorMeta};

/// A tensor has at most so many dimensions.
const MAX_DIMENSIONS: u32 = 4;

/// A file's header and its tensors.
pub struct GgufFile {
    /// In the order of the file.
    pub values: Vec<(String, GgufValue)>,
    /// Under the names of the file, with shapes in the order of PyTorch: rows first.
    pub tensors: Vec<Tensor>,
}

impl GgufFile {
    /// What the header says under `key`.
    pub fn get(&self, key: &str) -> Option<&GgufValue> {
        self.values.iter().find(|(name, _)| name == key).map(|(_, value)| value)
    }
}

/// Opens the file at `path`.
///
/// # Errors
/// [`Error::Malformed`] with the key or the tensor that is not as it should be, or is quantised.
pub fn open(path: &Path, limits: &ReadLimits) -> Result<GgufFile> {
    let mapped = MappedFile::open(path)?;
    let refuse = |reason: String| Error::malformed(path, reason);
    let mut cursor = Cursor { rest: mapped.bytes(), values_left: limits.pickle_values };
    let header = cursor.header(limits).map_err(refuse)?;
    let read = mapped.len() - cursor.rest.len() as u64;
    let alignment = header.values.iter().find(|(key, _)| key == ALIGNMENT_KEY).and_then(|(_, value)| value.as_u64());
    let alignment = alignment.unwrap_or(ALIGNMENT).clamp(1, 1 << 20);
    let start = read.next_multiple_of(alignment);
    let mut tensors = Vec::with_capacity(header.tensors.len());
    for TensorInfo { meta, offset } in header.tensors {
        let refuse = |what: &str| refuse(format!("the tensor {:?} {what}", meta.name));
        let bytes = meta.bytes().ok_or_else(|| refuse("has a size that overflows"))?;
        let range = start.checked_add(offset).and_then(|start| Some(start..start.checked_add(bytes)?));
        let bytes = range.and_then(|range| mapped.region(range));
        let bytes = bytes.ok_or_else(|| refuse("ends beyond the end of the file; the file is cut"))?;
        tensors.push(Tensor { meta, bytes });
    }
    tensors.sort_by(|a, b| a.meta.name.cmp(&b.meta.name));
    match tensors.windows(2).find(|pair| pair[0].meta.name == pair[1].meta.name) {
        Some(pair) => Err(refuse(format!("it names the tensor {:?} twice", pair[0].meta.name))),
        None => Ok(GgufFile { values: header.values, tensors }),
    }
}

struct Header {
    values: Vec<(String, GgufValue)>,
    tensors: Vec<TensorInfo>,
}

struct TensorInfo {
    meta: TensorMeta,
    /// From where the tensors begin.
    offset: u64,
}

struct Cursor<'a> {
    rest: &'a [u8],
    /// How many more values may be kept.
    values_left: usize,
}

impl Cursor<'_> {
    fn header(&mut self, limits: &ReadLimits) -> Result<Header, String> {
        if self.take(4)? != MAGIC {
            return Err("not a GGUF file".into());
        }
        match self.u32()? {
            2 | 3 => {}
            version if version.swap_bytes() <= 3 => return Err("a GGUF file of another byte order".into()),
            version => return Err(format!("GGUF of version {version}; versions 2 and 3 are read")),
        }
        let (tensors, values) = (self.u64()?, self.u64()?);
        if tensors > limits.tensors as u64 || values > limits.tensors as u64 {
            return Err(format!("{tensors} tensors and {values} keys; at most {} are read", limits.tensors));
        }
        let mut header = Header { values: Vec::new(), tensors: Vec::new() };
        for number in 0..values {
            let key = self.text().map_err(|what| format!("key {number}: {what}"))?;
            let kind = self.u32()?;
            let value = self.value(kind).map_err(|what| format!("the key {key:?}: {what}"))?;
            header.values.push((key, value));
        }
        for number in 0..tensors {
            header.tensors.push(self.tensor().map_err(|what| format!("tensor {number}: {what}"))?);
        }
        Ok(header)
    }

    fn tensor(&mut self) -> Result<TensorInfo, String> {
        let name = self.text()?;
        check_name(&name)?;
        let dimensions = self.u32()?;
        if dimensions > MAX_DIMENSIONS {
            return Err(format!("{name:?} has {dimensions} dimensions; at most {MAX_DIMENSIONS} are read"));
        }
        // The first one is that of neighbours in memory.
        let mut shape = (0..dimensions).map(|_| self.u64()).collect::<Result<Vec<_>, _>>()?;
        shape.reverse();
        let kind = self.u32()?;
        let Some((_, dtype)) = TYPES.iter().find(|(known, _)| *known == kind) else {
            return Err(format!(
                "{name:?} is quantised or of another type (number {kind}); F32, F16 and BF16 are read. transformers \
                 makes floats of it: python -c \"from transformers import AutoModelForCausalLM as M; \
                 M.from_pretrained('FOLDER', gguf_file='FILE').save_pretrained('NEW')\", then import NEW"
            ));
        };
        Ok(TensorInfo { meta: TensorMeta { role: Role::Param, name, dtype: *dtype, shape }, offset: self.u64()? })
    }

    fn value(&mut self, kind: u32) -> Result<GgufValue, String> {
        self.values_left = self.values_left.checked_sub(1).ok_or("too many values in the header")?;
        Ok(match kind {
            0 => GgufValue::U8(self.array::<1>()?[0]),
            1 => GgufValue::I8(i8::from_le_bytes(self.array()?)),
            2 => GgufValue::U16(u16::from_le_bytes(self.array()?)),
            3 => GgufValue::I16(i16::from_le_bytes(self.array()?)),
            4 => GgufValue::U32(self.u32()?),
            5 => GgufValue::I32(i32::from_le_bytes(self.array()?)),
            6 => GgufValue::F32(f32::from_le_bytes(self.array()?)),
            7 => GgufValue::Bool(self.array::<1>()?[0] != 0),
            8 => GgufValue::Text(self.text()?),
            9 => self.list()?,
            10 => GgufValue::U64(self.u64()?),
            11 => GgufValue::I64(i64::from_le_bytes(self.array()?)),
            12 => GgufValue::F64(f64::from_le_bytes(self.array()?)),
            kind => return Err(format!("a value of the unknown type {kind}")),
        })
    }

    /// Values of one type, none of them lists.
    fn list(&mut self) -> Result<GgufValue, String> {
        let (kind, count) = (self.u32()?, self.u64()?);
        if kind == 9 {
            return Err("a list of lists".into());
        }
        if count > self.rest.len() as u64 || count > self.values_left as u64 {
            return Err(format!("a list of {count} values, with {} bytes left", self.rest.len()));
        }
        (0..count).map(|_| self.value(kind)).collect::<Result<_, _>>().map(GgufValue::Array)
    }

    fn text(&mut self) -> Result<String, String> {
        let length = self.u64()?;
        let bytes = self.take(length)?.to_vec();
        String::from_utf8(bytes).map_err(|_| "text that is not UTF-8".into())
    }

    fn take(&mut self, length: u64) -> Result<&[u8], String> {
        let parts = usize::try_from(length).ok().and_then(|length| self.rest.split_at_checked(length));
        let (taken, rest) = parts.ok_or_else(|| {
            format!("{length} bytes announced, and {} are left; the file is cut or made up", self.rest.len())
        })?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        self.take(N as u64)?.try_into().map_err(|_| "the file is cut".into())
    }

    fn u32(&mut self) -> Result<u32, String> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, String> {
        self.array().map(u64::from_le_bytes)
    }
}
