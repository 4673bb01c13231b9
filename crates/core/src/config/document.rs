//! A job file as it is written: where each key stands, and what is wrong with it taken by itself.
//!
//! Invariant: what passes here has known keys with values that `sections` takes. Deliberately not here: rules between
//! keys (`check`), the values themselves (`values`).

use std::collections::BTreeSet;
use std::ops::Range;

use toml::de::{DeTable, DeValue};

use super::foreign::{self, Meaning};
use super::keys::{self, KeySpec};
use super::problem::{ConfigProblem, Correction};
use super::{syntax, values};

/// How alike two names are that may be the same, by Jaro and Winkler.
const ALIKE: f64 = 0.82;
/// Keys that a message lists.
const LISTED: usize = 5;
/// Longest piece of the file in a message, in characters.
const LONGEST: usize = 60;

/// A job file that is TOML.
pub(super) struct Document<'a> {
    text: &'a str,
    entries: Vec<Entry<'a>>,
    problems: Vec<ConfigProblem>,
    /// Keys that another line stands for, or is told to.
    claimed: BTreeSet<(&'static str, &'static str)>,
}

/// A key with its value.
struct Entry<'a> {
    section: String,
    key: String,
    line: usize,
    value: DeValue<'a>,
    /// The value as it stands there.
    raw: String,
}

