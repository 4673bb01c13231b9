//! Where a text may be divided without a change to its ids: proven for the tokenizer's own parts, or nowhere.
//!
//! Whatever a tokenizer does to a text, it does to each of its words (pre-tokens) alone in the end. So a cut changes
//! nothing where a word ends in any case, where no normalizer, no split and no added token looks across it, and where
//! what is done to the beginning of a text (a space or a mark in front) is not done again to what follows the cut.
//! Deliberately not here: reading, and the use of the tokenizer.

use tokenizers::normalizers::NormalizerWrapper;
use tokenizers::normalizers::replace::Replace;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::{AddedToken, NormalizedString, Normalizer, Tokenizer};

/// Patterns of splits that begin a new word with any space after a letter or a digit: those of GPT-2, GPT-4, Llama 3
/// and Qwen 2, by their text.
const KNOWN_PATTERNS: [&str; 3] = [
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    concat!(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}",
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
];

/// Where a tokenizer lets a text be divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CutRule {
    /// GPT-2's own split and nothing around it: before a space or a line feed after anything that is visible.
    Words,
    /// Before a space after a letter or a digit.
    Spaces,
    /// Nowhere: a document is tokenized as a whole, in memory of about 200 times its size.
    Whole,
    /// As the first release did, which changes the ids of some tokenizers at some cuts. Its trainings go on with it.
    FirstRelease,
}

impl CutRule {
    /// The rule that is proven for `tokenizer`.
    pub(super) fn of(tokenizer: &Tokenizer) -> CutRule {
        let added = tokenizer.get_added_tokens_decoder();
        let normalizer = tokenizer.get_normalizer();
        if added.values().any(|token| reaches(token, normalizer)) {
            return CutRule::Whole;
        }
        let split = tokenizer.get_pre_tokenizer();
        match (normalizer, split) {
            (None, Some(PreTokenizerWrapper::ByteLevel(split))) if split.use_regex && !split.add_prefix_space => {
                CutRule::Words
            }
            (normalizer, Some(split)) if normalizer.is_none_or(is_local) && splits_at_spaces(split) => CutRule::Spaces,
            _ => CutRule::Whole,
        }
    }

    /// Whether `text` may be divided before byte `at`, which is in it and not its first.
    pub(super) fn is_border(self, text: &str, at: usize) -> bool {
        let begins = match self {
            CutRule::Words => matches!(text.as_bytes()[at], b' ' | b'\n'),
            CutRule::Spaces => text.as_bytes()[at] == b' ',
            CutRule::Whole | CutRule::FirstRelease => return false,
        };
        // A character of one byte stands at its own border.
        begins && text[..at].chars().next_back().is_some_and(|before| self.ends_word(before))
    }

    fn ends_word(self, before: char) -> bool {
        match self {
            CutRule::Words => is_visible(before),
            _ => is_common_letter(before),
        }
    }
}

/// Whether every table of Unicode takes it for something visible: no space, no control, no format character.
fn is_visible(c: char) -> bool {
    let is_doubtful = matches!(c, '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202f}'
        | '\u{205f}'..='\u{206f}' | '\u{feff}' | '\u{fff0}'..='\u{fffb}' | '\u{e000}'..='\u{f8ff}');
    !c.is_whitespace() && !c.is_control() && !is_doubtful
}

/// A letter or a digit of scripts in which none of them joins what follows.
fn is_common_letter(c: char) -> bool {
    let is_common = matches!(c, '\0'..='\u{2ff}' | '\u{370}'..='\u{58f}' | '\u{1e00}'..='\u{1fff}'
        | '\u{3041}'..='\u{9fff}'
        | '\u{ac00}'..='\u{d7a3}');
    is_common && c.is_alphanumeric()
}

/// Whether an added token may reach over a cut: it takes the whitespace after it, or has some within.
fn reaches(token: &AddedToken, normalizer: Option<&NormalizerWrapper>) -> bool {
    let has_space = |text: &str| text.contains(char::is_whitespace);
    let normalized = normalizer.filter(|_| token.normalized).map(|normalizer| {
        let mut text = NormalizedString::from(token.content.as_str());
        normalizer.normalize(&mut text).map_or(" ".to_owned(), |()| text.get().to_owned())
    });
    token.rstrip || has_space(&token.content) || normalized.is_some_and(|text| has_space(&text))
}

