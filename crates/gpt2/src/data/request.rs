//! What is asked of the data, and what comes back before it is split.
//!
//! Deliberately not here: how it is answered.

use std::path::Path;

use ckptd_core::config;
use ckptd_core::snapshot::CarriedFile;
use ckptd_core::token_cache::TokenFacts;

use crate::tokens::TokenView;

/// What is asked for.
pub struct DataRequest<'a> {
    pub data: &'a config::DataSection,
    pub train: &'a config::TrainSection,
    /// The model's folder, which may hold a tokenizer.
    pub model_folder: Option<&'a Path>,
    /// The model's config.json and generation_config.json, which may name the end-of-text token.
    pub model_configs: [Option<&'a [u8]>; 2],
    /// The model's vocabulary: ids are below it.
    pub vocab_size: u64,
    /// Threads that tokenize; 0: one per processor.
    pub threads: usize,
    /// What the session goes on from.
    pub before: Option<DataBefore<'a>>,
}

/// What a snapshot says of the data.
#[derive(Clone, Copy)]
pub struct DataBefore<'a> {
    /// The snapshot, for messages.
    pub path: &'a Path,
    /// Its small files; a tokenizer among them is the training's.
    pub files: &'a [CarriedFile],
    /// What stood for its tokens; `None` in a state from elsewhere.
    pub content: Option<&'a str>,
    /// Other data and another tokenizer are taken.
    pub accepts_changes: bool,
}

/// Something of the data that is another than in the snapshot, as a clause.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DataChange {
    /// The model has learned other ids.
    Tokenizer(String),
    /// It will learn from something else.
    Data(String),
}

/// Tokens before they are split.
pub(super) struct OpenedTokens {
    pub(super) view: TokenView,
    pub(super) facts: TokenFacts,
    pub(super) content_hash: String,
    /// In messages.
    pub(super) name: String,
}
