//! From the text or the token file that a job names to the tokens that it trains and validates on.
//!
//! The flow: [`files`] finds the text files and hashes them; [`tokenizer`] loads a tokenizer or trains one; text is
//! read in blocks ([`text`]) and tokenized once into a file in the cache ([`crate::tokens`]), which is mapped and split;
//! [`order`] says which tokens a step sees.
//!
//! Invariant: a dataset's hash stands for everything that decides its ids, and equal inputs give equal ids, on every
//! machine and with any number of threads. A file in the cache is whole or absent, and two processes may fill it at once.
//! Deliberately not here: tensors.

mod files;
pub mod order;
mod text;
pub mod tokenizer;

#[cfg(test)]
mod tests;

use std::io::ErrorKind;
use std::path::Path;
use std::time::SystemTime;

use ckptd_core::config;
use ckptd_core::os::stamp::FileStamp;
use ckptd_core::{Error, Result};
use serde::{Deserialize, Serialize};

use self::files::TextFile;
use self::text::TextBlocks;
use self::tokenizer::TextEncoder;
use crate::tokens::{
    Progress, TokenFacts, TokenView, TokenWidth, TokenWriter, prepare_cache, recall, remember, write_whole,
};

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
/// `progress` is told a stage and how much of it is done, at least every few seconds.
pub fn open(request: &DataRequest, progress: &mut Progress) -> Result<TokenDataset> {
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

/// What is remembered of a token file.
#[derive(Serialize, Deserialize)]
struct Known {
    width: TokenWidth,
    /// None: it had changed too recently to be recognised.
    stamp: Option<FileStamp>,
    facts: TokenFacts,
}

/// The token file at `path` that was made here, or `None` where there is none or it is not what was written.
fn open_cached(
    path: &Path,
    width: TokenWidth,
    memory: &Path,
    progress: &mut Progress,
) -> Option<(TokenView, TokenFacts)> {
    let now = SystemTime::now();
    let known: Known = recall(memory).filter(|known: &Known| known.width == width)?;
    let (view, stamp) = TokenView::open(path, width).ok()?;
    if known.stamp.as_ref() == Some(&stamp) {
        return Some((view, known.facts));
    }
    if view.scan(progress) != known.facts {
        return None;
    }
    let known = Known { stamp: stamp.is_settled(now).then_some(stamp), ..known };
    // What cannot be remembered is only read again.
    let _ = remember(memory, &known);
    Some((view, known.facts))
}

/// `[data] tokens`.
fn open_tokens(request: &DataRequest, path: &Path, progress: &mut Progress) -> Result<OpenedTokens> {
    if !path.exists() {
        return Err(Error::Config(format!("[data] tokens: {} does not exist", path.display())));
    }
    let cache = &request.data.cache;
    prepare_cache(cache)?;
    let id = hex(blake3::hash(path.as_os_str().as_encoded_bytes()));
    let memory = cache.join(format!("file-{}.json", &id[..16]));
    let origin = origin(path)?;
    let width = origin.as_ref().map_or(TokenWidth::for_vocab(request.vocab_size), |origin| origin.width);
    let now = SystemTime::now();
    let (view, stamp) = TokenView::open(path, width)?;
    let known = recall(&memory).filter(|k: &Known| k.width == width && k.stamp.as_ref() == Some(&stamp));
    let facts = match known {
        Some(known) => known.facts,
        None => {
            let facts = view.scan(progress);
            let stamp = stamp.is_settled(now).then_some(stamp);
            remember(&memory, &Known { width, stamp, facts: facts.clone() })?;
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

/// What `ckptd export --with-data` says of tokens that were made of text: they stand for that text.
#[derive(Deserialize)]
struct Origin {
    /// The hash of the texts, as [`TokenDataset::content_hash`].
    content: String,
    width: TokenWidth,
    /// The hash of the token file.
    blake3: String,
}

/// The origin of the token file at `path`, from `<path>.json` beside it.
fn origin(path: &Path) -> Result<Option<Origin>> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".json");
    let beside = Path::new(&beside);
    match std::fs::read(beside) {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io("reading", beside, e)),
        Ok(json) => serde_json::from_slice(&json).map(Some).map_err(|e| {
            Error::Config(format!("{}: does not say where the tokens beside it come from: {e}", beside.display()))
        }),
    }
}

/// `[data] text`.
fn open_text(request: &DataRequest, notes: &mut Vec<String>, progress: &mut Progress) -> Result<OpenedTokens> {
    let cache = &request.data.cache;
    let paths = files::find(&request.data.text)?;
    prepare_cache(cache)?;
    let sources = files::digest(paths, cache, progress)?;
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(request.threads)
        .build()
        .map_err(|e| Error::Other(format!("starting {} threads to tokenize: {e}", request.threads)))?;
    let encoder = match named_tokenizer(request)? {
        Some(encoder) => encoder,
        None => trained_tokenizer(request, &sources, &pool, notes, progress)?,
    };

    let key = key(&[blake3::hash(encoder.json())], &sources);
    let path = cache.join(format!("tokens-{key}.bin"));
    let memory = path.with_extension("json");
    let width = TokenWidth::for_vocab(encoder.vocab_size());
    let (view, facts) = match open_cached(&path, width, &memory, progress) {
        Some(cached) => cached,
        None => {
            let facts = tokenize(&sources, &encoder, &pool, &path, width, notes, progress)?;
            remember(&memory, &Known { width, stamp: None, facts: facts.clone() })?;
            (TokenView::open(&path, width)?.0, facts)
        }
    };
    let name = format!("the tokenized text ({} files)", sources.len());
    Ok(OpenedTokens { view, facts, content_hash: key, encoder: Some(encoder), name })
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

/// The byte-level BPE of these texts, from the cache where it was trained before.
fn trained_tokenizer(
    request: &DataRequest,
    sources: &[TextFile],
    pool: &rayon::ThreadPool,
    notes: &mut Vec<String>,
    progress: &mut Progress,
) -> Result<TextEncoder> {
    if let Some(folder) = request.model_folder {
        notes.push(format!(
            "{} has no tokenizer.json and no vocab.json with merges.txt; using a tokenizer trained on the text, which \
             fits untrained weights only",
            folder.display()
        ));
    }
    let key = key(&[blake3::hash(&request.vocab_size.to_le_bytes())], sources);
    let path = request.data.cache.join(format!("tokenizer-{key}.json"));
    if let Some(encoder) = std::fs::read(&path).ok().and_then(|json| TextEncoder::from_json(json).ok()) {
        return Ok(encoder);
    }
    let encoder = tokenizer::train(sources, request.vocab_size, pool, progress)?;
    write_whole(&path, encoder.json())?;
    Ok(encoder)
}

/// Names what follows from these settings and texts.
fn key(settings: &[blake3::Hash], sources: &[TextFile]) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update(FORMAT);
    for hash in settings.iter().chain(sources.iter().map(|source| &source.hash)) {
        hasher.update(hash.as_bytes());
    }
    hex(hasher.finalize())
}

fn hex(hash: blake3::Hash) -> String {
    hash.to_hex().to_string()
}

/// Writes the ids of all texts to `path`, with the end-of-text token between documents that are not empty.
fn tokenize(
    sources: &[TextFile],
    encoder: &TextEncoder,
    pool: &rayon::ThreadPool,
    path: &Path,
    width: TokenWidth,
    notes: &mut Vec<String>,
    progress: &mut Progress,
) -> Result<TokenFacts> {
    let mut writer = TokenWriter::create(path.parent().unwrap_or(Path::new(".")), width)?;
    let mut blocks = TextBlocks::new(sources);
    let mut last_document = None;
    loop {
        progress("tokenizing", Some(blocks.share_done()));
        let mut wave = Vec::new();
        let mut wave_bytes = 0;
        while wave_bytes < WAVE_BYTES * pool.current_num_threads() {
            let Some(block) = blocks.next()? else { break };
            wave_bytes += block.text.len();
            wave.push(block);
        }
        if wave.is_empty() {
            break;
        }
        let ids = pool.install(|| encoder.encode(&wave)).map_err(|e| {
            Error::Config(format!("the tokenizer fails on the text: {e}; try another [data] tokenizer"))
        })?;
        for (block, ids) in wave.iter().zip(&ids).filter(|(_, ids)| !ids.is_empty()) {
            if last_document.is_some_and(|last| last != block.document) {
                writer.push(encoder.end_of_text().as_slice())?;
            }
            last_document = Some(block.document);
            writer.push(ids)?;
        }
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
