//! The snapshot file: head, chunks, chunk table, manifest, trailer. `docs/format.md` describes it for other readers.
//!
//! Invariant: every byte is covered by a hash or compared with the only value it may have; every number read from a
//! file is held against the file's size before anything is allocated for it.
//! Deliberately not here: I/O (read, commit) and what is in a chunk (codec).

use std::collections::HashSet;
use std::path::Path;

use blake3::hazmat::{HasherExt, Mode, merge_subtrees_non_root, merge_subtrees_root};
use serde::{Deserialize, Serialize};

use crate::codec::{CHUNK_BYTES, ChunkContext, MAX_OVERHEAD};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::ids::{RunId, StateRoot};
use crate::snapshot::{Metrics, Provenance, Role, TensorMeta, TrainState};

/// The newest version that is read. A file is of the oldest version that can hold it; see [`version_of`].
pub const VERSION: u32 = 2;
pub(super) const HEAD_MAGIC: [u8; 8] = *b"\x89CKPTD\r\n";
/// Length of the head.
pub const HEAD_BYTES: usize = 16;
/// Length of a record of the chunk table.
pub const RECORD_BYTES: usize = 72;
/// Largest manifest that is read.
pub(super) const MAX_MANIFEST: u64 = 256 << 20;
/// Longest name of a tensor or a carried file.
const MAX_NAME: usize = 1024;

/// A BLAKE3 hash, or the chaining value of a subtree of one.
pub type Hash = [u8; 32];

/// Everything about a snapshot but its bytes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of the file: that of its tensors.
    pub format: u32,
    /// The training that the snapshot belongs to.
    pub run_id: RunId,
    /// Counts the snapshots of a run, over all its sessions.
    pub seq: u64,
    /// `root` of the snapshot that the run resumed from or took before this one.
    pub parent: Option<StateRoot>,
    /// When the commit began to write the manifest.
    pub created_at: jiff::Timestamp,
    /// Hash over the sorted tensors and the train state; see [`root`].
    pub root: StateRoot,
    /// Every parameter and the loss are finite.
    pub healthy: bool,
    /// Bytes of all tensors.
    pub raw_bytes: u64,
    /// Raw bytes of a chunk; the last one of a tensor or file may be shorter.
    pub chunk_bytes: u64,
    /// Everything besides tensors that decides how the training goes on.
    pub train: TrainState,
    /// Losses of the moment.
    pub metrics: Metrics,
    /// Where the snapshot comes from.
    pub provenance: Provenance,
    /// The tensors, in the order of their chunks in the file.
    pub tensors: Vec<TensorRecord>,
    /// The carried files, whose chunks follow.
    pub files: Vec<FileRecord>,
}

/// What the manifest says of a tensor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TensorRecord {
    /// Role, name, type and shape.
    #[serde(flatten)]
    pub meta: TensorMeta,
    /// BLAKE3 of the raw bytes, as hex.
    pub hash: String,
}

/// What the manifest says of a carried file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FileRecord {
    /// Its plain name.
    pub name: String,
    /// Its length.
    pub bytes: u64,
    /// BLAKE3 of the bytes, as hex.
    pub hash: String,
}

/// What the chunk table says of one chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkRecord {
    /// Bytes in the file.
    pub encoded: u64,
    /// BLAKE3 of these bytes.
    pub encoded_hash: Hash,
    /// BLAKE3 chaining value of the raw bytes at their offset in the tensor; see [`chunk_hash`].
    pub raw_hash: Hash,
}

/// Which part of a tensor or of a carried file a chunk is.
#[derive(Clone, Copy, Debug)]
pub struct ChunkPlace {
    /// Index in `tensors`, then on in `files`.
    pub item: usize,
    /// Offset of the chunk in the item's raw bytes.
    pub offset: u64,
    /// Raw bytes of the chunk.
    pub bytes: usize,
    /// What the codec has to know of it.
    pub context: ChunkContext,
}

impl Manifest {
    /// Number of chunks that the tensors and files make, found without listing them.
    pub fn chunk_count(&self) -> u64 {
        let sizes = self.tensors.iter().map(|t| t.meta.bytes().unwrap_or(0)).chain(self.files.iter().map(|f| f.bytes));
        sizes.map(|bytes| bytes.div_ceil(CHUNK_BYTES as u64)).fold(0, u64::saturating_add)
    }

