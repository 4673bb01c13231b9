//! The names of objects below a remote's prefix.
//!
//! Invariant: a name is made of lower-case letters, digits, `.`, `-` and `/`, so that it means the same in a URL, in a
//! folder, in a signature and in a sorted list. Deliberately not here: which names a job uses.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The longest name, in bytes: every store takes 1024 bytes with the prefix, a folder 255 for each part.
pub const MAX_BYTES: usize = 512;
const MAX_PART_BYTES: usize = 200;

/// The name of an object, relative to the remote's prefix: `commits/000000000007.json`.
///
/// Numbers in names are padded with zeros, so that the order of names is the order of numbers.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ObjectName(String);

/// Why a text is not a name of an object.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name:?} is not the name of an object: {reason}")]
pub struct BadName {
    /// What was given.
    pub name: String,
    /// What is wrong with it, as a clause.
    pub reason: &'static str,
}

impl ObjectName {
    /// Checks `name`.
    ///
    /// # Errors
    /// [`BadName`] where it is empty, too long, has another character, or a part that is empty or begins with a dot.
    pub fn new(name: impl Into<String>) -> std::result::Result<ObjectName, BadName> {
        let name = name.into();
        match complaint(&name) {
            None => Ok(ObjectName(name)),
            Some(reason) => Err(BadName { name, reason }),
        }
    }

    /// The name of one file of the user's own, which may have upper-case letters and `_`, too.
    ///
    /// # Errors
    /// [`BadName`] where it has another character, begins with one that hides it, or is too long.
    pub fn of_file(name: impl Into<String>) -> std::result::Result<ObjectName, BadName> {
        let name = name.into();
        let is_plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
        if name.is_empty() || !is_plain || name.starts_with(['.', '-', '_']) {
            let reason = "it may have letters, digits, '-', '_' and '.', and begins with a letter or a digit";
            return Err(BadName { name, reason });
        }
        if name.len() > MAX_PART_BYTES {
            return Err(BadName { name, reason: "it is longer than 200 bytes" });
        }
        Ok(ObjectName(name))
    }

    /// A name that was built of parts which are names.
    pub(crate) fn built(name: String) -> ObjectName {
        debug_assert!(complaint(&name).is_none(), "{name}");
        ObjectName(name)
    }

    /// The name as it is written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The last part: `000000000007.json`.
    pub fn file_name(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or(&self.0)
    }
}

fn complaint(name: &str) -> Option<&'static str> {
    if name.is_empty() {
        return Some("it is empty");
    }
    if name.len() > MAX_BYTES {
        return Some("it is longer than 512 bytes");
    }
    if !name.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b'/')) {
        return Some("only a-z, 0-9, '.', '-' and '/' may be in it");
    }
    name.split('/').find_map(|part| match part {
        "" => Some("a part of it is empty"),
        part if part.starts_with('.') => Some("a part of it begins with a dot"),
        part if part.len() > MAX_PART_BYTES => Some("a part of it is longer than 200 bytes"),
        _ => None,
    })
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for ObjectName {
    type Err = BadName;

    fn from_str(name: &str) -> std::result::Result<ObjectName, BadName> {
        ObjectName::new(name)
    }
}

impl TryFrom<String> for ObjectName {
    type Error = BadName;

    fn try_from(name: String) -> std::result::Result<ObjectName, BadName> {
        ObjectName::new(name)
    }
}

impl From<ObjectName> for String {
    fn from(name: ObjectName) -> String {
        name.0
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn names_of_every_kind_that_a_job_uses_are_taken() {
        let hash = "af1349b9f5f9a1a6".repeat(4);
        for name in ["run.json", "epochs/000000000007", &format!("data/{hash}.ckpt"), "commits/1.2.ab-c.json"] {
            assert_eq!(ObjectName::new(name).unwrap().as_str(), name);
        }
        assert_eq!(ObjectName::new("commits/000000000007.json").unwrap().file_name(), "000000000007.json");
    }

    #[test]
    fn a_name_that_one_store_would_read_otherwise_is_refused() {
        let long = "a".repeat(201);
        let bad =
            ["", "/a", "a/", "a//b", ".hidden", "a/.b", "A", "a b", "a#1", "a%b", "ä", "a\\b", "a_b", "a?b", &long];
        for name in bad {
            let refused = ObjectName::new(name).unwrap_err();
            assert!(refused.to_string().starts_with(&format!("{name:?} is not the name")), "{refused}");
        }
        assert!(ObjectName::new("a/".repeat(256) + "a").is_err());
        assert!(serde_json::from_str::<ObjectName>("\"A\"").is_err());
    }
}
