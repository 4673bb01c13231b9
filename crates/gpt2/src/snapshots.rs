//! Snapshots of the running training: captured on the thread that asks, encoded and committed on one of their own.
//!
//! Invariant: at most one snapshot is in flight, from its capture to its last fsync; another request meanwhile is
//! skipped and reported, not queued. A commit that fails costs that snapshot and nothing else.
//! Deliberately not here: when to ask (the agent, the training loop), how capture and commit work.

mod committer;
mod ending;
mod flight;
mod gate;
mod policy;
mod sharded;
mod taker;

pub use committer::CommitSettings;
pub use gate::UpdateGate;
pub use policy::SnapshotPolicy;
pub use sharded::ShardedMoments;
pub use taker::SnapshotTaker;
