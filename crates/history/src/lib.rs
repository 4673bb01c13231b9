//! The history of a training over all its sessions: every step, evaluation and snapshot, how sessions began and ended.
//!
//! Reading order: [`record`] (what happened), [`bytes`] and [`columns`] (rows as few bytes), [`frame`] (bytes in a
//! file, with length and checksum), [`bucket`] (summaries), [`batch`] and [`packed`] (the two kinds of files), [`part`]
//! (one file, read), [`writer`], [`reader`] (all of it, with what a resume cut off), [`follow`], [`overview`] (for
//! pictures), [`totals`] (for counters), [`tensorboard`]; [`sessions`] and [`travel`] (from one machine to another).
//!
//! Invariant: a batch is read whole or not at all. Nothing here decides anything about a training.
//! Deliberately not here: a clock, threads (the daemon), drawing (ckptd-plot).

#![warn(missing_docs, unreachable_pub)]

pub mod batch;
pub mod bucket;
pub mod bytes;
pub mod columns;
pub mod follow;
pub mod frame;
pub mod overview;
pub mod packed;
pub mod part;
pub mod reader;
pub mod record;
pub mod sessions;
pub mod tensorboard;
pub mod totals;
pub mod travel;
pub mod writer;
