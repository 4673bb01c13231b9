//! Keeps one training running, and reads back what it saves.
//!
//! Reading order: [`run`] (the loop), `start` (what comes before it), [`job`] (what is done about what), [`restarts`]
//! (one of its policies; the other is the session's plan), [`progress`], [`replication`] and [`remote`] (the job's
//! remote), [`display`], [`opening`] (what a session will do), `outlets` (who else is told), [`sanity`] (whether its
//! figures make sense), [`settings_change`], [`launch`] (what starts a worker), [`worker`] (the process), `spare` (one
//! in reserve), [`script`] (a training script as one), `messages` (its lines), `descendants` (what else it has
//! started).

mod companions;
mod descendants;
pub mod display;
pub mod job;
pub mod launch;
mod messages;
pub mod opening;
mod outlets;
pub mod progress;
mod progress_words;
pub mod remote;
pub mod replication;
pub mod restarts;
pub mod run;
pub mod sanity;
pub mod script;
pub mod settings_change;
mod spare;
mod start;
mod store_end;
pub mod worker;
