//! A training as a page that updates itself, and as metrics.
//!
//! Reading order: [`view`] and [`curve`] (what is shown), [`metrics`] (the same for Prometheus), [`access`] (who may
//! look), [`board`] (what is known now), `limits`, `assets`, `routes`, [`server`].
//!
//! Invariant: who looks costs a share of one core and some megabytes, however many they are and whatever they send;
//! nobody who looks can change anything. Deliberately not here: where what is shown comes from (the daemon).

#![warn(missing_docs, unreachable_pub)]

pub mod access;
mod assets;
pub mod board;
pub mod curve;
mod limits;
pub mod metrics;
mod routes;
pub mod server;
pub mod view;
