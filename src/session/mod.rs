//! How long a session lasts and what is due when: pure functions of what is known and what the time is.
//!
//! Reading order: [`clock`], [`notice`], [`costs`] (what snapshots and steps cost, learned over all sessions),
//! [`plan`], [`interval`] (the time between snapshots that loses least), [`records`] (the sessions so far),
//! [`scale`] and [`goodput`] (what many ranks cost, and days of preemptions).
//!
//! Invariant: nothing here reads a file, a socket or, outside [`clock`], the time. Deliberately not here: doing what
//! was decided (training/job).

pub mod clock;
pub mod costs;
pub mod goodput;
pub mod interval;
pub mod notice;
pub mod outlook;
pub mod plan;
pub mod records;
pub mod scale;
#[cfg(test)]
mod simulation;
