//! The special and added tokens that a tokenizer's small documents name, as transformers 5.23 puts them together.
//!
//! The source of each rule is `PreTrainedTokenizerBase._from_pretrained` and `TokenizersBackend.__init__`.
//! Invariant: tokens with names of a model's own get their ids in the order of the documents, which [`TokenOrder`]
//! keeps. Deliberately not here: files, and the tokenizer that the tokens are added to.

use serde_json::{Map, Value};
use tokenizers::AddedToken;

use super::token_order::{EXTRA, OLD_EXTRA, ROLES, TokenOrder};

/// What GPT2Tokenizer takes for the first three of [`ROLES`] where nothing is said.
const GPT2_DEFAULT: &str = "<|endoftext|>";

/// A document that names special tokens: tokenizer_config.json or special_tokens_map.json.
#[derive(Debug, Default)]
pub(super) struct TokenDocument {
    pub(super) said: Map<String, Value>,
    pub(super) order: TokenOrder,
}

impl TokenDocument {
    /// The tokens under names of the model's own, in the order of the file.
    fn own(&self) -> impl Iterator<Item = (&String, &Value)> {
        self.order.own.iter().filter_map(|key| Some((key, self.said.get(key)?)))
    }

    /// Those in an object of `extra_special_tokens`.
    fn extra(&self) -> impl Iterator<Item = (&String, &Value)> {
        let named = self.said.get(EXTRA).or_else(|| self.said.get(OLD_EXTRA)).and_then(Value::as_object);
        self.order.extra.iter().filter_map(move |key| Some((key, named?.get(key)?)))
    }
}

/// The documents of earlier releases: special_tokens_map.json, added_tokens.json, the added_tokens of tokenizer.json.
pub(super) type LegacyDocuments = (TokenDocument, Map<String, Value>, Vec<Value>);

/// The tokens that the documents name.
#[derive(Debug, Default)]
pub(super) struct NamedTokens {
    /// By id, sorted.
    added: Vec<(u64, AddedToken)>,
    /// Tokens with a role, then the model's own.
    special: Vec<(String, AddedToken)>,
    /// Tokens without a role.
    extra: Vec<AddedToken>,
}

impl NamedTokens {
    /// Puts them together; `is_gpt2` for GPT2Tokenizer's defaults.
    pub(super) fn of(config: &TokenDocument, legacy: LegacyDocuments, is_gpt2: bool) -> NamedTokens {
        let mut said = config.said.clone();
        if let Some(old) = said.remove(OLD_EXTRA) {
            let name = if extra(&said).is_some() { OLD_EXTRA } else { EXTRA };
            said.insert(name.into(), old);
        }
        let mut added: Vec<(u64, AddedToken)> = Vec::new();
        let mut map = TokenDocument::default();
        match config.said.get("added_tokens_decoder").and_then(Value::as_object) {
            Some(decoder) => {
                added.extend(decoder.iter().filter_map(|(id, token)| Some((id.parse().ok()?, parse_added(token)?))));
            }
            None => {
                let (document, by_name, in_json) = legacy;
                map = document;
                merge(&mut said, &mut map);
                let specials = special_texts(&said);
                added.extend(by_name.into_iter().filter_map(|(text, id)| {
                    let is_special = specials.contains(&text);
                    let token = AddedToken::from(text, is_special);
                    Some((id.as_u64()?, token))
                }));
                for token in in_json {
                    if let (Some(id), Some(parsed)) = (token.get("id").and_then(Value::as_u64), parse_added(&token)) {
                        added.retain(|(known, _)| *known != id);
                        added.push((id, parsed));
                    }
                }
            }
        }
        added.sort_by_key(|(id, _)| *id);
        let mut named = NamedTokens { added, special: Vec::new(), extra: Vec::new() };
        named.add_roles(&said, is_gpt2);
        named.special.extend(own_tokens(config, &map));
        if let Some(Value::Array(list)) = extra(&said) {
            named.extra.extend(list.iter().filter_map(named_token));
        }
        named
    }

    fn add_roles(&mut self, said: &Map<String, Value>, is_gpt2: bool) {
        for role in ROLES {
            let token = match said.get(role) {
                Some(value) => named_token(value),
                None if is_gpt2 && ROLES[..3].contains(&role) => Some(AddedToken::from(GPT2_DEFAULT, true)),
                None => None,
            };
            if let Some(token) = token {
                let known = self.added.iter().find(|(_, added)| added.content == token.content);
                self.special.push((role.to_owned(), known.map_or(token, |(_, added)| added.clone())));
            }
        }
    }

    /// The end-of-text token, by the name of its role.
    pub(super) fn end_of_text(&self) -> Option<String> {
        let end = self.special.iter().find(|(role, _)| role == "eos_token");
        end.map(|(_, token)| token.content.clone())
    }

