//! Keeps one training running, and reads back what it saves.
//!
//! Reading order: [`run`] (the loop), `start` (what comes before it), [`job`] (what is done about what), [`restarts`]
//! (one of its policies; the other is the session's plan), [`progress`], `display`, [`worker`] (the process).

mod display;
pub mod job;
pub mod progress;
pub mod restarts;
pub mod run;
mod start;
mod store_end;
pub mod worker;
