//! Tokens that rank 0 has opened, on a rank that may have the same ones, or may not see them.
//!
//! Invariant: what is used has the same BLAKE3, wherever it lies. Deliberately not here: tokenizing (rank 0 has done
//! it), and the way from rank 0 to this rank (`ranks`).

use std::path::PathBuf;
use std::time::SystemTime;

use ckptd_core::Result;
use ckptd_core::config::DataSection;
use ckptd_core::progress::NoProgress;
use ckptd_core::token_cache::{TokenCache, TokenFacts, TokenRecord, TokenWidth};
use ckptd_core::token_file::TokenLayout;
use serde::{Deserialize, Serialize};

use super::prepare::TokenDataset;
use crate::tokens::{TokenCopy, TokenFile, TokenView, recall, remember};

/// What another rank says of its tokens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownTokens {
    /// Stands for the ids.
    content: String,
    facts: TokenFacts,
    width: TokenWidth,
    /// Bytes before the file's first id.
    offset: u64,
    /// Bytes of the file.
    pub bytes: u64,
    /// How many of the ids are trained on.
    train: u64,
    vocab_size: u64,
}

/// What this rank has of them.
pub enum FoundTokens {
    /// The same.
    Own(TokenView),
    /// `[data] tokens` is another file, with this BLAKE3.
    Other(String),
    Missing,
}

impl KnownTokens {
    /// Those of `dataset`.
    pub fn of(dataset: &TokenDataset) -> KnownTokens {
        let TokenLayout { width, offset, .. } = dataset.train.file_layout();
        KnownTokens {
            content: dataset.content_hash.clone(),
            facts: dataset.facts.clone(),
            width,
            offset,
            bytes: dataset.train.file().len() as u64,
            train: dataset.train.len() as u64,
            vocab_size: dataset.vocab_size,
        }
    }

    /// What stands for the ids.
    pub fn content(&self) -> &str {
        &self.content
    }

    /// Looks where `data` says that they are, and in its cache.
    pub fn find(&self, data: &DataSection) -> FoundTokens {
        let cache = TokenCache::new(&data.cache);
        if let Some(path) = &data.tokens
            && let Ok(file) = TokenFile::open(path)
        {
            return match self.check(&file, cache.file_record(path)) {
                Ok(view) => FoundTokens::Own(view),
                Err(blake3) => FoundTokens::Other(blake3),
            };
        }
        let cached = TokenFile::open(&cache.tokens(self.name()));
        let checked = cached.ok().and_then(|file| self.check(&file, cache.tokens_record(self.name())).ok());
        checked.map_or(FoundTokens::Missing, FoundTokens::Own)
    }

    /// Where they are to go on this rank.
    pub fn receive(&self, data: &DataSection) -> Result<TokenCopy> {
        TokenCopy::begin(&TokenCache::new(&data.cache).tokens(self.name()))
    }

    /// Opens what has arrived, and remembers it where it lies in the cache.
    pub fn received(&self, copy: TokenCopy, data: &DataSection) -> Result<TokenView> {
        let file = copy.finish(&self.facts.blake3)?;
        let record = TokenRecord { width: self.width, stamp: None, facts: self.facts.clone(), texts: None };
        // What cannot be remembered is only read again.
        let _ = remember(&TokenCache::new(&data.cache).tokens_record(self.name()), &record);
        Ok(file.view(&self.layout(&file)))
    }

    /// The parts of `view` as the other rank has them.
    pub fn dataset(&self, view: &TokenView) -> TokenDataset {
        let train = (self.train as usize).min(view.len());
        TokenDataset {
            train: view.slice(0..train),
            val: view.slice(train..view.len()),
            vocab_size: self.vocab_size,
            content_hash: self.content.clone(),
            facts: self.facts.clone(),
            tokenizer_files: Vec::new(),
            eot: None,
            notes: Vec::new(),
        }
    }

    /// In the cache: a file with a header is none that a text is tokenized to.
    fn name(&self) -> &str {
        if self.offset == 0 { &self.content } else { &self.facts.blake3 }
    }

    fn layout(&self, file: &TokenFile) -> TokenLayout {
        let ids = (file.bytes().len() as u64).saturating_sub(self.offset);
        TokenLayout { width: self.width, offset: self.offset, tokens: ids / self.width.bytes() as u64 }
    }

    /// The view of `file`, or its BLAKE3 where it is another one. Its `record` spares reading one that is known.
    fn check(&self, file: &TokenFile, record: PathBuf) -> Result<TokenView, String> {
        let now = SystemTime::now();
        let known: Option<TokenRecord> = recall(&record);
        if let Some(known) = &known
            && known.stamp.as_ref() == Some(&file.stamp)
            && known.facts.blake3 == self.facts.blake3
        {
            return Ok(file.view(&self.layout(file)));
        }
        if file.bytes().len() as u64 != self.bytes {
            return Err(format!("{} bytes", file.bytes().len()));
        }
        let view = file.view(&self.layout(file));
        match view.scan(&NoProgress) {
            Ok(facts) if facts.blake3 == self.facts.blake3 => {
                let (stamp, texts) = (file.stamp.is_settled(now).then_some(file.stamp), known.and_then(|k| k.texts));
                let _ = remember(&record, &TokenRecord { width: self.width, stamp, facts, texts });
                Ok(view)
            }
            Ok(facts) => Err(facts.blake3),
            Err(what) => Err(what.to_string()),
        }
    }
}
