//! ckptd keeps a fine-tuning job alive through sessions that are shorter than the training.
//!
//! The flow: a config is read and validated; [`training`] locks the store, picks the newest verified snapshot, and
//! starts the worker, to which it speaks the protocol; the worker trains, captures its state and commits it to the
//! store; the daemon reads it back, vouches for it and rotates the old ones.
//!
//! Modules in reading order: [`session`] (the planner), [`notices`], [`daemon`], [`training`], [`cli`].

pub mod cli;
pub mod daemon;
pub mod notices;
pub mod session;
pub mod training;
