//! The codec on a raw state, one core, under the benchmark's command: `codec FOLDER`, where the worker has dumped a
//! state.
//!
//! Obeys one line at a time on stdin: `encode ROLE` and `decode ROLE` answer with the CPU seconds of this thread, chunk
//! by chunk as the store cuts tensors; `decode` compares every byte. `hash ROLE` is the time of both hashes of every
//! chunk. The memory is the store's: raw and encoded bytes in huge pages, a chunk encoded in a buffer that is used
//! again, all of it touched before.
#![allow(clippy::expect_used, clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::io::{BufRead, Write};
use std::path::Path;

use ckptd_core::codec::{self, CHUNK_BYTES, ChunkContext, ChunkDecoder, ChunkEncoder, max_encode_bytes};
use ckptd_core::snapshot::TensorMeta;
use memmap2::{Advice, MmapMut};
use serde_json::{Value, json};

/// The tensors of a role, one after the other, and what they were encoded to.
struct Part {
    metas: Vec<TensorMeta>,
    raw: MmapMut,
    encoded: MmapMut,
    /// Of each chunk.
    lengths: Vec<usize>,
    decoded: MmapMut,
    /// Where a chunk is encoded.
    chunk: Vec<u8>,
}

fn main() {
    let folder = std::env::args().nth(1).expect("usage: codec FOLDER");
    let mut parts = read(Path::new(&folder));
    let (mut encoder, mut decoder) = (ChunkEncoder::new(1), ChunkDecoder::new());
    println!("{}", json!({ "reply": "ready", "dispatch": codec::default_isa_name() }));
    for line in std::io::stdin().lock().lines() {
        let line = line.expect("a line");
        let (task, role) = line.split_once(' ').unwrap_or((&line, ""));
        let part = parts.get_mut(role).expect("a role of the state");
        let reply = match task {
            "encode" => part.encode(&mut encoder),
            "decode" => part.decode(&mut decoder),
            _ => part.hash(),
        };
        println!("{reply}");
        std::io::stdout().flush().expect("a reader");
    }
}

fn read(folder: &Path) -> BTreeMap<String, Part> {
    let metas = std::fs::read_to_string(folder.join("meta.json")).expect("meta.json");
    let metas: Vec<TensorMeta> = serde_json::from_str(&metas).expect("tensors");
    let mut parts = BTreeMap::new();
    for meta in metas {
        let role = meta.role.name();
        let part = parts.entry(role.to_owned()).or_insert_with(|| {
            let file = std::fs::read(folder.join(format!("{role}.f32"))).expect("a raw file");
            let mut raw = huge(file.len());
            raw.copy_from_slice(&file);
            let (mut encoded, mut decoded) = (huge(file.len() + file.len() / 8), huge(file.len()));
            encoded.fill(1);
            decoded.fill(1);
            let chunk = vec![1; max_encode_bytes(CHUNK_BYTES)];
            Part { metas: Vec::new(), raw, encoded, lengths: Vec::new(), decoded, chunk }
        });
        part.metas.push(meta);
    }
    parts
}

fn huge(bytes: usize) -> MmapMut {
    let map = MmapMut::map_anon(bytes).expect("memory");
    // Without huge pages it is slower, as it is for the store.
    let _ = map.advise(Advice::HugePage);
    map
}

impl Part {
    /// Context and range of raw bytes of every chunk.
    fn chunks(metas: &[TensorMeta]) -> impl Iterator<Item = (ChunkContext, std::ops::Range<usize>)> + '_ {
        let mut start = 0;
        metas.iter().flat_map(move |meta| {
            let (from, bytes) = (start, meta.bytes().expect("a size") as usize);
            start += bytes;
            (0..bytes).step_by(CHUNK_BYTES).map(move |offset| {
                let first = (offset / meta.dtype.size()) as u64;
                let ctx = ChunkContext { dtype: meta.dtype, role: meta.role, row: meta.row_elements(), first };
                (ctx, from + offset..from + (offset + CHUNK_BYTES).min(bytes))
            })
        })
    }

    fn encode(&mut self, encoder: &mut ChunkEncoder) -> Value {
        self.lengths.clear();
        let (mut spent, mut at) = (0.0, 0);
        for (ctx, range) in Part::chunks(&self.metas) {
            let began = cpu_s();
            let length = encoder.encode(ctx, &self.raw[range], &mut self.chunk);
            spent += cpu_s() - began;
            self.lengths.push(length);
            self.encoded[at..at + length].copy_from_slice(&self.chunk[..length]);
            at += length;
        }
        json!({ "reply": "encode", "cpu_s": spent, "raw": self.raw.len(), "encoded": at })
    }

    fn decode(&mut self, decoder: &mut ChunkDecoder) -> Value {
        let (began, mut at) = (cpu_s(), 0);
        for ((ctx, range), length) in Part::chunks(&self.metas).zip(&self.lengths) {
            decoder.decode(ctx, &self.encoded[at..at + length], &mut self.decoded[range]).expect("it decodes");
            at += length;
        }
        let cpu_s = cpu_s() - began;
        assert!(self.decoded[..] == self.raw[..], "decoded to other bytes");
        self.decoded.fill(1);
        json!({ "reply": "decode", "cpu_s": cpu_s })
    }

    fn hash(&mut self) -> Value {
        let (began, mut at) = (cpu_s(), 0);
        for ((_, range), length) in Part::chunks(&self.metas).zip(&self.lengths) {
            std::hint::black_box(blake3::hash(&self.raw[range]));
            std::hint::black_box(blake3::hash(&self.encoded[at..at + length]));
            at += length;
        }
        json!({ "reply": "hash", "cpu_s": cpu_s() - began })
    }
}

/// CPU seconds of this thread.
fn cpu_s() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}
