//! Reads safetensors files: their tensors in place of a memory mapping.
//!
//! The format is the `safetensors` crate's to parse; what it lets through (names that occur twice, headers and offsets
//! far beyond the file) is refused here first.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use safetensors::SafeTensors;
use safetensors::tensor::Dtype;
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, Visitor};

use crate::limits::ReadLimits;
use crate::mapped::MappedFile;
use ckptd_core::dtype::DType;
use ckptd_core::error::{Error, Result};
use ckptd_core::snapshot::{Role, Tensor, TensorMeta};

pub const MAX_NAME_BYTES: usize = 512;
pub const MAX_DIMENSIONS: usize = 16;

/// A file's tensors, sorted by name, and the text pairs of its `__metadata__`.
pub struct SafetensorsFile {
    pub tensors: Vec<Tensor>,
    pub metadata: Vec<(String, String)>,
}

/// Maps the file at `path` and checks all of its header. The tensors' bytes stay in the mapping.
pub fn open(path: &Path, limits: &ReadLimits) -> Result<SafetensorsFile> {
    let mapped = MappedFile::open(path)?;
    read(&mapped, limits).map_err(|reason| Error::malformed(path, format!("not a sound safetensors file: {reason}")))
}

fn read(mapped: &Arc<MappedFile>, limits: &ReadLimits) -> Result<SafetensorsFile, String> {
    let data = check_header(mapped.bytes(), limits)?;
    let (_, header) = SafeTensors::read_metadata(mapped.bytes()).map_err(|e| e.to_string())?;
    let mut tensors = Vec::new();
    for (name, info) in header.tensors() {
        let dtype = dtype(info.dtype).ok_or_else(|| {
            format!("tensor {name:?} has the element type {:?}, which ckptd does not know", info.dtype)
        })?;
        let shape = info.shape.iter().map(|&n| n as u64).collect();
        let meta = TensorMeta { role: Role::Param, name, dtype, shape };
        let (start, end) = (info.data_offsets.0 as u64, info.data_offsets.1 as u64);
        let range = data.start.checked_add(start).zip(data.start.checked_add(end)).map(|(start, end)| start..end);
        let bytes = range
            .filter(|range| meta.bytes() == range.end.checked_sub(range.start))
            .and_then(|range| mapped.region(range))
            .ok_or_else(|| format!("tensor {:?} lies outside the file", meta.name))?;
        tensors.push(Tensor { meta, bytes });
    }
    tensors.sort_by(|a, b| a.meta.name.cmp(&b.meta.name));
    let mut metadata: Vec<_> = header.metadata().clone().unwrap_or_default().into_iter().collect();
    metadata.sort();
    Ok(SafetensorsFile { tensors, metadata })
}

/// Holds the header against the caps and the file; returns where the data lies.
fn check_header(bytes: &[u8], limits: &ReadLimits) -> Result<Range<u64>, String> {
    let length = bytes.first_chunk::<8>().map(|b| u64::from_le_bytes(*b)).ok_or("the file is shorter than 8 bytes")?;
    if length > limits.header_bytes {
        return Err(format!("it announces a header of {length} bytes; at most {} are read", limits.header_bytes));
    }
    let data_start = 8 + length;
    let header = usize::try_from(data_start)
        .ok()
        .and_then(|end| bytes.get(8..end))
        .ok_or_else(|| format!("it announces a header of {length} bytes, but the file ends after {}", bytes.len()))?;
    let data = data_start..bytes.len() as u64;
    let visitor = HeaderVisitor { max_tensors: limits.tensors };
    let mut json = serde_json::Deserializer::from_slice(header);
    let names = visitor
        .deserialize(&mut json)
        .and_then(|names| json.end().map(|()| names))
        .map_err(|e| format!("its header is not what it should be: {e}"))?;
    if names.largest_end > data.end - data.start {
        Err(format!(
            "a tensor ends at byte {} of {} bytes of data; the file is cut",
            names.largest_end,
            data.end - data.start
        ))
    } else {
        Ok(data)
    }
}

/// What the crate does not check: the names, and how far the data reaches. Every item is read strictly, so that the
/// crate, which holds a whole header in memory, sees sound and small ones only.
struct HeaderNames {
    largest_end: u64,
}

