//! Reading a snapshot: whole or in parts, always verified, in parallel, straight into the tensors' memory.
//!
//! Invariant: no byte of a tensor leaves this module before the hash of its chunk matched.
//! Deliberately not here: which snapshot to read (resume), what a failure means for the file (verify, quarantine).

use std::fs::File;
use std::ops::Range;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use memmap2::MmapMut;

use super::format::{self, Manifest};
use super::outline::SnapshotOutline;
use super::peek::read_manifest;
use crate::codec::{self, ChunkDecoder};
use crate::error::{Error, Result};
use crate::os::fs::{self, SECTOR, Transfer};
use crate::progress::{NoProgress, ProgressSink};
use crate::snapshot::{CarriedFile, Snapshot, Tensor};

/// Encoded bytes that one thread reads at a time.
const BATCH_BYTES: u64 = 4 << 20;
/// Chunks of a [`ChunkRun`], few enough to stay in a processor's cache until they are written elsewhere.
const RUN_CHUNKS: usize = 2;

/// An open snapshot whose trailer, manifest and chunk table are whole and agree.
#[derive(Debug)]
pub struct SnapshotReader {
    file: File,
    transfer: Transfer,
    outline: SnapshotOutline,
}

/// How a chunk is stored, for `inspect`.
#[derive(Clone, Debug)]
pub struct ChunkStat {
    /// Index in `tensors`, then on in `files`.
    pub item: usize,
    /// Name of its coding.
    pub coding: &'static str,
    /// Its length before encoding, in bytes.
    pub raw: u64,
    /// Its length in the file, in bytes.
    pub encoded: u64,
}

/// Some chunks of an item that follow one another, for reading an item in parts.
pub struct ChunkRun {
    chunks: Range<usize>,
    /// How many it has, decoded.
    pub bytes: usize,
}

/// Chunks that lie one after the other in the file, each with the memory that wants its raw bytes, if any.
type ReadBatch<'a> = Vec<(usize, Option<&'a mut [u8]>)>;

/// A part of an item that is wanted: the item's index, where the part begins in bytes, its memory.
pub type ItemPart<'a> = (usize, u64, &'a mut [u8]);

impl SnapshotReader {
    /// Opens for a restore, through the page cache.
    pub fn open(path: &Path) -> Result<SnapshotReader> {
        SnapshotReader::with_file(path, fs::open_path(path)?)
    }

    /// Opens for a verification or a restore: what is read comes from the device.
    pub fn open_past_cache(path: &Path) -> Result<SnapshotReader> {
        fs::forget_cached(&fs::open_path(path)?);
        let metadata = SnapshotReader::with_file(path, fs::open_path(path)?)?;
        let (mut file, mut transfer) = fs::open_past_cache(path)?;
        if transfer == Transfer::Direct {
            // Some file systems take the flag and refuse the read.
            let mut sector = fs::transfer_memory(SECTOR, path)?;
            if fs::read_at(&file, &mut sector, 0, Transfer::Direct, path).is_err() {
                (file, transfer) = (fs::open_path(path)?, Transfer::Cached);
                fs::forget_cached(&file);
            }
        }
        Ok(SnapshotReader { file, transfer, ..metadata })
    }

    fn with_file(path: &Path, file: File) -> Result<SnapshotReader> {
        let (manifest, trailer) = read_manifest(&file, path)?;
        let mut table = vec![0; (trailer.table.end - trailer.table.start) as usize];
        fs::read_exact_at(&file, &mut table, trailer.table.start, path)?;
        let outline = SnapshotOutline::of(manifest, trailer, &table, path)?;
        Ok(SnapshotReader { file, transfer: Transfer::Cached, outline })
    }

    /// Everything about the file but its chunks.
    pub fn outline(&self) -> &SnapshotOutline {
        &self.outline
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.outline.path
    }

    /// Everything about the snapshot but its bytes.
    pub fn manifest(&self) -> &Manifest {
        &self.outline.manifest
    }

    /// Size of the file.
    pub fn file_bytes(&self) -> u64 {
        self.outline.file_bytes()
    }

    /// The hash that stands for the whole file: that of its trailer, which hashes all the rest.
    pub fn file_hash(&self) -> format::Hash {
        self.outline.file_hash()
    }

    /// The raw bytes of tensor `index` of the manifest.
    pub fn read_tensor(&self, index: usize) -> Result<Vec<u8>> {
        let record = self.outline.manifest.tensors.get(index);
        let bytes = record.and_then(|t| t.meta.bytes()).ok_or_else(|| self.no_item(index))?;
        self.read_item(index, bytes)
    }

    /// A carried file by its name.
    pub fn read_file(&self, name: &str) -> Result<Option<Vec<u8>>> {
        match self.outline.manifest.files.iter().position(|f| f.name == name) {
            Some(i) => {
                self.read_item(self.outline.manifest.tensors.len() + i, self.outline.manifest.files[i].bytes).map(Some)
            }
            None => Ok(None),
        }
    }

    fn read_item(&self, item: usize, bytes: u64) -> Result<Vec<u8>> {
        let mut raw = vec![0; bytes as usize];
        self.read_into(vec![(item, &mut raw)], 1)?;
        Ok(raw)
    }

