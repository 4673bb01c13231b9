//! Whether the files are there that a training begins with.
//!
//! Invariant: only names are looked at, nothing is opened. Deliberately not here: what the files hold (the worker).

use std::path::{Path, PathBuf};

use super::document::{Document, PlacedKeys};
use super::problem::{self, ConfigProblem, Correction};
use super::sections::{Config, DataSection};
use crate::error::{Error, Result};

/// Shapes that the worker knows by name; people take them for downloads.
const PRESETS: [&str; 5] = ["gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "gpt2-mini"];
const WILDCARDS: [char; 3] = ['*', '?', '['];

impl Config {
    /// Fails where a file or folder that the job begins with is missing; `text` is what stands in the job file `path`.
    ///
    /// # Errors
    /// [`Error::Config`] that names line, key and what to do for each.
    pub fn check_files(&self, text: &str, path: &Path) -> Result<()> {
        let Ok(placed) = Document::parse(text).map_err(drop).and_then(|d| d.problems().map_err(drop)) else {
            return Ok(()); // It was read before; what it is now is for the next run.
        };
        let (model, data) = (&self.model, &self.data);
        let mut problems = Vec::new();
        problems.extend(model.from.as_deref().and_then(|from| missing_model(&placed, from)));
        for (key, path) in [("tokens", &data.tokens), ("tokenizer", &data.tokenizer)] {
            problems.extend(path.as_deref().filter(|p| !p.exists()).map(|p| missing(&placed, "data", key, p, None)));
        }
        // The part before the first wildcard names a folder.
        let fixed = |glob: &String| Some(fixed_part(glob)).filter(|plain| !plain.exists());
        let absent = data.text.iter().find_map(fixed);
        problems.extend(absent.map(|absent| missing(&placed, "data", "text", &absent, Some(&data.text))));
        if problems.is_empty() {
            return Ok(());
        }
        Err(Error::Config(format!("{}: {}", path.display(), problem::list(problems))))
    }
}

impl DataSection {
    /// Whether the tokens or texts are on this machine, as far as their names tell.
    pub fn is_here(&self) -> bool {
        let has_some = |path: &Path| match std::fs::read_dir(path) {
            Ok(mut entries) => entries.next().is_some(),
            Err(_) => path.exists(),
        };
        match &self.tokens {
            Some(tokens) => tokens.exists(),
            None => self.text.iter().all(|glob| has_some(&fixed_part(glob))),
        }
    }
}

/// The part of a glob before its first wildcard.
fn fixed_part(glob: &str) -> PathBuf {
    Path::new(glob).components().take_while(|c| !is_wild(c.as_os_str())).collect()
}

fn is_wild(component: &std::ffi::OsStr) -> bool {
    component.to_string_lossy().contains(WILDCARDS)
}

fn missing_model(placed: &PlacedKeys, from: &Path) -> Option<ConfigProblem> {
    if from.is_dir() {
        return None;
    }
    let name = from.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    if !from.exists() && PRESETS.contains(&name.as_str()) && !from.parent().is_some_and(|p| p.ends_with("models")) {
        let (line, place) = at(placed, "model", "from");
        let what = format!(
            "ckptd downloads nothing: from is a folder that save_pretrained has written, and {} is none; random \
             weights of that shape are a preset",
            from.display()
        );
        return Some(ConfigProblem { line, place, what, correction: Correction::Write(format!("preset = {name:?}")) });
    }
    Some(missing(placed, "model", "from", from, None))
}

/// `path` of a key is not there. `list`: all paths of the key.
fn missing(placed: &PlacedKeys, section: &str, key: &str, path: &Path, list: Option<&[String]>) -> ConfigProblem {
    let (line, place) = at(placed, section, key);
    let written = |path: &Path| match list {
        Some(_) => format!("{key} = [{:?}]", path.display().to_string()),
        None => format!("{key} = {:?}", path.display().to_string()),
    };
    let (what, correction) = match elsewhere(placed, section, key, path) {
        Some(here) => (
            "paths are relative to the job file's folder, and not to this one".to_owned(),
            Correction::Write(written(&here)),
        ),
        None => (format!("{} is not there", path.display()), Correction::Provide(path.to_path_buf())),
    };
    ConfigProblem { line, place, what, correction }
}

fn at(placed: &PlacedKeys, section: &str, key: &str) -> (Option<usize>, String) {
    placed.place(section, key).map_or((None, format!("[{section}] {key}")), |(line, place)| (Some(line), place))
}

/// What a relative path names from the working directory, where that is there.
fn elsewhere(placed: &PlacedKeys, section: &str, key: &str, path: &Path) -> Option<PathBuf> {
    let (_, place) = placed.place(section, key)?;
    let quoted = place.split('"').nth(1)?;
    let here = std::env::current_dir().ok()?.join(quoted);
    let fixed: PathBuf = here.components().take_while(|c| !is_wild(c.as_os_str())).collect();
    (!Path::new(quoted).is_absolute() && fixed.exists() && fixed != path).then_some(here)
}
