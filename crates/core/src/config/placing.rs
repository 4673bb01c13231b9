//! What a worker says about a job, with the file, the line, the key and the value that it is about.
//!
//! Deliberately not here: what is wrong with a job file taken by itself (`document`, `check`).

use std::path::Path;

use super::document::{Document, PlacedKeys};
use super::sections::Config;

impl Config {
    /// `what`, which is wrong with this job, after the place in the job file `path`, where `text` stands: the key that
    /// `what` begins with ("[data] text: ..."), or whose path it names.
    pub fn place_problem(&self, text: &str, path: &Path, what: &str) -> String {
        let file = path.display();
        if what.starts_with(&file.to_string()) {
            return what.to_owned();
        }
        let placed = Document::parse(text).ok().and_then(|document| document.problems().ok());
        let found = placed.as_ref().and_then(|placed| by_name(placed, what).or_else(|| self.by_path(placed, what)));
        match found {
            Some(((line, place), rest)) => format!("{file}: line {line}: {place}: {rest}"),
            None => format!("{file}: {what}"),
        }
    }

    fn by_path<'a>(&self, placed: &PlacedKeys, what: &'a str) -> Option<((usize, String), &'a str)> {
        let paths = [
            ("data", "tokenizer", &self.data.tokenizer),
            ("data", "tokens", &self.data.tokens),
            ("model", "from", &self.model.from),
        ];
        let named = paths
            .into_iter()
            .find(|(_, _, path)| path.as_ref().is_some_and(|path| what.contains(&path.to_string_lossy().into_owned())));
        let (section, key, _) = named?;
        Some((placed.place(section, key)?, what))
    }
}

/// Where the key stands that `what` begins with, and what is said about it.
fn by_name<'a>(placed: &PlacedKeys, what: &'a str) -> Option<((usize, String), &'a str)> {
    let (section, rest) = what.strip_prefix('[')?.split_once("] ")?;
    let (key, rest) = rest.split_once(": ")?;
    Some((placed.place(section, key)?, rest))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_is_placed_by_its_key_by_a_path_or_in_the_file() {
        let text = "[model]\nfrom = \"models/mine\"\n[data]\ntext = [\"a\"]\ntokenizer = \"b\"\n";
        let path = Path::new("/jobs/tiny.toml");
        let job = Config::parse(text, path).unwrap();
        let placed = |what: &str| job.place_problem(text, path, what);
        assert_eq!(placed("[data] text: a is empty"), "/jobs/tiny.toml: line 4: [data] text = [\"a\"]: a is empty");
        assert_eq!(
            placed("/jobs/models/mine/config.json: no"),
            "/jobs/tiny.toml: line 2: [model] from = \"models/mine\": /jobs/models/mine/config.json: no"
        );
        assert_eq!(placed("[train] steps: too few"), "/jobs/tiny.toml: [train] steps: too few");
        assert_eq!(placed("/jobs/tiny.toml: line 1: x"), "/jobs/tiny.toml: line 1: x");
    }
}
