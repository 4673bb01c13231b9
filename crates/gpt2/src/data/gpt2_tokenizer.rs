//! Byte-level BPE as transformers' GPT2Tokenizer has it, of a vocabulary and merges or of a tokenizer.json.
//!
//! Deliberately not here: special and added tokens (`added_tokens`).

use serde_json::{Value, json};
use tokenizers::decoders::DecoderWrapper;
use tokenizers::models::bpe::{BPE, Merges, Vocab};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::processors::PostProcessorWrapper;
use tokenizers::{AddedToken, Tokenizer};

/// GPT-2's end-of-text token.
pub(super) const END_OF_TEXT: &str = "<|endoftext|>";

/// GPT-2's byte-level tokenizer over `bpe`.
pub(super) fn byte_level(bpe: BPE, add_prefix_space: bool) -> Tokenizer {
    let mut tokenizer = Tokenizer::new(bpe);
    tokenizer
        .with_pre_tokenizer(Some(PreTokenizerWrapper::ByteLevel(ByteLevel::new(add_prefix_space, true, true))))
        .with_post_processor(Some(PostProcessorWrapper::ByteLevel(ByteLevel::new(true, false, true))))
        .with_decoder(Some(DecoderWrapper::ByteLevel(ByteLevel::new(true, true, true))));
    tokenizer
}

/// Of the texts of a vocab.json and a merges.txt.
///
/// # Errors
/// As a clause that names the file and the entry.
pub(super) fn from_vocab(vocab: &[u8], merges: &[u8], add_prefix_space: bool) -> Result<Tokenizer, String> {
    let map: std::collections::BTreeMap<String, u32> =
        serde_json::from_slice(vocab).map_err(|e| format!("vocab.json: not an object of tokens and their ids: {e}"))?;
    let vocab: Vocab = map.into_iter().collect();
    let merges = parse_merges(merges)?;
    let bpe = BPE::builder().vocab_and_merges(vocab, merges).build();
    bpe.map(|bpe| byte_level(bpe, add_prefix_space)).map_err(|e| format!("vocab.json with merges.txt: {e}"))
}

fn parse_merges(text: &[u8]) -> Result<Merges, String> {
    let text = std::str::from_utf8(text).map_err(|e| format!("merges.txt: not UTF-8: {e}"))?;
    let mut merges = Merges::new();
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.starts_with("#version")) {
        let Some((left, right)) = line.split_once(' ').filter(|(_, right)| !right.contains(' ')) else {
            return Err(format!("merges.txt: line {} is not two tokens with a space between them", number + 1));
        };
        merges.push((left.to_owned(), right.to_owned()));
    }
    Ok(merges)
}

/// The tokenizer.json of a vocabulary and merges as the first release wrote it.
pub(super) fn first_release(vocab: &[u8], merges: &[u8]) -> Result<Vec<u8>, String> {
    let mut tokenizer = from_vocab(vocab, merges, false)?;
    if tokenizer.token_to_id(END_OF_TEXT).is_some() {
        tokenizer.add_special_tokens([AddedToken::from(END_OF_TEXT, true)]).map_err(|e| e.to_string())?;
    }
    tokenizer.to_string(false).map(String::into_bytes).map_err(|e| e.to_string())
}

/// What GPT2Tokenizer makes of a tokenizer.json: vocabulary and merges, and nothing else of it but the post-processor.
/// `None` where that is no tokenizer for any text: another model than BPE, or one without all bytes.
pub(super) fn from_json(json: &[u8], add_prefix_space: bool) -> tokenizers::Result<Option<Tokenizer>> {
    let whole = Tokenizer::from_bytes(json)?;
    let mut document: Value = serde_json::from_str(&whole.to_string(false)?)?;
    if document["model"]["type"] != "BPE" {
        return Ok(None);
    }
    let model = whole.get_vocab(false);
    if !ByteLevel::alphabet().iter().all(|letter| model.contains_key(&letter.to_string())) && !is_plain(&document) {
        return Ok(None);
    }
    for (key, value) in [
        ("dropout", Value::Null),
        ("unk_token", Value::Null),
        ("continuing_subword_prefix", "".into()),
        ("end_of_word_suffix", "".into()),
        ("fuse_unk", false.into()),
        ("byte_fallback", false.into()),
        ("ignore_merges", false.into()),
    ] {
        document["model"][key] = value;
    }
    document["normalizer"] = Value::Null;
    document["pre_tokenizer"] = byte_level_part(add_prefix_space);
    document["decoder"] = byte_level_part(true);
    document["added_tokens"] = json!([]);
    document["truncation"] = Value::Null;
    document["padding"] = Value::Null;
    Tokenizer::from_bytes(serde_json::to_vec(&document)?).map(Some)
}

/// GPT-2's split into words, or its decoder.
fn byte_level_part(add_prefix_space: bool) -> Value {
    json!({
        "type": "ByteLevel",
        "add_prefix_space": add_prefix_space,
        "trim_offsets": true,
        "use_regex": true,
    })
}

/// Whether the document is byte-level and nothing more, so that a GPT2Tokenizer loses nothing that it has.
fn is_plain(document: &Value) -> bool {
    document["normalizer"].is_null() && document["pre_tokenizer"]["type"] == "ByteLevel"
}

/// The parts of a tokenizer that decide its ids.
const PARTS: [&str; 4] = ["normalizer", "pre_tokenizer", "model", "added_tokens"];

/// The names of the parts that decide ids and in which the two differ.
pub(super) fn differences(a: &Tokenizer, b: &Tokenizer) -> Vec<String> {
    let (a, b) = (canonical(a), canonical(b));
    PARTS.into_iter().filter(|part| a[*part] != b[*part]).map(str::to_owned).collect()
}

/// The tokenizer as JSON, in one form for all that give the same ids.
fn canonical(tokenizer: &Tokenizer) -> Value {
    let text = tokenizer.to_string(false).unwrap_or_default();
    let mut document: Value = serde_json::from_str(&text).unwrap_or_default();
    if let Some(split) = document["pre_tokenizer"].as_object_mut() {
        split.remove("trim_offsets");
    }
    if let Some(model) = document["model"].as_object_mut() {
        model.remove("dropout");
        for key in ["continuing_subword_prefix", "end_of_word_suffix"] {
            if model.get(key).is_some_and(|value| value == "") {
                model.insert(key.into(), Value::Null);
            }
        }
    }
    document
}
