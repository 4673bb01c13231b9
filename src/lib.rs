//! ckptd keeps a fine-tuning job alive through sessions that are shorter than the training.
//!
//! The flow: a config is read and validated; [`training`] locks the store, picks the newest verified snapshot, and
//! starts the worker, to which it speaks the protocol; the worker trains, captures its state and commits it to the
//! store; the daemon reads it back, records it as verified and rotates the old ones.
//!
//! Modules in reading order, each above those before it: [`session`] (the planner), [`folder_watch`], [`once_flag`],
//! [`notices`] and [`daemon`], [`web`], [`training`], [`cli`].

#![warn(unreachable_pub)]

pub mod cli;
pub mod daemon;
pub mod folder_watch;
pub mod notices;
pub mod once_flag;
pub mod session;
pub mod training;
pub mod web;
