//! Everything about a snapshot file but its chunks, and what each chunk must be.
//!
//! Invariant: an outline that exists is whole: trailer, manifest and chunk table matched their hashes and agree with
//! each other and with the file's length. Where the bytes come from, a disk or an object store, is the caller's affair.

use std::ops::Range;
use std::path::{Path, PathBuf};

use super::format::{self, ChunkPlace, ChunkRecord, HEAD_BYTES, Manifest};
use super::trailer::{TRAILER_BYTES, Trailer, check_version};
use crate::codec::ChunkDecoder;
use crate::error::{Error, Result};

/// A snapshot file without its chunks.
#[derive(Clone, Debug)]
pub struct SnapshotOutline {
    pub(super) path: PathBuf,
    pub(super) trailer: Trailer,
    pub(super) manifest: Manifest,
    pub(super) records: Vec<ChunkRecord>,
    pub(super) places: Vec<ChunkPlace>,
    /// Where each chunk begins in the file.
    pub(super) starts: Vec<u64>,
}

impl SnapshotOutline {
    /// The trailer of a file of `file_bytes` whose first and last bytes are these. `path` names the file in errors.
    pub fn trailer(
        head: &[u8; HEAD_BYTES],
        trailer: &[u8; TRAILER_BYTES],
        file_bytes: u64,
        path: &Path,
    ) -> Result<Trailer> {
        check_version(head, trailer, path)?;
        let version = format::check_head(head, path)?;
        let trailer = Trailer::parse(trailer, file_bytes, path)?;
        trailer.require_version(version, path)?;
        Ok(trailer)
    }

    /// The outline of a file from its trailer, the bytes of its chunk table and those of its manifest.
    pub fn parse(trailer: Trailer, table: &[u8], manifest: &[u8], path: &Path) -> Result<SnapshotOutline> {
        if *blake3::hash(manifest).as_bytes() != trailer.manifest_hash {
            return Err(Error::damaged(path, "the manifest does not match its hash"));
        }
        SnapshotOutline::of(format::parse_manifest(manifest, path)?, trailer, table, path)
    }

    /// The outline of a file whose manifest was checked, from the bytes of its chunk table.
    pub(super) fn of(manifest: Manifest, trailer: Trailer, table: &[u8], path: &Path) -> Result<SnapshotOutline> {
        if *blake3::hash(table).as_bytes() != trailer.table_hash {
            return Err(Error::damaged(path, "the chunk table does not match its hash"));
        }
        trailer.require_version(manifest.format, path)?;
        let records = format::parse_table(table);
        let places = format::check_table(&manifest, &records, trailer.table.start, path)?;
        let mut at = HEAD_BYTES as u64;
        let starts = records
            .iter()
            .map(|record| {
                let start = at;
                at += record.encoded;
                start
            })
            .collect();
        Ok(SnapshotOutline { path: path.to_path_buf(), trailer, manifest, records, places, starts })
    }

    /// Everything about the snapshot but its bytes.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Length of the file.
    pub fn file_bytes(&self) -> u64 {
        self.trailer.file_bytes
    }

    /// The hash that stands for the whole file: that of its trailer, which hashes all the rest.
    pub fn file_hash(&self) -> format::Hash {
        *blake3::hash(&self.trailer.to_bytes()).as_bytes()
    }

    /// How many chunks the file has.
    pub fn chunks(&self) -> usize {
        self.records.len()
    }

    /// Where a chunk lies in the file.
    pub fn chunk_range(&self, index: usize) -> Range<u64> {
        self.starts[index]..self.starts[index] + self.records[index].encoded
    }

    /// The chunks that lie in `range` of the file, whole or in part.
    pub fn chunks_within(&self, range: Range<u64>) -> Range<usize> {
        let end = self.starts.partition_point(|start| *start < range.end);
        let first = self.starts.partition_point(|start| *start <= range.start).saturating_sub(1);
        // Behind the last chunk there are other things.
        let is_before = first < self.chunks() && self.chunk_range(first).end <= range.start;
        first + usize::from(is_before)..end
    }

    /// Whether these are the encoded bytes of a chunk, by their hash.
    pub fn check_encoded(&self, index: usize, encoded: &[u8]) -> Result<()> {
        let record = &self.records[index];
        if *blake3::hash(encoded).as_bytes() != record.encoded_hash {
            return Err(self.damaged(index, "does not match its hash"));
        }
        Ok(())
    }

    /// Checks the encoded bytes of a chunk, and decodes them to `raw`, which has as many bytes as the chunk.
    pub(super) fn decode(
        &self,
        index: usize,
        encoded: &[u8],
        raw: &mut [u8],
        decoder: &mut ChunkDecoder,
    ) -> Result<()> {
        self.check_encoded(index, encoded)?;
        let (place, record) = (&self.places[index], &self.records[index]);
        let outcome = decoder.decode(place.context, encoded, raw);
        let whole = self.item_bytes(place.item) == place.bytes as u64;
        let hash = format::chunk_hash(raw, place.offset, whole);
        match outcome {
            Err(e) => Err(self.damaged(index, &format!("does not decode: {e}"))),
            Ok(()) if hash != record.raw_hash => Err(self.damaged(index, "decodes to other bytes than were saved")),
            Ok(()) => Ok(()),
        }
    }

    fn damaged(&self, index: usize, what: &str) -> Error {
        let place = &self.places[index];
        let name = self.item_name(place.item);
        let at = self.starts[index];
        Error::damaged(&self.path, format!("the chunk of {name} at byte {at} {what}"))
    }

    pub(super) fn item_bytes(&self, item: usize) -> u64 {
        let tensors = &self.manifest.tensors;
        match tensors.get(item) {
            Some(tensor) => tensor.meta.bytes().unwrap_or(0),
            None => self.manifest.files[item - tensors.len()].bytes,
        }
    }

    fn item_name(&self, item: usize) -> String {
        let tensors = &self.manifest.tensors;
        match tensors.get(item) {
            Some(tensor) => tensor.meta.label(),
            None => format!("file {}", self.manifest.files[item - tensors.len()].name),
        }
    }
}
