//! A tokenizer in use: from text to ids, in parallel and word by word where that changes nothing.
//!
//! Invariant: the ids of a text follow from the tokenizer's JSON and the text alone, whatever the number of threads.
//! Deliberately not here: where tokenizers and texts come from, where ids go.

use std::collections::{HashMap, HashSet};
use std::sync::Mutex;

use rayon::prelude::*;
use tokenizers::models::ModelWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{OffsetReferential, OffsetType, PreTokenizer, Tokenizer};

use super::cut::CutRule;
use super::gpt2_tokenizer::{self, END_OF_TEXT};
use super::text::TextBlock;

/// GPT-2's end-of-text token, and what others call theirs.
const ENDS_OF_TEXT: [&str; 3] = [END_OF_TEXT, "<|end_of_text|>", "</s>"];

/// Entries of one word cache, and its longest word in bytes.
const CACHE_WORDS: usize = 1 << 17;
const CACHE_WORD_BYTES: usize = 48;

/// A tokenizer ready to use.
pub struct TextEncoder {
    tokenizer: Tokenizer,
    json: Vec<u8>,
    /// The end-of-text token that its own documents name.
    end_of_text: Option<String>,
    cuts: CutRule,
    /// A line feed alone between two words is a word, which no added token takes along.
    line_feeds_alone: bool,
    /// What it knows, where it drops the rest.
    known: Option<KnownLetters>,
    /// As many as threads have needed at once.
    caches: Mutex<Vec<HashMap<String, Box<[u32]>>>>,
}

/// The letters of a model that has no token for unknown ones.
struct KnownLetters {
    tokens: HashSet<String>,
    prefix: String,
    suffix: String,
    /// A whole word that is a token is not taken apart.
    ignore_merges: bool,
}

/// What of a text a tokenizer has no ids for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DroppedLetters {
    /// Letters that were dropped: characters, or bytes where the tokenizer is byte-level.
    pub dropped: u64,
    /// All letters.
    pub total: u64,
    /// The first word with a dropped one.
    pub first: Option<String>,
}

impl TextEncoder {
    /// From a tokenizer and the JSON that stands for it. What makes batches of texts even (padding, truncation) or
    /// training random (dropout) is switched off.
    pub(super) fn new(mut tokenizer: Tokenizer, json: Vec<u8>, end_of_text: Option<String>) -> TextEncoder {
        // Truncation fails only where it is asked for.
        let _ = tokenizer.with_truncation(None);
        tokenizer.with_padding(None);
        if let ModelWrapper::BPE(bpe) = tokenizer.get_model()
            && bpe.dropout.is_some()
        {
            let mut bpe = bpe.clone();
            bpe.dropout = None;
            tokenizer.with_model(bpe);
        }
        let cuts = CutRule::of(&tokenizer);
        let line_feeds_alone = !tokenizer.get_added_tokens_decoder().values().any(|token| token.lstrip);
        let known = KnownLetters::of(&tokenizer);
        TextEncoder { tokenizer, json, end_of_text, cuts, line_feeds_alone, known, caches: Mutex::default() }
    }

    /// From the text of a tokenizer.json, as it stands.
    pub fn from_json(json: Vec<u8>) -> tokenizers::Result<TextEncoder> {
        Ok(TextEncoder::new(Tokenizer::from_bytes(&json)?, json, None))
    }

    /// As the first release read `json`: its cuts, and its way with added tokens that take whitespace before them.
    pub(super) fn first_release(json: Vec<u8>) -> tokenizers::Result<TextEncoder> {
        let mut encoder = TextEncoder::from_json(json)?;
        let is_gpt2 = encoder.cuts == CutRule::Words;
        (encoder.cuts, encoder.line_feeds_alone) = (CutRule::FirstRelease, is_gpt2);
        Ok(encoder)
    }

    pub(super) fn with_end_of_text(mut self, end_of_text: Option<String>) -> TextEncoder {
        self.end_of_text = end_of_text;
        self
    }

    /// Special tokens in a text are text.
    pub(super) fn split_special_tokens(&mut self) {
        self.tokenizer.set_encode_special_tokens(true);
    }

