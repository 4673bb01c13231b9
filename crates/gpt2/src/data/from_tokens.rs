//! `[data] tokens`: ids from elsewhere, in any layout that the file or the job says.
//!
//! Invariant: a layout is never guessed. Deliberately not here: making tokens of text.

use std::io::ErrorKind;
use std::path::Path;
use std::time::SystemTime;

use ckptd_core::progress::ProgressSink;
use ckptd_core::token_cache::{TokenCache, TokenOrigin, TokenRecord, TokenWidth};
use ckptd_core::token_file::{self, TokenLayout};
use ckptd_core::{Error, Result};

use super::request::{DataRequest, OpenedTokens};
use crate::tokens::{TokenFile, prepare_cache, recall, remember};

/// Opens and checks the token file at `path`.
pub(super) fn open(
    request: &DataRequest,
    path: &Path,
    notes: &mut Vec<String>,
    progress: &dyn ProgressSink,
) -> Result<OpenedTokens> {
    if !path.exists() {
        return Err(Error::Config(format!("[data] tokens: {} does not exist", path.display())));
    }
    let name = format!("[data] tokens: {}", path.display());
    let cache = TokenCache::new(&request.data.cache);
    prepare_cache(cache.folder())?;
    let record = cache.file_record(path);
    let origin = origin(path)?;
    let now = SystemTime::now();
    let file = TokenFile::open(path)?;
    let layout = layout(request, &file, origin.as_ref()).map_err(|what| Error::Config(format!("{name}: {what}")))?;
    if layout.offset > 0 {
        let (tokens, kind) = (layout.tokens, layout.width.numpy());
        notes.push(format!("{name}: it has a header, by which it holds {tokens} ids of {kind}"));
    }
    let view = file.view(&layout);
    let known =
        recall(&record).filter(|k: &TokenRecord| k.width == layout.width && k.stamp.as_ref() == Some(&file.stamp));
    let facts = match known {
        Some(known) => known.facts,
        None => {
            let facts = view.scan(progress).map_err(|e| match e {
                Error::Config(what) => Error::Config(format!("{name}: {what}; {}", hint(request, &layout))),
                other => other,
            })?;
            let stamp = file.stamp.is_settled(now).then_some(file.stamp);
            remember(&record, &TokenRecord { width: layout.width, stamp, facts: facts.clone(), texts: None })?;
            facts
        }
    };
    let content_hash = match origin {
        Some(origin) if origin.blake3 != facts.blake3 => {
            return Err(Error::Config(format!("{name}: they are not those that the .json beside them describes")));
        }
        Some(origin) => origin.content,
        None => layout.content(&facts.blake3),
    };
    Ok(OpenedTokens { view, content_hash, facts, name })
}

/// What to do about a number that is no id.
fn hint(request: &DataRequest, layout: &TokenLayout) -> &'static str {
    if layout.offset > 0 {
        "make the file anew"
    } else if request.data.tokens_dtype.is_some() {
        "is [data] tokens_dtype the type that it was written with?"
    } else {
        "say the type of the ids: [data] tokens_dtype"
    }
}

/// Where the ids of `file` are: as its header says, else as the job says, else as the model's vocabulary needs it, if
/// nothing speaks against that.
fn layout(request: &DataRequest, file: &TokenFile, origin: Option<&TokenOrigin>) -> Result<TokenLayout, String> {
    let bytes = file.bytes();
    let said = request.data.tokens_dtype.map(|dtype| dtype.width());
    match (token_file::from_header(bytes), said) {
        (Ok(Some(layout)), Some(said)) if layout.width != said => {
            return Err(format!(
                "its header says {}, and [data] tokens_dtype says {}; take tokens_dtype out",
                layout.width.numpy(),
                said.numpy()
            ));
        }
        (Ok(Some(layout)), _) => return Ok(layout),
        (Err(what), _) => return Err(what),
        (Ok(None), _) => {}
    }
    if let (Some(what), None) = (token_file::other_kind(bytes), said) {
        return Err(format!("it is {what}"));
    }
    let known = said.or(origin.map(|origin| origin.width));
    let width = known.unwrap_or(TokenWidth::for_vocab(request.vocab_size));
    let layout = TokenLayout::plain(width, bytes.len() as u64).map_err(|what| {
        format!("{what}; say the type of the ids: [data] tokens_dtype = \"uint16\", \"uint32\", \"int32\" or \"int64\"")
    })?;
    if known.is_none() && token_file::looks_wider(bytes, width) {
        return Err(format!(
            "the file does not say of which type its ids are, and as {} every second one would be the upper half of a \
             wider one; say it: [data] tokens_dtype = \"int32\" or \"int64\" (or \"{0}\", if they are that)",
            width.numpy()
        ));
    }
    Ok(layout)
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