    /// The chunks of all tensors and files, in the order in which they stand in the file.
    pub fn places(&self) -> Vec<ChunkPlace> {
        chunk_places(self.tensors.iter().map(|t| &t.meta), self.files.iter().map(|f| f.bytes))
    }
}

/// The version of a file with these tensors: the oldest one that can hold them.
pub fn version_of<'a>(tensors: impl IntoIterator<Item = &'a TensorMeta>) -> u32 {
    if tensors.into_iter().any(|tensor| tensor.role == Role::State) { 2 } else { 1 }
}

/// Cuts tensors and files at multiples of [`CHUNK_BYTES`]. Sizes must have been checked for overflow.
pub fn chunk_places<'a>(
    tensors: impl Iterator<Item = &'a TensorMeta>,
    files: impl Iterator<Item = u64>,
) -> Vec<ChunkPlace> {
    let tensors = tensors.map(|t| (t.bytes().unwrap_or(0), t.dtype, t.role, t.row_elements()));
    let files = files.map(|bytes| (bytes, DType::U8, Role::Buffer, 0));
    let mut places = Vec::new();
    for (item, (total, dtype, role, row)) in tensors.chain(files).enumerate() {
        for offset in (0..total).step_by(CHUNK_BYTES) {
            let first = offset / dtype.size() as u64;
            let bytes = (total - offset).min(CHUNK_BYTES as u64) as usize;
            places.push(ChunkPlace { item, offset, bytes, context: ChunkContext { dtype, role, row, first } });
        }
    }
    places
}

/// Hash of a chunk's raw bytes: the chaining value of its subtree in the BLAKE3 tree of the whole tensor (or, where the
/// chunk is all of it, the tensor's hash). The position enters it, and [`merge`] makes the tensor's hash of them
/// without a second pass over the bytes.
pub fn chunk_hash(raw: &[u8], offset: u64, whole: bool) -> Hash {
    if whole {
        *blake3::hash(raw).as_bytes()
    } else {
        blake3::Hasher::new().set_input_offset(offset).update(raw).finalize_non_root()
    }
}

/// The hash of a tensor from its chunks' hashes: plain BLAKE3 of all its bytes.
pub fn merge(chunks: &[Hash]) -> Hash {
    fn subtree(chunks: &[Hash]) -> Hash {
        match chunks {
            [one] => *one,
            _ => {
                let (left, right) = chunks.split_at(left_half(chunks.len()));
                merge_subtrees_non_root(&subtree(left), &subtree(right), Mode::Hash)
            }
        }
    }
    match chunks {
        [] => *blake3::hash(&[]).as_bytes(),
        [one] => *one,
        _ => {
            let (left, right) = chunks.split_at(left_half(chunks.len()));
            *merge_subtrees_root(&subtree(left), &subtree(right), Mode::Hash).as_bytes()
        }
    }
}

/// BLAKE3's left subtree: the largest power of two below `n`.
fn left_half(n: usize) -> usize {
    n.next_power_of_two() / 2
}

/// The identity of a training state: BLAKE3 over the tensors in the order of (role, name) and the train state. It does
/// not depend on codec, chunking, time, run id or the number of interruptions.
pub fn root(tensors: &[TensorRecord], train: &TrainState) -> StateRoot {
    let mut sorted: Vec<&TensorRecord> = tensors.iter().collect();
    sorted.sort_by(|a, b| (a.meta.role.name(), &a.meta.name).cmp(&(b.meta.role.name(), &b.meta.name)));
    let mut hasher = blake3::Hasher::new_derive_key("ckptd 2026 root of a training state");
    let mut text = |s: &str| {
        hasher.update(&(s.len() as u64).to_le_bytes()).update(s.as_bytes());
    };
    for tensor in sorted {
        text(tensor.meta.role.name());
        text(&tensor.meta.name);
        text(tensor.meta.dtype.name());
        let shape: Vec<String> = tensor.meta.shape.iter().map(u64::to_string).collect();
        text(&shape.join(","));
        text(&tensor.hash);
    }
    // A struct of plain fields and a sorted map always serialises, and always to the same text.
    text(&serde_json::to_string(train).unwrap_or_default());
    StateRoot::from(hasher.finalize().to_hex().as_str())
}

