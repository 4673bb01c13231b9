//! What a machine that has only a remote's URL needs besides snapshots: the tokens, as an export has them; and what a
//! session trains on where it has them alone.
//!
//! Invariant: the tokens stand for the same data there as here, also where they were made of texts. Deliberately not
//! here: sending them (ckptd-remote), texts.

use std::path::{Path, PathBuf};

use ckptd_core::config::{Config, DataSection};
use ckptd_core::error::{Error, Result};
use ckptd_core::store::{Manifest, Store};
use ckptd_core::token_cache::{TokenCache, TokenOrigin, TokenRecord};
use ckptd_interop::mapped::read_small;
use ckptd_interop::names::{TOKENS, TOKENS_ORIGIN};
use ckptd_remote::job::companions::{Companion, CompanionBody, CompanionSource};

const MAX_RECORD_BYTES: u64 = 1 << 20;

/// Finds the tokens of a job, and says where they go on a machine that has neither them nor the texts.
pub(super) fn source(config: &Config) -> CompanionSource {
    let (data, lacking) = (config.data.clone(), config.clone());
    CompanionSource::new(move |manifest| find(&data, manifest)).with_places(move |manifest| {
        let tokens = place_of(&lacking.data, manifest).filter(|_| lacks_data(&lacking));
        let Some(tokens) = tokens else { return Vec::new() };
        // The document first, so that tokens are never there without it.
        vec![(TOKENS_ORIGIN.into(), TokenOrigin::path(&tokens)), (TOKENS.into(), tokens)]
    })
}

/// The data of a session whose job names what is not on this machine: the tokens that have come from its remote.
/// `None`: the data is here, or there are no such tokens either.
pub(super) fn travelled(config: &Config, store: &Store) -> Option<DataSection> {
    let data = &config.data;
    if !lacks_data(config) {
        return None;
    }
    let newest = store.entries().ok()?.into_iter().find(|entry| entry.own && entry.healthy())?;
    let tokens = place_of(data, newest.manifest.as_ref()?).filter(|tokens| tokens.exists())?;
    // The type belongs to the tokens that the job named; what was made of texts says its own.
    let tokens_dtype = data.tokens_dtype.filter(|_| data.tokens.is_some());
    let tokenizer = data.tokenizer.clone().filter(|tokenizer| tokenizer.exists());
    let (text, field) = (Vec::new(), None);
    Some(DataSection { text, field, tokens: Some(tokens), tokens_dtype, tokenizer, ..data.clone() })
}

/// Whether the data that the job names is not on this machine, and may be at a remote. A worker of the user's own may
/// find its data otherwise.
fn lacks_data(config: &Config) -> bool {
    config.remote.url.is_some() && config.worker.is_builtin() && !config.data.is_here()
}

/// Where the tokens of the snapshot with this manifest lie in the cache.
fn place_of(data: &DataSection, manifest: &Manifest) -> Option<PathBuf> {
    let content = manifest.train.settings.data_content().filter(|content| TokenCache::is_name(content))?;
    Some(TokenCache::new(&data.cache).tokens(content))
}

fn find(data: &DataSection, manifest: &Manifest) -> Result<Vec<Companion>> {
    let (Some(content), Some(cached)) = (manifest.train.settings.data_content(), place_of(data, manifest)) else {
        return Ok(Vec::new());
    };
    let tokens = data.tokens.clone().filter(|tokens| tokens.exists()).unwrap_or(cached);
    if !tokens.exists() {
        return Err(Error::NotFound(format!("the tokens in {} are gone", tokens.display())));
    }
    let beside = TokenOrigin::path(&tokens);
    let origin = if beside.exists() {
        Some(text(&beside)?)
    } else if data.tokens.is_some() {
        None
    } else {
        Some(origin_of(&TokenCache::new(&data.cache), content)?)
    };
    let tokens = Companion { name: TOKENS.into(), body: CompanionBody::File(tokens) };
    let origin = origin.map(|text| Companion { name: TOKENS_ORIGIN.into(), body: CompanionBody::Text(text) });
    Ok(std::iter::once(tokens).chain(origin).collect())
}

/// The document that says which texts the tokens in the cache stand for.
fn origin_of(cache: &TokenCache, content: &str) -> Result<String> {
    let path = cache.tokens_record(content);
    let record: TokenRecord = serde_json::from_slice(&read_small(&path, MAX_RECORD_BYTES)?)
        .map_err(|e| Error::malformed(&path, format!("not what the worker writes there: {e}")))?;
    let origin = TokenOrigin { blake3: record.facts.blake3, content: content.to_owned(), width: record.width };
    let json = serde_json::to_string_pretty(&origin);
    json.map_err(|e| Error::Other(format!("writing {TOKENS_ORIGIN}: {e}")))
}

fn text(path: &Path) -> Result<String> {
    let bytes = read_small(path, MAX_RECORD_BYTES)?;
    String::from_utf8(bytes).map_err(|_| Error::malformed(path, "no UTF-8"))
}
