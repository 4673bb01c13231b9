//! An opened `.pt` file: its object as plain values, its tensors in place of the memory mapping.
//!
//! Invariant: the pickle is interpreted over plain values by an allow-list ([`super::globals`]); anything else is
//! refused by name. Tensors lie within their storages, storages within the file, and all tensors together justify
//! themselves by the file's size.

use std::collections::HashMap;
use std::io::Read;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::globals::REFUSING;
use super::value::{PtValue, TensorRef};
use super::{machine, tree};
use crate::archive::{self, ArchiveEntry};
use crate::foreign::{self, quoted};
use crate::limits::ReadLimits;
use crate::mapped::MappedFile;
use ckptd_core::error::{Error, Result};
use ckptd_core::snapshot::{Role, Tensor, TensorBytes, TensorMeta};

/// An opened file: its object as plain values, and the bytes of its tensors. What other containers hold in the same
/// way (a folder of torch.distributed.checkpoint) is brought into this form, too.
pub struct PtFile {
    path: PathBuf,
    value: PtValue,
    storages: HashMap<Arc<str>, TensorBytes>,
    taken_bytes: AtomicU64,
    max_taken_bytes: u64,
}

impl PtFile {
    /// Opens the file at `path`; objects of classes of others are there by their names alone.
    ///
    /// # Errors
    /// [`Error::Malformed`] that names the record, the entry and what is wrong with it.
    pub fn open(path: &Path, limits: &ReadLimits) -> Result<PtFile> {
        PtFile::open_mapped(&MappedFile::open(path)?, limits)
    }

    /// What `torch.save` has written to `mapped`, which may lie within another file.
    pub fn open_mapped(mapped: &Arc<MappedFile>, limits: &ReadLimits) -> Result<PtFile> {
        PtFile::open_as(mapped, false, limits)
    }

    /// Opens the file at `path` with what the objects in it would be made from.
    ///
    /// # Errors
    /// As [`PtFile::open`].
    pub fn open_objects(path: &Path, limits: &ReadLimits) -> Result<PtFile> {
        PtFile::open_as(&MappedFile::open(path)?, true, limits)
    }

    fn open_as(mapped: &Arc<MappedFile>, objects: bool, limits: &ReadLimits) -> Result<PtFile> {
        let path = mapped.path();
        check_kind(path, mapped.bytes()).map_err(|reason| Error::malformed(path, reason))?;
        let entries = archive::entries(mapped, limits)?;
        read(mapped, &entries, objects, limits).map_err(|reason| Error::malformed(path, with_way_out(reason, path)))
    }

    /// What lies at `path` in another container: an object whose tensors are views of `storages`, each as long as its
    /// storage says. `bytes` are those of the container.
    pub fn of_storages(
        path: &Path,
        value: PtValue,
        storages: HashMap<Arc<str>, TensorBytes>,
        bytes: u64,
        limits: &ReadLimits,
    ) -> PtFile {
        let max_taken_bytes = bytes.saturating_mul(limits.sharing);
        PtFile { path: path.to_path_buf(), value, storages, taken_bytes: AtomicU64::new(0), max_taken_bytes }
    }

    /// The object that was saved, and the bytes of the storages that its tensors are views of.
    pub fn into_parts(self) -> (PtValue, HashMap<Arc<str>, TensorBytes>) {
        (self.value, self.storages)
    }

    /// The object that was saved.
    pub fn value(&self) -> &PtValue {
        &self.value
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A tensor under a name and a role, with its bytes in row-major order: in place where they are, else copied.
    pub fn tensor(&self, role: Role, name: &str, tensor: &TensorRef) -> Result<Tensor> {
        let refuse = |reason: &str| Error::malformed(self.path(), format!("tensor {name:?}: {reason}"));
        let dtype = tensor.storage.dtype;
        let meta = TensorMeta { role, name: name.to_owned(), dtype, shape: tensor.shape.clone() };
        let bytes = meta.bytes().ok_or_else(|| refuse("its size overflows"))?;
        if tensor.elements() > tensor.storage.elements {
            return Err(refuse(
                "it repeats the values of its storage (strides of 0, as expand() leaves them); save it .contiguous()",
            ));
        }
        let taken = self.taken_bytes.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes);
        if taken > self.max_taken_bytes {
            return Err(refuse("the tensors take many times the file's own size; the file is made up"));
        }
        let bytes = if tensor.is_contiguous() { self.range(tensor, bytes) } else { self.gather(tensor) };
        Ok(Tensor { meta, bytes: bytes.ok_or_else(|| refuse("it lies outside the file"))? })
    }

