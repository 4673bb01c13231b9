//! What a chunk is: its size, what a coder knows of it, the memory that coding takes.

use crate::dtype::DType;
use crate::snapshot::Role;

/// Raw bytes of a chunk, except for the last one of a tensor.
pub const CHUNK_BYTES: usize = 512 << 10;

/// The most bytes by which an encoded chunk can exceed its raw bytes.
pub const MAX_OVERHEAD: usize = 1;

/// Bytes of memory that [`ChunkEncoder::encode`] may need for a chunk, more than it ever keeps.
pub const fn max_encode_bytes(raw_bytes: usize) -> usize {
    raw_bytes + raw_bytes / 4 + 4096
}

/// What the coder may know of a chunk besides its bytes. The decoder must be given what the encoder was given.
#[derive(Clone, Copy, Debug)]
pub struct ChunkContext {
    /// Element type of the tensor.
    pub dtype: DType,
    /// What the tensor is to the training.
    pub role: Role,
    /// Elements in a row of the matrix (its last dimension), 0 if the tensor is not a matrix.
    pub row: u64,
    /// Index in the tensor of the chunk's first element.
    pub first: u64,
}
