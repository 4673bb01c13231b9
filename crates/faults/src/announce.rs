//! What a driven session says of itself, one JSON line per deed.

use ckptd_core::ids::{RunId, SnapshotId};
use serde::{Deserialize, Serialize};

/// An announcement. One with a participle ("saving") comes before the deed, one in the past after it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "ack", rename_all = "snake_case")]
pub enum StoreAck {
    Started {
        run: RunId,
    },
    /// A start could not read this one now.
    PassedOver {
        seq: u64,
    },
    Resumed {
        seq: Option<u64>,
    },
    Saving {
        seq: u64,
    },
    Committed {
        seq: u64,
        id: SnapshotId,
    },
    /// Its row is in the history.
    Kept {
        seq: u64,
    },
    Verifying {
        seq: u64,
    },
    Verified {
        seq: u64,
    },
    Pinned {
        seq: u64,
        id: SnapshotId,
    },
    Unpinning {
        seq: u64,
    },
    Discarding {
        seq: u64,
    },
    Discarded {
        seq: u64,
        id: SnapshotId,
    },
    /// Damaged from outside; the hash of its bytes since then.
    Damaged {
        seq: u64,
        id: SnapshotId,
        hash: String,
    },
    Rotating {
        seqs: Vec<u64>,
    },
    Rotated,
    Failed {
        doing: String,
        seq: Option<u64>,
        error: String,
    },
    Ended,
}