    /// The bytes of a contiguous tensor in place.
    fn range(&self, tensor: &TensorRef, bytes: u64) -> Option<TensorBytes> {
        let storage = self.storages.get(&*tensor.storage.key)?;
        let start = tensor.offset.checked_mul(tensor.storage.dtype.size() as u64)?;
        let range = usize::try_from(start).ok()?..usize::try_from(start.checked_add(bytes)?).ok()?;
        (**storage).as_ref().get(range.clone())?;
        Some(Arc::new(StorageRange { storage: Arc::clone(storage), range }))
    }

    /// A row-major copy of a tensor with gaps or another order of dimensions.
    fn gather(&self, tensor: &TensorRef) -> Option<TensorBytes> {
        let storage: &[u8] = (**self.storages.get(&*tensor.storage.key)?).as_ref();
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

/// A run of a storage's bytes.
struct StorageRange {
    storage: TensorBytes,
    range: Range<usize>,
}

impl AsRef<[u8]> for StorageRange {
    fn as_ref(&self) -> &[u8] {
        // `range` has been checked, and a storage does not change its length.
        (*self.storage).as_ref().get(self.range.clone()).unwrap_or_default()
    }
}

/// `reason`, with the command that helps where a whole module was saved.
fn with_way_out(reason: String, path: &Path) -> String {
    let is_of_module =
        ["torch.nn.", "transformers."].iter().any(|module| reason.contains(&format!("{} {module}", REFUSING)));
    if is_of_module { format!("{reason}; {}", foreign::save_state_dict(path)) } else { reason }
}

/// What the first bytes say, before anything is parsed.
fn check_kind(path: &Path, bytes: &[u8]) -> Result<(), String> {
    /// The little-endian magic number of the legacy format, as the pickled integer 0x1950a86a20f9469cfc6c.
    const LEGACY: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];
    let resave = || format!("which is not read; save it again: {}", foreign::save_again(path));
    if bytes.starts_with(b"PK\x03\x04") {
        return Ok(());
    }
    let head = &bytes[..bytes.len().min(64)];
    if head.windows(LEGACY.len()).any(|window| window == LEGACY) {
        return Err(format!("PyTorch's legacy format (before version 1.6), {}", resave()));
    }
    if bytes.get(257..262) == Some(b"ustar") {
        return Err(format!("PyTorch's legacy tar format, {}", resave()));
    }
    if bytes.first() == Some(&0x80) {
        return Err(format!("a bare pickle or PyTorch's legacy format, {}", resave()));
    }
    Err("not a PyTorch file: torch.save writes a zip archive, and this is none".into())
}

fn read(
    mapped: &Arc<MappedFile>,
    entries: &[ArchiveEntry],
    objects: bool,
    limits: &ReadLimits,
) -> Result<PtFile, String> {
    const NONE: &str = "a zip archive without data.pkl: not written by torch.save";
    let is_script = entries.iter().any(|entry| entry.name.ends_with("/constants.pkl"));
    let mut pickles = entries.iter().filter(|entry| is_pickle(&entry.name));
    let (pickle, None) = (pickles.next().ok_or(NONE)?, pickles.next()) else {
        return Err("more than one data.pkl".into());
    };
    let folder = &pickle.name[..pickle.name.len() - "data.pkl".len()];
    let is_read =
        |entry: &&ArchiveEntry| entry.name == pickle.name || entry.name.starts_with(&format!("{folder}data/"));
    if let Some(entry) = entries.iter().filter(is_read).find(|entry| !entry.stored) {
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
    let storages: HashMap<Arc<str>, TensorBytes> = entries
        .iter()
        .filter_map(|entry| Some((entry.name.strip_prefix(&data)?.into(), mapped.region(entry.data.clone())?)))
        .collect();
    let storage_bytes = |key: &str| storages.get(key).map(|bytes| (**bytes).as_ref().len() as u64);
    let value = machine::run(bytes(&pickle.data), &storage_bytes, limits)
        .and_then(|(nodes, root)| tree::build(&nodes, root, objects, limits))
        .map_err(|what| format!("{}: {what}", pickle.name));
    let value = match is_script {
        true if has_code(mapped, entries) => return Err(script_refusal(mapped.path())),
        true => value.and_then(script_tensors).map_err(|_| script_refusal(mapped.path()))?,
        false => value?,
    };
    let max_taken_bytes = mapped.len().saturating_mul(limits.sharing);
    let path = mapped.path().to_path_buf();
    Ok(PtFile { path, value, storages, taken_bytes: AtomicU64::new(0), max_taken_bytes })
}

/// The tensors of a module of TorchScript that is nothing else: what libtorch's own `save` of tensors writes, and
/// with it tch, whose names have `|` in the place of dots.
fn script_tensors(module: PtValue) -> Result<PtValue, String> {
    const PROGRAM: &str = "it holds more than tensors";
    let PtValue::Dict(attributes) = module else { return Err(PROGRAM.into()) };
    let mut tensors = Vec::new();
    for (name, value) in attributes {
        match (name, value) {
            (PtValue::Str(name), value @ PtValue::Tensor(_)) => {
                tensors.push((PtValue::Str(name.replace('|', ".").into()), value));
            }
            (_, PtValue::Bool(_) | PtValue::None) => {}
            _ => return Err(PROGRAM.into()),
        }
    }
    if tensors.is_empty() { Err(PROGRAM.into()) } else { Ok(PtValue::Dict(tensors)) }
}

/// Whether a TorchScript archive defines a function, or keeps to itself what it defines. Sources are looked at as text.
fn has_code(mapped: &Arc<MappedFile>, entries: &[ArchiveEntry]) -> bool {
    const MAX_CODE_BYTES: u64 = 1 << 20;
    let is_code = |entry: &&ArchiveEntry| entry.name.contains("code/") && entry.name.ends_with(".py");
    let Ok(mut zip) = archive::open(mapped) else { return true };
    !entries.iter().any(|entry| is_code(&entry))
        || entries.iter().filter(is_code).any(|entry| {
            let mut text = Vec::new();
            let read = zip.by_index(entry.index).map(|file| file.take(MAX_CODE_BYTES).read_to_end(&mut text));
            !matches!(read, Ok(Ok(_))) || text.windows(4).any(|window| window == b"def ")
        })
}

fn script_refusal(path: &Path) -> String {
    let mut made = path.as_os_str().to_owned();
    made.push(".pt");
    let (file, made) = (quoted(path), quoted(Path::new(&made)));
    format!(
        "a TorchScript archive, which holds a program; save the state_dict instead: `python -c \"import sys, torch; \
         torch.save(torch.jit.load(sys.argv[1], map_location='cpu').state_dict(), sys.argv[2])\" {file} {made}`, then \
         import {made}"
    )
}

/// The value of a pickle that stands alone and refers to no storages.
///
/// # Errors
/// Text that says which op-code or global is refused, and where.
pub fn plain_pickle(bytes: &[u8], limits: &ReadLimits) -> Result<PtValue, String> {
    if bytes.len() as u64 > limits.pickle_bytes {
        return Err(format!("{} bytes of pickle; at most {} are read", bytes.len(), limits.pickle_bytes));
    }
    machine::run(bytes, &|_| None, limits).and_then(|(nodes, root)| tree::build(&nodes, root, false, limits))
}

/// `data.pkl` lies in one folder, whose name is of no interest.
fn is_pickle(name: &str) -> bool {
    name == "data.pkl" || name.strip_suffix("/data.pkl").is_some_and(|folder| !folder.contains('/'))
}