    /// Whether special tokens in a text are text.
    pub(super) fn splits_special_tokens(&self) -> bool {
        self.tokenizer.get_encode_special_tokens()
    }

    /// The tokenizer.json.
    pub fn json(&self) -> &[u8] {
        &self.json
    }

    pub(super) fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    pub(super) fn cuts(&self) -> CutRule {
        self.cuts
    }

    /// Whether both give the same ids and end texts with the same token.
    pub(super) fn is_same(&self, other: &TextEncoder) -> bool {
        self.gives_ids_of(other) && self.end_of_text == other.end_of_text
    }

    /// Whether both give the same ids.
    pub(super) fn gives_ids_of(&self, other: &TextEncoder) -> bool {
        let is_same_json = self.json == other.json;
        self.splits_special_tokens() == other.splits_special_tokens()
            && (is_same_json || gpt2_tokenizer::differences(&self.tokenizer, &other.tokenizer).is_empty())
    }

    /// One more than the largest id.
    pub fn vocab_size(&self) -> u64 {
        self.tokenizer.get_vocab(true).values().max().map_or(0, |&id| u64::from(id) + 1)
    }

    /// The end-of-text token that its own documents name.
    pub fn named_end_of_text(&self) -> Option<&str> {
        self.end_of_text.as_deref()
    }

    /// The id of `token`.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.tokenizer.token_to_id(token)
    }

    /// The token with `id`.
    pub fn token(&self, id: u32) -> Option<String> {
        self.tokenizer.id_to_token(id)
    }

    /// The id of the end-of-text token, as far as its name tells it.
    pub fn usual_end_of_text(&self) -> Option<u32> {
        ENDS_OF_TEXT.iter().find_map(|token| self.tokenizer.token_to_id(token))
    }

    /// The ids of each block, computed by the current rayon pool; with an error, the index of its block.
    pub(super) fn encode(&self, blocks: &[TextBlock]) -> Result<Vec<Vec<u32>>, (usize, tokenizers::Error)> {
        let encode = |(index, block): (usize, &TextBlock)| self.encode_text(&block.text).map_err(|e| (index, e));
        blocks.par_iter().enumerate().map(encode).collect()
    }

    /// What of the blocks the tokenizer drops; `None` where it drops nothing of any text.
    pub(super) fn dropped(&self, blocks: &[TextBlock]) -> Option<Vec<DroppedLetters>> {
        let known = self.known.as_ref()?;
        Some(blocks.par_iter().map(|block| known.survey(&self.tokenizer, &block.text)).collect())
    }

    /// Whether a letter of the tokenizer is a byte.
    pub(super) fn is_byte_level(&self) -> bool {
        is_byte_level(&self.tokenizer)
    }

    /// The text of `ids`; what is no whole character is U+FFFD.
    pub fn decode(&self, ids: &[u32]) -> tokenizers::Result<String> {
        self.tokenizer.decode(ids, false)
    }

    /// The ids of one text.
    pub fn encode_text(&self, text: &str) -> tokenizers::Result<Vec<u32>> {
        let by_word = self.cuts == CutRule::Words || self.cuts == CutRule::FirstRelease && self.line_feeds_alone;
        if !by_word {
            return Ok(self.tokenizer.encode_fast(text, false)?.get_ids().to_vec());
        }
        // A lock is poisoned only by a panic, which ends the work of all threads.
        let mut cache = self.caches.lock().ok().and_then(|mut caches| caches.pop()).unwrap_or_default();
        let mut ids = Vec::with_capacity(text.len() / 3);
        let mut start = 0;
        let borders = (1..text.len()).filter(|&at| is_border(text.as_bytes(), at, self.line_feeds_alone));
        for end in borders.chain([text.len()]) {
            let word = &text[start..end];
            start = end;
            if let Some(known) = cache.get(word) {
                ids.extend_from_slice(known);
                continue;
            }
            let encoding = self.tokenizer.encode_fast(word, false)?;
            ids.extend_from_slice(encoding.get_ids());
            if word.len() <= CACHE_WORD_BYTES && cache.len() < CACHE_WORDS {
                cache.insert(word.to_owned(), encoding.get_ids().into());
            }
        }
        if let Ok(mut caches) = self.caches.lock() {
            caches.push(cache);
        }
        Ok(ids)
    }
}

