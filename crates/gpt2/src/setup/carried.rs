//! The small files that every snapshot carries, so that it can become a model folder again.
//!
//! Deliberately not here: writing them (the store).

use ckptd_core::Result;
use ckptd_core::config::TrainSection;
use ckptd_core::protocol::MessageLevel;
use ckptd_core::snapshot::CarriedFile;
use ckptd_core::store::SnapshotReader;
use ckptd_interop::names;
use ckptd_interop::source_record::SourceRecord;
use serde_json::{Map, Value};

use crate::data::{TokenDataset, tokenizer_files};
use crate::events::EventSender;
use crate::gpt2::Gpt2Config;

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

/// Config, tokenizer and `companions`, the model folder's or the snapshot's other small files, so that a snapshot can
/// become such a folder again. All files of a tokenizer come from one place.
pub(super) fn carried_files(config_json: String, data: &TokenDataset, companions: &[CarriedFile]) -> Vec<CarriedFile> {
    let mut files = vec![CarriedFile { name: names::CONFIG.into(), bytes: config_json.into_bytes().into() }];
    files.extend(data.tokenizer_files.iter().cloned());
    let has_tokenizer = !data.tokenizer_files.is_empty();
    let is_other = |file: &&CarriedFile| {
        file.name != names::CONFIG && !(has_tokenizer && tokenizer_files::is_tokenizer_file(&file.name))
    };
    files.extend(companions.iter().filter(is_other).cloned());
    files
}

/// What `snapshot` carries of the program that it was imported from, for the snapshots to come. A job that goes on from
/// the import itself is told where its `[train]` is another one.
///
/// # Errors
/// Those of reading it.
pub(super) fn source_record(
    snapshot: &SnapshotReader,
    train: &TrainSection,
    events: &EventSender,
) -> Result<Option<CarriedFile>> {
    let Some(bytes) = snapshot.read_file(names::SOURCE_RECORD)? else { return Ok(None) };
    if snapshot.manifest().train.settings.is_empty() {
        let record = SourceRecord::parse(&bytes, snapshot.path())?;
        for difference in record.differences(train) {
            events.log(MessageLevel::Warn, difference);
        }
    }
    Ok(Some(CarriedFile { name: names::SOURCE_RECORD.into(), bytes: bytes.into() }))
}
