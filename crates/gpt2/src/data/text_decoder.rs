//! From bytes to text: UTF-8, and UTF-16 and UTF-32 by their byte order mark.
//!
//! Invariant: the text does not depend on how the bytes are divided. What is no text becomes U+FFFD and is counted; a
//! file with more than a small share of that is refused. Deliberately not here: files.

use std::path::Path;

use ckptd_core::{Error, Result};

/// One in so many bytes of a file may be no text.
const BYTES_PER_BAD: u64 = 1000;
/// As many may be no text in a file of any size.
const FEW: u64 = 2;
/// After so many bytes a file that is mostly no text is given up.
const EARLY_BYTES: u64 = 1 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TextEncoding {
    Utf8,
    Utf16 { big: bool },
    Utf32 { big: bool },
}

/// The beginnings of files in an encoding, the longest first.
const MARKS: [(&[u8], TextEncoding); 5] = [
    (b"\xff\xfe\0\0", TextEncoding::Utf32 { big: false }),
    (b"\0\0\xfe\xff", TextEncoding::Utf32 { big: true }),
    (b"\xef\xbb\xbf", TextEncoding::Utf8),
    (b"\xff\xfe", TextEncoding::Utf16 { big: false }),
    (b"\xfe\xff", TextEncoding::Utf16 { big: true }),
];
const LONGEST_MARK: usize = 4;

/// Decodes one file.
#[derive(Debug, Default)]
pub(super) struct TextDecoder {
    /// `None` before the first bytes.
    encoding: Option<TextEncoding>,
    /// The first release took everything for UTF-8 and refused nothing.
    first_release: bool,
    /// The beginning of a character whose end is not read yet.
    partial: Vec<u8>,
    bytes: u64,
    /// Bytes that were no text and were replaced.
    pub(super) replaced: u64,
    nuls: u64,
}

impl TextDecoder {
    pub(super) fn new(first_release: bool) -> TextDecoder {
        TextDecoder { first_release, ..TextDecoder::default() }
    }

    /// Appends the text of the next `bytes` to `text`; `has_ended` with the last of them, which may be none.
    pub(super) fn push(&mut self, bytes: &[u8], has_ended: bool, text: &mut String) {
        self.bytes += bytes.len() as u64;
        let mut all = std::mem::take(&mut self.partial);
        all.extend_from_slice(bytes);
        let encoding = match self.encoding {
            Some(encoding) => encoding,
            None if all.len() < LONGEST_MARK && !has_ended => return self.partial = all,
            None => self.begin(&mut all),
        };
        let from = text.len();
        match encoding {
            TextEncoding::Utf8 => self.push_utf8(&all, has_ended, text),
            TextEncoding::Utf16 { big } => self.push_utf16(&all, big, has_ended, text),
            TextEncoding::Utf32 { big } => self.push_utf32(&all, big, has_ended, text),
        }
        self.nuls += text.as_bytes()[from..].iter().filter(|&&byte| byte == 0).count() as u64;
    }

    /// Takes the mark off the first bytes.
    fn begin(&mut self, all: &mut Vec<u8>) -> TextEncoding {
        let mark = MARKS
            .iter()
            .find(|(mark, encoding)| all.starts_with(mark) && (!self.first_release || *encoding == TextEncoding::Utf8));
        let encoding = mark.map_or(TextEncoding::Utf8, |(mark, encoding)| {
            all.drain(..mark.len());
            *encoding
        });
        self.encoding = Some(encoding);
        encoding
    }

    /// What is no UTF-8 becomes U+FFFD, as Unicode recommends it.
    fn push_utf8(&mut self, mut bytes: &[u8], has_ended: bool, text: &mut String) {
        loop {
            match std::str::from_utf8(bytes) {
                Ok(all) => return text.push_str(all),
                Err(e) => {
                    let (valid, rest) = bytes.split_at(e.valid_up_to());
                    // The valid part is valid.
                    text.push_str(&String::from_utf8_lossy(valid));
                    let bad = match e.error_len() {
                        Some(bad) => bad,
                        None if has_ended => rest.len(),
                        None => return self.partial = rest.to_vec(),
                    };
                    text.push(char::REPLACEMENT_CHARACTER);
                    self.replaced += bad as u64;
                    bytes = &rest[bad..];
                }
            }
        }
    }

    fn push_utf16(&mut self, bytes: &[u8], big: bool, has_ended: bool, text: &mut String) {
        let unit = |pair: &[u8]| {
            let pair = [pair[0], pair[1]];
            if big { u16::from_be_bytes(pair) } else { u16::from_le_bytes(pair) }
        };
        let mut whole = bytes.len() / 2 * 2;
        let is_high = |unit: u16| (0xd800..0xdc00).contains(&unit);
        if !has_ended && whole >= 2 && is_high(unit(&bytes[whole - 2..])) {
            whole -= 2;
        }
        for decoded in char::decode_utf16(bytes[..whole].chunks_exact(2).map(unit)) {
            self.replaced += if decoded.is_err() { 2 } else { 0 };
            text.push(decoded.unwrap_or(char::REPLACEMENT_CHARACTER));
        }
        self.keep(&bytes[whole..], has_ended, text);
    }

