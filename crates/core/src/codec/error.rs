//! Why a chunk does not decode.

use super::coding::ChunkCoding;
use crate::dtype::DType;

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
    Misfit { coding: ChunkCoding, dtype: DType, bytes: usize },
    #[error("damaged zstd frame, or one that decodes to another length")]
    Frame,
}
