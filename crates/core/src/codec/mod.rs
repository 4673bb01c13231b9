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
//! Deliberately not here: hashes (the file format has them), threads (the caller has one [`Encoder`] each), how a
//! tensor is cut into chunks.
//!
//! In reading order: `encode` decides, `whiten` and `split` and `planes` rearrange, `plane` and `huffman` compress,
//! `decode` goes back.

mod decode;
mod dispatch;
mod encode;
mod huffman;
mod packing;
mod plane;
mod planes;
mod reader;
mod sink;
mod split;
mod survey;
#[cfg(test)]
mod tests;
mod tree;
mod whiten;

pub use decode::Decoder;
pub use dispatch::Isa;
pub use encode::Encoder;

use crate::dtype::DType;
use crate::snapshot::Role;

/// Raw bytes of a chunk, except for the last one of a tensor.
pub const CHUNK_BYTES: usize = 512 << 10;

/// The most bytes by which an encoded chunk can exceed its raw bytes.
pub const MAX_OVERHEAD: usize = 1;

/// Bytes of memory that [`Encoder::encode`] may need for a chunk, more than it ever keeps.
pub const fn room(raw_bytes: usize) -> usize {
    raw_bytes + raw_bytes / 4 + 4096
}

/// What the coder may know of a chunk besides its bytes. The decoder must be given what the encoder was given.
#[derive(Clone, Copy, Debug)]
pub struct ChunkContext {
    pub dtype: DType,
    pub role: Role,
    /// Elements in a row of the matrix (its last dimension), 0 if the tensor is not a matrix.
    pub row: u64,
    /// Index in the tensor of the chunk's first element.
    pub first: u64,
}

/// How a chunk is stored; its first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Coding {
    /// The bytes as they are.
    Raw = 0,
    /// One element that fills the chunk.
    Constant = 1,
    /// One zstd frame.
    Zstd = 2,
    /// Byte planes of floats, each stored as it suits.
    Planes = 3,
    /// float32: exponent plane, 24 other bits raw.
    Split = 4,
    /// float32 without a sign bit: exponent plane, 23 other bits raw.
    SplitPositive = 5,
    /// float32: magnitudes less row and column means; 8 bits coded, 22 raw.
    Whitened = 6,
    /// The same without a sign bit: 8 bits coded, 21 raw.
    WhitenedPositive = 7,
}

impl Coding {
    const ALL: [Coding; 8] = [
        Coding::Raw,
        Coding::Constant,
        Coding::Zstd,
        Coding::Planes,
        Coding::Split,
        Coding::SplitPositive,
        Coding::Whitened,
        Coding::WhitenedPositive,
    ];

    /// The coding that a chunk's first byte stands for.
    pub fn from_byte(byte: u8) -> Option<Coding> {
        Coding::ALL.get(usize::from(byte)).copied()
    }

    pub const fn name(self) -> &'static str {
        match self {
            Coding::Raw => "raw",
            Coding::Constant => "constant",
            Coding::Zstd => "zstd",
            Coding::Planes => "planes",
            Coding::Split => "split",
            Coding::SplitPositive => "split-positive",
            Coding::Whitened => "whitened",
            Coding::WhitenedPositive => "whitened-positive",
        }
    }
}

/// Name of an encoded chunk's coding, or `None` where there is no such coding.
pub fn coding_of(encoded: &[u8]) -> Option<&'static str> {
    encoded.first().and_then(|&byte| Coding::from_byte(byte)).map(Coding::name)
}

/// The instruction set that encoders and decoders use by default: "avx512", "avx2" or "portable".
pub fn dispatch() -> &'static str {
    Isa::best().name()
}

/// Why a chunk does not decode. All of them mean that the bytes, or the manifest that describes them, are damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    #[error("encoded chunk ends before its data does")]
    Truncated,
    #[error("encoded chunk has {0} bytes more than its data")]
    Trailing(usize),
    #[error("unknown chunk coding {0}")]
    UnknownCoding(u8),
    #[error("unknown plane coding {0}")]
    UnknownPlane(u8),
    #[error("{coding} coding does not fit a chunk of {bytes} bytes of {dtype}", coding = .coding.name())]
    Misfit { coding: Coding, dtype: DType, bytes: usize },
    #[error("damaged zstd frame, or one that decodes to another length")]
    Frame,
}
