//! The tokenizer of a job: loaded, or trained on the text; and its use on blocks of text.
//!
//! Invariant: the ids of a text follow from the tokenizer's JSON and the text alone, whatever the number of threads.
//! Deliberately not here: where texts come from, where ids go.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::mpsc;
use std::time::Duration;

use ckptd::{Error, Result};
use rayon::prelude::*;
use tokenizers::decoders::DecoderWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::models::{ModelWrapper, TrainerWrapper};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::processors::PostProcessorWrapper;
use tokenizers::{AddedToken, Tokenizer};

use super::files::Source;
use super::text::{Block, Blocks, is_word_border};
use crate::tokens::Progress;

/// GPT-2's end-of-text token, and what others call theirs.
const END_OF_TEXT: &str = "<|endoftext|>";
const ENDS_OF_TEXT: [&str; 3] = [END_OF_TEXT, "<|end_of_text|>", "</s>"];

/// Bytes of text that a tokenizer is trained on at most, taken evenly from everything.
const TRAINING_BYTES: u64 = 64 << 20;

/// Entries of one word cache, and its longest word in bytes.
const CACHE_WORDS: usize = 1 << 17;
const CACHE_WORD_BYTES: usize = 48;

/// A tokenizer ready to use.
pub struct Encoder {
    tokenizer: Tokenizer,
    json: Vec<u8>,
    /// Words may be tokenized one by one, which lets most of them come from a cache.
    by_word: bool,
    /// As many as threads have needed at once.
    caches: Mutex<Vec<HashMap<String, Box<[u32]>>>>,
}

/// The tokenizer's file or files in `path`: a tokenizer.json, or a folder with one or with vocab.json and merges.txt.
pub fn locate(path: &Path) -> Option<Location> {
    if path.is_file() {
        return Some(Location::Json(path.to_path_buf()));
    }
    let [json, vocab, merges] = ["tokenizer.json", "vocab.json", "merges.txt"].map(|name| path.join(name));
    match json.is_file() {
        true => Some(Location::Json(json)),
        false => (vocab.is_file() && merges.is_file()).then_some(Location::VocabAndMerges(vocab, merges)),
    }
}

pub enum Location {
    Json(PathBuf),
    VocabAndMerges(PathBuf, PathBuf),
}

impl Encoder {
    pub fn load(location: &Location) -> Result<Encoder> {
        match location {
            Location::Json(path) => {
                let json = std::fs::read(path).map_err(|e| Error::io("reading tokenizer", path, e))?;
                Encoder::from_json(json)
                    .map_err(|e| Error::Config(format!("tokenizer {}: not a tokenizer.json: {e}", path.display())))
            }
            Location::VocabAndMerges(vocab, merges) => {
                let invalid =
                    |e| Error::Config(format!("tokenizer {} with {}: {e}", vocab.display(), merges.display()));
                let bpe = BPE::from_file(&vocab.to_string_lossy(), &merges.to_string_lossy());
                let mut tokenizer = byte_level(bpe.build().map_err(invalid)?);
                if tokenizer.token_to_id(END_OF_TEXT).is_some() {
                    tokenizer.add_special_tokens([AddedToken::from(END_OF_TEXT, true)]).map_err(invalid)?;
                }
                Encoder::from_json(to_json(&tokenizer).map_err(invalid)?).map_err(invalid)
            }
        }
    }

    /// From the text of a tokenizer.json. What makes batches of texts even (padding, truncation) or training random
    /// (dropout) is switched off.
    pub fn from_json(json: Vec<u8>) -> tokenizers::Result<Encoder> {
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
        Ok(Encoder { tokenizer, json, by_word, caches: Mutex::default() })
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
    pub fn encode(&self, blocks: &[Block]) -> tokenizers::Result<Vec<Vec<u32>>> {
        blocks.par_iter().map(|block| self.encode_block(&block.text)).collect()
    }

    fn encode_block(&self, text: &str) -> tokenizers::Result<Vec<u32>> {
        if !self.by_word {
            return Ok(self.tokenizer.encode_fast(text, false)?.get_ids().to_vec());
        }
        // A lock is poisoned only by a panic, which ends the work of all threads.
        let mut cache = self.caches.lock().ok().and_then(|mut caches| caches.pop()).unwrap_or_default();
        let mut ids = Vec::with_capacity(text.len() / 3);
        let mut start = 0;
        let borders = (1..text.len()).filter(|&at| is_word_border(text.as_bytes(), at));
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

/// Whether dividing a text at word borders cannot change its tokens: GPT-2's own split into words, nothing before it,
/// and no added token that reaches over a border.
fn is_by_word(tokenizer: &Tokenizer) -> bool {
    let reaches = |token: &AddedToken| token.rstrip || token.content.contains(char::is_whitespace);
    tokenizer.get_normalizer().is_none()
        && matches!(tokenizer.get_pre_tokenizer(), Some(PreTokenizerWrapper::ByteLevel(split)) if split.use_regex)
        && !tokenizer.get_added_tokens_decoder().values().any(reaches)
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

/// Trains a byte-level BPE of at most `vocab_size` tokens, <|endoftext|> the first of them, on `sources`. The current
/// rayon pool of the calling thread is not used: the work runs in `pool`.
pub fn train(
    sources: &[Source],
    vocab_size: u64,
    pool: &rayon::ThreadPool,
    progress: &mut Progress,
) -> Result<Encoder> {
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
    let (share_to, share_from) = mpsc::channel();
    let mut sample = Sample { blocks: Blocks::new(sources), share_to, read: 0, total: 0, error: None };
    sample.total = sources.iter().map(|source| source.bytes).sum();

    // The training runs beside this thread, which goes on showing that there is progress.
    let trained = std::thread::scope(|scope| {
        let work = scope.spawn(move || {
            let mut tokenizer = byte_level(BPE::default());
            let mut trainer = TrainerWrapper::BpeTrainer(trainer);
            let trained = pool.install(|| tokenizer.train(&mut trainer, &mut sample).map(|_| ()));
            match sample.error.take() {
                Some(error) => Err(error),
                None => trained.and_then(|()| to_json(&tokenizer)).and_then(Encoder::from_json).map_err(unexpected),
            }
        });
        let mut share = None;
        loop {
            match share_from.recv_timeout(Duration::from_secs(1)) {
                Ok(news) => share = Some(news),
                Err(mpsc::RecvTimeoutError::Timeout) => {}
                Err(mpsc::RecvTimeoutError::Disconnected) => break,
            }
            progress("training a tokenizer", share);
        }
        work.join()
    });
    trained.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn unexpected(error: tokenizers::Error) -> Error {
    Error::Other(format!("training a tokenizer: {error}; name one in [data] tokenizer"))
}

/// The blocks that a tokenizer is trained on. An error ends them and is kept.
struct Sample<'a> {
    blocks: Blocks<'a>,
    share_to: mpsc::Sender<f64>,
    read: u64,
    total: u64,
    error: Option<Error>,
}

impl Iterator for Sample<'_> {
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
            // Nobody listens any more only when nobody waits for the result.
            let _ = self.share_to.send(self.blocks.share_done());
            let quota = |read: u64| u128::from(read) * u128::from(TRAINING_BYTES) / u128::from(self.total.max(1));
            let (before, after) = (self.read, self.read + text.len() as u64);
            self.read = after;
            let block_bytes = super::text::BLOCK_BYTES as u128;
            if self.total <= TRAINING_BYTES || quota(before) / block_bytes != quota(after) / block_bytes {
                return Some(text);
            }
        }
    }
}