/// A hash as 64 hexadecimal digits.
pub fn hex(hash: &Hash) -> String {
    blake3::Hash::from_bytes(*hash).to_hex().to_string()
}

/// The first bytes of every file of a version.
pub fn head(version: u32) -> [u8; HEAD_BYTES] {
    let mut head = [0; HEAD_BYTES];
    head[..8].copy_from_slice(&HEAD_MAGIC);
    head[8..12].copy_from_slice(&version.to_le_bytes());
    head
}

/// The version of a file by its first bytes; refuses what does not begin as one of a known version.
pub fn check_head(bytes: &[u8; HEAD_BYTES], path: &Path) -> Result<u32> {
    if bytes[..8] != HEAD_MAGIC {
        return Err(Error::damaged(path, "does not begin as a ckptd snapshot"));
    }
    let known = (1..=VERSION).find(|version| *bytes == head(*version));
    known.ok_or_else(|| Error::damaged(path, "the head is damaged"))
}

pub(super) fn newer(path: &Path, version: u64) -> Error {
    Error::Newer { path: path.to_path_buf(), version, known: VERSION }
}

/// The chunk table as it is written.
pub fn table_bytes(records: &[ChunkRecord]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(records.len() * RECORD_BYTES);
    for record in records {
        bytes.extend_from_slice(&record.encoded.to_le_bytes());
        bytes.extend_from_slice(&record.encoded_hash);
        bytes.extend_from_slice(&record.raw_hash);
    }
    bytes
}

/// The records of a chunk table; what does not fill a record at its end is left out.
pub fn parse_table(bytes: &[u8]) -> Vec<ChunkRecord> {
    let record =
        |b: &[u8]| ChunkRecord { encoded: u64_at(b, 0), encoded_hash: hash_at(b, 8), raw_hash: hash_at(b, 40) };
    bytes.chunks_exact(RECORD_BYTES).map(record).collect()
}

/// Parses and checks a manifest against itself and its file: names, sizes, counts.
pub fn parse_manifest(bytes: &[u8], path: &Path) -> Result<Manifest> {
    let manifest: Manifest =
        serde_json::from_slice(bytes).map_err(|e| Error::damaged(path, format!("the manifest does not parse: {e}")))?;
    let damaged = |reason: String| Err(Error::damaged(path, reason));
    if manifest.format > VERSION {
        return Err(newer(path, manifest.format.into()));
    }
    if manifest.format == 0 || manifest.chunk_bytes != CHUNK_BYTES as u64 {
        return damaged(format!("format {} with chunks of {} is not known", manifest.format, manifest.chunk_bytes));
    }
    let needed = version_of(manifest.tensors.iter().map(|tensor| &tensor.meta));
    if manifest.format != needed {
        return damaged(format!("the manifest says format {}, and its tensors are of {needed}", manifest.format));
    }
    let mut names = HashSet::new();
    let mut raw = 0u64;
    for tensor in &manifest.tensors {
        let meta = &tensor.meta;
        if meta.name.len() > MAX_NAME || meta.shape.len() > 16 || !names.insert((Some(meta.role), meta.name.as_str())) {
            return damaged(format!("{} stands twice in the manifest, or its name or shape is absurd", meta.label()));
        }
        match meta.bytes().and_then(|bytes| raw.checked_add(bytes)) {
            Some(sum) => raw = sum,
            None => return damaged(format!("the shape of {} overflows", meta.label())),
        }
    }
    for file in &manifest.files {
        if !plain_name(&file.name) || !names.insert((None, file.name.as_str())) {
            return damaged(format!("{:?} is no name for a carried file", file.name));
        }
    }
    if raw != manifest.raw_bytes || raw > i64::MAX as u64 {
        return damaged(format!("the tensors have {raw} bytes, the manifest says {}", manifest.raw_bytes));
    }
    Ok(manifest)
}

