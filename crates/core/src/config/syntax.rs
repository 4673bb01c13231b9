//! What is wrong with a line that is no TOML, and how it is written.
//!
//! Invariant: a line that is suggested is TOML. Deliberately not here: keys and values that are TOML (`document`).

use toml::de::{DeTable, Error};

use super::problem::{ConfigProblem, Correction};
use super::{keys, values};

/// Longest line in a message, in characters.
const LONGEST: usize = 80;

/// `error` of `text`, with the line as it should be where that can be told.
pub(super) fn explain(error: &Error, text: &str) -> ConfigProblem {
    let start = error.span().map_or(0, |span| span.start.min(text.len()));
    let at = text.get(..start).map_or(0, |before| before.matches('\n').count());
    // The end of a line that is not complete may be the beginning of the next one.
    let lines: Vec<&str> = text.lines().collect();
    let at = at.min(lines.len().saturating_sub(1));
    let line = lines.get(at).copied().unwrap_or_default();
    let message = error.message().lines().next().unwrap_or_default().trim().to_owned();
    let twice = message.contains("duplicate");
    let hidden = values::holds_secret(line);
    let (what, correction) = match repaired(line).filter(|_| !hidden) {
        _ if twice => ("it stands here a second time".to_owned(), Correction::TakeOut),
        Some((why, repaired)) => (format!("no TOML ({message}): {why}"), Correction::Write(repaired)),
        None => (format!("no TOML ({message}): a line is `key = value`, text in quotes"), Correction::TakeOut),
    };
    let place: String = if hidden { "(not shown)".into() } else { line.trim().chars().take(LONGEST).collect() };
    ConfigProblem {
        line: Some(at + 1),
        place: if place.is_empty() { "the file".into() } else { place },
        what,
        correction,
    }
}

/// What may be meant by `line`, and why it is not what stands there.
fn repaired(line: &str) -> Option<(&'static str, String)> {
    let line = line.trim();
    let is_toml = |line: &String| DeTable::parse(line).is_ok();
    if let Some(comment) = line.strip_prefix("//").or_else(|| line.strip_prefix(';')) {
        return Some(("a comment begins with #", format!("# {}", comment.trim())));
    }
    if let Some(section) = line.strip_prefix('[') {
        let name = section.trim_matches(|c: char| !c.is_alphanumeric() && c != '_');
        return Some(("a section's name stands in brackets", format!("[{name}]"))).filter(|(_, line)| is_toml(line));
    }
    let (why, (key, value)) = match (line.split_once('='), line.split_once(':')) {
        (Some((key, _)), Some(yaml)) if key.contains(':') => ("key and value are joined by =", yaml),
        (Some(parts), _) => ("text stands in quotes", parts),
        (None, Some(yaml)) => ("key and value are joined by =", yaml),
        (None, None) => return None,
    };
    let (key, value) = (key.trim(), value.trim().trim_end_matches([',', ';']).trim());
    let value = match (value.to_lowercase().as_str(), keys::KEYS.iter().find(|spec| spec.key == key)) {
        ("true" | "yes" | "on", _) => "true".to_owned(),
        ("false" | "no" | "off", _) => "false".to_owned(),
        ("" | "none" | "null" | "nil", Some(spec)) => spec.example.to_owned(),
        _ if is_toml(&format!("x = {value}")) => value.to_owned(),
        // A backslash begins an escape in double quotes, and stands for itself in single ones.
        _ => {
            let bare = value.trim_matches(['"', '\'']);
            if bare.contains('\\') { format!("'{bare}'") } else { toml::Value::String(bare.to_owned()).to_string() }
        }
    };
    let why = if line.contains('\\') { "in double quotes a backslash begins an escape" } else { why };
    Some((why, format!("{key} = {value}"))).filter(|(_, line)| is_toml(line))
}
