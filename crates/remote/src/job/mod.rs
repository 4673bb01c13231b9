//! What a job keeps at a remote: markers and files, sent, checked, fetched and given up.
//!
//! Reading order: [`error`], `retry`, [`place`] (the job's documents), [`survey`] (what is there), [`remote_file`]
//! (a snapshot file there), [`send`] with `part_source`, [`companions`] (what snapshots need besides), [`fetch`],
//! [`history`] (what happened in the training's sessions), [`retention`], [`unnamed`] (files that no marker names any
//! longer), [`leftovers`], [`single`] (one file of the
//! user's own), [`probe`] (whether a store keeps its word) and [`checkup`] (the rest of `ckptd remote check`),
//! [`lease_io`] and [`owner`] (the lease, carried out), [`local`] (what the store on this machine is beside it),
//! [`prepare`], [`replicator`] with `replica`, `replication`, `replication_history`, `telling`, `sent_once` and
//! [`troubles`] (all of it in the background of a session).

pub mod checkup;
pub mod companions;
pub mod error;
pub mod fetch;
pub mod history;
pub mod lease_io;
pub mod leftovers;
pub mod local;
pub mod owner;
mod part_source;
pub mod place;
pub mod prepare;
pub mod probe;
pub mod rate;
pub mod remote_file;
mod replica;
mod replication;
mod replication_history;
pub mod replicator;
pub mod retention;
mod retry;
pub mod send;
mod sent_once;
pub mod single;
pub mod survey;
mod telling;
pub mod troubles;
pub mod unnamed;

#[cfg(test)]
mod kills;
#[cfg(test)]
mod outages;

pub use error::{JobError, Result};
pub use place::RemoteJob;
pub use survey::Survey;
