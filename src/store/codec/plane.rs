//! One plane of bytes: constant, raw, or a zstd frame, whichever suits.
//!
//! A frame holds the plane with a base value taken off every byte (modulo 256). The exponents of a tensor span a narrow
//! range that may lie anywhere; counted from its lower end they fit the Huffman coder's short tree description.

use zstd_safe::{CCtx, DCtx};

use super::reader::Reader;
use super::survey::Survey;
use super::{CodecError, Isa, huffman};

const CONSTANT: u8 = 0;
const RAW: u8 = 1;
const FRAME: u8 = 2;

/// Above this entropy (bits a byte) a plane is not worth a decoder's time.
const NOISE_BITS: f32 = 7.9;
/// Below this one, matches and runs beat a code that spends a bit or more on every byte.
const SKEWED_BITS: f32 = 1.3;
/// zstd's level for planes; higher ones gain nothing on them.
const PLANE_LEVEL: i32 = 1;

pub(super) struct PlaneWriter {
    isa: Isa,
    zstd: CCtx<'static>,
    /// Where frames are made.
    frame: Vec<u8>,
}

impl PlaneWriter {
    pub fn new(isa: Isa) -> Self {
        PlaneWriter { isa, zstd: CCtx::create(), frame: Vec::new() }
    }

    pub fn survey(&self, plane: &[u8]) -> Survey {
        Survey::of(self.isa, plane)
    }

    /// Appends a plane that is not empty.
    pub fn write(&mut self, plane: &[u8], survey: &Survey, out: &mut Vec<u8>) {
        if survey.min == survey.max {
            out.extend_from_slice(&[CONSTANT, survey.min]);
            return;
        }
        if survey.entropy_bits < NOISE_BITS {
            let own = survey.entropy_bits >= SKEWED_BITS && huffman::fits(plane, survey);
            let (base, len) = if own {
                (survey.min, Some(huffman::write_frame(self.isa, plane, survey, &mut self.frame)))
            } else {
                (0, self.compress(plane, PLANE_LEVEL))
            };
            let frame = len.filter(|&len| len < plane.len()).map(|len| &self.frame[..len]);
            if let Some((frame, len)) = frame.and_then(|frame| Some((frame, u32::try_from(frame.len()).ok()?))) {
                out.extend_from_slice(&[FRAME, base]);
                out.extend_from_slice(&len.to_le_bytes());
                out.extend_from_slice(frame);
                return;
            }
        }
        out.push(RAW);
        out.extend_from_slice(plane);
    }

    /// Appends `bytes` as one zstd frame; false where zstd fails, which it does only for want of memory.
    pub fn write_zstd(&mut self, bytes: &[u8], level: i32, out: &mut Vec<u8>) -> bool {
        let len = self.compress(bytes, level);
        out.extend_from_slice(&self.frame[..len.unwrap_or(0)]);
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
    zstd: DCtx<'static>,
}

impl PlaneReader {
    pub fn new() -> Self {
        PlaneReader { zstd: DCtx::create() }
    }

    /// Reads a plane of `scratch.len()` bytes. A raw one is not copied.
    pub fn read<'a, 'i: 'a>(&mut self, input: &mut Reader<'i>, scratch: &'a mut [u8]) -> Result<&'a [u8], CodecError> {
        match input.u8()? {
            CONSTANT => scratch.fill(input.u8()?),
            RAW => return input.take(scratch.len()),
            FRAME => {
                let base = input.u8()?;
                let len = usize::try_from(input.u32()?).map_err(|_| CodecError::Truncated)?;
                self.read_zstd(input.take(len)?, scratch)?;
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
    pub fn read_zstd(&mut self, frame: &[u8], out: &mut [u8]) -> Result<(), CodecError> {
        let one_frame = frame.starts_with(&huffman::MAGIC)
            && matches!(zstd_safe::get_frame_content_size(frame), Ok(Some(len)) if len == out.len() as u64)
            && zstd_safe::find_frame_compressed_size(frame) == Ok(frame.len());
        if one_frame && self.zstd.decompress(out, frame) == Ok(out.len()) { Ok(()) } else { Err(CodecError::Frame) }
    }
}
