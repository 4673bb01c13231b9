//! What is done about what happens: a state machine without clock, process or disk.
//!
//! Reading order: [`events`] (what can happen, what can be wanted), [`machine`] (the way of an
//! event), `phase` (what a job and its worker can be in), `worker`, `snapshots`, `plan`, `reload`, `waking`,
//! `ending`, `opening`, `orders`, `history`.

#[cfg(test)]
mod bench;
mod committed;
mod ending;
pub mod events;
mod history;
mod hooks;
pub mod machine;
mod opening;
mod orders;
mod phase;
mod plan;
mod reload;
mod remote;
#[cfg(test)]
mod session_tests;
mod snapshots;
mod suspects;
#[cfg(test)]
mod tests;
mod waking;
mod worker;