    /// Decodes items (tensors by their index, then files) straight into the given memory, whose lengths must be the
    /// items' own, on `threads` threads. On an error the memory holds no defined content.
    pub fn read_into(&self, wanted: Vec<(usize, &mut [u8])>, threads: usize) -> Result<()> {
        for (item, memory) in &wanted {
            let total = self.outline.item_bytes(*item);
            if total != memory.len() as u64 {
                return Err(Error::mismatch(
                    &self.outline.path,
                    format!("item {item} has {total} bytes, not {}", memory.len()),
                ));
            }
        }
        self.read_parts(wanted.into_iter().map(|(item, memory)| (item, 0, memory)).collect(), threads)
    }

    /// [`SnapshotReader::read_into`] for parts of items, each with its offset in bytes. Parts begin and end where
    /// chunks do.
    ///
    /// # Errors
    /// As there, and [`Error::Mismatch`] where a part is none.
    pub fn read_parts(&self, wanted: Vec<ItemPart<'_>>, threads: usize) -> Result<()> {
        let mut targets: Vec<Option<&mut [u8]>> = Vec::new();
        targets.resize_with(self.outline.places.len(), || None);
        for (item, offset, memory) in wanted {
            let (range, length) = (self.places_of(item), memory.len());
            let first = range.start + (offset as usize) / codec::CHUNK_BYTES;
            let last = (first + length.div_ceil(codec::CHUNK_BYTES)).min(range.end);
            let places = self.outline.places.get(first..last).unwrap_or_default();
            let fits = places.iter().map(|place| place.bytes).sum::<usize>() == length;
            if !fits || places.first().is_some_and(|place| place.offset != offset) {
                let what = format!("item {item} has no part of {length} bytes at {offset}");
                return Err(Error::mismatch(&self.outline.path, what));
            }
            for (target, chunk) in targets[first..last].iter_mut().zip(memory.chunks_mut(codec::CHUNK_BYTES)) {
                *target = Some(chunk);
            }
        }
        let wanted = targets.into_iter().enumerate().filter(|(_, target)| target.is_some()).collect();
        self.scan(self.batches(wanted), threads, &NoProgress)
    }

    /// The chunks of an item (tensors by their index, then files) in runs, in their order; one without bytes has none.
    pub fn runs(&self, item: usize) -> Vec<ChunkRun> {
        let places = self.places_of(item);
        let run = |first: usize| {
            let chunks = first..places.end.min(first + RUN_CHUNKS);
            let bytes = self.outline.places[chunks.clone()].iter().map(|u| u.bytes).sum();
            ChunkRun { chunks, bytes }
        };
        places.clone().step_by(RUN_CHUNKS).map(run).collect()
    }

    fn places_of(&self, item: usize) -> Range<usize> {
        let until = |item: usize| self.outline.places.partition_point(|u| u.item < item);
        until(item)..until(item + 1)
    }

