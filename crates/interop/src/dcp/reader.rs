//! Reads a folder of `torch.distributed.checkpoint` as what `dcp_to_torch_save` would make of it.
//!
//! Invariant: only files that lie in the folder by their plain names are opened, and only ranges within them; the
//! parts of a tensor lie within it, do not overlap and leave nothing out.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use super::tree::ValueTree;
use crate::limits::ReadLimits;
use crate::mapped::{MappedFile, read_small};
use crate::torch_pt::{PtFile, PtStorage, PtValue, TensorRef, plain_pickle};
use ckptd_core::dtype::DType;
use ckptd_core::error::{Error, Result};
use ckptd_core::snapshot::{Role, TensorBytes};
use ckptd_core::store::format::plain_name;

/// The file that makes a folder one of `torch.distributed.checkpoint`.
pub const METADATA: &str = ".metadata";

/// Parts of one tensor: one for each process that held some of it.
const MAX_PARTS: usize = 4096;

/// Opens the folder `dir`.
///
/// # Errors
/// [`Error::Malformed`] with the file and the entry that is not as it should be.
pub fn open(dir: &Path, limits: &ReadLimits) -> Result<PtFile> {
    let path = dir.join(METADATA);
    let refuse = |reason: String| Error::malformed(&path, reason);
    let metadata = plain_pickle(&read_small(&path, limits.pickle_bytes)?, limits).map_err(refuse)?;
    let entries = metadata.get("state_dict_metadata").and_then(PtValue::as_dict).ok_or_else(|| {
        refuse("no state_dict_metadata: not what torch.distributed.checkpoint writes, or one file per rank".into())
    })?;
    if entries.len() > limits.tensors {
        return Err(refuse(format!("{} entries; at most {} are read", entries.len(), limits.tensors)));
    }
    let mut folder = DcpFolder { dir, places: places(&metadata).map_err(refuse)?, files: HashMap::new(), limits };
    let paths = metadata.get("planner_data").filter(|paths| paths.as_dict().is_some());
    let (mut tree, mut storages) = (ValueTree::default(), HashMap::new());
    for (key, entry) in entries {
        let name = key.as_str().ok_or_else(|| refuse("an entry whose name is not text".into()))?;
        let within = |what: String| refuse(format!("the entry {name:?}: {what}"));
        let value = match TensorEntry::of(entry).map_err(within)? {
            Some(tensor) => {
                let (storage, bytes) = folder.tensor(name, &tensor)?;
                let storage = PtStorage { key: name.into(), dtype: tensor.dtype, elements: storage };
                storages.insert(Arc::clone(&storage.key), bytes);
                PtValue::Tensor(Arc::new(TensorRef::contiguous(Arc::new(storage), tensor.size)))
            }
            None => folder.object(name)?,
        };
        let place = paths.and_then(|paths| paths.get(name)).and_then(PtValue::as_items);
        tree.set(place.unwrap_or(std::slice::from_ref(key)), value).map_err(within)?;
    }
    let bytes = folder.files.values().map(|file| file.len()).sum();
    let value = tree.into_value(limits.pickle_depth).map_err(refuse)?;
    Ok(PtFile::of_storages(dir, value, storages, bytes, limits))
}

/// A tensor as the metadata describe it.
struct TensorEntry {
    dtype: DType,
    size: Vec<u64>,
    /// Offsets and sizes of its parts.
    chunks: Vec<(Vec<u64>, Vec<u64>)>,
}

impl TensorEntry {
    /// Of an entry of `state_dict_metadata`; `None` for one that is another object.
    fn of(entry: &PtValue) -> Result<Option<TensorEntry>, String> {
        let Some(chunks) = entry.get("chunks") else { return Ok(None) };
        // The state of TensorProperties is the tuple of its fields; the type is the first.
        let dtype = match entry.get("properties").and_then(PtValue::as_items).and_then(<[PtValue]>::first) {
            Some(PtValue::DType(dtype)) => *dtype,
            _ => return Err("its dtype is none that is read".into()),
        };
        let size = entry.get("size").and_then(numbers).ok_or("its size is no list of numbers")?;
        let chunk = |chunk: &PtValue| Some((numbers(chunk.get("offsets")?)?, numbers(chunk.get("sizes")?)?));
        let chunks = chunks.as_items().and_then(|chunks| chunks.iter().map(chunk).collect::<Option<Vec<_>>>());
        let tensor = TensorEntry { dtype, size, chunks: chunks.ok_or("its parts have no offsets and sizes")? };
        tensor.check()?;
        Ok(Some(tensor))
    }

    /// Number of elements, of this size; `None` where that overflows.
    fn volume(size: &[u64]) -> Option<u64> {
        size.iter().try_fold(1u64, |volume, &length| volume.checked_mul(length))
    }

