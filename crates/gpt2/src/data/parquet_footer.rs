//! The footer of a Parquet file, looked through before the reader of Parquet gets it: version 59 of that makes room for
//! as many row groups and columns as the footer says, which ends the process where the footer lies.
//!
//! Deliberately not here: what the footer means. Its bytes are Thrift's compact protocol.

use std::fs::File;
use std::os::unix::fs::FileExt;

/// The length of the footer and the last magic.
const END_BYTES: u64 = 8;

/// Deepest nesting; a footer has about ten.
const MOST_DEPTH: usize = 64;

/// The fields by which a footer says its schema, and an entry of that how many columns it has below it.
const SCHEMA: i64 = 2;
const CHILDREN: i64 = 5;

/// Whether the footer of `file` counts no more things than it has bytes for. What is no footer at all is for the reader
/// to refuse.
pub(super) fn is_honest(file: &File) -> std::io::Result<bool> {
    let bytes = file.metadata()?.len();
    let mut end = [0; END_BYTES as usize];
    let Some(at) = bytes.checked_sub(END_BYTES) else { return Ok(true) };
    file.read_exact_at(&mut end, at)?;
    let length = u64::from(u32::from_le_bytes([end[0], end[1], end[2], end[3]]));
    let Some(start) = at.checked_sub(length) else { return Ok(true) };
    let mut footer = vec![0; length as usize];
    file.read_exact_at(&mut footer, start)?;
    Ok(FooterCheck { rest: &footer, entries: 0 }.structure(&[]).is_some())
}

/// What of the footer was not looked at yet.
struct FooterCheck<'a> {
    rest: &'a [u8],
    /// Entries of the schema.
    entries: u64,
}

/// `None` of each: the footer is not what it says.
impl FooterCheck<'_> {
    /// A struct that lies in the fields `path`.
    fn structure(&mut self, path: &[i64]) -> Option<()> {
        let mut field = 0;
        loop {
            let header = self.byte()?;
            if header == 0 {
                return Some(());
            }
            field = match header >> 4 {
                0 => self.number()?,
                delta => field + i64::from(delta),
            };
            let kind = header & 15;
            // True and false have no bytes of their own here.
            if kind > 2 {
                self.value(kind, &[path, &[field]].concat())?;
            }
        }
    }

    fn value(&mut self, kind: u8, path: &[i64]) -> Option<()> {
        match kind {
            1..=3 => self.skip(1),
            4..=6 => {
                let number = self.number()?;
                (path != [SCHEMA, CHILDREN] || u64::try_from(number).is_ok_and(|count| count <= self.entries))
                    .then_some(())
            }
            7 => self.skip(8),
            8 => {
                let length = self.varint()?;
                self.skip(length)
            }
            9 | 10 => self.list(path),
            12 if path.len() < MOST_DEPTH => self.structure(path),
            // A footer has no map.
            _ => None,
        }
    }

    fn list(&mut self, path: &[i64]) -> Option<()> {
        let header = self.byte()?;
        let count = if header >> 4 == 15 { self.varint()? } else { u64::from(header >> 4) };
        // Each takes a byte at least, and a footer has no lists of lists.
        if count > self.rest.len() as u64 || matches!(header & 15, 9 | 10) {
            return None;
        }
        if path == [SCHEMA] {
            self.entries = count;
        }
        (0..count).try_for_each(|_| self.value(header & 15, path))
    }

    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(*first)
    }

    fn skip(&mut self, count: u64) -> Option<()> {
        self.rest = self.rest.get(usize::try_from(count).ok()?..)?;
        Some(())
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 127) << shift;
            if byte < 128 {
                return Some(value);
            }
        }
        None
    }

    /// A signed number.
    fn number(&mut self) -> Option<i64> {
        let value = self.varint()?;
        Some((value >> 1) as i64 ^ -((value & 1) as i64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_honest(footer: &[u8]) -> bool {
        FooterCheck { rest: footer, entries: 0 }.structure(&[]).is_some()
    }

    #[test]
    fn counts_that_the_footer_has_no_bytes_for_are_noticed() {
        // Version 1; a schema of two entries, the first with one child; no rows.
        let schema = [0x15, 2, 0x19, 0x2c, 0x48, 1, b'r', 0x15, 2, 0, 0x48, 1, b'c', 0, 0x16, 0];
        let with = |end: &[u8]| [&schema[..], end].concat();
        assert!(is_honest(&with(&[0])));
        assert!(is_honest(&with(&[0x19, 0x0c, 0])), "no row groups");
        assert!(!is_honest(&with(&[0x19, 0x2c, 0])), "two row groups in one byte");
        assert!(!is_honest(&schema), "it is cut");
        assert!(!is_honest(&with(&[0x18, 0xff, 1, 0])), "a text beyond its end");
        let mut many = with(&[0]);
        many[8] = 6;
        assert!(!is_honest(&many), "an entry with three columns in a schema of two");
        let nested = |depth: usize| [vec![0x1c; depth], vec![0; depth + 1]].concat();
        assert!(is_honest(&nested(MOST_DEPTH - 1)) && !is_honest(&nested(MOST_DEPTH)), "one struct too deep");
        assert!(!is_honest(&[0x19, 0x19, 0]), "a list of lists");
    }
}
