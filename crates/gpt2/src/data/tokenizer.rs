//! The tokenizer of a job: loaded, or trained on the text; and its use on blocks of text.
//!
//! Invariant: the ids of a text follow from the tokenizer's JSON and the text alone, whatever the number of threads.
//! Deliberately not here: where texts come from, where ids go.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::mpsc;
use std::time::Duration;

use ckptd_core::progress::ProgressSink;
use ckptd_core::{Error, Result};
use rayon::prelude::*;
use tokenizers::decoders::DecoderWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::models::{ModelWrapper, TrainerWrapper};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::processors::PostProcessorWrapper;
use tokenizers::{AddedToken, Tokenizer};

use super::files::TextFile;
use super::text::{BLOCK_BYTES, TextBlock, TextBlocks};

/// GPT-2's end-of-text token, and what others call theirs.
const END_OF_TEXT: &str = "<|endoftext|>";
const ENDS_OF_TEXT: [&str; 3] = [END_OF_TEXT, "<|end_of_text|>", "</s>"];

/// Bytes of text that a tokenizer is trained on at most, taken evenly from everything.
const TRAINING_BYTES: u64 = 64 << 20;

/// Entries of one word cache, and its longest word in bytes.
const CACHE_WORDS: usize = 1 << 17;
const CACHE_WORD_BYTES: usize = 48;

/// A tokenizer ready to use.
pub struct TextEncoder {
    tokenizer: Tokenizer,
    json: Vec<u8>,
    /// Words may be tokenized one by one, which lets most of them come from a cache.
    by_word: bool,
    /// As many as threads have needed at once.
    caches: Mutex<Vec<HashMap<String, Box<[u32]>>>>,
}

/// The tokenizer's file or files in `path`: a tokenizer.json, or a folder with one or with vocab.json and merges.txt.
pub fn locate(path: &Path) -> Option<TokenizerLocation> {
    if path.is_file() {
        return Some(TokenizerLocation::Json(path.to_path_buf()));
    }
    let [json, vocab, merges] = ["tokenizer.json", "vocab.json", "merges.txt"].map(|name| path.join(name));
    if json.is_file() {
        return Some(TokenizerLocation::Json(json));
    }
    (vocab.is_file() && merges.is_file()).then_some(TokenizerLocation::VocabAndMerges(vocab, merges))
}

/// The files of a tokenizer.
pub enum TokenizerLocation {
    Json(PathBuf),
    VocabAndMerges(PathBuf, PathBuf),
}

impl TextEncoder {
    pub fn load(location: &TokenizerLocation) -> Result<TextEncoder> {
        match location {
            TokenizerLocation::Json(path) => {
                let json = std::fs::read(path).map_err(|e| Error::io("reading tokenizer", path, e))?;
                TextEncoder::from_json(json)
                    .map_err(|e| Error::Config(format!("tokenizer {}: not a tokenizer.json: {e}", path.display())))
            }
            TokenizerLocation::VocabAndMerges(vocab, merges) => {
                let invalid =
                    |e| Error::Config(format!("tokenizer {} with {}: {e}", vocab.display(), merges.display()));
                let bpe = BPE::from_file(&vocab.to_string_lossy(), &merges.to_string_lossy());
                let mut tokenizer = byte_level(bpe.build().map_err(invalid)?);
                if tokenizer.token_to_id(END_OF_TEXT).is_some() {
                    tokenizer.add_special_tokens([AddedToken::from(END_OF_TEXT, true)]).map_err(invalid)?;
                }
                TextEncoder::from_json(to_json(&tokenizer).map_err(invalid)?).map_err(invalid)
            }
        }
    }

    /// From the text of a tokenizer.json. What makes batches of texts even (padding, truncation) or training random
    /// (dropout) is switched off.
    pub fn from_json(json: Vec<u8>) -> tokenizers::Result<TextEncoder> {
        let mut tokenizer = Tokenizer::from_bytes(&json)?;
        tokenizer.with_truncation(None)?.with_padding(None);
        if let ModelWrapper::BPE(bpe) = tokenizer.get_model()
            && bpe.dropout.is_some()
        {
            let mut bpe = bpe.clone();
            bpe.dropout = None;
            tokenizer.with_model(bpe);
        }
        let by_word = is_by_word(&tokenizer);
        Ok(TextEncoder { tokenizer, json, by_word, caches: Mutex::default() })
    }

