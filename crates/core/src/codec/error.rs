//! Why a chunk does not decode.

use super::coding::ChunkCoding;
use crate::dtype::DType;

/// Why a chunk does not decode. All of them mean that the bytes, or the manifest that describes them, are damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// The chunk ends before what it describes.
    #[error("encoded chunk ends before its data does")]
    Truncated,
    /// So many bytes follow the end of what the chunk describes.
    #[error("encoded chunk has {0} bytes more than its data")]
    Trailing(usize),
    /// The first byte stands for no coding.
    #[error("unknown chunk coding {0}")]
    UnknownCoding(u8),
    /// The first byte of a plane stands for no coding of planes.
    #[error("unknown plane coding {0}")]
    UnknownPlane(u8),
    /// The coding does not fit a chunk of this type and length.
    #[error("{coding} coding does not fit a chunk of {bytes} bytes of {dtype}", coding = .coding.name())]
    Misfit {
        /// Coding that the first byte stands for.
        coding: ChunkCoding,
        /// Element type of the chunk.
        dtype: DType,
        /// Raw length of the chunk.
        bytes: usize,
    },
    /// A zstd frame is damaged, or says another length than the plane or chunk has.
    #[error("damaged zstd frame, or one that decodes to another length")]
    Frame,
}