impl<'a> Document<'a> {
    /// Reads `text`.
    pub(super) fn parse(text: &'a str) -> Result<Document<'a>, ConfigProblem> {
        let table = DeTable::parse(text).map_err(|error| syntax::explain(&error, text))?.into_inner();
        let mut document = Document { text, entries: Vec::new(), problems: Vec::new(), claimed: BTreeSet::new() };
        for (name, value) in table {
            let (line, name) = (document.line(name.span()), name.into_inner().into_owned());
            document.section(&name, line, value.span(), value.into_inner());
        }
        document.entries.sort_by_key(|entry| entry.line);
        for entry in &document.entries {
            if let Some(spec) = keys::find(&entry.section, &entry.key) {
                document.claimed.insert((spec.section, spec.key));
            }
        }
        Ok(document)
    }

    /// Everything that is wrong with a key or a value taken by itself.
    pub(super) fn problems(mut self) -> Result<PlacedKeys, Vec<ConfigProblem>> {
        for entry in std::mem::take(&mut self.entries) {
            if let Some(problem) = self.judge(&entry) {
                self.problems.push(problem);
            }
            self.entries.push(entry);
        }
        if !self.problems.is_empty() {
            return Err(self.problems);
        }
        let place = |entry: Entry<'_>| (entry.section, entry.key, entry.line, entry.raw);
        Ok(PlacedKeys(self.entries.into_iter().map(place).collect()))
    }

    fn line(&self, span: Range<usize>) -> usize {
        self.text.get(..span.start).map_or(1, |before| before.matches('\n').count() + 1)
    }

    /// Takes a section apart. One of another name, or a key above all sections, is a problem.
    fn section(&mut self, name: &str, line: usize, span: Range<usize>, value: DeValue<'a>) {
        let known = keys::sections().into_iter().find(|known| *known == name);
        match (known, value) {
            (Some(_), DeValue::Table(table)) => {
                for (key, value) in table {
                    let (line, span) = (self.line(key.span()), value.span());
                    let raw = brief(self.text.get(span).unwrap_or_default());
                    let (section, key) = (name.to_owned(), key.into_inner().into_owned());
                    self.entries.push(Entry { section, key, line, value: value.into_inner(), raw });
                }
            }
            (Some(known), _) => self.problems.push(ConfigProblem {
                line: Some(line),
                place: name.to_owned(),
                what: "this is a section, whose keys follow below it".into(),
                correction: Correction::Write(format!("[{known}]")),
            }),
            (None, DeValue::Table(_)) => self.problems.push(unknown_section(name, line)),
            (None, value) => {
                let raw = brief(self.text.get(span).unwrap_or_default());
                self.entries.push(Entry { section: String::new(), key: name.to_owned(), line, value, raw });
            }
        }
    }

    fn judge(&mut self, entry: &Entry<'_>) -> Option<ConfigProblem> {
        let place = match entry.section.as_str() {
            "" => format!("{} = {}", entry.key, entry.raw),
            section => format!("[{section}] {} = {}", entry.key, entry.raw),
        };
        let (what, correction) = match keys::find(&entry.section, &entry.key) {
            Some(spec) => {
                let what = values::misfit(&spec.kind, &entry.value)?;
                (what, Correction::Write(values::correct(spec, &entry.value)))
            }
            None => self.unknown_key(entry),
        };
        Some(ConfigProblem { line: Some(entry.line), place, what, correction })
    }

    /// Where a key that is not known here belongs, or what it means.
    fn unknown_key(&mut self, entry: &Entry<'_>) -> (String, Correction) {
        let key = entry.key.as_str();
        if let Some(spec) = keys::KEYS.iter().find(|spec| spec.key == key) {
            let what = match entry.section.as_str() {
                "" => "no key stands above all sections".to_owned(),
                _ => format!("this key belongs to [{}]", spec.section),
            };
            return (what, self.write(spec, entry, None));
        }
        if let Some(meaning) = foreign::meaning(key) {
            let named = foreign::key_of(meaning);
            return match (meaning, named) {
                (Meaning::Is(..), Some(spec)) => {
                    let what = format!("here it is called {}, {}", spec.key, spec.kind.allowed());
                    (what, self.write(spec, entry, None))
                }
                (Meaning::Becomes(why, .., value), Some(spec)) => {
                    let what = format!("here it is {}: {why}", spec.key);
                    (what, self.write(spec, entry, Some(value)))
                }
                (Meaning::Nothing(why), _) => (why.to_owned(), Correction::TakeOut),
                (_, None) => (String::new(), Correction::TakeOut),
            };
        }
        if let Some(spec) = nearest(&entry.section, key) {
            let what = format!("no such key; did you mean {}, {}?", spec.key, spec.kind.allowed());
            return (what, self.write(spec, entry, None));
        }
        (format!("no such key; {}", keys_of(&entry.section)), Correction::TakeOut)
    }

    /// The line that says under `spec` what `entry` meant. A key that has its line needs no second one.
    fn write(&mut self, spec: &'static KeySpec, entry: &Entry<'_>, value: Option<&str>) -> Correction {
        if !self.claimed.insert((spec.section, spec.key)) {
            return Correction::TakeOut;
        }
        let line = match value {
            Some(value) => format!("{} = {value}", spec.key),
            None if values::misfit(&spec.kind, &entry.value).is_none() => format!("{} = {}", spec.key, entry.raw),
            None => values::correct(spec, &entry.value),
        };
        if spec.section == entry.section {
            Correction::Write(line)
        } else {
            Correction::WriteUnder { line, section: spec.section }
        }
    }
}

/// Where the keys of a file stand, whose keys and values are known.
pub(super) struct PlacedKeys(Vec<(String, String, usize, String)>);

impl PlacedKeys {
    /// The line of a key, and "[section] key = value" as it stands there. `None`: it is at its default.
    pub(super) fn place(&self, section: &str, key: &str) -> Option<(usize, String)> {
        let found = self.0.iter().find(|(s, k, ..)| s == section && k == key);
        found.map(|(section, key, line, raw)| (*line, format!("[{section}] {key} = {raw}")))
    }
}

/// A piece of the file for a message: one line, not too long, and without an address that may hold a credential.
fn brief(raw: &str) -> String {
    if values::holds_secret(raw) {
        return "(not shown)".to_owned();
    }
    let first = raw.lines().next().unwrap_or_default().trim_end();
    if raw.trim_end() == first && first.chars().count() <= LONGEST {
        return first.to_owned();
    }
    let head: String = first.chars().take(LONGEST).collect();
    format!("{head}...")
}

fn unknown_section(name: &str, line: usize) -> ConfigProblem {
    let alike = |known: &&str| strsim::jaro_winkler(known, name);
    let nearest = || {
        let best = keys::sections().into_iter().max_by(|a, b| alike(a).total_cmp(&alike(b)));
        best.filter(|best| alike(best) >= ALIKE)
    };
    let (what, correction) = match foreign::section(name).or_else(nearest) {
        Some(section) => (format!("no such section; here it is [{section}]"), format!("[{section}]")),
        None => (format!("no such section; there are {}", keys::sections().join(", ")), String::new()),
    };
    let correction = if correction.is_empty() { Correction::TakeOut } else { Correction::Write(correction) };
    ConfigProblem { line: Some(line), place: format!("[{name}]"), what, correction }
}

/// The key that is most like `key`, rather of the same section.
fn nearest(section: &str, key: &str) -> Option<&'static KeySpec> {
    let alike = |spec: &&KeySpec| {
        let own = if spec.section == section { 0.05 } else { 0.0 };
        strsim::jaro_winkler(spec.key, &key.to_lowercase()) + own
    };
    let best = keys::KEYS.iter().max_by(|a, b| alike(a).total_cmp(&alike(b)));
    best.filter(|best| strsim::jaro_winkler(best.key, &key.to_lowercase()) >= ALIKE)
}

fn keys_of(section: &str) -> String {
    let keys: Vec<&str> = keys::KEYS.iter().filter(|spec| spec.section == section).map(|spec| spec.key).collect();
    match keys.len().saturating_sub(LISTED) {
        _ if keys.is_empty() => format!("the sections are {}", keys::sections().join(", ")),
        0 => format!("[{section}] has {}", keys.join(", ")),
        more => format!("[{section}] has {} and {more} more", keys[..LISTED].join(", ")),
    }
}