    /// For one thread that reads runs of chunks.
    pub fn run_reader(&self) -> ChunkRunReader<'_> {
        ChunkRunReader(self.begin())
    }

    fn begin(&self) -> ChunkScan<'_> {
        ChunkScan { reader: self, buffer: None, decoder: ChunkDecoder::new(), scratch: Vec::new() }
    }

    /// Reads and checks every chunk; `progress` advances by encoded bytes.
    pub fn check_all(&self, threads: usize, progress: &dyn ProgressSink) -> Result<()> {
        let all = (0..self.outline.places.len()).map(|i| (i, None)).collect();
        self.scan(self.batches(all), threads, progress)
    }

    /// Everything, in memory.
    pub fn read_snapshot(&self) -> Result<Snapshot> {
        let Manifest { tensors, files, .. } = &self.outline.manifest;
        let items = 0..tensors.len() + files.len();
        let mut raw: Vec<Vec<u8>> = items.map(|item| vec![0; self.outline.item_bytes(item) as usize]).collect();
        self.read_into(raw.iter_mut().map(Vec::as_mut_slice).enumerate().collect(), 1)?;
        let mut raw = raw.into_iter();
        let tensors = tensors.iter().zip(&mut raw).map(|(t, raw)| Tensor::new(t.meta.clone(), raw)).collect();
        let files = files.iter().zip(raw).map(|(file, raw)| CarriedFile { name: file.name.clone(), bytes: raw.into() });
        Ok(Snapshot {
            tensors,
            files: files.collect(),
            train: self.outline.manifest.train.clone(),
            metrics: self.outline.manifest.metrics.clone(),
            provenance: self.outline.manifest.provenance.clone(),
        })
    }

    /// How each chunk is stored. Reads one byte of each.
    pub fn chunk_stats(&self) -> Result<Vec<ChunkStat>> {
        let stat = |i: usize| {
            let mut first = [0];
            fs::read_exact_at(&self.file, &mut first, self.outline.starts[i], &self.outline.path)?;
            let coding = codec::coding_of(&first).unwrap_or("unknown");
            let (place, record) = (&self.outline.places[i], &self.outline.records[i]);
            Ok(ChunkStat { item: place.item, coding, raw: place.bytes as u64, encoded: record.encoded })
        };
        (0..self.outline.places.len()).map(stat).collect()
    }

    /// Joins chunks that follow one another in the file into reads of about [`BATCH_BYTES`].
    fn batches<'a>(&self, wanted: ReadBatch<'a>) -> Vec<ReadBatch<'a>> {
        let mut batches: Vec<ReadBatch> = Vec::new();
        let mut bytes = 0;
        for (index, target) in wanted {
            let encoded = self.outline.records[index].encoded;
            match batches.last_mut().filter(|b| b.last().is_some_and(|(last, _)| last + 1 == index)) {
                Some(batch) if bytes + encoded <= BATCH_BYTES => {
                    batch.push((index, target));
                    bytes += encoded;
                }
                _ => {
                    batches.push(vec![(index, target)]);
                    bytes = encoded;
                }
            }
        }
        batches
    }

    fn scan(&self, batches: Vec<ReadBatch<'_>>, threads: usize, progress: &dyn ProgressSink) -> Result<()> {
        let threads = threads.clamp(1, batches.len().max(1));
        let queue = Mutex::new(batches.into_iter());
        let failed = AtomicBool::new(false);
        let work = || -> Result<()> {
            let mut scan = self.begin();
            while !failed.load(Ordering::Relaxed) {
                // A poisoned queue is still a queue: the thread that panicked took only its own batch.
                let next = queue.lock().unwrap_or_else(|e| e.into_inner()).next();
                let Some(batch) = next else { break };
                let bytes: u64 = batch.iter().map(|(i, _)| self.outline.records[*i].encoded).sum();
                scan.batch(batch).inspect_err(|_| failed.store(true, Ordering::Relaxed))?;
                progress.advance(bytes).inspect_err(|_| failed.store(true, Ordering::Relaxed))?;
            }
            Ok(())
        };
        if threads == 1 {
            return work();
        }
        std::thread::scope(|scope| {
            let handles: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
            // Every thread is joined; the first error counts.
            let results: Vec<Result<()>> = handles
                .into_iter()
                .map(|h| {
                    let died = |_| Err(Error::Other(format!("reading {}: a thread died", self.outline.path.display())));
                    h.join().unwrap_or_else(died)
                })
                .collect();
            results.into_iter().collect()
        })
    }

    fn no_item(&self, index: usize) -> Error {
        Error::mismatch(&self.outline.path, format!("has no tensor number {index}"))
    }
}

/// Reads runs of chunks on one thread, with the memory that it takes.
pub struct ChunkRunReader<'a>(ChunkScan<'a>);

impl ChunkRunReader<'_> {
    /// Decodes `run` to `raw`, which has as many bytes. On an error it holds no defined content.
    pub fn read(&mut self, run: &ChunkRun, raw: &mut [u8]) -> Result<()> {
        let targets = raw.chunks_mut(codec::CHUNK_BYTES).map(Some);
        self.0.batch(run.chunks.clone().zip(targets).collect())
    }
}

/// One thread of a scan, with its memory.
struct ChunkScan<'a> {
    reader: &'a SnapshotReader,
    buffer: Option<MmapMut>,
    decoder: ChunkDecoder,
    scratch: Vec<u8>,
}

impl ChunkScan<'_> {
    fn batch(&mut self, batch: ReadBatch<'_>) -> Result<()> {
        let reader = self.reader;
        let (Some(first), Some(last)) = (batch.first().map(|b| b.0), batch.last().map(|b| b.0)) else { return Ok(()) };
        let from = reader.outline.starts[first];
        let until = reader.outline.starts[last] + reader.outline.records[last].encoded;
        let sector = SECTOR as u64;
        let (read_from, read_until) = match reader.transfer {
            Transfer::Direct => (from / sector * sector, until.next_multiple_of(sector)),
            Transfer::Cached => (from, until),
        };
        let length = (read_until - read_from) as usize;
        let mut buffer = match self.buffer.take().filter(|b| b.len() >= length) {
            Some(buffer) => buffer,
            None => fs::transfer_memory(length.next_multiple_of(SECTOR).max(SECTOR), &reader.outline.path)?,
        };
        let got = fs::read_at(&reader.file, &mut buffer[..length], read_from, reader.transfer, &reader.outline.path)?;
        if (got as u64) < until - read_from {
            return Err(Error::damaged(
                &reader.outline.path,
                format!("the file ends within its data after byte {read_from}"),
            ));
        }
        for (index, target) in batch {
            let start = (reader.outline.starts[index] - read_from) as usize;
            let encoded = &buffer[start..start + reader.outline.records[index].encoded as usize];
            self.chunk(index, encoded, target)?;
        }
        self.buffer = Some(buffer);
        Ok(())
    }

    fn chunk(&mut self, index: usize, encoded: &[u8], target: Option<&mut [u8]>) -> Result<()> {
        let outline = &self.reader.outline;
        let raw = match target {
            Some(target) => target,
            None => {
                self.scratch.resize(outline.places[index].bytes, 0);
                &mut self.scratch[..]
            }
        };
        outline.decode(index, encoded, raw, &mut self.decoder)
    }
}
