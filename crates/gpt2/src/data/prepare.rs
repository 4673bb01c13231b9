//! Opens a job's tokens: from a token file, or from text that is tokenized once into the cache.
//!
//! Invariant: what the cache holds is used only where its hash and its stamp say that it is what was written.
//! Deliberately not here: finding and reading text, and the tokenizer itself.

use std::io::ErrorKind;
use std::path::Path;
use std::time::SystemTime;

use ckptd_core::config;
use ckptd_core::progress::ProgressSink;
use ckptd_core::token_cache::{TokenCache, TokenFacts, TokenOrigin, TokenRecord, TokenWidth};
use ckptd_core::{Error, Result};
use rayon::ThreadPool;

use super::files::{self, TextFile};
use super::text::TextBlocks;
use super::tokenizer::{self, TextEncoder};
use crate::tokens::{TokenView, TokenWriter, prepare_cache, recall, remember, write_whole};

/// Enters the key of every cached file: another value makes new ones.
const FORMAT: &[u8] = b"ckptd tokens v1";

/// Text handed to each thread at a time, in bytes.
const WAVE_BYTES: usize = 1 << 20;

/// What is asked for.
pub struct DataRequest<'a> {
    pub data: &'a config::DataSection,
    pub train: &'a config::TrainSection,
    /// The model's folder, which may hold a tokenizer.
    pub model_folder: Option<&'a Path>,
    /// The model's vocabulary: ids are below it.
    pub vocab_size: u64,
    /// Threads that tokenize; 0: one per processor.
    pub threads: usize,
}

/// The tokens of a job.
pub struct TokenDataset {
    pub train: TokenView,
    /// The last `round(tokens * validation)` tokens.
    pub val: TokenView,
    /// Of the tokenizer; of the model where there is none.
    pub vocab_size: u64,
    /// Stands for the ids: BLAKE3 of the token file that was named, or of the texts, the tokenizer and the format.
    pub content_hash: String,
    /// To be carried in snapshots.
    pub tokenizer_json: Option<Vec<u8>>,
    /// Id of the end-of-text token.
    pub eot: Option<u32>,
    /// What the user should know, one line each.
    pub notes: Vec<String>,
}

/// Opens the tokens of `request`, tokenizing text that the cache does not hold yet.
///
/// `progress` hears of it at least every few seconds.
pub fn open(request: &DataRequest, progress: &dyn ProgressSink) -> Result<TokenDataset> {
    let mut notes = Vec::new();
    let opened = match &request.data.tokens {
        Some(path) => open_tokens(request, path, progress)?,
        None => open_text(request, &mut notes, progress)?,
    };
    check_ids(&opened.facts, request.vocab_size, &opened.name)?;
    let (train, val) = split(&opened.view, request)?;
    Ok(TokenDataset {
        train,
        val,
        vocab_size: opened.encoder.as_ref().map_or(request.vocab_size, TextEncoder::vocab_size),
        content_hash: opened.content_hash,
        eot: opened.encoder.as_ref().and_then(TextEncoder::end_of_text),
        tokenizer_json: opened.encoder.map(|encoder| encoder.json().to_vec()),
        notes,
    })
}

/// Tokens before they are split.
struct OpenedTokens {
    view: TokenView,
    facts: TokenFacts,
    content_hash: String,
    encoder: Option<TextEncoder>,
    /// In messages.
    name: String,
}

/// The token file at `path` that was made here, or `None` where there is none or it is not what was written.
fn open_cached(
    path: &Path,
    width: TokenWidth,
    record: &Path,
    progress: &dyn ProgressSink,
) -> Result<Option<(TokenView, TokenFacts)>> {
    let now = SystemTime::now();
    let known = recall(record).filter(|known: &TokenRecord| known.width == width);
    let (Some(known), Ok((view, stamp))) = (known, TokenView::open(path, width)) else { return Ok(None) };
    if known.stamp.as_ref() == Some(&stamp) {
        return Ok(Some((view, known.facts)));
    }
    if view.scan(progress)? != known.facts {
        return Ok(None);
    }
    let known = TokenRecord { stamp: stamp.is_settled(now).then_some(stamp), ..known };
    // What cannot be remembered is only read again.
    let _ = remember(record, &known);
    Ok(Some((view, known.facts)))
}

