//! Keeps one training running, and reads back what it saves.
//!
//! Reading order: [`run`] (the loop), `start` (what comes before it), [`job`] (what is done about what), [`restarts`]
//! (one of its policies; the other is the session's plan), [`progress`], [`replication`] and [`remote`] (the job's
//! remote), [`display`], [`opening`] (what a session will do), [`sanity`] (whether its figures make sense),
//! [`settings_change`], [`worker`] (the process).

mod companions;
pub mod display;
pub mod job;
pub mod opening;
pub mod progress;
pub mod remote;
pub mod replication;
pub mod restarts;
pub mod run;
pub mod sanity;
pub mod settings_change;
mod start;
mod store_end;
pub mod worker;
