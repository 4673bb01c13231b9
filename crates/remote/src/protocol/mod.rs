//! Who owns a job and when a snapshot may be committed: one pure transition function, the very one that the agent runs.
//!
//! Reading order: [`events`] (what can happen, what is wanted), `phase` (what a process is in), [`machine`] (the
//! decisions). Their proof is in the tests: every order of events up to a bound, and long random ones, with writes
//! that are lost, late, doubled and misreported. The random ones are the fault campaign's, too (feature `faults`).
//!
//! Invariant: no clock is read and no store is asked here. Time is passed in, from a clock that nobody sets.

pub mod events;
pub mod machine;
mod markers;
mod phase;

#[cfg(test)]
mod exhaustive;
#[cfg(any(test, feature = "faults"))]
mod invariants;
#[cfg(any(test, feature = "faults"))]
mod model;
#[cfg(any(test, feature = "faults"))]
pub mod schedules;

pub use events::{LeaseAction, LeaseEvent, LeaseNews, SeenLease, WriteOutcome};
pub use machine::{LeaseMachine, LeaseSettings};