/// `[data] tokens`.
fn open_tokens(request: &DataRequest, path: &Path, progress: &dyn ProgressSink) -> Result<OpenedTokens> {
    if !path.exists() {
        return Err(Error::Config(format!("[data] tokens: {} does not exist", path.display())));
    }
    let cache = TokenCache::new(&request.data.cache);
    prepare_cache(cache.folder())?;
    let record = cache.file_record(path);
    let origin = origin(path)?;
    let width = origin.as_ref().map_or(TokenWidth::for_vocab(request.vocab_size), |origin| origin.width);
    let now = SystemTime::now();
    let (view, stamp) = TokenView::open(path, width)?;
    let known = recall(&record).filter(|k: &TokenRecord| k.width == width && k.stamp.as_ref() == Some(&stamp));
    let facts = match known {
        Some(known) => known.facts,
        None => {
            let facts = view.scan(progress)?;
            let stamp = stamp.is_settled(now).then_some(stamp);
            remember(&record, &TokenRecord { width, stamp, facts: facts.clone() })?;
            facts
        }
    };
    let encoder = named_tokenizer(request)?;
    let name = format!("[data] tokens: {}", path.display());
    let content_hash = match origin {
        Some(origin) if origin.blake3 != facts.blake3 => {
            return Err(Error::Config(format!("{name}: they are not those that the .json beside them describes")));
        }
        Some(origin) => origin.content,
        None => facts.blake3.clone(),
    };
    Ok(OpenedTokens { view, content_hash, facts, encoder, name })
}

/// The origin of the token file at `path`, from the document beside it.
fn origin(path: &Path) -> Result<Option<TokenOrigin>> {
    let beside = TokenOrigin::path(path);
    match std::fs::read(&beside) {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io("reading", beside, e)),
        Ok(json) => serde_json::from_slice(&json).map(Some).map_err(|e| {
            Error::Config(format!("{}: does not say where the tokens beside it come from: {e}", beside.display()))
        }),
    }
}

/// `[data] text`.
fn open_text(request: &DataRequest, notes: &mut Vec<String>, progress: &dyn ProgressSink) -> Result<OpenedTokens> {
    let cache = TokenCache::new(&request.data.cache);
    let paths = files::find(&request.data.text)?;
    prepare_cache(cache.folder())?;
    let texts = files::digest(paths, &cache, progress)?;
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(request.threads)
        .build()
        .map_err(|e| Error::Other(format!("starting {} threads to tokenize: {e}", request.threads)))?;
    let work = TextWork { texts: &texts, pool: &pool, cache: &cache, progress };
    let encoder = match named_tokenizer(request)? {
        Some(encoder) => encoder,
        None => work.trained_tokenizer(request, notes)?,
    };

    let content = key(&[blake3::hash(encoder.json())], &texts);
    let (path, record) = (cache.tokens(&content), cache.tokens_record(&content));
    let width = TokenWidth::for_vocab(encoder.vocab_size());
    let (view, facts) = match open_cached(&path, width, &record, progress)? {
        Some(cached) => cached,
        None => {
            let facts = work.tokenize(&encoder, &path, width, notes)?;
            remember(&record, &TokenRecord { width, stamp: None, facts: facts.clone() })?;
            (TokenView::open(&path, width)?.0, facts)
        }
    };
    let name = format!("the tokenized text ({} files)", texts.len());
    Ok(OpenedTokens { view, facts, content_hash: content, encoder: Some(encoder), name })
}

/// The tokenizer of `[data] tokenizer`, else the model folder's, if it has one.
fn named_tokenizer(request: &DataRequest) -> Result<Option<TextEncoder>> {
    let location = match &request.data.tokenizer {
        Some(path) => Some(tokenizer::locate(path).ok_or_else(|| {
            Error::Config(format!(
                "[data] tokenizer: {} is neither a tokenizer.json nor a folder with one or with vocab.json and \
                 merges.txt",
                path.display()
            ))
        })?),
        None => request.model_folder.and_then(tokenizer::locate),
    };
    location.map(|location| TextEncoder::load(&location)).transpose()
}

/// Names what follows from these settings and texts.
fn key(settings: &[blake3::Hash], texts: &[TextFile]) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update(FORMAT);
    for hash in settings.iter().chain(texts.iter().map(|text| &text.hash)) {
        hasher.update(hash.as_bytes());
    }
    hasher.finalize().to_hex().to_string()
}

/// The texts of a job, and what works on them.
struct TextWork<'a> {
    texts: &'a [TextFile],
    pool: &'a ThreadPool,
    cache: &'a TokenCache,
    progress: &'a dyn ProgressSink,
}