    fn push_utf32(&mut self, bytes: &[u8], big: bool, has_ended: bool, text: &mut String) {
        let whole = bytes.len() / 4 * 4;
        for four in bytes[..whole].chunks_exact(4) {
            let four = [four[0], four[1], four[2], four[3]];
            let decoded = char::from_u32(if big { u32::from_be_bytes(four) } else { u32::from_le_bytes(four) });
            text.push(decoded.unwrap_or(char::REPLACEMENT_CHARACTER));
            self.replaced += if decoded.is_none() { 4 } else { 0 };
        }
        self.keep(&bytes[whole..], has_ended, text);
    }

    /// A part of a character waits for the rest, and is no text at the end.
    fn keep(&mut self, rest: &[u8], has_ended: bool, text: &mut String) {
        if !has_ended {
            self.partial = rest.to_vec();
        } else if !rest.is_empty() {
            text.push(char::REPLACEMENT_CHARACTER);
            self.replaced += rest.len() as u64;
        }
    }

    /// Refuses the file at `path` if what was read of it is no text.
    pub(super) fn check(&self, path: &Path, has_ended: bool) -> Result<()> {
        let is_much = |count: u64, share: u64| count > FEW && count * share > self.bytes;
        let share = if has_ended { BYTES_PER_BAD } else { 10 };
        if self.first_release || !has_ended && self.bytes < EARLY_BYTES {
            return Ok(());
        }
        let name = path.display();
        if is_much(self.nuls, share) {
            return Err(Error::Config(format!(
                "[data] text: {name} is no text: {} of its {} bytes are NUL; take it out of [data] text, or, if it is \
                 UTF-16 without its mark, convert it: iconv -f UTF-16LE -t UTF-8 {name} > {name}.utf8.txt",
                self.nuls, self.bytes
            )));
        }
        if is_much(self.replaced, share) {
            return Err(Error::Config(format!(
                "[data] text: {name} is no UTF-8: {} of its {} bytes; take it out of [data] text if it is binary, or \
                 convert it if it is Latin-1: iconv -f LATIN1 -t UTF-8 {name} > {name}.utf8.txt",
                self.replaced, self.bytes
            )));
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The text of `bytes` in pieces of the given sizes, over and over, and what was replaced.
    fn decode(bytes: &[u8], sizes: &[usize]) -> (String, u64) {
        let (mut decoder, mut text, mut rest) = (TextDecoder::new(false), String::new(), bytes);
        for size in sizes.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (piece, after) = rest.split_at((*size).min(rest.len()));
            decoder.push(piece, false, &mut text);
            rest = after;
        }
        decoder.push(&[], true, &mut text);
        (text, decoder.replaced)
    }

    fn marked(text: &str) -> Vec<Vec<u8>> {
        let text = format!("\u{feff}{text}");
        let units: Vec<u16> = text.encode_utf16().collect();
        let letters: Vec<u32> = text.chars().map(u32::from).collect();
        vec![
            text.into_bytes(),
            units.iter().flat_map(|unit| unit.to_le_bytes()).collect(),
            units.iter().flat_map(|unit| unit.to_be_bytes()).collect(),
            letters.iter().flat_map(|letter| letter.to_le_bytes()).collect(),
            letters.iter().flat_map(|letter| letter.to_be_bytes()).collect(),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn every_encoding_with_a_mark_gives_the_text_however_the_reads_fall(
            text in "\\PC{1,40}", sizes in prop::collection::vec(1usize..7, 1..5),
        ) {
            for bytes in marked(&text) {
                prop_assert_eq!(decode(&bytes, &sizes), (text.clone(), 0));
            }
        }

        #[test]
        fn any_bytes_without_a_mark_are_utf_8_with_the_rest_replaced(
            bytes in prop::collection::vec(any::<u8>(), 0..200), sizes in prop::collection::vec(1usize..9, 1..5),
        ) {
            let bytes = [b"x", &bytes[..]].concat();
            prop_assert_eq!(decode(&bytes, &sizes).0, String::from_utf8_lossy(&bytes));
        }
    }

    #[test]
    fn half_characters_and_lone_surrogates_are_replaced_and_counted() {
        assert_eq!(decode(b"caf\xe9 \xe2\x82", &[1]), ("caf\u{fffd} \u{fffd}".into(), 3));
        assert_eq!(decode(b"\xff\xfea\0\x00\xd8b\0c", &[3]), ("a\u{fffd}b\u{fffd}".into(), 3));
        assert_eq!(decode(b"\xff\xfe\0\0a\0\0\0\0\0\x11\0", &[5]), ("a\u{fffd}".into(), 4));
    }

    #[test]
    fn a_small_share_of_bad_bytes_is_borne_and_a_larger_one_is_refused_by_name() {
        let check = |bytes: &[u8]| {
            let mut decoder = TextDecoder::new(false);
            decoder.push(bytes, true, &mut String::new());
            decoder.check(Path::new("/a/b.txt"), true).map_err(|e| e.to_string())
        };
        let good = "Text in plain letters. ".repeat(500).into_bytes();
        assert_eq!(check(&[&good[..], b"\xe9 \xe8 \xe0"].concat()), Ok(()));
        let latin = "r\u{e9}sum\u{e9} ".repeat(500).chars().map(|c| c as u8).collect::<Vec<_>>();
        let error = check(&[&good[..], &latin].concat()).unwrap_err();
        assert!(error.contains("/a/b.txt is no UTF-8: 1000 of its") && error.contains("iconv"), "{error}");
        let error = check(&good.iter().flat_map(|&byte| [byte, 0]).collect::<Vec<u8>>()).unwrap_err();
        assert!(error.contains("NUL") && error.contains("UTF-16"), "{error}");
    }
}
