//! Whole-program tests of `ckptd run`: the real agent, real signals, real snapshots, and a worker that trains nothing
//! but keeps to the protocol. A file is a promise.
#![allow(clippy::unwrap_used)]

mod damage;
mod disk_full;
mod faults;
mod harness;
mod history;
mod hooks;
mod jobs;
mod kills;
mod live;
mod metadata;
mod orders;
mod page;
mod remote;
mod remote_check;
mod restart;
mod secrets;
mod service;
mod sources;
mod status;
mod steps;
mod stop;
mod worker;
