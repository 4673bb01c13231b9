//! NumPy's `.npz`: a zip archive of `.npy` files, each an array with a header that is a Python dict of three entries.
//!
//! Invariant: the header is parsed as text and nothing of it is evaluated; an array's bytes are exactly as many as its
//! shape takes; arrays that are packed take no more memory than the archive's size justifies.

use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use crate::archive::{self, ArchiveEntry};
use crate::limits::ReadLimits;
use crate::mapped::MappedFile;
use crate::safetensors::check_name;
use ckptd_core::dtype::DType;
use ckptd_core::error::{Error, Result};
use ckptd_core::snapshot::{Role, Tensor, TensorBytes, TensorMeta};

const MAGIC: &[u8] = b"\x93NUMPY";
const MAX_HEADER_BYTES: usize = 1 << 16;
const EXTENSION: &str = ".npy";

/// Whether these are the entries of a `.npz` file.
pub fn is_npz(entries: &[ArchiveEntry]) -> bool {
    !entries.is_empty() && entries.iter().all(|entry| entry.name.ends_with(EXTENSION))
}

/// The arrays of the file at `path`, under their names in it.
///
/// # Errors
/// [`Error::Malformed`] with the array that is not as it should be.
pub fn open(path: &Path, limits: &ReadLimits) -> Result<Vec<Tensor>> {
    let mapped = MappedFile::open(path)?;
    let entries = archive::entries(&mapped, limits)?;
    let mut left = limits.expanded(mapped.len());
    let mut tensors = Vec::with_capacity(entries.len());
    for entry in &entries {
        let refuse = |what: String| Error::malformed(path, format!("the array {:?}: {what}", entry.name));
        let name = entry.name.strip_suffix(EXTENSION).ok_or_else(|| refuse("not a .npy file".into()))?;
        check_name(name).map_err(refuse)?;
        left = left.checked_sub(entry.bytes).ok_or_else(|| {
            refuse(format!("it unpacks to {} bytes, which the archive's size does not justify", entry.bytes))
        })?;
        tensors.push(array(&mapped, entry, name).map_err(refuse)?);
    }
    Ok(tensors)
}

fn array(mapped: &Arc<MappedFile>, entry: &ArchiveEntry, name: &str) -> Result<Tensor, String> {
    const OUTSIDE: &str = "it lies outside the file";
    let packed;
    let bytes = if entry.stored {
        let range = entry.data.start as usize..entry.data.end as usize;
        mapped.bytes().get(range).ok_or(OUTSIDE)?
    } else {
        packed = Arc::new(unpacked(mapped, entry)?);
        &packed[..]
    };
    let NpyHeader { dtype, fortran, shape, data } = header(bytes)?;
    let meta = TensorMeta { role: Role::Param, name: name.to_owned(), dtype, shape };
    let size = meta.bytes().ok_or("its size overflows")?;
    if bytes.len() as u64 - data != size {
        let there = bytes.len() as u64 - data;
        return Err(format!("its shape {:?} of {dtype} takes {size} bytes, and there are {there}", meta.shape));
    }
    let content: TensorBytes = if fortran && meta.shape.len() > 1 {
        Arc::new(row_major(&bytes[data as usize..], &meta.shape, dtype.size()))
    } else if entry.stored {
        mapped.region(entry.data.start + data..entry.data.end).ok_or(OUTSIDE)?
    } else {
        Arc::new(bytes[data as usize..].to_vec())
    };
    Ok(Tensor { meta, bytes: content })
}