impl KnownLetters {
    /// Those of a BPE without a token for unknown letters; `None` where nothing is dropped.
    fn of(tokenizer: &Tokenizer) -> Option<KnownLetters> {
        let ModelWrapper::BPE(bpe) = tokenizer.get_model() else { return None };
        if bpe.get_unk_token().is_some() || bpe.byte_fallback {
            return None;
        }
        let tokens: HashSet<String> = bpe.get_vocab().into_keys().collect();
        let prefix = bpe.get_continuing_subword_prefix().clone().unwrap_or_default();
        let suffix = bpe.end_of_word_suffix.clone().unwrap_or_default();
        let is_plain = prefix.is_empty() && suffix.is_empty();
        let has_all = || ByteLevel::alphabet().iter().all(|letter| tokens.contains(&letter.to_string()));
        if is_plain && is_byte_level(tokenizer) && has_all() {
            return None;
        }
        Some(KnownLetters { tokens, prefix, suffix, ignore_merges: bpe.ignore_merges })
    }

    fn survey(&self, tokenizer: &Tokenizer, text: &str) -> DroppedLetters {
        let mut words = tokenizer.get_added_vocabulary().extract_and_normalize(tokenizer.get_normalizer(), text);
        let split = tokenizer.get_pre_tokenizer().map_or(Ok(()), |split| split.pre_tokenize(&mut words));
        let mut found = DroppedLetters::default();
        if split.is_err() {
            return found;
        }
        for (word, (start, end), tokens) in words.get_splits(OffsetReferential::Original, OffsetType::Byte) {
            if tokens.is_some() {
                continue;
            }
            let dropped = if self.ignore_merges && self.tokens.contains(word) { 0 } else { self.unknown(word) };
            found.dropped += dropped;
            found.total += word.chars().count() as u64;
            if dropped > 0 && found.first.is_none() {
                let word = text.get(start..end).unwrap_or(word);
                found.first = Some(word.trim().chars().take(40).collect());
            }
        }
        found
    }

    fn unknown(&self, word: &str) -> u64 {
        let mut letters = word.char_indices().peekable();
        let mut unknown = 0;
        let mut letter = String::new();
        while let Some((at, c)) = letters.next() {
            letter.clear();
            letter.push_str(if at > 0 { &self.prefix } else { "" });
            letter.push(c);
            letter.push_str(if letters.peek().is_none() { &self.suffix } else { "" });
            unknown += u64::from(!self.tokens.contains(&letter));
        }
        unknown
    }
}

fn is_byte_level(tokenizer: &Tokenizer) -> bool {
    let json = |part: Option<serde_json::Value>| part.unwrap_or_default().to_string();
    let split = json(tokenizer.get_pre_tokenizer().and_then(|split| serde_json::to_value(split).ok()));
    let normalizer = json(tokenizer.get_normalizer().and_then(|normalizer| serde_json::to_value(normalizer).ok()));
    split.contains("\"ByteLevel\"") || normalizer.contains("\"ByteLevel\"")
}

