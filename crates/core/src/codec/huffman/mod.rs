//! A Huffman coder that writes a plane as a standard zstd frame, several times as fast as zstd does.
//!
//! It looks for no matches: the planes it is given have none. Every block holds literals in four Huffman streams, or
//! raw bytes, and no sequences. Any zstd decoder reads it (RFC 8878); [`read`] does so faster.
//!
//! Invariant: the bytes do not depend on the instruction set.

#[cfg(target_arch = "x86_64")]
mod avx512;
mod bits;
mod frame;
mod read;
mod write;

pub(super) use frame::MAGIC;
pub(super) use read::{LookupTable, read_frame};
#[cfg(test)]
pub(super) use write::frame_bound;
pub(super) use write::{fits, write_frame};
