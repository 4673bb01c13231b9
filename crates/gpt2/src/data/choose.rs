//! Which tokenizer a session uses, and which token ends a text.
//!
//! Invariant: the tokenizer belongs to the state. A snapshot's own is used; another one that the job names is a change.
//! Deliberately not here: reading tokenizers (`tokenizer_files`).

use ckptd_core::snapshot::CarriedFile;
use ckptd_core::{Error, Result};
use serde_json::{Map, Value};

use super::request::{DataChange, DataRequest};
use super::tokenizer::TextEncoder;
use super::tokenizer_files::{ReadTokenizer, TokenizerFiles};

/// The tokenizer of a session.
pub(super) struct ChosenTokenizer {
    pub(super) encoder: TextEncoder,
    /// For the session's snapshots.
    pub(super) files: Vec<CarriedFile>,
    /// The id of the end-of-text token.
    pub(super) end_of_text: Option<u32>,
    /// The tokenizer.json that the snapshot holds, where it is the snapshot's own.
    pub(super) snapshots_json: Option<Vec<u8>>,
}

impl ChosenTokenizer {
    /// The snapshot's own, else the one that the job names; `None` where there is neither.
    pub(super) fn of(
        request: &DataRequest,
        changes: &mut Vec<DataChange>,
        notes: &mut Vec<String>,
    ) -> Result<Option<ChosenTokenizer>> {
        let named = named(request)?;
        let own = request.before.and_then(|before| TokenizerFiles::carried(before.files, before.path));
        let Some(own) = own else {
            return named.map(|files| ChosenTokenizer::read(&files, request, notes)).transpose();
        };
        let accepts = request.before.is_some_and(|before| before.accepts_changes);
        let mut own_notes = Vec::new();
        let mut chosen = ChosenTokenizer::read(&own, request, &mut own_notes)?;
        chosen.snapshots_json = own.json().map(<[u8]>::to_vec);
        if let Some(named) = named.filter(|named| !is_own(named, &own)) {
            let mut named_notes = Vec::new();
            let other = ChosenTokenizer::read(&named, request, &mut named_notes)?;
            if !other.encoder.gives_ids_of(&chosen.encoder) {
                changes.push(DataChange::Tokenizer(describe(&chosen.encoder, &other.encoder, &named, request)));
                if accepts {
                    notes.append(&mut named_notes);
                    return Ok(Some(other));
                }
            }
        }
        // What there is to know of it was told when the training began, unless it comes from elsewhere.
        if request.before.is_some_and(|before| before.content.is_none()) {
            notes.append(&mut own_notes);
        }
        Ok(Some(chosen))
    }

    /// One that was trained on the texts.
    pub(super) fn trained(encoder: TextEncoder) -> ChosenTokenizer {
        let files = vec![CarriedFile { name: "tokenizer.json".into(), bytes: encoder.json().to_vec().into() }];
        let end_of_text = encoder.usual_end_of_text();
        ChosenTokenizer { encoder, files, end_of_text, snapshots_json: None }
    }

    fn read(files: &TokenizerFiles, request: &DataRequest, notes: &mut Vec<String>) -> Result<ChosenTokenizer> {
        let ReadTokenizer { encoder, notes: read_notes } = files.read()?;
        notes.extend(read_notes);
        let (end_of_text, other) = end_of_text(&encoder, request.model_configs, request.vocab_size);
        tell_end_of_text(&encoder, end_of_text, other, notes);
        let files = files.for_snapshot(&encoder);
        Ok(ChosenTokenizer { encoder, files, end_of_text, snapshots_json: None })
    }
}

/// The files of `[data] tokenizer`, else the model folder's, if it has a tokenizer.
fn named(request: &DataRequest) -> Result<Option<TokenizerFiles>> {
    let Some(path) = &request.data.tokenizer else {
        return request.model_folder.map_or(Ok(None), TokenizerFiles::at);
    };
    match TokenizerFiles::at(path) {
        Ok(Some(files)) => Ok(Some(files)),
        Ok(None) => Err(Error::Config(format!(
            "[data] tokenizer: {} is neither a tokenizer.json nor a folder with one or with vocab.json and merges.txt",
            path.display()
        ))),
        Err(e) => Err(e),
    }
}

/// Whether the named files are those that the snapshot's tokenizer was read from, by this or by the first release.
fn is_own(named: &TokenizerFiles, own: &TokenizerFiles) -> bool {
    own.json().is_some() && named.first_release_json().as_deref() == own.json()
}

/// In which way the named tokenizer is another one.
fn describe(own: &TextEncoder, other: &TextEncoder, named: &TokenizerFiles, request: &DataRequest) -> String {
    let (then, now) = (own.tokenizer().get_vocab(true), other.tokenizer().get_vocab(true));
    let moved = then.iter().filter(|(token, id)| now.get(*token) != Some(id)).count();
    let how = if moved > 0 {
        format!("{moved} of {} tokens have another id", then.len())
    } else if now.len() > then.len() {
        format!("it has {} tokens more", now.len() - then.len())
    } else {
        format!("it has another {}", super::gpt2_tokenizer::differences(own.tokenizer(), other.tokenizer()).join(", "))
    };
    let remedy = if request.data.tokenizer.is_some() { "take [data] tokenizer out" } else { "put the old one back" };
    format!(
        "{} is another tokenizer than the snapshot's: {how}; {remedy} to use the snapshot's own",
        named.origin().display()
    )
}

/// The token that ends a text: the tokenizer's own, else the one of `configs` (config.json, generation_config.json),
/// else one with a usual name, below `vocab_size`. With it, where both name one, that of the configs that does not
/// count.
pub fn end_of_text(encoder: &TextEncoder, configs: [Option<&[u8]>; 2], vocab_size: u64) -> (Option<u32>, Option<u32>) {
    let is_known = |id: &u32| u64::from(*id) < vocab_size && encoder.token(*id).is_some();
    let own = encoder.named_end_of_text().and_then(|token| encoder.id(token)).filter(is_known);
    let of_model = configs.into_iter().flatten().find_map(|json| {
        let config: Map<String, Value> = serde_json::from_slice(json).ok()?;
        let value = config.get("eos_token_id")?;
        let id = value.as_array().and_then(|list| list.first()).unwrap_or(value).as_u64()?;
        u32::try_from(id).ok().filter(is_known)
    });
    let usual = || encoder.usual_end_of_text().filter(is_known);
    (own.or(of_model).or_else(usual), of_model.filter(|id| own.is_some_and(|own| own != *id)))
}

fn tell_end_of_text(encoder: &TextEncoder, end: Option<u32>, other: Option<u32>, notes: &mut Vec<String>) {
    if let (Some(end), Some(other)) = (end, other) {
        let name = |id| encoder.token(id).unwrap_or_default();
        notes.push(format!(
            "texts end with {:?} (id {end}), as the tokenizer says; the model's config.json says {:?} (id {other})",
            name(end),
            name(other)
        ));
    }
}
