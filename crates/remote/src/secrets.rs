//! What must not be shown: credentials, and the variables that they come from.
//!
//! Invariant: nothing of a value is seen in a `{:?}`, and [`Redactor`] takes the values out of any text.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};

/// A shorter text may stand in an ordinary word, and is no secret.
const MIN_SECRET_BYTES: usize = 8;

/// Variables, as of a process: credentials are taken from here and from the files that it names.
#[derive(Clone, Default)]
pub struct Environment(BTreeMap<String, String>);

impl Environment {
    /// The variables of this process.
    pub fn of_process() -> Environment {
        Environment(
            std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?))).collect(),
        )
    }

    /// Exactly these variables.
    pub fn of<'a>(variables: impl IntoIterator<Item = (&'a str, &'a str)>) -> Environment {
        Environment(variables.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
    }

    /// The value of `name`; an empty one counts as none.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// The first of `names` that has a value.
    pub fn first(&self, names: &[&str]) -> Option<&str> {
        names.iter().find_map(|name| self.get(name))
    }

    /// All variables whose names begin with one of `prefixes`, by name.
    pub fn beginning(&self, prefixes: &'static [&str]) -> impl Iterator<Item = (&str, &str)> {
        let all = self.0.iter().filter(|(_, value)| !value.is_empty());
        all.filter(|(name, _)| prefixes.iter().any(|prefix| name.starts_with(prefix)))
            .map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// A path below the user's home.
    pub fn home(&self, below: &str) -> Option<PathBuf> {
        self.get("HOME").map(|home| PathBuf::from(home).join(below))
    }
}

impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Environment({} variables)", self.0.len())
    }
}

/// Whether the variable `name` is one by which a cloud's tools take a credential: a program that does not speak to a
/// remote needs none of these.
pub fn is_credential(name: &str) -> bool {
    const WORDS: [&str; 7] = ["KEY", "SECRET", "TOKEN", "CREDENTIAL", "SAS", "CONNECTION_STRING", "IDENTITY_HEADER"];
    const PREFIXES: [&str; 6] = ["AWS_", "AZURE_", "GOOGLE_", "CLOUDSDK_", "IDENTITY_", "MSI_"];
    PREFIXES.iter().any(|prefix| name.starts_with(prefix)) && WORDS.iter().any(|word| name.contains(word))
}

/// Takes secrets out of texts: what stores and clients say may quote them. Clones hide the same, since credentials may
/// be read anew while a store is in use.
#[derive(Clone, Default)]
pub struct Redactor(Arc<RwLock<Vec<String>>>);

impl Redactor {
    /// Hides `secret`, as it is and as it stands in a URL.
    pub fn hide(&self, secret: &str) {
        if secret.len() < MIN_SECRET_BYTES {
            return;
        }
        let encoded = percent_encoding::utf8_percent_encode(secret, percent_encoding::NON_ALPHANUMERIC).to_string();
        let mut hidden = self.0.write().unwrap_or_else(PoisonError::into_inner);
        for text in [secret.to_owned(), encoded] {
            if !hidden.contains(&text) {
                hidden.push(text);
            }
        }
        // The longest first: one secret may be a part of another.
        hidden.sort_by_key(|text| std::cmp::Reverse(text.len()));
    }

    /// `text` without secrets.
    pub fn clean(&self, text: &str) -> String {
        let hide = |text: String, secret: &String| text.replace(secret.as_str(), "[hidden]");
        self.0.read().unwrap_or_else(PoisonError::into_inner).iter().fold(text.to_owned(), hide)
    }
}

impl fmt::Debug for Redactor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Redactor")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neither_variables_nor_a_redactor_show_what_they_hold() {
        let environment = Environment::of([("AWS_SECRET_ACCESS_KEY", "planted/secret+value"), ("EMPTY", "")]);
        let redactor = Redactor::default();
        redactor.hide("planted/secret+value");
        redactor.hide("ab");
        assert!(!format!("{environment:?} {redactor:?}").contains("planted"));
        let said = "ab: bad key planted/secret+value in ?sig=planted%2Fsecret%2Bvalue&x";
        assert_eq!(redactor.clean(said), "ab: bad key [hidden] in ?sig=[hidden]&x");
        assert_eq!(environment.get("EMPTY"), None);
    }
}
