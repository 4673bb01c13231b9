//! What a process can be in beside a job, and what it remembers there.
//!
//! Deliberately not here: the decisions (`machine`).

use std::time::Duration;

use super::events::SeenLease;
use crate::records::LeaseRecord;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum LeasePhase<V> {
    /// Another process owns the job, or did; or nobody.
    Watching(Watch<V>),
    /// The claim is on its way, or its outcome is being read back.
    Claiming { record: LeaseRecord, sent: Duration, is_read_back: bool },
    /// This process owns the job.
    Owning(Ownership<V>),
    /// Another one took it.
    Lost,
    /// It was given up.
    Left,
}

/// What a challenger has seen.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Watch<V> {
    /// The lease, and since when it has not changed. `None`: there is none, or it was not read yet.
    pub(super) seen: Option<(SeenLease<V>, Duration)>,
    /// When the read under way was sent.
    pub(super) asked: Option<Duration>,
    /// When the next read is due.
    pub(super) due: Duration,
    /// The job was found free, and the answer of [`super::events::LeaseAction::Prepare`] is waited for.
    pub(super) preparing: bool,
    /// What to go on from: the next look at a job that is still free claims it.
    pub(super) base: Option<u64>,
    pub(super) told: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Ownership<V> {
    pub(super) record: LeaseRecord,
    pub(super) version: V,
    /// When the last sign of life that arrived was sent.
    pub(super) confirmed: Duration,
    pub(super) writing: Option<LeaseWrite>,
    /// Its outcome is being read back.
    pub(super) is_read_back: bool,
    /// When the next sign of life is due.
    pub(super) due: Duration,
    /// After a write that failed, none is tried before.
    pub(super) not_before: Duration,
    pub(super) suspended: bool,
}

/// A sign of life, or the last one, on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct LeaseWrite {
    pub(super) counter: u64,
    pub(super) sent: Duration,
    pub(super) releases: bool,
}

impl<V> Watch<V> {
    pub(super) fn at(now: Duration) -> Watch<V> {
        Watch { seen: None, asked: None, due: now, preparing: false, base: None, told: false }
    }
}

impl<V> Ownership<V> {
    pub(super) fn is_fresh(&self, ttl: Duration, now: Duration) -> bool {
        now < self.confirmed + ttl / 2
    }

    /// After a look at the lease: a quarter of the time after the last sign of life, and not at once again where that
    /// did not arrive.
    pub(super) fn next_due(&self, ttl: Duration, now: Duration) -> Duration {
        (self.confirmed + ttl / 4).max(now + ttl / 16)
    }
}
