//! An opened `.pt` file: its object as plain values, its tensors in place of the memory mapping.
//!
//! Invariant: the pickle is interpreted over plain values by an allow-list ([`super::globals`]); anything else is
//! refused by name. Tensors lie within their storages, storages within the file, and all tensors together justify
//! themselves by the file's size.

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::value::{PtValue, TensorRef};
use super::{machine, tree};
use crate::archive::{self, ArchiveEntry};
use crate::limits::ReadLimits;
use crate::mapped::MappedFile;
use ckptd_core::error::{Error, Result};
use ckptd_core::snapshot::{Role, Tensor, TensorBytes, TensorMeta};

/// An opened file: its object as plain values, and the bytes of its tensors.
pub struct PtFile {
    mapped: Arc<MappedFile>,
    value: PtValue,
    storages: HashMap<String, Range<u64>>,
    taken_bytes: AtomicU64,
    max_taken_bytes: u64,
}

impl PtFile {
    pub fn open(path: &Path, limits: &ReadLimits) -> Result<PtFile> {
        let mapped = MappedFile::open(path)?;
        check_kind(mapped.bytes()).map_err(|reason| Error::malformed(path, reason))?;
        let entries = archive::entries(&mapped, limits)?;
        read(&mapped, &entries, limits).map_err(|reason| Error::malformed(path, reason))
    }

    /// The object that was saved.
    pub fn value(&self) -> &PtValue {
        &self.value
    }

    pub fn path(&self) -> &Path {
        self.mapped.path()
    }

    /// A tensor under a name and a role, with its bytes in row-major order: in place where they are, else copied.
    pub fn tensor(&self, role: Role, name: &str, tensor: &TensorRef) -> Result<Tensor> {
        let refuse = |reason: &str| Error::malformed(self.path(), format!("tensor {name:?}: {reason}"));
        let dtype = tensor.storage.dtype;
        let meta = TensorMeta { role, name: name.to_owned(), dtype, shape: tensor.shape.clone() };
        let bytes = meta.bytes().ok_or_else(|| refuse("its size overflows"))?;
        let taken = self.taken_bytes.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes);
        if taken > self.max_taken_bytes {
            return Err(refuse("the tensors take many times the file's own size; the file is made up"));
        }
        let bytes = if tensor.is_contiguous() {
            self.range(tensor, bytes).and_then(|range| self.mapped.region(range))
        } else {
            self.gather(tensor)
        };
        Ok(Tensor { meta, bytes: bytes.ok_or_else(|| refuse("it lies outside the file"))? })
    }

    /// Where a contiguous tensor lies in the file.
    fn range(&self, tensor: &TensorRef, bytes: u64) -> Option<Range<u64>> {
        let storage = self.storages.get(&*tensor.storage.key)?;
        let start = storage.start.checked_add(tensor.offset.checked_mul(tensor.storage.dtype.size() as u64)?)?;
        let end = start.checked_add(bytes)?;
        (end <= storage.end).then_some(start..end)
    }

    /// A row-major copy of a tensor with gaps or another order of dimensions.
    fn gather(&self, tensor: &TensorRef) -> Option<TensorBytes> {
        let storage = self.storages.get(&*tensor.storage.key)?;
        let storage =
            self.mapped.bytes().get(usize::try_from(storage.start).ok()?..usize::try_from(storage.end).ok()?)?;
        let size = tensor.storage.dtype.size();
        let elements = usize::try_from(tensor.elements()).ok()?;
        let mut copy = Vec::with_capacity(elements.checked_mul(size)?);
        let mut index = vec![0u64; tensor.shape.len()];
        for _ in 0..elements {
            let at = index.iter().zip(&tensor.stride).map(|(i, stride)| i * stride).sum::<u64>() + tensor.offset;
            let at = usize::try_from(at).ok()?.checked_mul(size)?;
            copy.extend_from_slice(storage.get(at..at + size)?);
            for (i, &size) in index.iter_mut().zip(&tensor.shape).rev() {
                *i += 1;
                if *i < size {
                    break;
                }
                *i = 0;
            }
        }
        Some(Arc::new(copy))
    }
}

