//! Snapshots on their way from their commit to their verification.
//!
//! Deliberately not here: what is done about them (snapshots, suspects).

use std::time::Duration;

use crate::session::clock::BootInstant;
use ckptd_core::ids::SnapshotId;
use ckptd_core::protocol::StateDispute;

/// One that the worker has committed, and nobody has read back.
pub(super) struct CommittedSnapshot {
    pub(super) id: SnapshotId,
    pub(super) step: u64,
    pub(super) write: Duration,
    pub(super) began: BootInstant,
    pub(super) stall: Duration,
}

/// What is known of the ranks' agreement.
#[derive(Default)]
pub(super) struct SuspectSnapshots {
    /// Steps after which all ranks held the same state; `None`: the worker does not compare.
    pub(super) agreed: Option<u64>,
    /// In the order in which they were committed.
    pub(super) held: Vec<CommittedSnapshot>,
    /// What the ranks did not agree on, until it is computed again.
    pub(super) dispute: Option<StateDispute>,
    /// Why what this worker still saves must not be gone on from; `None`: it may.
    pub(super) spoilt_since: Option<String>,
    /// What must not be gone on from, and why.
    pub(super) spoiled: Vec<(SnapshotId, String)>,
}
