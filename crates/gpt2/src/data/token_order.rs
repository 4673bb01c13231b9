//! In which order a JSON document names its special tokens: ids follow it, and serde_json sorts an object by its keys.
//!
//! Deliberately not here: what the names stand for.

use std::fmt;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// The tokens with a role, in transformers' order.
pub(super) const ROLES: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// Tokens without a role, under the name of today and the one before.
pub(super) const EXTRA: &str = "extra_special_tokens";
pub(super) const OLD_EXTRA: &str = "additional_special_tokens";

/// The keys of a document that name tokens of a model's own, in the order of the file.
#[derive(Debug, Default)]
pub(super) struct TokenOrder {
    pub(super) own: Vec<String>,
    /// Those in `extra_special_tokens`.
    pub(super) extra: Vec<String>,
}

impl<'de> Deserialize<'de> for TokenOrder {
    fn deserialize<D: Deserializer<'de>>(document: D) -> Result<TokenOrder, D::Error> {
        let mut order = TokenOrder::default();
        for (key, KeyTree(names)) in KeyTree::deserialize(document)?.0 {
            if key.ends_with("_token") && !ROLES.contains(&key.as_str()) {
                order.own.push(key);
            } else if key == EXTRA || key == OLD_EXTRA && order.extra.is_empty() {
                order.extra = names.into_iter().map(|(name, _)| name).collect();
            }
        }
        Ok(order)
    }
}

/// The keys of an object, each with those of its own object; none of anything else.
#[derive(Debug, Default)]
struct KeyTree(Vec<(String, KeyTree)>);

impl<'de> Deserialize<'de> for KeyTree {
    fn deserialize<D: Deserializer<'de>>(value: D) -> Result<KeyTree, D::Error> {
        value.deserialize_any(KeyVisitor)
    }
}

struct KeyVisitor;

impl<'de> Visitor<'de> for KeyVisitor {
    type Value = KeyTree;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<KeyTree, A::Error> {
        let mut keys = Vec::new();
        while let Some(entry) = map.next_entry()? {
            keys.push(entry);
        }
        Ok(KeyTree(keys))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<KeyTree, A::Error> {
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(KeyTree::default())
    }

    fn visit_bool<E>(self, _: bool) -> Result<KeyTree, E> {
        Ok(KeyTree::default())
    }

    fn visit_i64<E>(self, _: i64) -> Result<KeyTree, E> {
        Ok(KeyTree::default())
    }

    fn visit_u64<E>(self, _: u64) -> Result<KeyTree, E> {
        Ok(KeyTree::default())
    }

    fn visit_f64<E>(self, _: f64) -> Result<KeyTree, E> {
        Ok(KeyTree::default())
    }

    fn visit_str<E>(self, _: &str) -> Result<KeyTree, E> {
        Ok(KeyTree::default())
    }

    fn visit_unit<E>(self) -> Result<KeyTree, E> {
        Ok(KeyTree::default())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn names_come_in_the_order_of_the_file() {
        let json = r#"{"z_token": "a", "eos_token": "b", "n": [1, 2.5, -3, null, {"x_token": true}], "a_token": null,
            "extra_special_tokens": {"q": "c", "b": {"content": "d"}}, "additional_special_tokens": {"k": "e"}}"#;
        let order: TokenOrder = serde_json::from_str(json).unwrap();
        assert_eq!(order.own, ["z_token", "a_token"]);
        assert_eq!(order.extra, ["q", "b"]);
    }
}
