//! Replication under faults: machines with stores of their own beside one job at an object store.
//!
//! Reading order: [`wire`] (an object store whose requests meet faults), [`machine`] (a session of the very thread that
//! the agent runs), [`judge`] (what an empty machine then finds), then what is tried: [`requests`] (each request of a
//! machine meets a fault), [`parts`] (uploads in parts, gone on with), [`trash`] (the second phase of a deletion),
//! [`sampled`], [`storm`], [`schedules`].

pub mod judge;
pub mod machine;
pub mod parts;
pub mod requests;
pub mod sampled;
pub mod schedules;
pub mod storm;
pub mod trash;
pub mod wire;
