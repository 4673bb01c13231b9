//! `[data] text`: texts are tokenized once into the cache.
//!
//! Invariant: the key of a cached file stands for everything that decides its ids. A training that began with the
//! first release goes on with what that release made of its texts. Deliberately not here: which tokenizer it is.

use std::path::Path;
use std::time::SystemTime;

use ckptd_core::progress::ProgressSink;
use ckptd_core::token_cache::{TextSummary, TokenCache, TokenFacts, TokenRecord, TokenWidth};
use ckptd_core::{Error, Result};
use rayon::ThreadPool;

use super::choose::ChosenTokenizer;
use super::cut::CutRule;
use super::files;
use super::request::{DataRequest, OpenedTokens};
use super::text::{TextBlock, TextBlocks, TextInput};
use super::text_files::{self, TextFile};
use super::tokenizer::{DroppedLetters, TextEncoder};
use super::tokenizer_training;
use crate::tokens::{TokenView, TokenWriter, prepare_cache, recall, remember, write_whole};

/// Enter the key of every cached file: what the first release made of texts, and what is made of them now.
const FIRST_FORMAT: &[u8] = b"ckptd tokens v1";
const FORMAT: &[u8] = b"ckptd tokens v2";

/// Text handed to each thread at a time, in bytes.
const WAVE_BYTES: usize = 1 << 20;

/// A document of this size, in bytes, that has to be tokenized as a whole is told of: it takes gigabytes.
const LARGE_DOCUMENT: usize = 16 << 20;

/// The texts of a job, found and hashed, and what stands for their tokens.
pub(super) struct TextPlan {
    texts: Vec<TextFile>,
    content: String,
    /// The training began with it: its encoder and its end-of-text token.
    first_release: Option<TextEncoder>,
    end_of_text: Option<u32>,
}

impl TextPlan {
    /// Finds the texts, and the tokenizer: `chosen`, or one that is trained on them.
    pub(super) fn of(
        request: &DataRequest,
        chosen: Option<ChosenTokenizer>,
        notes: &mut Vec<String>,
        progress: &dyn ProgressSink,
    ) -> Result<(TextPlan, ChosenTokenizer)> {
        let cache = TokenCache::new(&request.data.cache);
        let found = files::find(&request.data.text)?;
        notes.extend(files::summary(&found.passed_over));
        prepare_cache(cache.folder())?;
        let texts = text_files::digest(found.files, &cache, progress)?;
        let chosen = match chosen {
            Some(chosen) => chosen,
            None => ChosenTokenizer::trained(trained_tokenizer(request, &texts, &cache, notes, progress)?),
        };
        let then = request.before.and_then(|before| before.content);
        let first = first_release(&chosen, &texts);
        let plan = match first.filter(|(_, content)| then == Some(content.as_str())) {
            Some((encoder, content)) => {
                let end_of_text = encoder.usual_end_of_text();
                TextPlan { texts, content, first_release: Some(encoder), end_of_text }
            }
            None => {
                let content = content(request, &chosen, &texts);
                TextPlan { texts, content, first_release: None, end_of_text: chosen.end_of_text }
            }
        };
        Ok((plan, chosen))
    }

    pub(super) fn content_hash(&self) -> &str {
        &self.content
    }

    /// How the texts differ from those that `then` stands for.
    pub(super) fn difference(&self, request: &DataRequest, then: &str) -> String {
        let record: Option<TokenRecord> = recall(&TokenCache::new(&request.data.cache).tokens_record(then));
        let now = summary(&self.texts);
        let count = |files: u64| if files == 1 { "1 file".to_owned() } else { format!("{files} files") };
        let Some(before) = record.and_then(|record| record.texts) else {
            return format!(
                "the texts differ: {} of {} bytes now; what they were then is not known any more",
                count(now.files),
                now.bytes
            );
        };
        let names = |summary: &TextSummary| summary.names.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
        let (old, new) = (names(&before), names(&now));
        let first = |list: Vec<&String>| match list.as_slice() {
            [] => None,
            [one] => Some((*one).clone()),
            [one, rest @ ..] => Some(format!("{one} and {} more", rest.len())),
        };
        let added = first(new.iter().filter(|name| !old.contains(name)).collect()).map(|names| format!("new: {names}"));
        let gone = first(old.iter().filter(|name| !new.contains(name)).collect()).map(|names| format!("gone: {names}"));
        let is_other =
            |(name, hash): &&(String, String)| before.names.iter().any(|(old, other)| old == name && other != hash);
        let changed = first(now.names.iter().filter(is_other).map(|(name, _)| name).collect());
        let changed = changed.map(|names| format!("changed: {names}"));
        let details: Vec<String> = [added, gone, changed].into_iter().flatten().collect();
        let counts = format!("the texts differ: {} then, {} now", count(before.files), count(now.files));
        match details.as_slice() {
            [] if before.names == now.names => "the same texts are read in another way (tokenizer or field)".to_owned(),
            [] => counts,
            details => format!("{counts} ({})", details.join(", ")),
        }
    }

