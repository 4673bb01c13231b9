//! What a job keeps at a remote: markers and files, sent, checked, fetched and given up.
//!
//! Reading order: [`error`], [`place`] (the job's documents), [`survey`] (what is there), [`remote_file`] (a snapshot
//! file there), [`send`], [`fetch`], [`retention`], [`lease_io`] and [`owner`] (the lease, carried out), [`local`]
//! (what the store on this machine is beside it), [`prepare`], [`replicator`] (all of it in the background of a
//! session).

pub mod error;
pub mod fetch;
pub mod lease_io;
pub mod local;
pub mod owner;
pub mod place;
pub mod prepare;
pub mod rate;
pub mod remote_file;
pub mod replicator;
pub mod retention;
pub mod send;
pub mod survey;

pub use error::{JobError, Result};
pub use place::RemoteJob;
pub use survey::Survey;
