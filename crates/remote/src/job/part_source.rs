//! The parts of a file on this machine, in memory that is used again and again.
//!
//! Invariant: no more memory is held than parts are on their way at a time. What is read does not stay in the page
//! cache, which has better uses beside a training. Of a snapshot no byte of a chunk leaves this module before its hash
//! matched: what rots between its verification and its upload is found here, where a store's digests would not find it.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use memmap2::MmapMut;

use ckptd_core::error::Error;
use ckptd_core::os::fs::{self, SECTOR, Transfer};
use ckptd_core::store::SnapshotReader;
use ckptd_core::store::outline::SnapshotOutline;

use super::error::{JobError, Result};

/// Parts begin at multiples of this, so that they can be read past the page cache.
pub(super) const PART_STEP: u64 = SECTOR as u64;

/// A file whose parts are to be sent.
#[derive(Clone, Debug)]
pub(super) struct PartSource(Arc<SourceFile>);

#[derive(Debug)]
struct SourceFile {
    file: File,
    transfer: Transfer,
    path: PathBuf,
    /// What each chunk must be, of a snapshot.
    outline: Option<SnapshotOutline>,
    /// Memory that no part is in.
    free: Mutex<Vec<MmapMut>>,
}

impl PartSource {
    /// A snapshot file.
    pub(super) fn snapshot(reader: &SnapshotReader) -> ckptd_core::Result<PartSource> {
        PartSource::with(reader.path(), Some(reader.outline().clone()))
    }

    /// Any other file.
    pub(super) fn file(path: &Path) -> ckptd_core::Result<PartSource> {
        PartSource::with(path, None)
    }

    fn with(path: &Path, outline: Option<SnapshotOutline>) -> ckptd_core::Result<PartSource> {
        let (mut file, mut transfer) = fs::open_past_cache(path)?;
        if transfer == Transfer::Direct {
            // Some file systems take the flag and refuse the read.
            let mut sector = fs::transfer_memory(SECTOR, path)?;
            if fs::read_at(&file, &mut sector, 0, Transfer::Direct, path).is_err() {
                (file, transfer) = (fs::open_path(path)?, Transfer::Cached);
            }
        }
        let free = Mutex::default();
        Ok(PartSource(Arc::new(SourceFile { file, transfer, path: path.to_owned(), outline, free })))
    }

    /// The bytes from `from`, a multiple of [`PART_STEP`], on. The loop of events goes on meanwhile.
    pub(super) async fn read(&self, from: u64, length: u64) -> Result<Bytes> {
        let source = self.clone();
        let reading = tokio::task::spawn_blocking(move || source.read_now(from, length));
        Ok(reading.await.map_err(|e| JobError::other(format!("reading a file: {e}")))??)
    }

    fn read_now(&self, from: u64, length: u64) -> ckptd_core::Result<Bytes> {
        let SourceFile { file, transfer, path, free, .. } = &*self.0;
        let length = usize::try_from(length).map_err(|_| Error::Other(format!("{length} bytes are no part")))?;
        let room = length.max(1).next_multiple_of(SECTOR);
        let kept = free.lock().unwrap_or_else(|e| e.into_inner()).pop().filter(|memory| memory.len() >= room);
        let mut memory = kept.map_or_else(|| fs::transfer_memory(room, path), Ok)?;
        self.fill(&mut memory[..room], from, length)?;
        self.check(from, &memory[..length])?;
        if *transfer == Transfer::Cached {
            fs::forget_cached(file);
        }
        Ok(Bytes::from_owner(PartBody { memory: Some(memory), length, source: self.0.clone() }))
    }

    /// Reads `length` bytes into `room`, which is whole sectors.
    fn fill(&self, room: &mut [u8], from: u64, length: usize) -> ckptd_core::Result<()> {
        let SourceFile { file, transfer, path, .. } = &*self.0;
        let wanted = if *transfer == Transfer::Direct { room.len() } else { length };
        if fs::read_at(file, &mut room[..wanted], from, *transfer, path)? < length {
            return Err(Error::damaged(path, format!("the file ends within its data at byte {from}")));
        }
        Ok(())
    }