    /// Opens the tokens, from the cache where they are there.
    pub(super) fn open(
        &self,
        request: &DataRequest,
        chosen: Option<&TextEncoder>,
        notes: &mut Vec<String>,
        progress: &dyn ProgressSink,
    ) -> Result<OpenedTokens> {
        let cache = TokenCache::new(&request.data.cache);
        let Some(encoder) = self.first_release.as_ref().or(chosen) else {
            return Err(Error::Other("there is no tokenizer for the text".into()));
        };
        let (path, record) = (cache.tokens(&self.content), cache.tokens_record(&self.content));
        let width = TokenWidth::for_vocab(encoder.vocab_size());
        let (view, facts) = match open_cached(&path, width, &record, progress)? {
            Some(cached) => cached,
            None => {
                let pool = pool(request.threads)?;
                let input = TextInput {
                    files: &self.texts,
                    field: request.data.field.as_deref(),
                    first_release: self.first_release.is_some(),
                };
                let mut work = Tokenizing { input, encoder, end_of_text: self.end_of_text, pool: &pool, progress };
                let facts = work.run(&path, width, cache.folder(), notes)?;
                let texts = Some(summary(&self.texts));
                remember(&record, &TokenRecord { width, stamp: None, facts: facts.clone(), texts })?;
                (TokenView::open(&path, width)?.0, facts)
            }
        };
        let name = format!("the tokenized text ({} files)", self.texts.len());
        Ok(OpenedTokens { view, facts, content_hash: self.content.clone(), name })
    }
}

fn pool(threads: usize) -> Result<ThreadPool> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
    pool.map_err(|e| Error::Other(format!("starting {threads} threads to tokenize: {e}")))
}

/// The texts for messages.
fn summary(texts: &[TextFile]) -> TextSummary {
    let name = |text: &TextFile| {
        let name = text.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        (name, text.hash.to_hex().to_string())
    };
    TextSummary {
        files: texts.len() as u64,
        bytes: texts.iter().map(|text| text.bytes).sum(),
        names: texts.iter().take(TextSummary::MOST_NAMES).map(name).collect(),
    }
}

/// What the first release would make of the texts, and what stands for it.
fn first_release(chosen: &ChosenTokenizer, texts: &[TextFile]) -> Option<(TextEncoder, String)> {
    let json = chosen.snapshots_json.as_ref()?;
    let content = key(FIRST_FORMAT, &[json], texts);
    TextEncoder::first_release(json.clone()).ok().map(|encoder| (encoder, content))
}

/// Stands for the ids.
fn content(request: &DataRequest, chosen: &ChosenTokenizer, texts: &[TextFile]) -> String {
    let end = chosen.end_of_text.map_or("none".to_owned(), |id| id.to_string());
    let split = chosen.encoder.splits_special_tokens();
    let field = request.data.field.as_deref().unwrap_or("");
    let settings = format!("end {end}, split {split}, field {field}");
    key(FORMAT, &[chosen.encoder.json(), settings.as_bytes()], texts)
}

/// Names what follows from these settings and texts.
fn key(format: &[u8], settings: &[&[u8]], texts: &[TextFile]) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update(format);
    for setting in settings {
        hasher.update(blake3::hash(setting).as_bytes());
    }
    for text in texts {
        hasher.update(text.hash.as_bytes());
    }
    hasher.finalize().to_hex().to_string()
}

/// The byte-level BPE of these texts, from the cache where it was trained before.
fn trained_tokenizer(
    request: &DataRequest,
    texts: &[TextFile],
    cache: &TokenCache,
    notes: &mut Vec<String>,
    progress: &dyn ProgressSink,
) -> Result<TextEncoder> {
    if request.before.is_some() {
        notes.push(
            "the snapshot has no tokenizer; using one trained on the text, which fits its weights only by chance: name \
             the model's own in [data] tokenizer"
                .into(),
        );
    } else if let Some(folder) = request.model_folder {
        notes.push(format!(
            "{} has no tokenizer.json and no vocab.json with merges.txt; using a tokenizer trained on the text, \
             which fits untrained weights only",
            folder.display()
        ));
    }
    let path = cache.tokenizer(&key(FORMAT, &[&request.vocab_size.to_le_bytes()], texts));
    if let Some(encoder) = std::fs::read(&path).ok().and_then(|json| TextEncoder::from_json(json).ok()) {
        return Ok(encoder);
    }
    let input = TextInput { files: texts, field: request.data.field.as_deref(), first_release: false };
    let encoder = tokenizer_training::train(input, request.vocab_size, &pool(request.threads)?, progress)?;
    write_whole(&path, encoder.json())?;
    Ok(encoder)
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

/// One pass over the texts.
struct Tokenizing<'a> {
    input: TextInput<'a>,
    encoder: &'a TextEncoder,
    end_of_text: Option<u32>,
    pool: &'a ThreadPool,
    progress: &'a dyn ProgressSink,
}

