//! One plane of bytes: constant, raw, or a zstd frame, whichever suits.
//!
//! A frame holds the plane with a base value taken off every byte (modulo 256). The exponents of a tensor span a narrow
//! range that may lie anywhere; counted from its lower end they fit the Huffman coder's short tree description.

use zstd_safe::{CCtx, DCtx};

use super::cursor::ByteCursor;
use super::dispatch::InstructionSet;
use super::error::CodecError;
use super::huffman;
use super::sink::ByteSink;
use super::stats::PlaneStats;

const CONSTANT: u8 = 0;
const RAW: u8 = 1;
const FRAME: u8 = 2;
/// Kind, base and length of a frame.
const FRAME_HEADER_BYTES: usize = 6;

/// Above this entropy (bits a byte) a plane is not worth a decoder's time.
const NOISE_BITS: f32 = 7.9;
/// Below this one, matches and runs beat a code that spends a bit or more on every byte.
const SKEWED_BITS: f32 = 1.3;
/// zstd's level for planes; higher ones gain nothing on them.
const PLANE_LEVEL: i32 = 1;

pub(super) struct PlaneWriter {
    isa: InstructionSet,
    zstd: CCtx<'static>,
    /// Where zstd makes its frames.
    frame: Vec<u8>,
}

impl PlaneWriter {
    pub(super) fn new(isa: InstructionSet) -> Self {
        PlaneWriter { isa, zstd: CCtx::create(), frame: Vec::new() }
    }

    pub(super) fn stats(&self, plane: &[u8]) -> PlaneStats {
        PlaneStats::of(self.isa, plane)
    }

    /// Appends a plane that is not empty.
    pub(super) fn write(&mut self, plane: &[u8], stats: &PlaneStats, out: &mut ByteSink<'_>) {
        if stats.min == stats.max {
            return out.extend(&[CONSTANT, stats.min]);
        }
        if stats.entropy_bits < NOISE_BITS {
            let start = out.len();
            out.grow(FRAME_HEADER_BYTES);
            let own = stats.entropy_bits >= SKEWED_BITS && huffman::fits(plane, stats, out.rest().len());
            let (base, len) = if own {
                (stats.min, Some(huffman::write_frame(self.isa, plane, stats, out.rest())))
            } else {
                let len = self.compress(plane, PLANE_LEVEL).filter(|&len| len < plane.len());
                (0, len.inspect(|&len| out.rest()[..len].copy_from_slice(&self.frame[..len])))
            };
            out.truncate(start);
            if let Some(len) = len.filter(|&len| len < plane.len() && u32::try_from(len).is_ok()) {
                out.extend(&[FRAME, base]);
                out.extend(&(len as u32).to_le_bytes());
                out.grow(len);
                return;
            }
        }
        out.push(RAW);
        out.extend(plane);
    }

    /// Appends `bytes` as one zstd frame; false where that is not smaller or zstd fails, which it does only for want
    /// of memory.
    pub(super) fn write_zstd(&mut self, bytes: &[u8], level: i32, out: &mut ByteSink<'_>) -> bool {
        let len = self.compress(bytes, level).filter(|&len| len < bytes.len());
        out.extend(&self.frame[..len.unwrap_or(0)]);
        len.is_some()
    }

    /// zstd's own frame of `bytes`, at the start of `self.frame`.
    fn compress(&mut self, bytes: &[u8], level: i32) -> Option<usize> {
        let bound = zstd_safe::compress_bound(bytes.len());
        if self.frame.len() < bound {
            self.frame.resize(bound, 0);
        }
        self.zstd.compress(self.frame.as_mut_slice(), bytes, level).ok()
    }
}

pub(super) struct PlaneReader {
    isa: InstructionSet,
    /// Made for the first frame that is zstd's own: it is larger than all else that a reader has.
    zstd: Option<DCtx<'static>>,
    table: huffman::LookupTable,
}

impl PlaneReader {
    pub(super) fn new(isa: InstructionSet) -> Self {
        PlaneReader { isa, zstd: None, table: huffman::LookupTable::default() }
    }

    /// Reads a plane of `scratch.len()` bytes. A raw one is not copied. For `ahead` see [`huffman::read_frame`].
    pub(super) fn read<'a, 'i: 'a>(
        &mut self,
        input: &mut ByteCursor<'i>,
        scratch: &'a mut [u8],
        ahead: [&[u8]; 2],
    ) -> Result<&'a [u8], CodecError> {
        match input.u8()? {
            CONSTANT => scratch.fill(input.u8()?),
            RAW => return input.take(scratch.len()),
            FRAME => {
                let base = input.u8()?;
                let len = usize::try_from(input.u32()?).map_err(|_| CodecError::Truncated)?;
                let frame = input.take(len)?;
                if huffman::read_frame(self.isa, &mut self.table, frame, base, scratch, ahead) {
                    return Ok(scratch);
                }
                self.read_zstd(frame, scratch)?;
                if base != 0 {
                    scratch.iter_mut().for_each(|value| *value = value.wrapping_add(base));
                }
            }
            other => return Err(CodecError::UnknownPlane(other)),
        }
        Ok(scratch)
    }

    /// Decompresses one zstd frame that says that it gives exactly `out.len()` bytes, and does.
    ///
    /// The window is `out` itself, so what a frame claims about sizes allocates nothing. Frames of other formats that
    /// libzstd may have been built to read (skippable ones, those before version 0.8) are refused.
    pub(super) fn read_zstd(&mut self, frame: &[u8], out: &mut [u8]) -> Result<(), CodecError> {
        let one_frame = frame.starts_with(&huffman::MAGIC)
            && matches!(zstd_safe::get_frame_content_size(frame), Ok(Some(len)) if len == out.len() as u64)
            && zstd_safe::find_frame_compressed_size(frame) == Ok(frame.len());
        let mut decompress = || self.zstd.get_or_insert_with(DCtx::create).decompress(out, frame);
        if one_frame && decompress() == Ok(out.len()) { Ok(()) } else { Err(CodecError::Frame) }
    }
}