    /// The parts lie within the tensor, do not overlap, and are all of it.
    fn check(&self) -> Result<(), String> {
        let whole =
            TensorEntry::volume(&self.size).filter(|whole| *whole <= u64::MAX / 8).ok_or("its size overflows")?;
        let mut covered = 0u64;
        for (offsets, sizes) in &self.chunks {
            let ends = offsets.iter().zip(sizes).map(|(offset, size)| offset.checked_add(*size));
            let inside = ends.zip(&self.size).all(|(end, size)| end.is_some_and(|end| end <= *size));
            if !inside || offsets.len() != self.size.len() || sizes.len() != self.size.len() {
                return Err(format!("a part at {offsets:?} of {sizes:?} is outside its size, {:?}", self.size));
            }
            covered = covered.saturating_add(TensorEntry::volume(sizes).unwrap_or(u64::MAX));
        }
        if self.chunks.len() > MAX_PARTS {
            return Err(format!("{} parts; at most {MAX_PARTS} are read", self.chunks.len()));
        }
        let overlap = |i: usize| self.chunks[..i].iter().any(|earlier| overlap(earlier, &self.chunks[i]));
        if covered != whole || (0..self.chunks.len()).any(overlap) {
            return Err(format!("its {} parts are not the whole of it, each element once", self.chunks.len()));
        }
        Ok(())
    }
}

/// Whether two boxes (offsets, sizes) share an element.
fn overlap(a: &(Vec<u64>, Vec<u64>), b: &(Vec<u64>, Vec<u64>)) -> bool {
    let ((a_at, a_size), (b_at, b_size)) = (a, b);
    (0..a_at.len()).all(|i| a_at[i] < b_at[i] + b_size[i] && b_at[i] < a_at[i] + a_size[i])
}

fn numbers(value: &PtValue) -> Option<Vec<u64>> {
    value.as_items()?.iter().map(|number| u64::try_from(number.as_int()?).ok()).collect()
}

/// Which file holds an entry or a part of it, and where in it.
struct ItemPlace {
    file: String,
    offset: u64,
    length: u64,
}

/// By name, and by offset within the tensor.
type ItemPlaces = HashMap<(String, Option<Vec<u64>>), ItemPlace>;

/// Of `storage_data`.
fn places(metadata: &PtValue) -> Result<ItemPlaces, String> {
    let items = metadata.get("storage_data").and_then(PtValue::as_dict).ok_or("no storage_data")?;
    let mut places = HashMap::new();
    for (index, info) in items {
        let name = index.get("fqn").and_then(PtValue::as_str).ok_or("storage_data for something without a name")?;
        let refuse = |what: &str| format!("the entry {name:?}: {what}");
        let file = info.get("relative_path").and_then(PtValue::as_str).ok_or_else(|| refuse("in no file"))?;
        if !plain_name(file) {
            return Err(refuse(&format!("its file {file:?} is not the plain name of a file in the folder")));
        }
        if info.get("transform_descriptors").and_then(PtValue::as_items).is_some_and(|steps| !steps.is_empty()) {
            return Err(refuse("it is compressed or encrypted by an extension; save without one"));
        }
        let number = |key| info.get(key).and_then(PtValue::as_int).and_then(|number| u64::try_from(number).ok());
        let (Some(offset), Some(length)) = (number("offset"), number("length")) else {
            return Err(refuse("where it lies in its file is not said"));
        };
        let key = (name.to_owned(), index.get("offset").and_then(numbers));
        places.insert(key, ItemPlace { file: file.to_owned(), offset, length });
    }
    Ok(places)
}

struct DcpFolder<'a> {
    dir: &'a Path,
    places: ItemPlaces,
    files: HashMap<String, Arc<MappedFile>>,
    limits: &'a ReadLimits,
}