/// A file name that can be written anywhere without leaving the folder.
pub fn plain_name(name: &str) -> bool {
    !name.is_empty() && name.len() <= 255 && name != "." && name != ".." && !name.contains(['/', '\\', '\0'])
}

/// Holds the chunk table, which begins at byte `table_at` of the file, against the manifest: number and lengths of
/// chunks, tensors' hashes, root. Returns which part of which tensor or file each chunk is.
pub fn check_table(
    manifest: &Manifest,
    records: &[ChunkRecord],
    table_at: u64,
    path: &Path,
) -> Result<Vec<ChunkPlace>> {
    let damaged = |reason: String| Err(Error::damaged(path, reason));
    if manifest.chunk_count() != records.len() as u64 {
        return damaged(format!("{} chunks in the table, {} in the manifest", records.len(), manifest.chunk_count()));
    }
    let places = manifest.places();
    let end = records.iter().try_fold(HEAD_BYTES as u64, |at, r| at.checked_add(r.encoded));
    if end != Some(table_at) {
        return damaged("the chunks' lengths do not add up to the file".into());
    }
    if places.iter().zip(records).any(|(u, r)| r.encoded == 0 || r.encoded > (u.bytes + MAX_OVERHEAD) as u64) {
        return damaged("a chunk is longer than its codec can make it".into());
    }
    let mut start = 0;
    let items = manifest.tensors.iter().map(|t| (t.meta.label(), &t.hash));
    for (item, (label, hash)) in items.chain(manifest.files.iter().map(|f| (f.name.clone(), &f.hash))).enumerate() {
        let count = places[start..].iter().take_while(|u| u.item == item).count();
        let chunks: Vec<Hash> = records[start..start + count].iter().map(|r| r.raw_hash).collect();
        if hex(&merge(&chunks)) != *hash {
            return damaged(format!("the chunks' hashes of {label} do not make its hash"));
        }
        start += count;
    }
    if root(&manifest.tensors, &manifest.train) != manifest.root {
        return damaged("root is not the hash of the tensors and the train state".into());
    }
    Ok(places)
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut number = [0; 8];
    number.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(number)
}

pub(super) fn hash_at(bytes: &[u8], at: usize) -> Hash {
    let mut hash = [0; 32];
    hash.copy_from_slice(&bytes[at..at + 32]);
    hash
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::trailer::Trailer;
    use super::*;

    #[test]
    fn a_file_is_of_the_oldest_version_that_can_hold_its_tensors_and_another_one_is_damage() {
        let meta = |role| TensorMeta { role, name: "w".into(), dtype: DType::F32, shape: vec![0] };
        assert_eq!(version_of([&meta(Role::Param), &meta(Role::Buffer)]), 1);
        assert_eq!(version_of([&meta(Role::Param), &meta(Role::State)]), 2);
        let path = Path::new("x");
        assert_eq!((check_head(&head(1), path).unwrap(), check_head(&head(2), path).unwrap()), (1, 2));
        assert!(check_head(&head(3), path).is_err() && check_head(&head(0), path).is_err());
        let trailer = Trailer::new(2, HEAD_BYTES as u64, &[], b"{}");
        assert!(trailer.require_version(2, path).is_ok());
        let error = trailer.require_version(1, path).unwrap_err().to_string();
        assert_eq!(error, "x: its trailer says version 2, another part of it version 1");
    }

    #[test]
    fn the_chunks_of_a_tensor_make_its_plain_blake3() {
        let bytes: Vec<u8> = (0..5 * CHUNK_BYTES + 17).map(|i| ((i * 31) >> 3) as u8).collect();
        for len in [0, 1, 1024, CHUNK_BYTES, CHUNK_BYTES + 1, 2 * CHUNK_BYTES, 3 * CHUNK_BYTES + 5, bytes.len()] {
            let raw = &bytes[..len];
            let chunks: Vec<Hash> = raw
                .chunks(CHUNK_BYTES)
                .enumerate()
                .map(|(i, c)| chunk_hash(c, (i * CHUNK_BYTES) as u64, len <= CHUNK_BYTES))
                .collect();
            assert_eq!(merge(&chunks), *blake3::hash(raw).as_bytes(), "{len} bytes");
        }
    }
}
