//! Writing a snapshot: encode in parallel, hash, write, sync, publish.
//!
//! Invariant: a name under `snapshots/` appears by rename, after the file's fsync and before the folders'. A step that
//! fails ends the attempt: its file is removed and nothing is retried on it. Memory is bounded by a window of chunks,
//! and a tensor's handle is dropped as soon as its last chunk is encoded.
//! Deliberately not here: when to take a snapshot, and whether what was written can be read back (verify).

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::format::{self, ChunkPlace, ChunkRecord, FileRecord, HEAD_BYTES, Manifest, TensorRecord};
use super::handle::Store;
use super::layout;
use super::lock::StoreLock;
use super::trailer::Trailer;
use crate::codec::{CHUNK_BYTES, ChunkEncoder, max_encode_bytes};
use crate::dtype;
use crate::error::{Error, Result};
use crate::ids::{RunId, SnapshotId, StateRoot};
use crate::os::block_writer::{BlockWriter, Starvation};
use crate::os::dir::Dir;
use crate::os::fs::{self, SECTOR};
use crate::os::process::{ENCODING_NICE, lower_priority, processors};
use crate::pipeline::{Pipeline, PipelineEnded};
use crate::snapshot::{Role, Snapshot, TensorBytes, TensorMeta};

/// How long the writer waits for a chunk before it asks again whether the commit is cancelled or hurried.
const CONTROL_INTERVAL: Duration = Duration::from_millis(10);
/// Chunks that may be encoded ahead of the writer: two of its blocks, so that it finds the next one while it waits for
/// the device, and some for each thread, since chunks are written in their order.
const WINDOW: usize = 2 * crate::os::block_writer::BLOCK_BYTES / CHUNK_BYTES;
const WINDOW_PER_THREAD: usize = 4;

/// What a commit shares the machine with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommitPace {
    /// A training that goes first.
    Background,
    /// Nothing in particular.
    Alone,
    /// Nothing, and a deadline is near: a chunk that the device would wait for is stored as it is.
    Hurried,
}

/// How a snapshot is written, and what its manifest says of its place in the run.
#[derive(Clone, Debug)]
pub struct CommitOptions {
    /// The training that it belongs to.
    pub run_id: RunId,
    /// Its number in the run, from 1.
    pub seq: u64,
    /// Root of the snapshot before it.
    pub parent: Option<StateRoot>,
    /// `[snapshot] level`.
    pub level: u8,
    /// Encoding threads, at least 1.
    pub threads: usize,
    /// What the commit shares the machine with.
    pub pace: CommitPace,
    /// What the manifest gives as its time; `None`: the moment at which the manifest is made.
    pub created_at: Option<jiff::Timestamp>,
    /// Size of the snapshot before, to reserve room; 0 if unknown.
    pub expected_bytes: u64,
    /// Lets another thread hurry or cancel the commit.
    pub handle: Arc<CommitHandle>,
}

/// Lets another thread hurry or cancel a commit, and see how far it is.
#[derive(Debug, Default)]
pub struct CommitHandle {
    hurried: AtomicBool,
    cancelled: Arc<AtomicBool>,
    chunks: AtomicUsize,
    written: AtomicUsize,
}

impl CommitHandle {
    /// Gives a commit at low priority all processors at the usual one.
    pub fn hurry(&self) {
        self.hurried.store(true, Ordering::Relaxed);
    }

    /// Ends the commit with [`Error::Abandoned`], unless its last chunk is written already.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    /// One whose commit is cancelled by setting `flag`.
    pub fn cancelled_by(flag: Arc<AtomicBool>) -> CommitHandle {
        CommitHandle { cancelled: flag, ..CommitHandle::default() }
    }

    /// The share of its chunks that is written, from 0 to 1.
    pub fn fraction(&self) -> f64 {
        let chunks = self.chunks.load(Ordering::Relaxed);
        if chunks == 0 { 0.0 } else { self.written.load(Ordering::Relaxed) as f64 / chunks as f64 }
    }
}

