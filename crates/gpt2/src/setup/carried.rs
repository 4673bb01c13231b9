//! The small files that every snapshot carries, so that it can become a model folder again.
//!
//! Deliberately not here: writing them (the store).

use ckptd_core::config::Config;
use ckptd_core::snapshot::CarriedFile;
use ckptd_core::{Error, Result};
use ckptd_interop::names;
use serde_json::{Map, Value};

use crate::data::TokenDataset;
use crate::gpt2::Gpt2Config;

/// Largest companion file of a model folder that travels in snapshots, in bytes.
const MAX_CARRIED_BYTES: u64 = 32 << 20;

/// The config.json that snapshots carry: the model folder's own, as the model is trained, and with the special tokens
/// of the tokenizer where it names none; GPT-2's would lie outside a smaller vocabulary.
pub(super) fn config_json(shape: &Gpt2Config, theirs: Option<&[u8]>, end_of_text: Option<u32>) -> String {
    let object = |json: &[u8]| serde_json::from_slice::<Map<String, Value>>(json).unwrap_or_default();
    let mut config = theirs.map(object).unwrap_or_default();
    config.extend(object(shape.to_json().as_bytes()));
    for key in ["bos_token_id", "eos_token_id"] {
        config.entry(key).or_insert_with(|| end_of_text.into());
    }
    format!("{:#}\n", Value::Object(config))
}

/// Config, tokenizer and the model folder's other small files, so that a snapshot can become such a folder again.
pub(super) fn carried_files(config: &Config, config_json: String, data: &TokenDataset) -> Result<Vec<CarriedFile>> {
    let mut files = vec![CarriedFile { name: "config.json".into(), bytes: config_json.into_bytes().into() }];
    if let Some(json) = &data.tokenizer_json {
        files.push(CarriedFile { name: "tokenizer.json".into(), bytes: json.clone().into() });
    }
    let Some(folder) = &config.model.from else { return Ok(files) };
    for name in names::COMPANIONS {
        let path = folder.join(name);
        let small = std::fs::metadata(&path).is_ok_and(|m| m.is_file() && m.len() <= MAX_CARRIED_BYTES);
        if small && !files.iter().any(|f| f.name == name) {
            let bytes = std::fs::read(&path).map_err(|e| Error::io("reading", &path, e))?;
            files.push(CarriedFile { name: name.into(), bytes: bytes.into() });
        }
    }
    Ok(files)
}