/// Whether it changes each character by itself or with the marks after it, and leaves a space what it is.
fn is_local(normalizer: &NormalizerWrapper) -> bool {
    match normalizer {
        NormalizerWrapper::BertNormalizer(_)
        | NormalizerWrapper::StripAccents(_)
        | NormalizerWrapper::NFC(_)
        | NormalizerWrapper::NFD(_)
        | NormalizerWrapper::NFKC(_)
        | NormalizerWrapper::NFKD(_)
        | NormalizerWrapper::Lowercase(_) => true,
        NormalizerWrapper::Sequence(all) => all.as_ref().iter().all(is_local),
        NormalizerWrapper::Replace(replace) => replaces_within_words(replace),
        // Of the beginning and the end of a text, or by tables that would have to be read.
        NormalizerWrapper::StripNormalizer(_)
        | NormalizerWrapper::Prepend(_)
        | NormalizerWrapper::Nmt(_)
        | NormalizerWrapper::Precompiled(_)
        | NormalizerWrapper::ByteLevel(_) => false,
    }
}

/// Whether it replaces a text without whitespace.
fn replaces_within_words(replace: &Replace) -> bool {
    let pattern =
        serde_json::to_value(replace).ok().and_then(|json| json["pattern"]["String"].as_str().map(str::to_owned));
    pattern.is_some_and(|text| !text.is_empty() && !text.contains(char::is_whitespace))
}

/// Whether any space after a letter or a digit begins a new word, whatever stands further away.
fn splits_at_spaces(split: &PreTokenizerWrapper) -> bool {
    match split {
        PreTokenizerWrapper::Sequence(all) => {
            // Behind one that splits at spaces, every other sees single words. Digits and punctuation before it are
            // no neighbours of a cut.
            let mut rest = all
                .as_ref()
                .iter()
                .skip_while(|one| matches!(one, PreTokenizerWrapper::Digits(_) | PreTokenizerWrapper::Punctuation(_)));
            rest.next().is_some_and(splits_at_spaces)
        }
        PreTokenizerWrapper::ByteLevel(split) => split.use_regex,
        // What follows a cut begins with a space, so that none is put in front of it.
        PreTokenizerWrapper::Metaspace(split) => split.split,
        PreTokenizerWrapper::BertPreTokenizer(_)
        | PreTokenizerWrapper::Whitespace(_)
        | PreTokenizerWrapper::WhitespaceSplit(_) => true,
        PreTokenizerWrapper::Delimiter(split) => split.delimiter == ' ',
        PreTokenizerWrapper::Split(split) => is_known_pattern(split),
        PreTokenizerWrapper::Punctuation(_)
        | PreTokenizerWrapper::Digits(_)
        | PreTokenizerWrapper::UnicodeScripts(_)
        | PreTokenizerWrapper::FixedLength(_) => false,
    }
}