impl CommitOptions {
    /// Level 1, one thread, no parent, nothing beside it.
    pub fn new(run_id: impl Into<RunId>, seq: u64) -> CommitOptions {
        CommitOptions {
            run_id: run_id.into(),
            seq,
            parent: None,
            level: 1,
            threads: 1,
            pace: CommitPace::Alone,
            created_at: None,
            expected_bytes: 0,
            handle: Arc::default(),
        }
    }
}

/// What a commit made durable.
#[derive(Clone, Debug)]
pub struct Committed {
    /// Its name without the suffix.
    pub id: SnapshotId,
    /// Where the file is.
    pub path: PathBuf,
    /// Size of the file.
    pub bytes: u64,
    /// Bytes of its tensors.
    pub raw_bytes: u64,
    /// The identity of the state.
    pub root: StateRoot,
    /// Every parameter and the loss are finite.
    pub healthy: bool,
    /// From the first chunk to the last folder's sync.
    pub write_ms: f64,
}

/// Writes `snapshot` to the store. When this returns, the snapshot is whole and durable under its final name; on an
/// error it is not there.
///
/// # Errors
/// [`Error::Abandoned`] after [`CommitHandle::cancel`], [`Error::NoSpace`] on a full disk, [`Error::Mismatch`] where a
/// tensor has not as many bytes as its shape says.
pub fn commit(store: &Store, _lock: &StoreLock, snapshot: Snapshot, options: &CommitOptions) -> Result<Committed> {
    let started = Instant::now();
    let staging = store.folder(layout::Folder::Staging)?;
    let part = layout::staging_file(&layout::snapshot_id(snapshot.train.step, Some(options.seq)));
    staging.remove(&part)?;
    let outcome = write_file(&staging, &part, snapshot, options).and_then(|(manifest, bytes)| {
        let (id, path) = publish(store, &staging, &part, &manifest)?;
        Ok((manifest, bytes, id, path))
    });
    if outcome.is_err() {
        // Report the first error, not the clean-up's; the next start cleans the folder again.
        let _ = staging.remove(&part);
    }
    let (manifest, bytes, id, path) = outcome?;
    Ok(Committed {
        id,
        path,
        bytes,
        raw_bytes: manifest.raw_bytes,
        root: manifest.root,
        healthy: manifest.healthy,
        write_ms: started.elapsed().as_secs_f64() * 1e3,
    })
}

/// Renames the finished file into place and makes that durable: the last step that can fail. Returns its id and path.
pub(super) fn publish(store: &Store, staging: &Dir, part: &str, manifest: &Manifest) -> Result<(SnapshotId, PathBuf)> {
    let snapshots = store.folder(layout::Folder::Snapshots)?;
    let mut id = layout::snapshot_id(manifest.train.step, None);
    // The plain name can be taken, by an unhealthy snapshot of the same step for example: that one is not touched.
    if snapshots.stat(&layout::snapshot_file(&id))?.is_some() {
        id = layout::snapshot_id(manifest.train.step, Some(manifest.seq));
    }
    let name = layout::snapshot_file(&id);
    staging.rename_new(part, &snapshots, &name)?;
    let synced = snapshots.sync().and_then(|()| staging.sync());
    if let Err(e) = synced {
        // Not durable, so it must not be there either.
        let _ = snapshots.remove(&name);
        return Err(e);
    }
    Ok((id, snapshots.join(&name)))
}

