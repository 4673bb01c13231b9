//! How a job is replicated, what is to be done for it, and what happens: the words between a session and the thread
//! that replicates.

use std::path::PathBuf;
use std::time::Duration;

use ckptd_core::store::RetentionPolicy;

use super::companions::CompanionSource;
use super::error::{JobError, Result};
use super::owner::OwnerSettings;
use super::send::CheckDepth;
use crate::records::{JobRecord, Marker};

/// How a job is replicated.
#[derive(Clone, Debug)]
pub struct ReplicatorSettings {
    /// How it is owned.
    pub owner: OwnerSettings,
    /// How snapshots are checked at their destination.
    pub depth: CheckDepth,
    /// Bytes per second at most.
    pub max_rate: Option<u64>,
    /// Which snapshots stay there.
    pub retention: RetentionPolicy,
    /// The job, for a machine that has only the URL; `None`: it is left as it is there.
    pub job: Option<JobRecord>,
    /// What such a machine needs besides.
    pub companions: CompanionSource,
}

/// What is to be done.
#[derive(Clone, Debug)]
pub enum ReplicaTask {
    /// Send this verified snapshot.
    Send(PathBuf),
    /// Complete what is under way and what waits, and leave the job to others.
    Finish,
}

/// What happened.
#[derive(Debug)]
pub enum ReplicaNews {
    /// The store is as new as the remote, and the job is this process's; or the remote cannot be reached and the
    /// training goes on from what is here (the error). Nothing is trained before.
    Began(Result<Option<JobError>>),
    /// The newest snapshot that was at the remote when the job became this process's.
    Found(Box<Marker>),
    /// For the log.
    Told(String),
    /// For the log, and something to be seen to.
    Warned(String),
    /// Another process owns the job: this one must end.
    Lost(String),
    /// A snapshot exists at the remote.
    Committed {
        /// Its marker.
        marker: Box<Marker>,
        /// From the first request to the marker.
        took: Duration,
    },
    /// Something does not work, in the words for people. Of one kind it is news once, until all works again.
    Trouble {
        /// What happened, where, and what to do.
        problem: String,
        /// Whether people are to be told.
        is_news: bool,
    },
    /// All works again.
    Works,
}
