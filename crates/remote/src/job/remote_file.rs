//! A snapshot file at a remote: its outline, and its chunks in ranges.
//!
//! Invariant: no byte of a file leaves this module before the hash of its chunk matched, and no outline before its
//! file's hash did. A chunk that does not match is asked for once more: a bit may have flipped on the way.

use std::ops::Range;
use std::path::PathBuf;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

use ckptd_core::error::Error;
use ckptd_core::store::format::HEAD_BYTES;
use ckptd_core::store::outline::SnapshotOutline;
use ckptd_core::store::trailer::TRAILER_BYTES;

use super::error::Result;
use super::place::RemoteJob;
use crate::layout::{ContentHash, JobObject};

/// Bytes of one request.
const RANGE_BYTES: u64 = 8 << 20;
/// Requests under way at a time, each with a buffer for its range.
const IN_FLIGHT: usize = 3;

/// A snapshot file at a remote, whose outline was read and is whole.
#[derive(Debug)]
pub struct RemoteFile<'a> {
    job: &'a RemoteJob,
    object: JobObject,
    outline: SnapshotOutline,
    /// The first bytes, and those from the chunk table to the end.
    head: Bytes,
    tail: Bytes,
}

/// Chunks that lie one after the other.
type Batch = Range<usize>;

impl RemoteFile<'_> {
    /// Reads the outline of the file with this hash.
    ///
    /// # Errors
    /// [`Error::Damaged`] where it is not that file.
    pub async fn open<'a>(job: &'a RemoteJob, hash: &ContentHash) -> Result<RemoteFile<'a>> {
        let object = JobObject::Data(hash.clone());
        let (name, path) = (object.name(), PathBuf::from(job.path_of(&object)));
        let gone = || Error::damaged(&path, "is not there");
        let bytes = job.storage().head(&name).await?.ok_or_else(gone)?.bytes;
        if bytes < (HEAD_BYTES + TRAILER_BYTES) as u64 {
            return Err(Error::damaged(&path, format!("{bytes} bytes are too few for a snapshot; it was cut")).into());
        }
        let head = job.storage().get_range(&name, 0..HEAD_BYTES as u64).await?;
        let last = job.storage().get_range(&name, bytes - TRAILER_BYTES as u64..bytes).await?;
        let trailer = SnapshotOutline::trailer(&fixed(&head), &fixed(&last), bytes, &path)?;
        let table_at = trailer.table.start;
        let lengths = (trailer.table.end - table_at, trailer.manifest.end - table_at);
        let tail = job.storage().get_range(&name, table_at..bytes).await?;
        let (table, manifest) = (&tail[..lengths.0 as usize], &tail[lengths.0 as usize..lengths.1 as usize]);
        let outline = SnapshotOutline::parse(trailer, table, manifest, &path)?;
        if ContentHash::from(outline.file_hash()) != *hash {
            return Err(Error::damaged(&path, "is another file than its name says").into());
        }
        Ok(RemoteFile { job, object, outline, head, tail })
    }

    /// Everything about the file but its chunks.
    pub fn outline(&self) -> &SnapshotOutline {
        &self.outline
    }

    /// Reads chunks, as many as `wanted` says, and hands what matched its hash to `take` with its offset in the file,
    /// in any order.
    pub async fn read(
        &self,
        wanted: impl Fn(usize) -> bool,
        take: impl Fn(&[u8], u64) -> ckptd_core::Result<()>,
    ) -> Result<()> {
        let mut batches = self.batches(wanted).into_iter();
        let buffer = || Vec::with_capacity(RANGE_BYTES as usize);
        let mut reading: FuturesUnordered<_> =
            batches.by_ref().take(IN_FLIGHT).map(|batch| self.read_batch(batch, buffer())).collect();
        while let Some(read) = reading.next().await {
            let (bytes, offset) = read?;
            take(&bytes, offset)?;
            reading.extend(batches.next().map(|batch| self.read_batch(batch, bytes)));
        }
        Ok(())
    }

    /// Reads the whole file: chunks as [`RemoteFile::read`], and what is around them.
    pub async fn read_all(&self, take: impl Fn(&[u8], u64) -> ckptd_core::Result<()>) -> Result<()> {
        take(&self.head, 0)?;
        take(&self.tail, self.outline.file_bytes() - self.tail.len() as u64)?;
        self.read(|_| true, take).await
    }

    /// Reads chunks into `bytes`, in place of what is there: a new buffer for each range would leave holes in the heap.
    async fn read_batch(&self, batch: Batch, mut bytes: Vec<u8>) -> Result<(Vec<u8>, u64)> {
        let range = self.range(&batch);
        let mut tried = false;
        loop {
            self.job.storage().read_into(&self.object.name(), range.clone(), &mut bytes).await?;
            match self.check(&batch, &bytes, range.start) {
                Ok(()) => return Ok((bytes, range.start)),
                Err(error) if tried => return Err(error.into()),
                Err(_) => tried = true,
            }
        }
    }

    fn check(&self, batch: &Batch, bytes: &[u8], from: u64) -> ckptd_core::Result<()> {
        batch.clone().try_for_each(|index| {
            let range = self.outline.chunk_range(index);
            let chunk = (range.start - from) as usize..(range.end - from) as usize;
            self.outline.check_encoded(index, bytes.get(chunk).unwrap_or_default())
        })
    }

    fn range(&self, batch: &Batch) -> Range<u64> {
        self.outline.chunk_range(batch.start).start..self.outline.chunk_range(batch.end - 1).end
    }

    fn batches(&self, wanted: impl Fn(usize) -> bool) -> Vec<Batch> {
        let mut batches: Vec<Batch> = Vec::new();
        for index in (0..self.outline.chunks()).filter(|index| wanted(*index)) {
            let end = self.outline.chunk_range(index).end;
            match batches.last_mut() {
                Some(batch)
                    if batch.end == index && end - self.outline.chunk_range(batch.start).start <= RANGE_BYTES =>
                {
                    batch.end += 1;
                }
                _ => batches.push(index..index + 1),
            }
        }
        batches
    }
}

/// The bytes as an array; all zeros, which is no head and no trailer, where the store gave fewer.
fn fixed<const N: usize>(bytes: &[u8]) -> [u8; N] {
    bytes.try_into().unwrap_or([0; N])
}