/// Whether GPT-2's pattern, `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`, has a word
/// end before byte `at`, whatever stands further away: no word has whitespace after anything else, and a line feed
/// alone between two others is a word.
fn is_border(text: &[u8], at: usize, line_feeds_alone: bool) -> bool {
    let is_visible = |at: usize| text[at].is_ascii_graphic();
    match text[at] {
        b' ' | b'\n' => is_visible(at - 1),
        _ => line_feeds_alone && text[at - 1] == b'\n' && at >= 2 && is_visible(at - 2) && is_visible(at),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use tokenizers::AddedToken;
    use tokenizers::models::TrainerWrapper;
    use tokenizers::models::bpe::{BPE, BpeTrainer};

    use super::super::gpt2_tokenizer::byte_level;
    use super::*;

    fn trained() -> TextEncoder {
        let text = "the cat's hat, the end.\n\nWe'll see 12 and 1234 -- of the\tthe  \n the é of é of\n".repeat(3);
        let mut trainer: TrainerWrapper = BpeTrainer::builder()
            .show_progress(false)
            .vocab_size(330)
            .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
            .special_tokens(vec![AddedToken::from(END_OF_TEXT, true)])
            .build()
            .into();
        let mut tokenizer = byte_level(BPE::default(), false);
        tokenizer.train(&mut trainer, [text].iter()).unwrap();
        TextEncoder::from_json(tokenizer.to_string(false).unwrap().into_bytes()).unwrap()
    }

    #[test]
    fn tokens_found_word_by_word_are_those_of_the_whole_text() {
        let encoder = trained();
        assert_eq!(encoder.cuts, CutRule::Words);
        let parts =
            ["the", "é", " ", "\n", "\t", "\r\n", "'", "'s", "'ll", "12", ",", "--", "\u{a0}", "\u{3000}", END_OF_TEXT];
        let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(3000));
        let texts = prop::collection::vec(prop::sample::select(parts.to_vec()), 0..16);
        let compare = |parts: Vec<&str>| {
            let text = parts.concat();
            let whole = encoder.tokenizer.encode_fast(text.as_str(), false).unwrap();
            prop_assert_eq!(encoder.encode_text(&text).unwrap(), whole.get_ids());
            Ok(())
        };
        runner.run(&texts, compare).unwrap();
    }

    #[test]
    fn a_tokenizer_of_another_kind_is_given_the_text_as_it_is() {
        let json = String::from_utf8(trained().json).unwrap();
        for (from, to) in [
            ("\"normalizer\":null", "\"normalizer\":{\"type\":\"NFC\"}"),
            ("\"add_prefix_space\":false", "\"add_prefix_space\":true"),
            ("\"rstrip\":false", "\"rstrip\":true"),
        ] {
            assert!(json.contains(from));
            let other = TextEncoder::from_json(json.replacen(from, to, 1).into_bytes()).unwrap();
            assert_ne!(other.cuts, CutRule::Words, "{to}");
        }
    }

    #[test]
    fn padding_truncation_and_dropout_of_a_tokenizer_are_switched_off() {
        let plain = trained();
        let mut json: serde_json::Value = serde_json::from_slice(&plain.json).unwrap();
        json["model"]["dropout"] = 0.9.into();
        json["truncation"] =
            serde_json::json!({"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0});
        let encoder = TextEncoder::from_json(serde_json::to_vec(&json).unwrap()).unwrap();
        let text = "the cat's hat, the end. We'll see 12 of the";
        assert_eq!(encoder.encode_text(text).unwrap(), plain.encode_text(text).unwrap());
    }

    #[test]
    fn tokens_that_take_whitespace_before_them_take_it_over_a_line_feed() {
        let json = String::from_utf8(trained().json).unwrap().replacen("\"lstrip\":false", "\"lstrip\":true", 1);
        let encoder = TextEncoder::from_json(json.into_bytes()).unwrap();
        for text in ["the\n<|endoftext|>the", "the \n  <|endoftext|>", "cat\nthe"] {
            let whole = encoder.tokenizer.encode_fast(text, false).unwrap();
            assert_eq!(encoder.encode_text(text).unwrap(), whole.get_ids(), "{text:?}");
        }
    }

    #[test]
    fn letters_that_a_tokenizer_does_not_know_are_counted_and_those_of_a_byte_level_one_are_all_known() {
        let block = |text: &str| [TextBlock { document: 0, file: 0, text: text.into() }];
        assert_eq!(trained().dropped(&block("где 語")), None);
        let json = r#"{"version": "1.0", "added_tokens": [], "normalizer": null,
            "pre_tokenizer": {"type": "WhitespaceSplit"},
            "post_processor": null, "decoder": null,
            "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]}}"#;
        let encoder = TextEncoder::from_json(json.into()).unwrap();
        let text = "ab xa где b";
        let found = encoder.dropped(&block(text)).unwrap().remove(0);
        assert_eq!(found, DroppedLetters { dropped: 4, total: 8, first: Some("xa".into()) });
        assert_eq!(encoder.encode_text(text).unwrap(), [2, 0, 1], "8 letters, 4 of them in ids");
        let unknown = json.replace("\"type\": \"BPE\"", "\"type\": \"BPE\", \"unk_token\": \"a\"");
        assert_eq!(TextEncoder::from_json(unknown.into()).unwrap().dropped(&block(text)), None);
    }
}