    /// The tokenizer.json.
    pub fn json(&self) -> &[u8] {
        &self.json
    }

    /// One more than the largest id.
    pub fn vocab_size(&self) -> u64 {
        self.tokenizer.get_vocab(true).values().max().map_or(0, |&id| u64::from(id) + 1)
    }

    /// The id of the end-of-text token.
    pub fn end_of_text(&self) -> Option<u32> {
        ENDS_OF_TEXT.iter().find_map(|token| self.tokenizer.token_to_id(token))
    }

    /// The ids of each block, computed by the current rayon pool.
    pub fn encode(&self, blocks: &[TextBlock]) -> tokenizers::Result<Vec<Vec<u32>>> {
        blocks.par_iter().map(|block| self.encode_text(&block.text)).collect()
    }

    /// The text of `ids`; what is no whole character is U+FFFD.
    pub fn decode(&self, ids: &[u32]) -> tokenizers::Result<String> {
        self.tokenizer.decode(ids, false)
    }

    /// The ids of one text.
    pub fn encode_text(&self, text: &str) -> tokenizers::Result<Vec<u32>> {
        if !self.by_word {
            return Ok(self.tokenizer.encode_fast(text, false)?.get_ids().to_vec());
        }
        // A lock is poisoned only by a panic, which ends the work of all threads.
        let mut cache = self.caches.lock().ok().and_then(|mut caches| caches.pop()).unwrap_or_default();
        let mut ids = Vec::with_capacity(text.len() / 3);
        let mut start = 0;
        let borders = (1..text.len()).filter(|&at| is_border(text.as_bytes(), at));
        for end in borders.chain([text.len()]) {
            let word = &text[start..end];
            start = end;
            if let Some(known) = cache.get(word) {
                ids.extend_from_slice(known);
                continue;
            }
            let encoding = self.tokenizer.encode_fast(word, false)?;
            ids.extend_from_slice(encoding.get_ids());
            if word.len() <= CACHE_WORD_BYTES && cache.len() < CACHE_WORDS {
                cache.insert(word.to_owned(), encoding.get_ids().into());
            }
        }
        if let Ok(mut caches) = self.caches.lock() {
            caches.push(cache);
        }
        Ok(ids)
    }
}

/// Whether dividing a text at [`is_border`] cannot change its tokens: GPT-2's own split into words, nothing done to
/// the text before it, and no added token that reaches over a border.
fn is_by_word(tokenizer: &Tokenizer) -> bool {
    let reaches = |token: &AddedToken| token.rstrip || token.content.contains(char::is_whitespace);
    let is_gpt2 = |split: &PreTokenizerWrapper| match split {
        PreTokenizerWrapper::ByteLevel(split) => split.use_regex && !split.add_prefix_space,
        _ => false,
    };
    tokenizer.get_normalizer().is_none()
        && tokenizer.get_pre_tokenizer().is_some_and(is_gpt2)
        && !tokenizer.get_added_tokens_decoder().values().any(reaches)
}

/// Whether GPT-2's pattern, `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`, has a word
/// end before byte `at`, whatever stands further away: no word has whitespace after anything else, and a line feed
/// alone between two others is a word.
fn is_border(text: &[u8], at: usize) -> bool {
    let is_visible = |at: usize| text[at].is_ascii_graphic();
    match text[at] {
        b' ' | b'\n' => is_visible(at - 1),
        _ => text[at - 1] == b'\n' && at >= 2 && is_visible(at - 2) && is_visible(at),
    }
}

/// GPT-2's byte-level tokenizer over `bpe`.
fn byte_level(bpe: BPE) -> Tokenizer {
    let mut tokenizer = Tokenizer::new(bpe);
    tokenizer
        .with_pre_tokenizer(Some(PreTokenizerWrapper::ByteLevel(ByteLevel::new(false, true, true))))
        .with_post_processor(Some(PostProcessorWrapper::ByteLevel(ByteLevel::new(true, false, true))))
        .with_decoder(Some(DecoderWrapper::ByteLevel(ByteLevel::new(true, true, true))));
    tokenizer
}

