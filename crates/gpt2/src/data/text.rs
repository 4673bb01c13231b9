//! Files as a stream of text blocks of bounded size that can be tokenized independently of each other.
//!
//! Invariant: the blocks are a function of the contents alone, and together they are the text. Deliberately not here:
//! tokens.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::Path;

use ckptd_core::{Error, Result};

use super::files::{TextFile, changed};

/// Largest block, in bytes of text. Small enough that the tokenizer's working memory (about 200 times as much) stays
/// small, large enough that the work per block outweighs the hand-over.
pub(super) const BLOCK_BYTES: usize = 64 << 10;

const READ_BYTES: usize = 256 << 10;

/// A piece of document `document` (0-based).
pub struct TextBlock {
    pub document: usize,
    pub text: String,
}

/// The blocks of all documents, in order.
pub(super) struct TextBlocks<'a> {
    sources: &'a [TextFile],
    document: usize,
    reader: Option<TextReader>,
    /// Bytes of the files that were read to their end.
    read_bytes: u64,
    /// Bytes that were no UTF-8 and were replaced, and the first file that had such.
    pub replaced: u64,
    pub first_replaced: Option<&'a Path>,
}

impl<'a> TextBlocks<'a> {
    pub(super) fn new(sources: &'a [TextFile]) -> TextBlocks<'a> {
        TextBlocks { sources, document: 0, reader: None, read_bytes: 0, replaced: 0, first_replaced: None }
    }

    /// Bytes of all files.
    pub(super) fn total_bytes(&self) -> u64 {
        self.sources.iter().map(|source| source.bytes).sum()
    }

    /// Bytes that were read so far.
    pub(super) fn bytes_done(&self) -> u64 {
        self.read_bytes + self.reader.as_ref().map_or(0, |reader| reader.hasher.count())
    }

    /// The next block, or `None` after the last. An error where a file is no longer what was hashed.
    pub(super) fn next(&mut self) -> Result<Option<TextBlock>> {
        while let Some(source) = self.sources.get(self.document) {
            let fail = |e| Error::io("reading", &source.path, e);
            let reader = match &mut self.reader {
                Some(reader) => reader,
                none => none.insert(TextReader::new(File::open(&source.path).map_err(fail)?)),
            };
            if let Some(text) = reader.next_block().map_err(fail)? {
                return Ok(Some(TextBlock { document: self.document, text }));
            }
            if reader.hasher.finalize() != source.hash {
                return Err(changed(&source.path));
            }
            if reader.replaced > 0 {
                self.first_replaced.get_or_insert(&source.path);
                self.replaced += reader.replaced;
            }
            self.read_bytes += source.bytes;
            self.document += 1;
            self.reader = None;
        }
        Ok(None)
    }
}

/// One file's text.
struct TextReader {
    file: Box<dyn Read + Send>,
    hasher: blake3::Hasher,
    buffer: Vec<u8>,
    /// The beginning of a character whose end is not read yet.
    partial: Vec<u8>,
    text: String,
    is_start: bool,
    has_ended: bool,
    replaced: u64,
}

impl TextReader {
    fn new(file: impl Read + Send + 'static) -> TextReader {
        TextReader {
            file: Box::new(file),
            hasher: blake3::Hasher::new(),
            buffer: vec![0; READ_BYTES],
            partial: Vec::new(),
            text: String::new(),
            is_start: true,
            has_ended: false,
            replaced: 0,
        }
    }

    fn next_block(&mut self) -> std::io::Result<Option<String>> {
        while self.text.len() <= BLOCK_BYTES && !self.has_ended {
            self.read()?;
        }
        if self.text.is_empty() {
            return Ok(None);
        }
        let end = if self.text.len() <= BLOCK_BYTES { self.text.len() } else { cut(&self.text, BLOCK_BYTES) };
        let rest = self.text.split_off(end);
        Ok(Some(std::mem::replace(&mut self.text, rest)))
    }

    fn read(&mut self) -> std::io::Result<()> {
        let n = loop {
            match self.file.read(&mut self.buffer) {
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                result => break result?,
            }
        };
        self.hasher.update(&self.buffer[..n]);
        self.has_ended = n == 0;
        let mut bytes = std::mem::take(&mut self.partial);
        bytes.extend_from_slice(&self.buffer[..n]);
        self.decode(&bytes);
        if self.is_start && !self.text.is_empty() {
            self.is_start = false;
            // A byte order mark is no text.
            if self.text.starts_with('\u{feff}') {
                self.text.remove(0);
            }
        }
        Ok(())
    }

