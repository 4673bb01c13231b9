//! What can happen to an ownership, and what it can want done: two closed lists.

use std::time::Duration;

use crate::holder::Holder;
use crate::layout::MarkerName;
use crate::records::{LeaseRecord, Nonce};

/// The lease as it was read.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SeenLease<V> {
    /// What it says.
    pub record: LeaseRecord,
    /// What a swap names, so that it replaces this content and no other.
    pub version: V,
    /// Its owner was a process of this machine, and this machine sees that it is gone.
    pub holder_is_gone: bool,
}

/// What the store, or the way to it, said of a write. Only `Done` is believed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum WriteOutcome<V> {
    /// It is written, and this is its version.
    Done(V),
    /// Something else is there, or so it says.
    Refused,
    /// An error, or no answer in time: it may be written, now or later.
    Unknown,
}

/// Everything that can happen.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum LeaseEvent<V> {
    /// The answer to [`LeaseAction::Read`]; `None`: there is no lease.
    Read(Option<SeenLease<V>>),
    /// The lease could not be read.
    NotRead,
    /// The answer to [`LeaseAction::Prepare`]: what this machine goes on from, and the newest epoch of any object.
    Prepared {
        /// Sequence number of the snapshot; 0: from the beginning.
        base: u64,
        /// The newest epoch that any object names.
        newest_epoch: u64,
    },
    /// The answer to [`LeaseAction::Claim`], [`LeaseAction::Renew`] or [`LeaseAction::Release`].
    Written(WriteOutcome<V>),
    /// A snapshot is at its destination, and was checked there.
    Checked(MarkerName),
    /// The answer to [`LeaseAction::Commit`].
    MarkerWritten(MarkerName, WriteOutcome<()>),
    /// The answer to [`LeaseAction::ReadMarker`]: who wrote it; `None`: it is not there.
    MarkerRead(MarkerName, Option<Nonce>),
    /// The marker could not be read.
    MarkerNotRead(MarkerName),
    /// The session is over: leave the job to others.
    Leave,
    /// Time has passed.
    Tick,
}

/// Everything that can be wanted.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum LeaseAction<V> {
    /// Read the lease.
    Read,
    /// Find what to go on from: the job is free.
    Prepare,
    /// Write this lease in the place of the one with this version; `None`: where none is.
    Claim(LeaseRecord, Option<V>),
    /// Write this sign of life in the place of the one with this version.
    Renew(LeaseRecord, V),
    /// Write that the job is free, in the place of the lease with this version.
    Release(LeaseRecord, V),
    /// Create this marker, where none is.
    Commit(MarkerName),
    /// Read this marker.
    ReadMarker(MarkerName),
    /// Something that people should know.
    Tell(LeaseNews),
}

/// What people should know.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum LeaseNews {
    /// Another process owns the job; it is free at the latest after so long without a sign of life.
    Waiting(Holder, Duration),
    /// This process owns the job.
    Owned {
        /// Counts the ownerships.
        epoch: u64,
    },
    /// The lease could not be renewed in time: nothing is committed until it is.
    Suspended,
    /// It is renewed again.
    Resumed,
    /// The lease of this process is not there any more: somebody emptied the place. It is taken anew.
    Gone,
    /// Another process owns the job now.
    Lost(Holder),
    /// A snapshot exists remotely.
    Committed(MarkerName),
    /// A snapshot will not be committed by this process: another one owns the job, or wrote another marker there.
    NotCommitted(MarkerName),
    /// The job is left to others.
    Left,
}

/// A marker on its way.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Committing {
    pub(super) marker: MarkerName,
    /// Not to be tried before; `None`: an answer is waited for.
    pub(super) again: Option<Duration>,
}
