//! What ranks say to one another beside gradients: small messages, each as its length and JSON or bytes.
//!
//! Invariant: a frame is at most [`MAX_FRAME`] long, and is written by one call under one lock. Deliberately not here:
//! who may speak (`secret`).

use std::io::{Error as IoError, ErrorKind, Read, Result as IoResult, Write};
use std::net::TcpStream;

/// Longest frame, in bytes.
const MAX_FRAME: usize = 64 << 20;

/// One message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Frame {
    /// A rank's part of the collective call with this number.
    Part { call: u64, bytes: Vec<u8> },
    /// All parts of the collective call with this number, from rank 0.
    Parts { call: u64, parts: Vec<Vec<u8>> },
    /// A key and its value, for all ranks: what the process group is made of.
    Key { key: Vec<u8>, value: Vec<u8> },
    /// Rank 0 asks for a sign of life.
    Ping,
    /// How far a rank is: steps, and micro-batches of the next one.
    Progress { step: u64, micro_batch: u64 },
    /// A rank cannot go on, and why.
    Trouble {
        what: String,
        /// It is the rank's own, and not that it has lost another one.
        is_own: bool,
    },
    /// The training is over, or the session: leave.
    End,
    /// Rank 0 takes a snapshot: hold the moments as they are until `Release`.
    Hold { capture: u64 },
    /// A rank holds them, after so many steps; or why it does not.
    Held { capture: u64, step: u64, trouble: String },
    /// Rank 0 wants bytes of what is held, of the tensor with this index.
    Fetch { piece: u64, tensor: u64, offset: u64, bytes: u64 },
    /// These bytes; none where there are not as many.
    Piece { piece: u64, bytes: Vec<u8> },
    /// The snapshot is written, or given up.
    Release,
    /// The session ends: compute no further update, and leave the processors to the last snapshot.
    Yield,
}

impl Frame {
    fn encode(&self) -> Vec<u8> {
        let mut out = vec![0; 4];
        let sized = |out: &mut Vec<u8>, bytes: &[u8]| {
            out.extend((bytes.len() as u64).to_le_bytes());
            out.extend(bytes);
        };
        match self {
            Frame::Part { call, bytes } => {
                out.push(0);
                out.extend(call.to_le_bytes());
                sized(&mut out, bytes);
            }
            Frame::Parts { call, parts } => {
                out.push(1);
                out.extend(call.to_le_bytes());
                parts.iter().for_each(|part| sized(&mut out, part));
            }
            Frame::Key { key, value } => {
                out.push(2);
                sized(&mut out, key);
                sized(&mut out, value);
            }
            Frame::Ping => out.push(3),
            Frame::Progress { step, micro_batch } => {
                out.push(4);
                out.extend(step.to_le_bytes());
                out.extend(micro_batch.to_le_bytes());
            }
            Frame::Trouble { what, is_own } => {
                out.extend([5, u8::from(*is_own)]);
                sized(&mut out, what.as_bytes());
            }
            Frame::End => out.push(6),
            Frame::Hold { capture } => {
                out.push(7);
                out.extend(capture.to_le_bytes());
            }
            Frame::Held { capture, step, trouble } => {
                out.push(8);
                out.extend(capture.to_le_bytes());
                out.extend(step.to_le_bytes());
                sized(&mut out, trouble.as_bytes());
            }
            Frame::Fetch { piece, tensor, offset, bytes } => {
                out.push(9);
                [piece, tensor, offset, bytes].iter().for_each(|number| out.extend(number.to_le_bytes()));
            }
            Frame::Piece { piece, bytes } => {
                out.push(10);
                out.extend(piece.to_le_bytes());
                sized(&mut out, bytes);
            }
            Frame::Release => out.push(11),
            Frame::Yield => out.push(12),
        }
        let length = (out.len() - 4) as u32;
        out[..4].copy_from_slice(&length.to_le_bytes());
        out
    }