/// What the first bytes say, before anything is parsed.
fn check_kind(bytes: &[u8]) -> Result<(), String> {
    /// The little-endian magic number of the legacy format, as the pickled integer 0x1950a86a20f9469cfc6c.
    const LEGACY: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];
    const RESAVE: &str =
        "save it again with a current PyTorch: torch.save(torch.load(FILE, weights_only=True), NEW_FILE)";
    if bytes.starts_with(b"PK\x03\x04") {
        return Ok(());
    }
    let head = &bytes[..bytes.len().min(64)];
    if head.windows(LEGACY.len()).any(|window| window == LEGACY) {
        return Err(format!("PyTorch's legacy format (before version 1.6), which is not read; {RESAVE}"));
    }
    if bytes.get(257..262) == Some(b"ustar") {
        return Err(format!("PyTorch's legacy tar format, which is not read; {RESAVE}"));
    }
    if bytes.first() == Some(&0x80) {
        return Err(format!("a bare pickle or PyTorch's legacy format, which is not read; {RESAVE}"));
    }
    Err("not a PyTorch file: torch.save writes a zip archive, and this is none".into())
}

fn read(mapped: &Arc<MappedFile>, entries: &[ArchiveEntry], limits: &ReadLimits) -> Result<PtFile, String> {
    const NONE: &str = "a zip archive without data.pkl: not written by torch.save";
    if entries.iter().any(|entry| entry.name.ends_with("/constants.pkl")) {
        return Err("a TorchScript archive, which holds a program; save the state_dict instead".into());
    }
    let mut pickles = entries.iter().filter(|entry| is_pickle(&entry.name));
    let (pickle, None) = (pickles.next().ok_or(NONE)?, pickles.next()) else {
        return Err("more than one data.pkl".into());
    };
    let folder = &pickle.name[..pickle.name.len() - "data.pkl".len()];
    if let Some(entry) = entries.iter().find(|entry| !entry.stored) {
        return Err(format!("the record {:?} is compressed; torch.save never does that", entry.name));
    }
    let bytes = |range: &Range<u64>| mapped.bytes().get(range.start as usize..range.end as usize).unwrap_or_default();
    let order = entries.iter().find(|entry| entry.name.strip_prefix(folder) == Some("byteorder"));
    if let Some(order) = order.map(|entry| bytes(&entry.data)).filter(|order| order != b"little") {
        return Err(format!(
            "it was saved on a machine of another byte order ({})",
            String::from_utf8_lossy(&order[..order.len().min(16)])
        ));
    }
    if pickle.bytes > limits.pickle_bytes {
        return Err(format!("data.pkl has {} bytes; at most {} are read", pickle.bytes, limits.pickle_bytes));
    }
    let data = format!("{folder}data/");
    let storages: HashMap<String, Range<u64>> = entries
        .iter()
        .filter_map(|entry| Some((entry.name.strip_prefix(&data)?.to_owned(), entry.data.clone())))
        .collect();
    let storage_bytes = |key: &str| storages.get(key).map(|range| range.end - range.start);
    let value = machine::run(bytes(&pickle.data), &storage_bytes, limits)
        .and_then(|(nodes, root)| tree::build(&nodes, root, limits))
        .map_err(|what| format!("{}: {what}", pickle.name))?;
    let max_taken_bytes = mapped.len().saturating_mul(limits.sharing);
    Ok(PtFile { mapped: Arc::clone(mapped), value, storages, taken_bytes: AtomicU64::new(0), max_taken_bytes })
}

/// `data.pkl` lies in one folder, whose name is of no interest.
fn is_pickle(name: &str) -> bool {
    name == "data.pkl" || name.strip_suffix("/data.pkl").is_some_and(|folder| !folder.contains('/'))
}