impl Tokenizing<'_> {
    /// Writes the ids of all texts to `path`, with the end-of-text token between documents that are not empty.
    fn run(&mut self, path: &Path, width: TokenWidth, folder: &Path, notes: &mut Vec<String>) -> Result<TokenFacts> {
        let mut writer = TokenWriter::create(folder, width)?;
        let mut blocks = TextBlocks::new(self.input, self.encoder.cuts());
        let (mut last_document, mut joined, mut told_bytes) = (None, 0u64, 0);
        let mut losses = LostText::default();
        self.progress.begin("tokenizing", blocks.total_bytes());
        loop {
            let wave = self.wave(&mut blocks, &mut losses)?;
            if wave.is_empty() {
                break;
            }
            let ids =
                self.pool.install(|| self.encoder.encode(&wave)).map_err(|(index, e)| self.fails(&wave[index], &e))?;
            if let Some(dropped) = self.pool.install(|| self.encoder.dropped(&wave)) {
                wave.iter().zip(dropped).for_each(|(block, dropped)| losses.add(block, dropped));
            }
            for (block, ids) in wave.iter().zip(&ids).filter(|(_, ids)| !ids.is_empty()) {
                if last_document.is_some_and(|last| last != block.document) {
                    writer.push(self.end_of_text.as_slice())?;
                    joined += u64::from(self.end_of_text.is_none());
                }
                last_document = Some(block.document);
                writer.push(ids)?;
            }
            self.progress.advance(blocks.bytes_done() - told_bytes)?;
            told_bytes = blocks.bytes_done();
        }
        self.tell(&blocks, &losses, joined, notes);
        writer.finish(path)
    }

    /// As much text as keeps all threads busy for a moment.
    fn wave(&self, blocks: &mut TextBlocks, losses: &mut LostText) -> Result<Vec<TextBlock>> {
        let (mut wave, mut bytes) = (Vec::new(), 0);
        while bytes < WAVE_BYTES * self.pool.current_num_threads() {
            let Some(block) = blocks.next()? else { break };
            bytes += block.text.len();
            losses.largest = losses.largest.max((block.text.len(), block.file));
            wave.push(block);
            // Reading may take long where a block is a whole document, or a file is packed.
            self.progress.advance(0)?;
        }
        Ok(wave)
    }

    fn fails(&self, block: &TextBlock, e: &tokenizers::Error) -> Error {
        let path = self.input.files[block.file].path.display();
        Error::Config(format!(
            "[data] text: the tokenizer fails on the text of {path}: {e}; give it a token for what it does not know \
             (unk_token), or try another [data] tokenizer"
        ))
    }

    fn tell(&self, blocks: &TextBlocks, lost: &LostText, joined: u64, notes: &mut Vec<String>) {
        if let Some(first) = blocks.losses.first_replaced {
            notes.push(format!(
                "{} bytes that are no UTF-8 were replaced by U+FFFD, the first of them in {}",
                blocks.losses.replaced,
                first.display()
            ));
        }
        if blocks.losses.empty > 0 {
            notes.push(format!("{} records without a text (null) were passed over", blocks.losses.empty));
        }
        if lost.letters.dropped > 0 {
            let what = if self.encoder.is_byte_level() { "bytes" } else { "characters" };
            notes.push(format!(
                "the tokenizer has no token for unknown {what} and dropped {} of {}, the first of them in {:?} in {}; \
                 another [data] tokenizer knows them, or one with unk_token",
                lost.letters.dropped,
                lost.letters.total,
                lost.letters.first.as_deref().unwrap_or_default(),
                self.input.files[lost.first_file].path.display()
            ));
        }
        if joined > 0 {
            notes.push(format!(
                "no end-of-text token is known, so that {} documents run into one another; name one as eos_token in \
                 tokenizer_config.json",
                joined + 1
            ));
        }
        if self.encoder.cuts() == CutRule::Whole && lost.largest.0 > LARGE_DOCUMENT {
            notes.push(format!(
                "this tokenizer takes documents as a whole only; the largest, {} MB in {}, took about {} GB of memory: \
                 divide it, or write its documents as JSONL",
                lost.largest.0 / 1_000_000,
                self.input.files[lost.largest.1].path.display(),
                lost.largest.0 * 200 / 1_000_000_000
            ));
        }
    }
}

/// What the tokenizer dropped, and the largest block.
#[derive(Default)]
struct LostText {
    letters: DroppedLetters,
    first_file: usize,
    /// Bytes and file.
    largest: (usize, usize),
}

impl LostText {
    fn add(&mut self, block: &TextBlock, dropped: DroppedLetters) {
        self.letters.dropped += dropped.dropped;
        self.letters.total += dropped.total;
        if self.letters.first.is_none() && dropped.first.is_some() {
            (self.letters.first, self.first_file) = (dropped.first, block.file);
        }
    }
}