/// Writes and syncs the whole file in staging. Returns its manifest and its length.
fn write_file(staging: &Dir, part: &str, snapshot: Snapshot, options: &CommitOptions) -> Result<(Manifest, u64)> {
    let path = staging.join(part);
    let raw_bytes = check(&snapshot, &path)?;
    let file = staging.create_file(part)?;
    let mut out = BlockWriter::new(&file, path.clone())?;
    let reserve = if options.expected_bytes > 0 { options.expected_bytes } else { raw_bytes / 4 * 3 };
    fs::preallocate(&file, reserve, &path)?;
    out.append(&format::head())?;

    let Snapshot { tensors, train, metrics, provenance, files } = snapshot;
    let (metas, mut bytes): (Vec<TensorMeta>, Vec<TensorBytes>) =
        tensors.into_iter().map(|t| (t.meta, t.bytes)).unzip();
    bytes.extend(files.iter().map(|f| f.bytes.clone() as TensorBytes));
    let places = format::chunk_places(metas.iter(), files.iter().map(|f| f.bytes.len() as u64));
    let (records, finite) = write_chunks(&mut out, &places, bytes, options)?;

    let hash_of = |item: usize| {
        let first = places.partition_point(|u| u.item < item);
        let count = places[first..].iter().take_while(|u| u.item == item).count();
        let chunks: Vec<format::Hash> = records[first..first + count].iter().map(|r| r.raw_hash).collect();
        format::hex(&format::merge(&chunks))
    };
    let count = metas.len();
    let tensors: Vec<TensorRecord> =
        metas.into_iter().enumerate().map(|(i, meta)| TensorRecord { meta, hash: hash_of(i) }).collect();
    let files = files.iter().enumerate().map(|(i, f)| FileRecord {
        name: f.name.clone(),
        bytes: f.bytes.len() as u64,
        hash: hash_of(count + i),
    });
    let manifest = Manifest {
        format: format::VERSION,
        run_id: options.run_id.clone(),
        seq: options.seq,
        parent: options.parent.clone(),
        created_at: options.created_at.unwrap_or_else(jiff::Timestamp::now),
        root: format::root(&tensors, &train),
        healthy: finite && metrics.train_loss.is_none_or(f64::is_finite),
        raw_bytes,
        chunk_bytes: CHUNK_BYTES as u64,
        train,
        metrics,
        provenance,
        files: files.collect(),
        tensors,
    };
    let bytes = finish(out, &records, &manifest)?;
    fs::sync_file(&file, &path)?;
    fs::forget_cached(&file);
    Ok((manifest, bytes))
}

/// Chunk table, manifest, trailer. Returns the file's length.
fn finish(mut out: BlockWriter, records: &[ChunkRecord], manifest: &Manifest) -> Result<u64> {
    let table = format::table_bytes(records);
    let json = serde_json::to_vec(manifest)
        .map_err(|e| Error::Other(format!("writing the manifest of {}: {e}", out.path().display())))?;
    let trailer = Trailer::new(out.position(), &table, &json);
    for part in [&table[..], &json, &trailer.to_bytes()] {
        out.append(part)?;
    }
    out.finish()
}

/// The tensors' bytes in all, after checking that each has as many as its shape says.
fn check(snapshot: &Snapshot, path: &std::path::Path) -> Result<u64> {
    let mut total = 0u64;
    for tensor in &snapshot.tensors {
        let have = (*tensor.bytes).as_ref().len() as u64;
        if tensor.meta.bytes() != Some(have) {
            let label = tensor.meta.label();
            return Err(Error::mismatch(path, format!("{label} has {have} bytes, not {:?}", tensor.meta.bytes())));
        }
        total = total.saturating_add(have);
    }
    match snapshot.files.iter().find(|f| !format::plain_name(&f.name)) {
        Some(file) => Err(Error::mismatch(path, format!("{:?} is no name for a carried file", file.name))),
        None => Ok(total),
    }
}

/// A chunk that waits to be written.
struct EncodedChunk {
    /// Its encoded bytes, and what is left of the memory that they were written to.
    memory: Vec<u8>,
    record: ChunkRecord,
    finite: bool,
}

/// What the encoding threads and the writer share.
struct EncodeStage<'a> {
    places: &'a [ChunkPlace],
    /// The items' bytes; taken out when the last chunk of an item is encoded.
    items: Vec<Mutex<Option<TensorBytes>>>,
    left: Vec<AtomicUsize>,
    starvation: Starvation,
    pipeline: Pipeline<EncodedChunk>,
}

