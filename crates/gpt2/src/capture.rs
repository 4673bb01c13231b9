//! The training state, and snapshots of it that do not stop the training.
//!
//! Between two updates the state is immutable: forward and backward passes only read it. So a snapshot is a set of
//! handles, taken in microseconds at any moment, also in the middle of a step. Every tensor has two buffers of equal
//! size. An update writes in place where no snapshot holds the tensor, and to its other buffer where one does and
//! memory is allowed for it (`[snapshot] memory`); else it waits until the tensor is encoded. Which buffer is current
//! changes together with the train state, under the lock that captures take.
//!
//! Invariants: a capture is one cut, never half of an update. A buffer that a handle points to is never written. With
//! one snapshot in flight at most, the other buffer of every tensor is free when an update begins, so that the extra
//! memory is one state at most; pages of other buffers beyond what is allowed are given back when nothing is in flight.
//! Deliberately not here: what an update computes (`optim`), encoding and disk (`store`).
//!
//! On a CUDA device the tensors live there, and a capture copies them to the host.
//!
//! Reading order: `memory` (mappings and buffers), `slots` (a tensor's two buffers), `spare` (which of the others may
//! be used), `cut` (what both sides share), `state` (the training's side), `capturer` (the capturing side), `stall`
//! (how long the training was held up).

mod capturer;
mod cut;
mod memory;
mod slots;
mod spare;
mod stall;
mod state;

pub use capturer::{StateCapture, StateCapturer, StateMemory, TensorShard};
pub use slots::{TensorDestination, UpdatePlace, UpdateSpan};
pub use stall::StallMeter;
pub use state::TrainingState;