struct HeaderItem {
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

/// A value of a key that the format does not have, as some writers add them: no list and no object, which could be of
/// any size.
struct HeaderScalar;

impl<'de> Deserialize<'de> for HeaderScalar {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<HeaderScalar, D::Error> {
        deserializer.deserialize_any(HeaderScalar)
    }
}

impl Visitor<'_> for HeaderScalar {
    type Value = HeaderScalar;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("text, a number, a bool or null under a further key")
    }

    fn visit_bool<E>(self, _: bool) -> Result<HeaderScalar, E> {
        Ok(HeaderScalar)
    }

    fn visit_i64<E>(self, _: i64) -> Result<HeaderScalar, E> {
        Ok(HeaderScalar)
    }

    fn visit_u64<E>(self, _: u64) -> Result<HeaderScalar, E> {
        Ok(HeaderScalar)
    }

    fn visit_f64<E>(self, _: f64) -> Result<HeaderScalar, E> {
        Ok(HeaderScalar)
    }

    fn visit_str<E>(self, _: &str) -> Result<HeaderScalar, E> {
        Ok(HeaderScalar)
    }

    fn visit_unit<E>(self) -> Result<HeaderScalar, E> {
        Ok(HeaderScalar)
    }
}

impl<'de> Deserialize<'de> for HeaderItem {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<HeaderItem, D::Error> {
        deserializer.deserialize_map(ItemVisitor)
    }
}

struct ItemVisitor;

impl<'de> Visitor<'de> for ItemVisitor {
    type Value = HeaderItem;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a tensor's dtype, shape and data_offsets")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<HeaderItem, A::Error> {
        let (mut dtype, mut shape, mut data_offsets) = (None, None, None);
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "dtype" => dtype = Some(map.next_value::<String>()?),
                "shape" => shape = Some(map.next_value()?),
                "data_offsets" => data_offsets = Some(map.next_value()?),
                _ => {
                    map.next_value::<HeaderScalar>()?;
                }
            }
        }
        match (dtype, shape, data_offsets) {
            (Some(_), Some(shape), Some(data_offsets)) => Ok(HeaderItem { shape, data_offsets }),
            _ => Err(A::Error::custom("a tensor without dtype, shape or data_offsets")),
        }
    }
}

struct HeaderVisitor {
    max_tensors: usize,
}

impl<'de> DeserializeSeed<'de> for HeaderVisitor {
    type Value = HeaderNames;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<HeaderNames, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = HeaderNames;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<HeaderNames, A::Error> {
        let mut seen = HashSet::new();
        let mut largest_end = 0;
        while let Some(name) = map.next_key::<String>()? {
            check_name(&name).map_err(A::Error::custom)?;
            if name == "__metadata__" {
                map.next_value::<Option<HashMap<String, String>>>()?;
            } else {
                let item: HeaderItem = map.next_value()?;
                largest_end = largest_end.max(item.data_offsets.1);
                if item.shape.len() > MAX_DIMENSIONS {
                    let count = item.shape.len();
                    return Err(A::Error::custom(format!(
                        "tensor {name:?} has {count} dimensions; at most {MAX_DIMENSIONS} are read"
                    )));
                }
            }
            if seen.len() >= self.max_tensors {
                return Err(A::Error::custom(format!("more than {} tensors", self.max_tensors)));
            }
            if let Some(twice) = seen.replace(name) {
                return Err(A::Error::custom(format!("it names {twice:?} twice")));
            }
        }
        Ok(HeaderNames { largest_end })
    }
}

/// Refuses names that no framework writes: empty, very long, or with control characters.
pub fn check_name(name: &str) -> Result<(), String> {
    if name.is_empty() || name.len() > MAX_NAME_BYTES {
        return Err(format!("a tensor's name has {} bytes; 1 to {MAX_NAME_BYTES} are allowed", name.len()));
    }
    if name.chars().any(char::is_control) {
        Err(format!("the tensor name {name:?} has control characters"))
    } else {
        Ok(())
    }
}

fn dtype(dtype: Dtype) -> Option<DType> {
    Some(match dtype {
        Dtype::F64 => DType::F64,
        Dtype::F32 => DType::F32,
        Dtype::F16 => DType::F16,
        Dtype::BF16 => DType::BF16,
        Dtype::I64 => DType::I64,
        Dtype::I32 => DType::I32,
        Dtype::I16 => DType::I16,
        Dtype::I8 => DType::I8,
        Dtype::U8 => DType::U8,
        Dtype::BOOL => DType::Bool,
        _ => return None,
    })
}