impl DcpFolder<'_> {
    fn refuse(&self, name: &str, what: &str) -> Error {
        Error::malformed(self.dir.join(METADATA), format!("the entry {name:?}: {what}"))
    }

    /// What `torch.save` has written for an entry, or for the part of it at `offset`.
    fn item(&mut self, name: &str, offset: Option<Vec<u64>>) -> Result<PtFile> {
        let Some(ItemPlace { file, offset, length }) = self.places.get(&(name.to_owned(), offset)) else {
            return Err(self.refuse(name, "storage_data does not say where it lies"));
        };
        let (path, range) = (self.dir.join(file), offset.checked_add(*length).map(|end| *offset..end));
        if !self.files.contains_key(file) {
            if !path.exists() {
                let what = format!("its file {file:?} is not in the folder; copy it there");
                return Err(self.refuse(name, &what));
            }
            self.files.insert(file.clone(), MappedFile::open(&path)?);
        }
        let mapped = self.files.get(file).zip(range).and_then(|(mapped, range)| mapped.part(range));
        let mapped = mapped.ok_or_else(|| {
            self.refuse(name, &format!("{length} bytes at {offset} are outside its file {file:?}; the file is cut"))
        })?;
        PtFile::open_mapped(&mapped, self.limits).map_err(|e| match e {
            Error::Malformed { path, reason } => Error::malformed(path, format!("the entry {name:?}: {reason}")),
            other => other,
        })
    }

    /// A tensor's elements and bytes: in place where it is one part, else put together.
    fn tensor(&mut self, name: &str, tensor: &TensorEntry) -> Result<(u64, TensorBytes)> {
        let elements = tensor.size.iter().product();
        if let [(offsets, sizes)] = tensor.chunks.as_slice() {
            return Ok((elements, self.part(name, tensor.dtype, offsets, sizes)?));
        }
        let size = tensor.dtype.size();
        let parts = tensor.chunks.iter().map(|(offsets, sizes)| self.part(name, tensor.dtype, offsets, sizes));
        // All parts are there, so the size of the whole is justified.
        let parts = parts.collect::<Result<Vec<_>>>()?;
        let mut whole = vec![0; elements as usize * size];
        for ((offsets, sizes), part) in tensor.chunks.iter().zip(&parts) {
            place((**part).as_ref(), offsets, sizes, &tensor.size, size, &mut whole);
        }
        Ok((elements, Arc::new(whole)))
    }

    fn part(&mut self, name: &str, dtype: DType, offsets: &[u64], sizes: &[u64]) -> Result<TensorBytes> {
        let file = self.item(name, Some(offsets.to_vec()))?;
        match file.value() {
            PtValue::Tensor(tensor) if tensor.storage.dtype == dtype && tensor.shape == sizes => {
                Ok(file.tensor(Role::Param, name, tensor)?.bytes)
            }
            PtValue::Tensor(tensor) => {
                let what = format!(
                    "{METADATA} says {dtype} of {sizes:?}, its file holds {} of {:?}",
                    tensor.storage.dtype, tensor.shape
                );
                Err(self.refuse(name, &what))
            }
            other => Err(self.refuse(name, &format!("its file holds {}, not a tensor", other.kind()))),
        }
    }

    /// An entry that is no tensor. What is not made of plain values has no meaning for a state.
    fn object(&mut self, name: &str) -> Result<PtValue> {
        Ok(match self.item(name, None) {
            Ok(file) if !file.value().has_tensors() => file.into_parts().0,
            Ok(_) => PtValue::Other("an object with tensors in it"),
            Err(Error::Malformed { reason, .. }) if reason.contains("refusing") => PtValue::Other("a Python object"),
            Err(error) => return Err(error),
        })
    }
}

/// Copies `part`, the box (offsets, sizes) of a row-major tensor, to its place in `whole`.
fn place(part: &[u8], offsets: &[u64], sizes: &[u64], size: &[u64], width: usize, whole: &mut [u8]) {
    let Some(&row) = sizes.last() else {
        whole.copy_from_slice(part);
        return;
    };
    let bytes = row as usize * width;
    if bytes == 0 {
        return;
    }
    let mut index = vec![0u64; sizes.len() - 1];
    for from in part.chunks_exact(bytes) {
        let at = offsets.iter().zip(index.iter().chain([&0])).zip(size).fold(0, |at, ((o, i), s)| at * s + o + i);
        let at = at as usize * width;
        whole[at..at + bytes].copy_from_slice(from);
        for (i, &limit) in index.iter_mut().zip(sizes).rev() {
            *i += 1;
            if *i < limit {
                break;
            }
            *i = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(size: &[u64], chunks: &[(&[u64], &[u64])]) -> TensorEntry {
        let chunks = chunks.iter().map(|(offsets, sizes)| (offsets.to_vec(), sizes.to_vec())).collect();
        TensorEntry { dtype: DType::U8, size: size.to_vec(), chunks }
    }

    #[test]
    fn parts_are_the_whole_each_element_once() {
        assert_eq!(entry(&[4, 2], &[(&[0, 0], &[3, 2]), (&[3, 0], &[1, 2])]).check(), Ok(()));
        assert_eq!(entry(&[], &[(&[], &[])]).check(), Ok(()));
        for chunks in [
            &[(&[0, 0][..], &[3, 2][..])][..],
            &[(&[0, 0], &[3, 2]), (&[2, 0], &[1, 2])],
            &[(&[0, 0], &[3, 2]), (&[3, 0], &[2, 1])],
            &[(&[0, 0], &[4, 2]), (&[0, 0], &[0, 2]), (&[u64::MAX, 0], &[2, 1])],
            &[(&[0], &[8])],
        ] {
            assert!(entry(&[4, 2], chunks).check().is_err(), "{chunks:?}");
        }
        assert!(entry(&[1 << 40, 1 << 40], &[]).check().is_err());
    }

    #[test]
    fn parts_come_to_their_places() {
        let mut whole = [0; 12];
        place(&[1, 2, 3, 4], &[0, 0], &[2, 2], &[3, 4], 1, &mut whole);
        place(&[5, 6, 7, 8], &[0, 2], &[2, 2], &[3, 4], 1, &mut whole);
        place(&[9, 10, 11, 12], &[2, 0], &[1, 4], &[3, 4], 1, &mut whole);
        assert_eq!(whole, [1, 2, 5, 6, 3, 4, 7, 8, 9, 10, 11, 12]);
    }
}