fn to_json(tokenizer: &Tokenizer) -> tokenizers::Result<Vec<u8>> {
    Ok(tokenizer.to_string(false)?.into_bytes())
}

/// Trains a byte-level BPE of at most `vocab_size` tokens, <|endoftext|> the first of them, on `sources`, in `pool`.
///
/// The crate's trainer counts in any order and breaks ties by token ids, so that the result depends on neither the
/// number of threads nor the order of its hash maps; a test compares several processes.
pub fn train(
    sources: &[TextFile],
    vocab_size: u64,
    pool: &rayon::ThreadPool,
    progress: &dyn ProgressSink,
) -> Result<TextEncoder> {
    let alphabet = ByteLevel::alphabet();
    if vocab_size <= alphabet.len() as u64 {
        return Err(Error::Config(format!(
            "a tokenizer trained on the text needs a vocabulary of at least {}, the model has {vocab_size}; name a \
             tokenizer in [data] tokenizer",
            alphabet.len() + 1
        )));
    }
    let trainer = BpeTrainer::builder()
        .show_progress(false)
        .vocab_size(vocab_size as usize)
        .min_frequency(2)
        .initial_alphabet(alphabet.into_iter().collect())
        .special_tokens(vec![AddedToken::from(END_OF_TEXT, true)])
        .build();
    let (read_to, read_from) = mpsc::channel();
    let mut sample = TokenizerSample::new(sources, TRAINING_BYTES, read_to);
    progress.begin("training a tokenizer", sample.total);

    // The training runs beside this thread, which goes on showing that there is progress.

    std::thread::scope(|scope| {
        let work = scope.spawn(move || {
            let mut tokenizer = byte_level(BPE::default());
            let mut trainer = TrainerWrapper::BpeTrainer(trainer);
            let trained = pool.install(|| tokenizer.train(&mut trainer, &mut sample).map(|_| ()));
            match sample.error.take() {
                Some(error) => Err(error),
                None => trained.and_then(|()| to_json(&tokenizer)).and_then(TextEncoder::from_json).map_err(unexpected),
            }
        });
        let told = loop {
            let told = match read_from.recv_timeout(Duration::from_secs(1)) {
                Ok(bytes) => progress.advance(bytes),
                Err(mpsc::RecvTimeoutError::Timeout) => progress.advance(0),
                Err(mpsc::RecvTimeoutError::Disconnected) => break Ok(()),
            };
            if told.is_err() {
                break told;
            }
        };
        told.and(work.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })
}

fn unexpected(error: tokenizers::Error) -> Error {
    Error::Other(format!("training a tokenizer: {error}; name one in [data] tokenizer"))
}

/// The blocks that a tokenizer is trained on: all, or about `limit` bytes of them, evenly spread. An error ends them
/// and is kept.
struct TokenizerSample<'a> {
    blocks: TextBlocks<'a>,
    read_to: mpsc::Sender<u64>,
    limit: u64,
    total: u64,
    read: u64,
    told_bytes: u64,
    error: Option<Error>,
}

impl<'a> TokenizerSample<'a> {
    fn new(sources: &'a [TextFile], limit: u64, read_to: mpsc::Sender<u64>) -> TokenizerSample<'a> {
        let total = sources.iter().map(|source| source.bytes).sum();
        TokenizerSample { blocks: TextBlocks::new(sources), read_to, limit, total, read: 0, told_bytes: 0, error: None }
    }

    /// How many blocks should have been taken after `read` bytes.
    fn quota(&self, read: u64) -> u128 {
        u128::from(read) * u128::from(self.limit) / (u128::from(self.total.max(1)) * BLOCK_BYTES as u128)
    }
}

impl Iterator for TokenizerSample<'_> {
    type Item = String;