/// Encodes all chunks on threads and appends them in order. Returns their records, and whether every parameter is
/// finite.
fn write_chunks(
    out: &mut BlockWriter,
    places: &[ChunkPlace],
    items: Vec<TensorBytes>,
    options: &CommitOptions,
) -> Result<(Vec<ChunkRecord>, bool)> {
    let threads = options.threads.clamp(1, places.len().max(1));
    let mut left: Vec<usize> = vec![0; items.len()];
    places.iter().for_each(|u| left[u.item] += 1);
    options.handle.chunks.store(places.len(), Ordering::Relaxed);
    let stage = &EncodeStage {
        places,
        items: items.into_iter().map(|b| Mutex::new(Some(b))).collect(),
        left: left.into_iter().map(AtomicUsize::new).collect(),
        starvation: out.starvation(),
        pipeline: Pipeline::new(places.len(), WINDOW + threads * WINDOW_PER_THREAD),
    };
    std::thread::scope(|scope| {
        let spawn = |background: bool| scope.spawn(move || stage.encode(options, background));
        let mut encoders: Vec<_> = (0..threads).map(|_| spawn(options.pace == CommitPace::Background)).collect();
        // On every way out, the threads must not wait for a writer that is gone.
        let end = stage.pipeline.end_on_drop();
        // A thread that has lowered its priority may not raise it again; fresh ones take over what is left.
        let outcome = stage.write(out, options, &mut || {
            encoders.extend((0..processors()).map(|_| spawn(false)));
        });
        drop(end);
        // Joined here, a thread that panicked fails this commit and nothing else; the writer has seen it.
        encoders.into_iter().for_each(|encoder| drop(encoder.join()));
        outcome
    })
}

impl EncodeStage<'_> {
    fn write(
        &self,
        out: &mut BlockWriter,
        options: &CommitOptions,
        hurry: &mut dyn FnMut(),
    ) -> Result<(Vec<ChunkRecord>, bool)> {
        let mut records = Vec::with_capacity(self.places.len());
        let (mut finite, mut hurried) = (true, false);
        while records.len() < self.places.len() {
            let chunk = loop {
                if options.handle.cancelled.load(Ordering::Relaxed) {
                    return Err(Error::Abandoned);
                }
                if !hurried && options.handle.hurried.load(Ordering::Relaxed) {
                    hurried = true;
                    hurry();
                }
                match self.pipeline.take(CONTROL_INTERVAL) {
                    Ok(Some(chunk)) => break chunk,
                    Ok(None) => {}
                    Err(PipelineEnded) => return Err(Error::Other("an encoding thread died".into())),
                }
            };
            out.append(&chunk.memory[..chunk.record.encoded as usize])?;
            records.push(chunk.record);
            finite &= chunk.finite;
            options.handle.written.store(records.len(), Ordering::Relaxed);
            self.pipeline.give_back(chunk.memory);
        }
        Ok((records, finite))
    }

    fn encode(&self, options: &CommitOptions, background: bool) {
        if background {
            lower_priority(ENCODING_NICE);
        }
        let hurried = || options.handle.hurried.load(Ordering::Relaxed);
        let _end = self.pipeline.end_on_panic();
        let (mut encoder, mut storing) = (ChunkEncoder::new(options.level), ChunkEncoder::new(0));
        while !(background && hurried())
            && let Some((index, mut memory)) = self.pipeline.next()
        {
            let place = &self.places[index];
            let item = self.items[place.item].lock().unwrap_or_else(|e| e.into_inner()).clone();
            // An item is taken out only after its last chunk, which is this one or a later one.
            let Some(item) = item else { return self.pipeline.end() };
            let whole = (*item).as_ref();
            let raw = &whole[place.offset as usize..place.offset as usize + place.bytes];
            memory.resize(memory.len().max(max_encode_bytes(place.bytes)), 0);
            let gives_way = (options.pace == CommitPace::Hurried || hurried()) && self.starvation.is_now();
            let encoder = if gives_way { &mut storing } else { &mut encoder };
            let length = encoder.encode(place.context, raw, &mut memory);
            let record = ChunkRecord {
                encoded: length as u64,
                encoded_hash: *blake3::hash(&memory[..length]).as_bytes(),
                raw_hash: format::chunk_hash(raw, place.offset, whole.len() == place.bytes),
            };
            let finite = place.context.role != Role::Param || dtype::all_finite(place.context.dtype, raw);
            drop(item);
            if self.left[place.item].fetch_sub(1, Ordering::AcqRel) == 1 {
                self.items[place.item].lock().unwrap_or_else(|e| e.into_inner()).take();
            }
            self.pipeline.put(index, EncodedChunk { memory, record, finite });
        }
    }
}

const _: () = assert!(HEAD_BYTES < SECTOR);
