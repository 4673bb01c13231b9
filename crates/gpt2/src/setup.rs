//! From a config to a training that is ready to run: device, model, data, state, and where to go on.
//!
//! Reading order: `open` (the steps), `machine` (device, threads, arithmetic), `model`
//! (shape and small files), `restore` (from a snapshot), `carried`
//! (the small files that every snapshot takes along), `follow` (the same on ranks other than 0, which may see neither
//! store nor data), `shards` (what these get of a sharded optimizer state).
//!
//! Invariant: a resume either restores every tensor and the train state exactly, or is refused with the tensor or the
//! setting that does not fit. Deliberately not here: the training itself (`train`).

mod carried;
mod follow;
mod machine;
mod model;
mod open;
mod restore;
mod shards;

pub use open::TrainingSetup;
pub use restore::ResumedFrom;
