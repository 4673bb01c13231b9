//! Files as a stream of text blocks that can be tokenized independently of each other.
//!
//! Invariant: the blocks are a function of the contents and of the tokenizer's [`CutRule`] alone, and together they are
//! the text. A block is as small as [`BLOCK_BYTES`] where the rule has a border there, else it reaches to the next one.
//! Deliberately not here: tokens.

use std::path::Path;

use ckptd_core::Result;

use super::cut::CutRule;
use super::text_files::TextFile;
use super::text_reader::TextReader;

/// A block's size in bytes of text. Small enough that the tokenizer's working memory (about 200 times as much) stays
/// small, large enough that the work per block outweighs the hand-over.
pub(super) const BLOCK_BYTES: usize = 64 << 10;

/// What is read, and how.
#[derive(Clone, Copy, Debug)]
pub(super) struct TextInput<'a> {
    pub(super) files: &'a [TextFile],
    /// `[data] field`.
    pub(super) field: Option<&'a str>,
    /// Every file is one document of UTF-8, whatever it looks like.
    pub(super) first_release: bool,
}

/// A piece of a document.
pub(super) struct TextBlock {
    /// Counted over all files.
    pub(super) document: u64,
    /// The file that it comes from, by its place in the input.
    pub(super) file: usize,
    pub(super) text: String,
}

/// What was lost on the way.
#[derive(Debug, Default)]
pub(super) struct TextLosses<'a> {
    /// Bytes that were no text and were replaced, and the first file that had such.
    pub(super) replaced: u64,
    pub(super) first_replaced: Option<&'a Path>,
    /// Records without a text.
    pub(super) empty: u64,
}

/// The blocks of all documents, in order.
pub(super) struct TextBlocks<'a> {
    input: TextInput<'a>,
    rule: CutRule,
    file: usize,
    document: u64,
    reader: Option<TextReader<'a>>,
    pending: PendingText,
    /// Bytes of the files that were read to their end.
    read_bytes: u64,
    pub(super) losses: TextLosses<'a>,
}

impl<'a> TextBlocks<'a> {
    pub(super) fn new(input: TextInput<'a>, rule: CutRule) -> TextBlocks<'a> {
        TextBlocks {
            input,
            rule,
            file: 0,
            document: 0,
            reader: None,
            pending: PendingText::default(),
            read_bytes: 0,
            losses: TextLosses::default(),
        }
    }

    /// Bytes of all files.
    pub(super) fn total_bytes(&self) -> u64 {
        self.input.files.iter().map(|file| file.bytes).sum()
    }

    /// Bytes that were read so far.
    pub(super) fn bytes_done(&self) -> u64 {
        self.read_bytes + self.reader.as_ref().map_or(0, TextReader::bytes_done)
    }

    /// The next block, or `None` after the last. An error where a file is no longer what was hashed, or is no text.
    pub(super) fn next(&mut self) -> Result<Option<TextBlock>> {
        loop {
            if let Some(text) = self.pending.next_block(self.rule) {
                return Ok(Some(TextBlock { document: self.document, file: self.file, text }));
            }
            if self.pending.has_ended {
                self.pending = PendingText::default();
                self.document += 1;
            }
            let Some(file) = self.input.files.get(self.file) else { return Ok(None) };
            let reader = match &mut self.reader {
                Some(reader) => reader,
                none => none.insert(TextReader::open(file, self.input.field, self.input.first_release)?),
            };
            match reader.next()? {
                Some(piece) => self.pending.push(&piece.text, piece.is_last),
                None => self.finish_file(file),
            }
        }
    }

    fn finish_file(&mut self, file: &'a TextFile) {
        let (replaced, empty) = self.reader.as_ref().map_or((0, 0), TextReader::losses);
        if replaced > 0 {
            self.losses.first_replaced.get_or_insert(&file.path);
            self.losses.replaced += replaced;
        }
        self.losses.empty += empty;
        self.read_bytes += file.bytes;
        self.file += 1;
        self.reader = None;
    }
}

/// The text of a document that is not yet cut into blocks.
#[derive(Default)]
struct PendingText {
    text: String,
    /// Bytes of it that are in blocks already.
    done: usize,
    /// Bytes behind `done` in which no border was found.
    searched: usize,
    has_ended: bool,
}

impl PendingText {
    fn push(&mut self, text: &str, is_last: bool) {
        if self.done > self.text.len() / 2 {
            self.text.drain(..self.done);
            self.done = 0;
        }
        self.text.push_str(text);
        self.has_ended = is_last;
    }

