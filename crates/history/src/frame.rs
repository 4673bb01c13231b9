//! Frames: compressed bytes in a file, each with its length and a checksum, after a head that says what the file is.
//!
//! Invariant: no byte of a frame is looked at before its checksum has matched, and no memory is taken that a limit does
//! not allow. Deliberately not here: what is in a frame (batch, packed).

/// First bytes of every file of the history: what it is, and the version of its format.
pub const FILE_HEAD: [u8; 8] = *b"ckpthis\x01";

/// Length, length of the content, kind, the checksum of these, and that of what follows.
pub const FRAME_HEAD: usize = 20;
/// Longest content of a frame.
pub const MAX_CONTENT: usize = 64 << 20;

/// Some steps and events, in a file that grows.
pub const BATCH: u32 = 1;
/// What a packed file holds: where its rows are, its events and its summary.
pub const INDEX: u32 = 2;
/// Rows of a packed file.
pub const ROWS: u32 = 3;
/// A whole packed file, in a file that travels.
pub const PACKED_PART: u32 = 4;
/// A whole file that grows, in a file that travels.
pub const GROWING_PART: u32 = 5;

/// What is at a place of a file.
#[derive(Debug, PartialEq, Eq)]
pub enum FrameOutcome<'a> {
    /// A frame of so many bytes.
    Whole {
        /// Of which kind.
        kind: u32,
        /// What is in it, still compressed.
        packed: PackedContent<'a>,
        /// Bytes of the whole frame.
        bytes: usize,
    },
    /// The file ends within a frame, or at one that is not whole.
    Torn,
    /// There is more behind what is no frame.
    Damaged,
}

/// The content of a frame whose checksum has matched.
#[derive(Debug, PartialEq, Eq)]
pub struct PackedContent<'a> {
    bytes: &'a [u8],
    raw: usize,
}

impl PackedContent<'_> {
    /// Bytes of what was written, as the frame says.
    pub fn raw_bytes(&self) -> usize {
        self.raw
    }

    /// What was written.
    ///
    /// # Errors
    /// Where it is not what it says, as a clause.
    pub fn unpack(&self) -> Result<Vec<u8>, &'static str> {
        let content = zstd::bulk::decompress(self.bytes, self.raw).map_err(|_| "a batch cannot be decompressed")?;
        if content.len() == self.raw { Ok(content) } else { Err("a batch is shorter than it says") }
    }
}

/// `content` as a frame.
///
/// # Errors
/// Where it cannot be compressed, or is too long.
pub fn encode(kind: u32, content: &[u8], level: i32) -> std::io::Result<Vec<u8>> {
    if content.len() > MAX_CONTENT {
        return Err(std::io::Error::other(format!("a batch of {} bytes is too long", content.len())));
    }
    let packed = zstd::bulk::compress(content, level)?;
    let mut frame = Vec::with_capacity(FRAME_HEAD + packed.len());
    for number in [packed.len() as u32, content.len() as u32, kind] {
        frame.extend(number.to_le_bytes());
    }
    frame.extend(crc32c::crc32c(&frame).to_le_bytes());
    frame.extend(crc32c::crc32c(&packed).to_le_bytes());
    frame.extend(packed);
    Ok(frame)
}

/// The length of the frame that begins with `bytes`, in bytes; `None` where they are no head.
pub fn length(bytes: &[u8]) -> Option<usize> {
    let packed = number(bytes, 0)? as usize;
    let is_head = crc32c::crc32c(bytes.get(..12)?) == number(bytes, 12)? && number(bytes, 4)? as usize <= MAX_CONTENT;
    (is_head && packed <= MAX_CONTENT + (MAX_CONTENT >> 7)).then_some(FRAME_HEAD + packed)
}

/// What is at the beginning of `bytes`, which go to the end of the file.
pub fn at(bytes: &[u8]) -> FrameOutcome<'_> {
    if bytes.len() < FRAME_HEAD {
        return FrameOutcome::Torn;
    }
    let Some(length) = length(bytes) else { return FrameOutcome::Damaged };
    let Some(frame) = bytes.get(..length) else { return FrameOutcome::Torn };
    let (Some(raw), Some(kind), Some(checksum)) = (number(bytes, 4), number(bytes, 8), number(bytes, 16)) else {
        return FrameOutcome::Damaged;
    };
    let packed = &frame[FRAME_HEAD..];
    if crc32c::crc32c(packed) != checksum {
        return if length == bytes.len() { FrameOutcome::Torn } else { FrameOutcome::Damaged };
    }
    FrameOutcome::Whole { kind, packed: PackedContent { bytes: packed, raw: raw as usize }, bytes: length }
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_that_is_cut_or_changed_anywhere_is_none() {
        let content: Vec<u8> = (0..200u8).collect();
        let frame = encode(BATCH, &content, 1).unwrap();
        let whole = |bytes: &[u8]| match at(bytes) {
            FrameOutcome::Whole { packed, .. } => Some(packed.unpack().unwrap()),
            _ => None,
        };
        assert_eq!(whole(&frame), Some(content));
        assert!((0..frame.len()).all(|cut| at(&frame[..cut]) == FrameOutcome::Torn));
        for at in 0..frame.len() {
            for bit in 0..8 {
                let mut changed = frame.clone();
                changed[at] ^= 1 << bit;
                assert_eq!(whole(&changed), None, "byte {at}, bit {bit}");
            }
        }
        assert_eq!(at(&[0; 64]), FrameOutcome::Damaged);
    }
}
