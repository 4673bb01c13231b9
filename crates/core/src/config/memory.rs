//! `[snapshot] memory`: what a training may take beside its state for what a snapshot still holds.
//!
//! Invariant: it changes when a training waits, never what it computes. Deliberately not here: whether there is so much
//! memory.

use serde::{Deserialize, Serialize};

/// `[snapshot] memory`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum SnapshotMemory {
    /// A small share of the state. An update waits for the rest of it for about a step at most, and then takes memory
    /// where the machine has it.
    #[default]
    Auto,
    /// As much as the state: no update waits.
    Unlimited,
    /// So many bytes; an update waits for the rest.
    Bytes(u64),
}

/// "auto" is one part of so many of the state.
const AUTO_SHARE: u64 = 16;
/// And at least this, in bytes.
const AUTO_LEAST: u64 = 64 << 20;

impl SnapshotMemory {
    /// Bytes beside a state of `state` bytes that updates may take without waiting.
    pub fn bytes(self, state: u64) -> u64 {
        match self {
            SnapshotMemory::Auto => (state / AUTO_SHARE).max(AUTO_LEAST).min(state),
            SnapshotMemory::Unlimited => state,
            SnapshotMemory::Bytes(bytes) => bytes.min(state),
        }
    }
}

impl TryFrom<String> for SnapshotMemory {
    type Error = String;
    fn try_from(text: String) -> Result<SnapshotMemory, String> {
        match text.as_str() {
            "auto" => Ok(SnapshotMemory::Auto),
            "unlimited" => Ok(SnapshotMemory::Unlimited),
            _ => match text.parse::<bytesize::ByteSize>() {
                Ok(size) => Ok(SnapshotMemory::Bytes(size.as_u64())),
                Err(_) => Err(format!("{text:?} is not \"auto\", \"unlimited\" or a size such as \"2GiB\"")),
            },
        }
    }
}

impl From<SnapshotMemory> for String {
    fn from(memory: SnapshotMemory) -> String {
        match memory {
            SnapshotMemory::Auto => "auto".into(),
            SnapshotMemory::Unlimited => "unlimited".into(),
            SnapshotMemory::Bytes(bytes) => format!("{bytes}B"),
        }
    }
}
