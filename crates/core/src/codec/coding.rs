//! The codings of a chunk and the byte that each is known by.

/// How a chunk is stored; its first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ChunkCoding {
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

impl ChunkCoding {
    const ALL: [ChunkCoding; 8] = [
        ChunkCoding::Raw,
        ChunkCoding::Constant,
        ChunkCoding::Zstd,
        ChunkCoding::Planes,
        ChunkCoding::Split,
        ChunkCoding::SplitPositive,
        ChunkCoding::Whitened,
        ChunkCoding::WhitenedPositive,
    ];

    /// The coding that a chunk's first byte stands for.
    pub fn from_byte(byte: u8) -> Option<ChunkCoding> {
        ChunkCoding::ALL.get(usize::from(byte)).copied()
    }

    /// The coding as `inspect` shows it.
    pub const fn name(self) -> &'static str {
        match self {
            ChunkCoding::Raw => "raw",
            ChunkCoding::Constant => "constant",
            ChunkCoding::Zstd => "zstd",
            ChunkCoding::Planes => "planes",
            ChunkCoding::Split => "split",
            ChunkCoding::SplitPositive => "split-positive",
            ChunkCoding::Whitened => "whitened",
            ChunkCoding::WhitenedPositive => "whitened-positive",
        }
    }
}

/// Name of an encoded chunk's coding, or `None` where there is no such coding.
pub fn coding_of(encoded: &[u8]) -> Option<&'static str> {
    encoded.first().and_then(|&byte| ChunkCoding::from_byte(byte)).map(ChunkCoding::name)
}
