//! What a snapshot is, how it is kept, and what daemon and worker say to each other.
//!
//! Reading order: [`error`], [`ids`], [`dtype`], [`snapshot`], [`os`] (files, processes), [`codec`] (one chunk to bytes
//! and back), [`pipeline`], [`randomness`] and [`permutation`] (pure functions of a seed), [`store`] (snapshots in a
//! folder), [`config`] (the job file), [`protocol`], [`schedule`].
//!
//! Deliberately not here: processes, networks, a command line, libtorch. A program in another language can link this.

#![warn(missing_docs, unreachable_pub)]

pub mod arithmetic;
pub mod codec;
pub mod config;
pub mod dtype;
pub mod error;
pub mod ids;
pub mod os;
pub mod permutation;
pub mod pipeline;
pub mod progress;
pub mod protocol;
pub mod randomness;
pub mod schedule;
pub mod settings;
pub mod snapshot;
pub mod store;
pub mod text;
pub mod token_cache;
pub mod token_file;

pub use error::{Error, Result};