    fn next_block(&mut self, rule: CutRule) -> Option<String> {
        let rest = &self.text[self.done..];
        let end = if rest.len() <= BLOCK_BYTES { None } else { self.border(rest, rule) };
        let end = match end {
            Some(end) => end,
            None if self.has_ended && !rest.is_empty() => rest.len(),
            None => {
                self.searched = rest.len();
                return None;
            }
        };
        let block = rest[..end].to_owned();
        self.done += end;
        self.searched = 0;
        Some(block)
    }

    /// The last border within a block's size, else the first one behind it.
    fn border(&self, rest: &str, rule: CutRule) -> Option<usize> {
        match rule {
            CutRule::FirstRelease => Some(first_release_cut(rest, BLOCK_BYTES)),
            CutRule::Whole => None,
            CutRule::Words | CutRule::Spaces => {
                let is_border = |&at: &usize| rule.is_border(rest, at);
                let within = || (1..=BLOCK_BYTES).rev().find(is_border);
                let behind = || (self.searched.max(BLOCK_BYTES + 1)..rest.len()).find(is_border);
                if self.searched > BLOCK_BYTES { behind() } else { within().or_else(behind) }
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
fn first_release_cut(text: &str, limit: usize) -> usize {
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
    use super::*;

    fn blocks(text: &str, rule: CutRule, sizes: &[usize]) -> Vec<String> {
        let (mut pending, mut rest, mut found) = (PendingText::default(), text, Vec::new());
        for size in sizes.iter().cycle() {
            let at = (*size..=rest.len()).find(|&at| rest.is_char_boundary(at)).unwrap_or(rest.len());
            let (piece, after) = rest.split_at(at);
            pending.push(piece, after.is_empty());
            rest = after;
            while let Some(block) = pending.next_block(rule) {
                found.push(block);
            }
            if rest.is_empty() {
                return found;
            }
        }
        found
    }

    #[test]
    fn blocks_do_not_depend_on_how_the_reads_fall_and_keep_to_the_limit() {
        let text: String =
            (0..60_000).map(|i| if i % 7 == 0 { "\n\n  été,".into() } else { format!(" word{i}") }).collect();
        for rule in [CutRule::Words, CutRule::Spaces, CutRule::FirstRelease] {
            let one = blocks(&text, rule, &[usize::MAX]);
            assert_eq!(one, blocks(&text, rule, &[1000, 70_001, 3]));
            assert_eq!(one.concat(), text);
            assert!(one.len() > 5 && one.iter().all(|block| block.len() <= BLOCK_BYTES));
        }
        assert_eq!(blocks(&text, CutRule::Whole, &[5000]), [text]);
    }

    #[test]
    fn a_text_without_borders_is_one_block_up_to_the_next_border() {
        let run = "語".repeat(100_000);
        let text = format!("{run} {run}\n{run}");
        let found = blocks(&text, CutRule::Words, &[100_003]);
        assert_eq!(found, [run.clone(), format!(" {run}"), format!("\n{run}")]);
        assert_eq!(blocks(&text, CutRule::Spaces, &[100_003]).len(), 2);
    }

    #[test]
    fn a_block_of_the_first_release_ends_at_the_best_border_there_is() {
        let cut = first_release_cut;
        assert_eq!(cut("one two, three\nfour", 16), 3);
        assert_eq!(cut("one\ntwo, three-four", 16), 3);
        assert_eq!(cut("été\u{3000}! x-four-five", 18), 5, "a letter before any whitespace");
        assert_eq!(cut("-, ;  four-five-six", 16), 4);
        assert_eq!(cut("ééééé", 5), 4);
    }
}
