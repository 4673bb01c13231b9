//! `[hooks]` of the job file: programs that are told when something matters.
//!
//! Invariant: of a remote job file nothing of this is taken unasked.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::text::TextValue;

/// `[hooks]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HooksSection {
    /// The program for each moment, with its arguments.
    pub on: BTreeMap<HookMoment, Vec<String>>,
    /// How long one may run.
    pub timeout: TextValue<Duration>,
}

/// When a program is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HookMoment {
    /// The session is over, and the training is to be resumed.
    SessionOver,
    /// The job has failed.
    Failed,
    /// The training is complete.
    Finished,
    /// A snapshot was not what was written.
    Quarantined,
    /// A snapshot was read back.
    Verified,
}

impl HookMoment {
    /// All of them, by their names.
    pub const NAMES: [&str; 5] = ["session_over", "failed", "finished", "quarantined", "verified"];

    /// As in the job file.
    pub const fn name(self) -> &'static str {
        match self {
            HookMoment::SessionOver => "session_over",
            HookMoment::Failed => "failed",
            HookMoment::Finished => "finished",
            HookMoment::Quarantined => "quarantined",
            HookMoment::Verified => "verified",
        }
    }

    /// Whether nothing of the session comes after it.
    pub const fn is_last(self) -> bool {
        matches!(self, HookMoment::SessionOver | HookMoment::Failed | HookMoment::Finished)
    }
}

impl fmt::Display for HookMoment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Default for HooksSection {
    fn default() -> HooksSection {
        HooksSection { on: BTreeMap::new(), timeout: TextValue(Duration::from_secs(30)) }
    }
}
