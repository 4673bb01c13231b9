//! ckptd keeps a fine-tuning job alive through sessions that are shorter than the training.
//!
//! The flow: a [`config`] is read and validated; the [`agent`] locks the [`store`], picks the newest verified
//! snapshot, and starts the worker, to which it speaks the [`protocol`]; the worker trains, captures its state as a
//! [`snapshot`] and commits it to the store; the agent reads it back, vouches for it and rotates the old ones.
//!
//! Modules in reading order: [`error`], [`config`], [`protocol`], [`snapshot`], [`store`], [`session`], [`agent`],
//! [`cli`]. [`interop`] reads and writes what others load. `ordered` is the pipeline that writing and exporting share.

pub mod agent;
pub mod cli;
pub mod config;
pub mod error;
pub mod interop;
mod ordered;
pub mod protocol;
pub mod schedule;
pub mod session;
pub mod snapshot;
pub mod store;

pub use error::{Error, Result};