    fn decode(bytes: &[u8]) -> Option<Frame> {
        let (&kind, mut rest) = bytes.split_first()?;
        let frame = match kind {
            0 => Frame::Part { call: number(&mut rest)?, bytes: sized(&mut rest)? },
            1 => {
                let call = number(&mut rest)?;
                let mut parts = Vec::new();
                while !rest.is_empty() {
                    parts.push(sized(&mut rest)?);
                }
                Frame::Parts { call, parts }
            }
            2 => Frame::Key { key: sized(&mut rest)?, value: sized(&mut rest)? },
            3 => Frame::Ping,
            4 => Frame::Progress { step: number(&mut rest)?, micro_batch: number(&mut rest)? },
            5 => {
                let (&is_own, after) = rest.split_first()?;
                rest = after;
                Frame::Trouble { what: String::from_utf8_lossy(&sized(&mut rest)?).into_owned(), is_own: is_own == 1 }
            }
            6 => Frame::End,
            7 => Frame::Hold { capture: number(&mut rest)? },
            8 => Frame::Held {
                capture: number(&mut rest)?,
                step: number(&mut rest)?,
                trouble: String::from_utf8_lossy(&sized(&mut rest)?).into_owned(),
            },
            9 => Frame::Fetch {
                piece: number(&mut rest)?,
                tensor: number(&mut rest)?,
                offset: number(&mut rest)?,
                bytes: number(&mut rest)?,
            },
            10 => Frame::Piece { piece: number(&mut rest)?, bytes: sized(&mut rest)? },
            11 => Frame::Release,
            12 => Frame::Yield,
            _ => return None,
        };
        rest.is_empty().then_some(frame)
    }

    pub(super) fn write(&self, mut stream: &TcpStream) -> IoResult<()> {
        let bytes = self.encode();
        if bytes.len() > MAX_FRAME {
            return Err(IoError::new(ErrorKind::InvalidInput, "a message between ranks is too long"));
        }
        stream.write_all(&bytes)
    }

    /// The next frame; `None` at the end of the stream.
    pub(super) fn read(mut stream: &TcpStream) -> IoResult<Option<Frame>> {
        let mut length = [0; 4];
        match stream.read_exact(&mut length) {
            Err(e) if e.kind() == ErrorKind::UnexpectedEof => return Ok(None),
            read => read?,
        }
        let malformed = || IoError::new(ErrorKind::InvalidData, "a message that is none");
        let length = u32::from_le_bytes(length) as usize;
        if length > MAX_FRAME {
            return Err(malformed());
        }
        let mut bytes = Vec::new();
        stream.take(length as u64).read_to_end(&mut bytes)?;
        if bytes.len() < length {
            return Ok(None);
        }
        Frame::decode(&bytes).map(Some).ok_or_else(malformed)
    }
}

fn number(rest: &mut &[u8]) -> Option<u64> {
    let (number, after) = rest.split_first_chunk()?;
    *rest = after;
    Some(u64::from_le_bytes(*number))
}

fn sized(rest: &mut &[u8]) -> Option<Vec<u8>> {
    let length = usize::try_from(number(rest)?).ok()?;
    let (bytes, after) = rest.split_at_checked(length)?;
    *rest = after;
    Some(bytes.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_back_and_what_is_cut_or_longer_is_none() {
        let frames = [
            Frame::Part { call: 7, bytes: vec![1, 2, 3] },
            Frame::Parts { call: 7, parts: vec![vec![], vec![4], vec![5; 300]] },
            Frame::Key { key: b"k".to_vec(), value: vec![0; 9] },
            Frame::Ping,
            Frame::Progress { step: 3, micro_batch: u64::MAX },
            Frame::Trouble { what: "no".into(), is_own: true },
            Frame::End,
            Frame::Hold { capture: 3 },
            Frame::Held { capture: 3, step: 9, trouble: String::new() },
            Frame::Fetch { piece: 1, tensor: 2, offset: 3, bytes: 4 },
            Frame::Piece { piece: 1, bytes: vec![7; 40] },
            Frame::Release,
            Frame::Yield,
        ];
        for frame in frames {
            let bytes = frame.encode();
            assert_eq!(Frame::decode(&bytes[4..]), Some(frame.clone()));
            for cut in 5..bytes.len() {
                assert_ne!(Frame::decode(&bytes[4..cut]), Some(frame.clone()));
            }
            if !matches!(frame, Frame::Parts { .. }) {
                assert_eq!(Frame::decode(&[&bytes[4..], &[0]].concat()), None);
            }
        }
        assert_eq!(Frame::decode(&[]), None);
        assert_eq!(Frame::decode(&[99]), None);
    }
}
