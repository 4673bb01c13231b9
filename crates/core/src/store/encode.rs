//! The chunks of a snapshot, encoded in parallel and written in order.
//!
//! Invariant: memory is bounded by a window of chunks, and a tensor's handle is dropped as soon as its last chunk is
//! encoded. Deliberately not here: the rest of the file, and when it counts (`commit`).

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::commit_options::{CommitOptions, CommitPace};
use super::format::{self, ChunkPlace, ChunkRecord};
use crate::codec::{CHUNK_BYTES, ChunkEncoder, max_encode_bytes};
use crate::dtype;
use crate::error::{Error, Result};
use crate::os::block_writer::{BlockWriter, Starvation};
use crate::os::process::{ENCODING_NICE, lower_priority, processors};
use crate::pipeline::{Pipeline, PipelineEnded};
use crate::snapshot::{DistantBytes, Role, TensorBytes};

/// How long the writer waits for a chunk before it asks again whether the commit is cancelled or hurried.
const CONTROL_INTERVAL: Duration = Duration::from_millis(10);
/// Chunks that may be encoded ahead of the writer: two of its blocks, so that it finds the next one while it waits for
/// the device, and some for each thread, since chunks are written in their order.
const WINDOW: usize = 2 * crate::os::block_writer::BLOCK_BYTES / CHUNK_BYTES;
const WINDOW_PER_THREAD: usize = 4;

/// A chunk that waits to be written.
struct EncodedChunk {
    /// Its encoded bytes, and what is left of the memory that they were written to.
    memory: Vec<u8>,
    record: ChunkRecord,
    finite: bool,
}

/// Where the bytes of an item are.
#[derive(Clone)]
pub(super) enum ItemBytes {
    Here(TensorBytes),
    There(Arc<dyn DistantBytes>),
}

impl ItemBytes {
    /// The bytes of a chunk, which may be read to `memory`.
    fn chunk<'a>(&'a self, place: &ChunkPlace, memory: &'a mut Vec<u8>) -> Result<&'a [u8]> {
        match self {
            ItemBytes::Here(bytes) => {
                Ok(&(**bytes).as_ref()[place.offset as usize..place.offset as usize + place.bytes])
            }
            ItemBytes::There(bytes) => {
                memory.resize(place.bytes, 0);
                bytes.read(place.offset, memory).map(|()| memory.as_slice())
            }
        }
    }
}

/// What the encoding threads and the writer share.
struct EncodeStage<'a> {
    places: &'a [ChunkPlace],
    /// The items' bytes; taken out when the last chunk of an item is encoded.
    items: Vec<Mutex<Option<ItemBytes>>>,
    left: Vec<AtomicUsize>,
    starvation: Starvation,
    /// Why an item could not be read.
    failure: Mutex<Option<Error>>,
    pipeline: Pipeline<EncodedChunk>,
}

/// Encodes all chunks on threads and appends them in order. Returns their records, and whether every parameter is
/// finite.
pub(super) fn write_chunks(
    out: &mut BlockWriter,
    places: &[ChunkPlace],
    items: Vec<ItemBytes>,
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
        failure: Mutex::new(None),
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
                    Err(PipelineEnded) => {
                        let failure = self.failure.lock().unwrap_or_else(|e| e.into_inner()).take();
                        return Err(failure.unwrap_or_else(|| Error::Other("an encoding thread died".into())));
                    }
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

    /// Whether this chunk is all of its item.
    fn is_whole(&self, index: usize) -> bool {
        let item = self.places[index].item;
        self.places[index].offset == 0 && self.places.get(index + 1).is_none_or(|next| next.item != item)
    }

    fn encode(&self, options: &CommitOptions, background: bool) {
        if background {
            lower_priority(ENCODING_NICE);
        }
        let hurried = || options.handle.hurried.load(Ordering::Relaxed);
        let _end = self.pipeline.end_on_panic();
        let mut distant = Vec::new();
        let (mut encoder, mut storing) = (ChunkEncoder::new(options.level), ChunkEncoder::new(0));
        while !(background && hurried())
            && let Some((index, mut memory)) = self.pipeline.next()
        {
            let place = &self.places[index];
            let item = self.items[place.item].lock().unwrap_or_else(|e| e.into_inner()).clone();
            // An item is taken out only after its last chunk, which is this one or a later one.
            let Some(item) = item else { return self.pipeline.end() };
            let raw = match item.chunk(place, &mut distant) {
                Ok(raw) => raw,
                Err(e) => {
                    self.failure.lock().unwrap_or_else(|e| e.into_inner()).get_or_insert(e);
                    return self.pipeline.end();
                }
            };
            memory.resize(memory.len().max(max_encode_bytes(place.bytes)), 0);
            let gives_way = (options.pace == CommitPace::Hurried || hurried()) && self.starvation.is_now();
            let encoder = if gives_way { &mut storing } else { &mut encoder };
            let length = encoder.encode(place.context, raw, &mut memory);
            let record = ChunkRecord {
                encoded: length as u64,
                encoded_hash: *blake3::hash(&memory[..length]).as_bytes(),
                raw_hash: format::chunk_hash(raw, place.offset, self.is_whole(index)),
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
