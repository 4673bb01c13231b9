//! The native half of the Python package `ckptd`: encodes and commits tensors from their own memory, and reads them
//! back into it.
//!
//! Reading order: `live` (tensors whose memory is read while the training computes), `flight` (a snapshot on its way to
//! the disk), `writer` (the store of a training script), `reader`, `memory` (bytes by their address), `order` (of an
//! epoch), `errors`, `module` (what Python sees).
//!
//! Invariant: the interpreter's lock is not held while anything is encoded, hashed, written, read or waited for. Memory
//! is given by address; the Python half keeps the tensor alive that it belongs to. Deliberately not here: what a tensor
//! is to the training, when a snapshot is due (Python).

mod errors;
mod flight;
mod live;
mod memory;
mod module;
mod order;
mod reader;
mod writer;