/// The bytes of an entry that is packed; its size has been held against the archive's.
fn unpacked(mapped: &Arc<MappedFile>, entry: &ArchiveEntry) -> Result<Vec<u8>, String> {
    let mut zip = archive::open(mapped).map_err(|e| e.to_string())?;
    let file = zip.by_index(entry.index).map_err(|e| e.to_string())?;
    let mut bytes = Vec::new();
    // One byte more than announced shows that there is more.
    file.take(entry.bytes.saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(|e| format!("it cannot be unpacked: {e}"))?;
    if bytes.len() as u64 == entry.bytes { Ok(bytes) } else { Err("its size is not the announced one".into()) }
}

struct NpyHeader {
    dtype: DType,
    /// The first dimension is that of neighbours in memory.
    fortran: bool,
    shape: Vec<u64>,
    /// Where the elements begin.
    data: u64,
}

fn header(bytes: &[u8]) -> Result<NpyHeader, String> {
    const CUT: &str = "it ends within its header";
    if !bytes.starts_with(MAGIC) {
        return Err("it does not begin as a .npy file".into());
    }
    let (length, start) = match bytes.get(6) {
        Some(1) => (bytes.get(8..10).map(|b| usize::from(u16::from_le_bytes([b[0], b[1]]))), 10),
        Some(2 | 3) => (bytes.get(8..12).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]) as usize), 12),
        _ => return Err("a .npy file of an unknown version".into()),
    };
    let length = length.ok_or(CUT)?;
    if length > MAX_HEADER_BYTES {
        return Err(format!("a header of {length} bytes; at most {MAX_HEADER_BYTES} are read"));
    }
    let text = bytes.get(start..start + length).ok_or(CUT)?;
    let text = std::str::from_utf8(text).map_err(|_| "a header that is not UTF-8")?;
    let field = |key: &str| {
        let after = text.split_once(&format!("'{key}':"))?.1;
        Some(after.trim_start())
    };
    let descr =
        field("descr").and_then(|rest| rest.strip_prefix('\'')?.split_once('\'')).ok_or("its header has no descr")?;
    let dtype = dtype(descr.0)?;
    let fortran = field("fortran_order").ok_or("its header has no fortran_order")?.starts_with("True");
    let shape =
        field("shape").and_then(|rest| rest.strip_prefix('(')?.split_once(')')).ok_or("its header has no shape")?;
    let sizes = shape.0.split(',').map(str::trim).filter(|size| !size.is_empty());
    let shape =
        sizes.map(|size| size.parse().map_err(|_| format!("the size {size:?}"))).collect::<Result<Vec<_>, _>>()?;
    Ok(NpyHeader { dtype, fortran, shape, data: (start + length) as u64 })
}

fn dtype(descr: &str) -> Result<DType, String> {
    Ok(match descr {
        "<f8" => DType::F64,
        "<f4" => DType::F32,
        "<f2" => DType::F16,
        "<i8" => DType::I64,
        "<i4" => DType::I32,
        "<i2" => DType::I16,
        "|i1" => DType::I8,
        "|u1" => DType::U8,
        "|b1" => DType::Bool,
        other => {
            return Err(format!("numbers of the type {other:?} are not read; save it with .astype(\"float32\")"));
        }
    })
}

/// The elements of an array in Fortran's order, in C's.
fn row_major(bytes: &[u8], shape: &[u64], size: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len());
    let mut stride = vec![1u64; shape.len()];
    for i in 1..shape.len() {
        stride[i] = stride[i - 1] * shape[i - 1];
    }
    let mut index = vec![0u64; shape.len()];
    for _ in 0..bytes.len() / size {
        let at = index.iter().zip(&stride).map(|(i, stride)| i * stride).sum::<u64>() as usize * size;
        out.extend_from_slice(&bytes[at..at + size]);
        for (i, &limit) in index.iter_mut().zip(shape).rev() {
            *i += 1;
            if *i < limit {
                break;
            }
            *i = 0;
        }
    }
    out
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn npy(header: &str) -> Vec<u8> {
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend((header.len() as u16).to_le_bytes());
        bytes.extend(header.as_bytes());
        bytes
    }

    #[test]
    fn a_header_is_read_and_never_evaluated() {
        let read = header(&npy("{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }\n")).unwrap();
        assert_eq!((read.dtype, read.fortran, read.shape), (DType::F32, false, vec![3, 4]));
        assert_eq!(header(&npy("{'descr': '<f2', 'fortran_order': True, 'shape': (), }")).unwrap().shape, [0u64; 0]);
        for bad in
            ["{}", "{'descr': '|O', 'fortran_order': False, 'shape': (1,), }", "{'descr': '<f4', 'shape': (-1,)}"]
        {
            assert!(header(&npy(bad)).is_err(), "{bad}");
        }
        let cut = npy("{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }");
        assert!(header(&cut[..cut.len() - 1]).is_err());
    }

    #[test]
    fn columns_first_become_rows_first() {
        assert_eq!(row_major(&[1, 4, 2, 5, 3, 6], &[2, 3], 1), [1, 2, 3, 4, 5, 6]);
    }
}
