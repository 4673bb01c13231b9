//! Opens a job's tokens: from a token file, or from text that is tokenized once into the cache.
//!
//! First a plan is made, which knows what stands for the tokens and what of it is another than in the snapshot that the
//! session goes on from; so a resume that must be refused costs no tokenizing. Then the plan is carried out.
//!
//! Invariant: what the cache holds is used only where its hash and its stamp say that it is what was written.
//! Deliberately not here: finding and reading text, and the tokenizer itself.

use ckptd_core::progress::ProgressSink;
use ckptd_core::snapshot::CarriedFile;
use ckptd_core::token_cache::TokenFacts;
use ckptd_core::{Error, Result};

use super::choose::ChosenTokenizer;
use super::from_text::TextPlan;
use super::from_tokens;
use super::request::{DataChange, DataRequest, OpenedTokens};
use crate::tokens::TokenView;

/// The tokens of a job.
pub struct TokenDataset {
    pub train: TokenView,
    /// The last `round(tokens * validation)` tokens.
    pub val: TokenView,
    /// Of the tokenizer; of the model where there is none.
    pub vocab_size: u64,
    /// Stands for the ids: BLAKE3 of the token file that was named, or of the texts, the tokenizer and the format.
    pub content_hash: String,
    /// Of the file that both parts are of.
    pub facts: TokenFacts,
    /// The tokenizer, to be carried in snapshots: tokenizer.json first.
    pub tokenizer_files: Vec<CarriedFile>,
    /// Id of the end-of-text token.
    pub eot: Option<u32>,
    /// What the user should know, one line each.
    pub notes: Vec<String>,
}

impl TokenDataset {
    /// The tokenizer.json that is carried in snapshots.
    pub fn tokenizer_json(&self) -> Option<&[u8]> {
        self.tokenizer_files.first().map(|file| file.bytes.as_slice())
    }
}

/// What will be opened.
pub struct DataPlan<'a> {
    request: &'a DataRequest<'a>,
    source: DataSource,
    tokenizer: Option<ChosenTokenizer>,
    /// What is another than in the snapshot.
    changes: Vec<DataChange>,
    notes: Vec<String>,
}

enum DataSource {
    Tokens(OpenedTokens),
    Text(Box<TextPlan>),
}

/// Opens the tokens of `request`, tokenizing text that the cache does not hold yet.
///
/// `progress` hears of it at least every few seconds.
pub fn open(request: &DataRequest, progress: &dyn ProgressSink) -> Result<TokenDataset> {
    plan(request, progress)?.open(progress)
}

/// Finds out what `request` comes to. Texts are hashed, token files checked; a tokenizer is trained where none is.
pub fn plan<'a>(request: &'a DataRequest<'a>, progress: &dyn ProgressSink) -> Result<DataPlan<'a>> {
    let mut changes = Vec::new();
    let mut notes = Vec::new();
    let chosen = ChosenTokenizer::of(request, &mut changes, &mut notes)?;
    let (source, tokenizer) = match &request.data.tokens {
        Some(path) => (DataSource::Tokens(from_tokens::open(request, path, &mut notes, progress)?), chosen),
        None => {
            let (plan, tokenizer) = TextPlan::of(request, chosen, &mut notes, progress)?;
            (DataSource::Text(Box::new(plan)), Some(tokenizer))
        }
    };
    let mut plan = DataPlan { request, source, tokenizer, changes, notes };
    if let Some(then) = request.before.and_then(|before| before.content)
        && then != plan.content_hash()
    {
        let what = match &plan.source {
            DataSource::Tokens(opened) => format!("{} is another file than then", opened.name),
            DataSource::Text(texts) => texts.difference(request, then),
        };
        plan.changes.push(DataChange::Data(what));
    }
    Ok(plan)
}

impl DataPlan<'_> {
    /// Stands for the ids.
    pub fn content_hash(&self) -> &str {
        match &self.source {
            DataSource::Tokens(opened) => &opened.content_hash,
            DataSource::Text(plan) => plan.content_hash(),
        }
    }

    /// What is another than in the snapshot, one clause each.
    pub fn changes(&self) -> &[DataChange] {
        &self.changes
    }

    /// Opens the tokens, tokenizing text that the cache does not hold yet.
    pub fn open(self, progress: &dyn ProgressSink) -> Result<TokenDataset> {
        let DataPlan { request, source, tokenizer, mut notes, .. } = self;
        let opened = match source {
            DataSource::Tokens(opened) => opened,
            DataSource::Text(plan) => {
                let encoder = tokenizer.as_ref().map(|tokenizer| &tokenizer.encoder);
                plan.open(request, encoder, &mut notes, progress)?
            }
        };
        check_ids(&opened.facts, request.vocab_size, &opened.name)?;
        let (train, val) = split(&opened.view, request)?;
        Ok(TokenDataset {
            train,
            val,
            vocab_size: tokenizer.as_ref().map_or(request.vocab_size, |chosen| chosen.encoder.vocab_size()),
            content_hash: opened.content_hash,
            facts: opened.facts,
            eot: tokenizer.as_ref().and_then(|chosen| chosen.end_of_text),
            tokenizer_files: tokenizer.map_or_else(Vec::new, |chosen| chosen.files),
            notes,
        })
    }
}

fn check_ids(facts: &TokenFacts, vocab_size: u64, name: &str) -> Result<()> {
    if facts.tokens > 0 && u64::from(facts.max_id) >= vocab_size {
        return Err(Error::Config(format!(
            "{name}: token id {} at position {} is beyond the model's vocabulary (vocab_size {vocab_size}); use the \
             tokenizer that belongs to the model; if it is a token file of another type, say it: [data] tokens_dtype",
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
            "[data] {}: too little text: {train_len} tokens to train on, and {explain}; give more text, or lower \
             [train] batch_size or sequence_length",
            if request.data.tokens.is_some() { "tokens" } else { "text" }
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
mod parquet_tests;
#[cfg(test)]
mod test_job;
#[cfg(test)]
mod tests;