    /// Those that a tokenizer with the added tokens `known` lacks, in the order in which they get their ids.
    pub(super) fn missing(&self, known: &[AddedToken]) -> Vec<AddedToken> {
        let mut missing: Vec<AddedToken> =
            self.added.iter().map(|(_, token)| token.clone()).filter(|token| !known.contains(token)).collect();
        let is_named = |text: &str| self.special.iter().any(|(_, token)| token.content == text);
        let has = |tokens: &[AddedToken], text: &str| tokens.iter().any(|token| token.content == text);
        for token in self.special.iter().map(|(_, token)| token).chain(&self.extra) {
            if !has(known, &token.content) && !has(&missing, &token.content) {
                missing.push(token.clone());
            }
        }
        for token in &mut missing {
            token.special |= is_named(&token.content);
        }
        missing
    }
}

/// Takes what special_tokens_map.json says into what tokenizer_config.json says; a list is added to, not replaced.
fn merge(said: &mut Map<String, Value>, map: &mut TokenDocument) {
    for (key, value) in std::mem::take(&mut map.said) {
        let value = as_special(value);
        map.said.insert(key.clone(), value.clone());
        match (said.get_mut(&key), value) {
            (Some(Value::Array(before)), Value::Array(new)) if key == EXTRA => {
                let new: Vec<Value> = new.into_iter().filter(|token| !before.contains(token)).map(as_special).collect();
                before.extend(new);
            }
            (_, value) => {
                said.insert(key, value);
            }
        }
    }
}

/// The tokens under names of the model's own, in transformers' order: those that it finds when the tokenizer is made
/// (objects marked as tokens, and special_tokens_map.json), then the texts in `config` and the names in
/// `extra_special_tokens`.
fn own_tokens(config: &TokenDocument, map: &TokenDocument) -> Vec<(String, AddedToken)> {
    let (marked, texts): (Vec<_>, Vec<_>) = config.own().partition(|(_, value)| is_marked(value));
    let texts = texts.into_iter().filter(|(_, value)| value.is_string());
    let mut tokens: Vec<(String, AddedToken)> = Vec::new();
    for (key, value) in marked.into_iter().chain(map.own()).chain(texts).chain(config.extra()).chain(map.extra()) {
        let Some(token) = named_token(value) else { continue };
        match tokens.iter_mut().find(|(known, _)| known == key) {
            Some((_, known)) => *known = token,
            None => tokens.push((key.clone(), token)),
        }
    }
    tokens
}

/// Whether an object of tokenizer_config.json is a token for transformers.
fn is_marked(value: &Value) -> bool {
    value.get("__type").and_then(Value::as_str) == Some("AddedToken")
}

/// `extra_special_tokens`, or under its old name.
fn extra(said: &Map<String, Value>) -> Option<&Value> {
    let is_something = |value: &&Value| value.as_array().is_some_and(|list| !list.is_empty()) || value.is_object();
    let new = said.get(EXTRA).filter(is_something);
    new.or_else(|| said.get(OLD_EXTRA))
}

/// The texts that make a token of added_tokens.json special: tokens with a role, and those of `extra_special_tokens`.
fn special_texts(said: &Map<String, Value>) -> Vec<String> {
    let roles = ROLES.iter().filter_map(|role| named_token(said.get(*role)?));
    // The old name counts only where tokenizer_config.json has it, which is renamed before.
    let extra = said.get(EXTRA).and_then(Value::as_array);
    let extra = extra.into_iter().flatten().filter_map(named_token);
    roles.chain(extra).map(|token| token.content).collect()
}

/// A token of special_tokens_map.json: an object there is special, whatever it says.
fn as_special(mut value: Value) -> Value {
    if let Some(token) = value.as_object_mut().filter(|token| token.contains_key("content")) {
        token.insert("special".into(), true.into());
    }
    value
}

/// A token with a name: its text, or an object.
fn named_token(value: &Value) -> Option<AddedToken> {
    match value {
        Value::String(text) => Some(AddedToken::from(text, true)),
        Value::Object(_) => parse_added(value),
        _ => None,
    }
}

/// `AddedToken(**value)`: not special and not stripped unless it says so, normalized unless it is special.
fn parse_added(value: &Value) -> Option<AddedToken> {
    let content = value.get("content")?.as_str()?;
    let flag = |key: &str| value.get(key).and_then(Value::as_bool);
    let special = flag("special").unwrap_or(false);
    let mut token = AddedToken::from(content, special);
    token.single_word = flag("single_word").unwrap_or(false);
    token.lstrip = flag("lstrip").unwrap_or(false);
    token.rstrip = flag("rstrip").unwrap_or(false);
    token.normalized = flag("normalized").unwrap_or(!special);
    Some(token)
}