fn is_known_pattern(split: &tokenizers::pre_tokenizers::split::Split) -> bool {
    let json = serde_json::to_value(split).unwrap_or_default();
    let known = json["pattern"]["Regex"].as_str().is_some_and(|pattern| KNOWN_PATTERNS.contains(&pattern));
    known && (json["behavior"] == "Isolated" || json["behavior"] == "Removed" && json["invert"] == true)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    /// A tokenizer of single letters and a few words, with the parts that decide where it may be cut.
    fn tokenizer(normalizer: Value, split: Value, added: Value) -> Tokenizer {
        let mut vocab = serde_json::Map::new();
        let bytes = tokenizers::pre_tokenizers::byte_level::ByteLevel::alphabet();
        let mut letters: Vec<String> = bytes.into_iter().map(|c| c.to_string()).collect();
        letters.extend(["▁", "é", "語", "ж", " ", "\n", "<unk>"].map(String::from));
        letters.sort();
        letters.dedup();
        letters.extend(["th", "the", "Ġthe", "▁th", "▁the"].map(String::from));
        letters.into_iter().enumerate().for_each(|(id, token)| drop(vocab.insert(token, id.into())));
        let merges = [["t", "h"], ["th", "e"], ["Ġ", "the"], ["▁", "th"], ["▁th", "e"]];
        let model = json!({"type": "BPE", "unk_token": "<unk>", "vocab": vocab, "merges": merges});
        let json = json!({"version": "1.0", "added_tokens": added, "normalizer": normalizer, "pre_tokenizer": split,
            "post_processor": null, "decoder": null, "model": model});
        Tokenizer::from_bytes(serde_json::to_vec(&json).unwrap()).unwrap()
    }

    fn byte_level(prefix: bool) -> Value {
        json!({"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": true, "use_regex": true})
    }

    fn sequence(parts: &[Value]) -> Value {
        json!({"type": "Sequence", "pretokenizers": parts})
    }

    fn kind(name: &str) -> Value {
        json!({"type": name})
    }

    fn added(flag: &str) -> Value {
        let mut token = json!({"id": 900, "content": "<x>", "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": true, "special": false});
        token[flag] = true.into();
        json!([token])
    }

    fn metaspace(scheme: &str, split: bool) -> Value {
        json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": split})
    }

    /// Tokenizers and the rule that is right for each.
    fn cases() -> Vec<(Tokenizer, CutRule)> {
        let llama =
            json!({"type": "Split", "pattern": {"Regex": KNOWN_PATTERNS[1]}, "behavior": "Isolated", "invert": false});
        let lines = json!({"type": "Split", "pattern": {"Regex": "\\n"}, "behavior": "Isolated", "invert": false});
        let inner = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
        let all = json!({"type": "Sequence", "normalizers": [kind("NFKC"), kind("Lowercase"), kind("StripAccents")]});
        let digits = json!({"type": "Digits", "individual_digits": true});
        let prepend = json!({"type": "Prepend", "prepend": "▁"});
        let spaces = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
        let (none, no) = (Value::Null, json!([]));
        vec![
            (tokenizer(none.clone(), byte_level(false), no.clone()), CutRule::Words),
            (tokenizer(none.clone(), byte_level(false), added("lstrip")), CutRule::Words),
            (tokenizer(none.clone(), byte_level(false), added("single_word")), CutRule::Words),
            (tokenizer(none.clone(), byte_level(false), added("rstrip")), CutRule::Whole),
            (tokenizer(none.clone(), byte_level(true), no.clone()), CutRule::Spaces),
            (tokenizer(all.clone(), byte_level(true), added("lstrip")), CutRule::Spaces),
            (tokenizer(kind("NFC"), byte_level(false), added("single_word")), CutRule::Spaces),
            (tokenizer(none.clone(), metaspace("always", true), added("lstrip")), CutRule::Spaces),
            (tokenizer(none.clone(), metaspace("first", true), no.clone()), CutRule::Spaces),
            (tokenizer(none.clone(), metaspace("always", false), no.clone()), CutRule::Whole),
            (
                tokenizer(all, sequence(&[digits, kind("WhitespaceSplit"), metaspace("always", true)]), no.clone()),
                CutRule::Spaces,
            ),
            (tokenizer(none.clone(), sequence(&[llama, inner]), no.clone()), CutRule::Spaces),
            (tokenizer(none.clone(), sequence(&[lines, byte_level(false)]), no.clone()), CutRule::Whole),
            (tokenizer(none.clone(), kind("Whitespace"), no.clone()), CutRule::Spaces),
            (tokenizer(prepend, byte_level(false), no.clone()), CutRule::Whole),
            (tokenizer(spaces, metaspace("never", true), no.clone()), CutRule::Whole),
            (tokenizer(none.clone(), none, no), CutRule::Whole),
        ]
    }

    #[test]
    fn a_text_may_be_divided_at_every_border_without_a_change_to_its_ids() {
        let parts = [
            "the", "the", "é", "語", "ж", "e\u{301}", " ", " ", "  ", "\n", "\t", "\r\n", "\u{a0}", "\u{3000}", "'s",
            "'", "12", ",", "--", "<x>", "▁", "\u{200b}", "İ", "ﬁ", "２", "。",
        ];
        let cases = cases();
        let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(400));
        let texts = prop::collection::vec(prop::sample::select(parts.to_vec()), 0..14);
        let compare = |parts: Vec<&str>| {
            let text = parts.concat();
            for (tokenizer, rule) in &cases {
                let ids = |text: &str| tokenizer.encode_fast(text, false).unwrap().get_ids().to_vec();
                let whole = ids(&text);
                for at in (1..text.len()).filter(|&at| rule.is_border(&text, at)) {
                    let divided = [ids(&text[..at]), ids(&text[at..])].concat();
                    prop_assert_eq!(&divided, &whole, "{:?} at {} under {:?}", text, at, tokenizer.get_pre_tokenizer());
                }
            }
            Ok(())
        };
        runner.run(&texts, compare).unwrap();
    }

    #[test]
    fn each_kind_of_tokenizer_has_the_rule_that_is_proven_for_it() {
        for (tokenizer, rule) in cases() {
            assert_eq!(
                CutRule::of(&tokenizer),
                rule,
                "{}",
                tokenizer.to_string(false).unwrap().split("\"model\"").next().unwrap()
            );
        }
    }

    #[test]
    fn there_are_borders_in_every_script_that_has_spaces() {
        for text in ["a b", "é b", "ж b", "語 b", "1 b"] {
            let at = text.find(' ').unwrap();
            assert!(CutRule::Words.is_border(text, at) && CutRule::Spaces.is_border(text, at), "{text}");
        }
        assert!(CutRule::Words.is_border("語。\n語", 6) && !CutRule::Words.is_border("a\u{200b} b", 4));
        assert!(!CutRule::Spaces.is_border(", b", 1) && !CutRule::Spaces.is_border("a\nb", 1));
    }
}