impl TextWork<'_> {
    /// The byte-level BPE of these texts, from the cache where it was trained before.
    fn trained_tokenizer(&self, request: &DataRequest, notes: &mut Vec<String>) -> Result<TextEncoder> {
        if let Some(folder) = request.model_folder {
            notes.push(format!(
                "{} has no tokenizer.json and no vocab.json with merges.txt; using a tokenizer trained on the text, \
                 which fits untrained weights only",
                folder.display()
            ));
        }
        let path = self.cache.tokenizer(&key(&[blake3::hash(&request.vocab_size.to_le_bytes())], self.texts));
        if let Some(encoder) = std::fs::read(&path).ok().and_then(|json| TextEncoder::from_json(json).ok()) {
            return Ok(encoder);
        }
        let encoder = tokenizer::train(self.texts, request.vocab_size, self.pool, self.progress)?;
        write_whole(&path, encoder.json())?;
        Ok(encoder)
    }

    /// Writes the ids of all texts to `path`, with the end-of-text token between documents that are not empty.
    fn tokenize(
        &self,
        encoder: &TextEncoder,
        path: &Path,
        width: TokenWidth,
        notes: &mut Vec<String>,
    ) -> Result<TokenFacts> {
        let mut writer = TokenWriter::create(self.cache.folder(), width)?;
        let mut blocks = TextBlocks::new(self.texts);
        let mut last_document = None;
        let mut told_bytes = 0;
        self.progress.begin("tokenizing", blocks.total_bytes());
        loop {
            let mut wave = Vec::new();
            let mut wave_bytes = 0;
            while wave_bytes < WAVE_BYTES * self.pool.current_num_threads() {
                let Some(block) = blocks.next()? else { break };
                wave_bytes += block.text.len();
                wave.push(block);
            }
            if wave.is_empty() {
                break;
            }
            let ids = self.pool.install(|| encoder.encode(&wave)).map_err(|e| {
                Error::Config(format!("the tokenizer fails on the text: {e}; try another [data] tokenizer"))
            })?;
            for (block, ids) in wave.iter().zip(&ids).filter(|(_, ids)| !ids.is_empty()) {
                if last_document.is_some_and(|last| last != block.document) {
                    writer.push(encoder.end_of_text().as_slice())?;
                }
                last_document = Some(block.document);
                writer.push(ids)?;
            }
            self.progress.advance(blocks.bytes_done() - told_bytes)?;
            told_bytes = blocks.bytes_done();
        }
        if let Some(first) = blocks.first_replaced {
            notes.push(format!(
                "{} bytes that are no UTF-8 were replaced by U+FFFD, the first of them in {}",
                blocks.replaced,
                first.display()
            ));
        }
        writer.finish(path)
    }
}

fn check_ids(facts: &TokenFacts, vocab_size: u64, name: &str) -> Result<()> {
    if facts.tokens > 0 && u64::from(facts.max_id) >= vocab_size {
        return Err(Error::Config(format!(
            "{name}: token id {} at position {} is beyond the model's vocabulary (vocab_size {vocab_size}); use the \
             tokenizer that belongs to the model",
            facts.max_id, facts.max_at
        )));
    }
    Ok(())
}

/// The training and the validation part, each with enough tokens for one batch.
fn split(view: &TokenView, request: &DataRequest) -> Result<(TokenView, TokenView)> {
    let (n, share, train) = (view.len(), request.data.validation, request.train);
    // At most half of the tokens, so that the conversion is exact enough and in range.
    let val_len = (n as f64 * share).round() as usize;
    let train_len = n - val_len;
    let needed = train.batch_size * train.sequence_length + 1;
    let explain = format!(
        "one batch needs {needed} ([train] batch_size {} x sequence_length {} + 1)",
        train.batch_size, train.sequence_length
    );
    if (train_len as u64) < needed {
        return Err(Error::Config(format!(
            "[data]: too little text: {train_len} tokens to train on, and {explain}; give more text, or lower [train] \
             batch_size or sequence_length"
        )));
    }
    if train.eval_every > 0 && (val_len as u64) < needed {
        return Err(Error::Config(format!(
            "[data] validation: {share} of {n} tokens is {val_len}, and {explain}; give more text, raise [data] \
             validation, lower [train] batch_size or sequence_length, or set [train] eval_every = 0"
        )));
    }
    Ok((view.slice(0..train_len), view.slice(train_len..n)))
}

#[cfg(test)]
mod tests;