    /// Appends `bytes` to the text. What is no UTF-8 becomes U+FFFD, as Unicode recommends it; a character that may
    /// go on in the next read is kept for it.
    fn decode(&mut self, mut bytes: &[u8]) {
        loop {
            match std::str::from_utf8(bytes) {
                Ok(text) => return self.text.push_str(text),
                Err(e) => {
                    let (valid, rest) = bytes.split_at(e.valid_up_to());
                    // The valid part is valid.
                    self.text.push_str(&String::from_utf8_lossy(valid));
                    let bad = match e.error_len() {
                        Some(bad) => bad,
                        None if self.has_ended => rest.len(),
                        None => return self.partial = rest.to_vec(),
                    };
                    self.text.push(char::REPLACEMENT_CHARACTER);
                    self.replaced += bad as u64;
                    bytes = &rest[bad..];
                }
            }
        }
    }
}

/// Whether text may be divided before byte `at` without a change to its tokens, for any tokenizer that splits it into
/// words first: the pattern of GPT-2 and those made after it never let a letter or a digit and the space after it
/// stand in one word.
fn is_word_border(text: &[u8], at: usize) -> bool {
    text[at] == b' ' && text[at - 1].is_ascii_alphanumeric()
}

/// Where to end a block in `text`, which is longer than `limit`: at the last word border within the limit, else at
/// the last change to whitespace from a letter or digit, else from anything, else (no whitespace at all) at the
/// limit. The last of these alone can change tokens.
fn cut(text: &str, limit: usize) -> usize {
    if let Some(at) = (1..=limit).rev().find(|&at| is_word_border(text.as_bytes(), at)) {
        return at;
    }
    // A character has at most four bytes.
    let end = (limit - 3..=limit).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(limit);
    let mut fallback = None;
    let mut next = text[end..].chars().next();
    for (at, c) in text[..end].char_indices().rev() {
        if next.is_some_and(char::is_whitespace) && !c.is_whitespace() {
            let border = at + c.len_utf8();
            if c.is_alphanumeric() {
                return border;
            }
            fallback.get_or_insert(border);
        }
        next = Some(c);
    }
    fallback.unwrap_or(end)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Hands out its bytes in pieces of the given sizes, over and over.
    struct Trickle(Vec<u8>, Vec<usize>);

    impl Read for Trickle {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            let n = self.1[0].min(self.0.len()).min(buffer.len());
            self.1.rotate_left(1);
            buffer[..n].copy_from_slice(&self.0[..n]);
            self.0.drain(..n);
            Ok(n)
        }
    }

    fn blocks(bytes: &[u8], sizes: &[usize]) -> (Vec<String>, u64) {
        let mut reader = TextReader::new(Trickle(bytes.to_vec(), sizes.to_vec()));
        let mut blocks = Vec::new();
        while let Some(block) = reader.next_block().unwrap() {
            blocks.push(block);
        }
        (blocks, reader.replaced)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn blocks_are_the_whole_text_however_the_reads_fall(
            bytes in prop::collection::vec(any::<u8>(), 0..300), sizes in prop::collection::vec(1usize..9, 1..5),
        ) {
            let (blocks, _) = blocks(&bytes, &sizes);
            let bytes = bytes.strip_prefix("\u{feff}".as_bytes()).unwrap_or(&bytes);
            prop_assert_eq!(blocks.concat(), String::from_utf8_lossy(bytes));
        }
    }

    #[test]
    fn blocks_do_not_depend_on_how_the_reads_fall_and_keep_to_the_limit() {
        let text: String =
            (0..60_000).map(|i| if i % 7 == 0 { "\n\n  été,".into() } else { format!(" word{i}") }).collect();
        let (one, _) = blocks(text.as_bytes(), &[usize::MAX]);
        let (other, _) = blocks(text.as_bytes(), &[1000, 70_001, 3]);
        assert_eq!(one, other);
        assert_eq!(one.concat(), text);
        assert!(one.len() > 5 && one.iter().all(|block| block.len() <= BLOCK_BYTES));
        assert!(one[1..].iter().all(|block| block.starts_with(' ')));
    }

    #[test]
    fn a_block_ends_at_the_best_border_there_is() {
        assert_eq!(cut("one two, three\nfour", 16), 3);
        assert_eq!(cut("one\ntwo, three-four", 16), 3);
        assert_eq!(cut("été\u{3000}! x-four-five", 18), 5, "a letter before any whitespace");
        assert_eq!(cut("-, ;  four-five-six", 16), 4);
        assert_eq!(cut("ééééé", 5), 4);
    }

    #[test]
    fn a_byte_order_mark_is_dropped_and_bytes_that_are_no_text_are_replaced_and_counted() {
        let (text, replaced) = blocks(b"\xef\xbb\xbfcaf\xe9 \xe2\x82", &[1]);
        assert_eq!((text.concat().as_str(), replaced), ("caf\u{fffd} \u{fffd}", 3));
        let (text, replaced) = blocks("\u{feff}é".as_bytes(), &[4]);
        assert_eq!((text.concat().as_str(), replaced), ("é", 0));
    }
}
