//! What is wrong with a job file, in a form that says where, what is allowed, and what to write instead.
//!
//! Invariant: a problem names its line (where it has one), the key and the value as they stand there; its correction,
//! followed to the letter, is accepted. Deliberately not here: finding problems (`document`, `check`).

use std::fmt;
use std::path::PathBuf;

/// Problems that are told one by one; of the rest the number is enough.
const TOLD: usize = 3;

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct ConfigProblem {
    /// From 1; `None`: of the file as a whole.
    pub line: Option<usize>,
    /// "[train] steps = 0"
    pub place: String,
    /// What is wrong, as a clause.
    pub what: String,
    pub correction: Correction,
}

/// What to do about it.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Correction {
    /// Write this in the line's place.
    Write(String),
    /// Take the line out, and write this under that section.
    WriteUnder {
        line: String,
        section: &'static str,
    },
    TakeOut,
    /// Put there what is missing, or name what is there.
    Provide(PathBuf),
}

impl fmt::Display for ConfigProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(line) = self.line {
            write!(f, "line {line}: ")?;
        }
        write!(f, "{}: {}; {}", self.place, self.what, self.correction)
    }
}

impl fmt::Display for Correction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Correction::Write(line) => write!(f, "write `{line}`"),
            Correction::WriteUnder { line, section } => write!(f, "write `{line}` under [{section}]"),
            Correction::TakeOut => f.write_str("take the line out"),
            Correction::Provide(path) => write!(f, "put it at {}, or say where it is", path.display()),
        }
    }
}

/// The first few of `problems`, by line, and how many more there are.
pub(super) fn list(mut problems: Vec<ConfigProblem>) -> String {
    problems.sort_by_key(|problem| problem.line);
    let more = problems.len().saturating_sub(TOLD);
    let mut text = problems.iter().take(TOLD).map(ToString::to_string).collect::<Vec<_>>().join("\n  ");
    if more > 0 {
        text.push_str(&format!("\n  and {more} more"));
    }
    text
}
