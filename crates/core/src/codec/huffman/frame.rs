//! The parts of a zstd frame (RFC 8878) that this coder writes and reads.

/// Most bytes that a zstd block stands for.
pub(super) const BLOCK_BYTES: usize = 128 << 10;

/// First bytes of every zstd frame.
pub(in crate::codec) const MAGIC: [u8; 4] = 0xFD2F_B528u32.to_le_bytes();
/// Single segment (the window is the content), content size in 4 bytes, no checksum, no dictionary.
pub(super) const DESCRIPTOR: u8 = 0b1010_0000;
pub(super) const FRAME_HEADER_BYTES: usize = 9;
pub(super) const BLOCK_HEADER_BYTES: usize = 3;
pub(super) const LITERALS_HEADER_BYTES: usize = 5;
pub(super) const JUMP_TABLE_BYTES: usize = 6;

pub(super) const RAW_BLOCK: u32 = 0;
pub(super) const COMPRESSED_BLOCK: u32 = 2;
