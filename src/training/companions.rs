//! What a machine that has only a remote's URL needs besides snapshots: the tokens, as an export has them.
//!
//! Invariant: the tokens stand for the same data there as here, also where they were made of texts. Deliberately not
//! here: sending them (ckptd-remote), texts.

use std::path::Path;

use ckptd_core::config::DataSection;
use ckptd_core::error::{Error, Result};
use ckptd_core::store::Manifest;
use ckptd_core::token_cache::{TokenCache, TokenOrigin, TokenRecord};
use ckptd_interop::mapped::read_small;
use ckptd_interop::names::{TOKENS, TOKENS_ORIGIN};
use ckptd_remote::job::companions::{Companion, CompanionBody, CompanionSource};

const MAX_RECORD_BYTES: u64 = 1 << 20;

/// Finds the tokens of `data`.
pub(super) fn source(data: DataSection) -> CompanionSource {
    CompanionSource::new(move |manifest| find(&data, manifest))
}

fn find(data: &DataSection, manifest: &Manifest) -> Result<Vec<Companion>> {
    let Some(content) = manifest.train.settings.data_content() else { return Ok(Vec::new()) };
    let (tokens, origin) = match &data.tokens {
        Some(tokens) => {
            let beside = TokenOrigin::path(tokens);
            let origin = if beside.exists() { Some(text(&beside)?) } else { None };
            (tokens.clone(), origin)
        }
        None => {
            let cache = TokenCache::new(&data.cache);
            (cache.tokens(content), Some(origin_of(&cache, content)?))
        }
    };
    if !tokens.exists() {
        return Err(Error::NotFound(format!("the tokens in {} are gone", tokens.display())));
    }
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
