//! The chunk codec: one chunk of one tensor to bytes and back, lossless for every bit pattern.
//!
//! The entropy of trained weights and moments sits in their exponents; their mantissas are noise. So a chunk of floats
//! is cut into the byte that holds the exponent, which is Huffman-coded, and the rest, which is stored as it is. For
//! the moments of matrices a row and a column mean is first taken off the magnitudes, which narrows the exponents'
//! spread. Everything else, and what does not fit this picture, goes through zstd. `docs/codec.md` gives the byte
//! layout.
//!
//! Invariants: a chunk decodes to exactly its bytes or to an error, whatever the input; it is never stored larger than
//! its raw bytes and [`MAX_OVERHEAD`]; every instruction set writes the same bytes.
//!
//! Deliberately not here: hashes (the file format has them), threads (the caller has one [`ChunkEncoder`] each), how a
//! tensor is cut into chunks.
//!
//! In reading order: `encode` decides, `whiten` and `split` and `planes` rearrange, `plane` and `huffman` compress,
//! `decode` goes back.

mod chunk;
mod coding;
mod cursor;
mod decode;
mod dispatch;
mod encode;
mod error;
mod huffman;
mod packing;
mod plane;
mod planes;
mod scratch;
mod sink;
mod split;
mod stats;
#[cfg(test)]
mod tests;
mod tree;
mod whiten;

pub use chunk::{CHUNK_BYTES, ChunkContext, MAX_OVERHEAD, max_encode_bytes};
pub use coding::{ChunkCoding, coding_of};
pub use decode::ChunkDecoder;
pub use dispatch::{InstructionSet, default_isa_name};
pub use encode::ChunkEncoder;
pub use error::CodecError;