    fn next(&mut self) -> Option<String> {
        loop {
            let text = match self.blocks.next() {
                Ok(block) => block?.text,
                Err(error) => {
                    self.error = Some(error);
                    return None;
                }
            };
            // The receiver is gone only where the result is not waited for.
            let _ = self.read_to.send(self.blocks.bytes_done() - self.told_bytes);
            self.told_bytes = self.blocks.bytes_done();
            let before = self.read;
            self.read += text.len() as u64;
            if self.total <= self.limit || self.quota(before) != self.quota(self.read) {
                return Some(text);
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn trained() -> TextEncoder {
        let text = "the cat's hat, the end.\n\nWe'll see 12 and 1234 -- of the\tthe  \n the é of é of\n".repeat(3);
        let mut trainer: TrainerWrapper = BpeTrainer::builder()
            .show_progress(false)
            .vocab_size(330)
            .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
            .special_tokens(vec![AddedToken::from(END_OF_TEXT, true)])
            .build()
            .into();
        let mut tokenizer = byte_level(BPE::default());
        tokenizer.train(&mut trainer, [text].iter()).unwrap();
        TextEncoder::from_json(to_json(&tokenizer).unwrap()).unwrap()
    }

    #[test]
    fn tokens_found_word_by_word_are_those_of_the_whole_text() {
        let encoder = trained();
        assert!(encoder.by_word);
        let parts =
            ["the", "é", " ", "\n", "\t", "\r\n", "'", "'s", "'ll", "12", ",", "--", "\u{a0}", "\u{3000}", END_OF_TEXT];
        let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(3000));
        let texts = prop::collection::vec(prop::sample::select(parts.to_vec()), 0..16);
        let compare = |parts: Vec<&str>| {
            let text = parts.concat();
            let whole = encoder.tokenizer.encode_fast(text.as_str(), false).unwrap();
            prop_assert_eq!(encoder.encode_text(&text).unwrap(), whole.get_ids());
            Ok(())
        };
        runner.run(&texts, compare).unwrap();
    }

    #[test]
    fn a_tokenizer_of_another_kind_is_given_the_text_as_it_is() {
        let json = String::from_utf8(trained().json).unwrap();
        for (from, to) in [
            ("\"normalizer\":null", "\"normalizer\":{\"type\":\"NFC\"}"),
            ("\"add_prefix_space\":false", "\"add_prefix_space\":true"),
            ("\"rstrip\":false", "\"rstrip\":true"),
        ] {
            assert!(json.contains(from));
            assert!(!TextEncoder::from_json(json.replacen(from, to, 1).into_bytes()).unwrap().by_word, "{to}");
        }
    }

    #[test]
    fn padding_truncation_and_dropout_of_a_tokenizer_are_switched_off() {
        let plain = trained();
        let mut json: serde_json::Value = serde_json::from_slice(&plain.json).unwrap();
        json["model"]["dropout"] = 0.9.into();
        json["truncation"] =
            serde_json::json!({"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0});
        let encoder = TextEncoder::from_json(serde_json::to_vec(&json).unwrap()).unwrap();
        let text = "the cat's hat, the end. We'll see 12 of the";
        assert_eq!(encoder.encode_text(text).unwrap(), plain.encode_text(text).unwrap());
    }

    #[test]
    fn a_large_text_is_sampled_evenly() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.txt");
        let text: String = (0..BLOCK_BYTES * 5).map(|i| format!(" {i:07}")).collect();
        std::fs::write(&path, &text).unwrap();
        let bytes = text.len() as u64;
        let sources = [TextFile { path, bytes, hash: blake3::hash(text.as_bytes()) }];
        let (read_to, _shares) = mpsc::channel();
        let blocks: Vec<String> = TokenizerSample::new(&sources, bytes / 4, read_to.clone()).collect();
        assert!((9..=11).contains(&blocks.len()), "{} of 40 blocks", blocks.len());
        let starts: Vec<usize> = blocks.iter().map(|block| text.find(&block[..8]).unwrap()).collect();
        assert!(starts.windows(2).all(|pair| (3..=5).contains(&((pair[1] - pair[0]) / BLOCK_BYTES + 1))), "{starts:?}");
        assert_eq!(TokenizerSample::new(&sources, bytes, read_to).collect::<String>(), text);
    }
}