    /// Holds all chunks that are in `part`, which lies at `from`, against their hashes; of the first and the last
    /// what is in other parts is read for that.
    fn check(&self, from: u64, part: &[u8]) -> ckptd_core::Result<()> {
        let Some(outline) = &self.0.outline else { return Ok(()) };
        let end = from + part.len() as u64;
        for index in outline.chunks_within(from..end) {
            let chunk = outline.chunk_range(index);
            let (first, last) = (chunk.start.max(from), chunk.end.min(end));
            let here = &part[(first - from) as usize..(last - from) as usize];
            if (first, last) == (chunk.start, chunk.end) {
                outline.check_encoded(index, here)?;
                continue;
            }
            let begin = chunk.start / PART_STEP * PART_STEP;
            let length = (chunk.end - begin) as usize;
            let mut around = fs::transfer_memory(length.next_multiple_of(SECTOR), &self.0.path)?;
            self.fill(&mut around, begin, length)?;
            around[(first - begin) as usize..(last - begin) as usize].copy_from_slice(here);
            outline.check_encoded(index, &around[(chunk.start - begin) as usize..length])?;
        }
        Ok(())
    }
}

/// A part in its memory, which goes back when the last reader is done.
struct PartBody {
    memory: Option<MmapMut>,
    length: usize,
    source: Arc<SourceFile>,
}

impl AsRef<[u8]> for PartBody {
    fn as_ref(&self) -> &[u8] {
        self.memory.as_ref().map_or(&[], |memory| &memory[..self.length])
    }
}

impl Drop for PartBody {
    fn drop(&mut self) {
        self.source.free.lock().unwrap_or_else(|e| e.into_inner()).extend(self.memory.take());
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn parts_are_read_exactly_and_share_the_memory_of_those_that_are_done() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let whole: Vec<u8> = (0..3 * SECTOR + 7).map(|at| (at % 251) as u8).collect();
        std::fs::write(&path, &whole).unwrap();
        let source = PartSource::file(&path).unwrap();
        for _ in 0..3 {
            for (from, length) in [(0, 2 * SECTOR), (2 * SECTOR, SECTOR + 7)] {
                let part = source.read(from as u64, length as u64).await.unwrap();
                assert_eq!(part, whole[from..from + length]);
            }
        }
        assert_eq!(source.0.free.lock().unwrap().len(), 1, "one part at a time needs one piece of memory");
        let beyond = source.read(2 * PART_STEP, 2 * PART_STEP).await.unwrap_err();
        assert!(beyond.to_string().contains("ends within its data"), "{beyond}");
    }

    #[tokio::test]
    async fn a_part_of_a_snapshot_that_rotted_since_it_was_opened_is_not_given_out() {
        let (_folder, store) = ckptd_testkit::small::store();
        let path = ckptd_testkit::small::save_verified(&store, 10, 1).path;
        let (reader, whole) = (SnapshotReader::open(&path).unwrap(), std::fs::read(&path).unwrap());
        let source = PartSource::snapshot(&reader).unwrap();
        let outline = reader.outline();
        let parts = || (0..whole.len()).step_by(SECTOR);
        for at in (0..outline.chunks()).map(|index| outline.chunk_range(index).start as usize) {
            let mut rotten = whole.clone();
            rotten[at] ^= 1;
            std::fs::write(&path, &rotten).unwrap();
            let chunk = outline.chunks_within(at as u64..at as u64 + 1);
            let range = outline.chunk_range(chunk.start);
            for from in parts() {
                let length = SECTOR.min(whole.len() - from);
                let read = source.read(from as u64, length as u64).await;
                let is_in = (from as u64) < range.end && from as u64 + length as u64 > range.start;
                match read {
                    Ok(part) => assert!(!is_in && part == whole[from..from + length], "{at} {from}"),
                    Err(error) => {
                        assert!(is_in && error.to_string().contains("does not match"), "{at} {from}: {error}")
                    }
                }
            }
            std::fs::write(&path, &whole).unwrap();
        }
        for from in parts() {
            let length = SECTOR.min(whole.len() - from);
            assert_eq!(source.read(from as u64, length as u64).await.unwrap(), whole[from..from + length]);
        }
    }
}
