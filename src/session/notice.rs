//! What a notice source has to say about the end of the session.
//!
//! Invariant: a source only reports; what follows from it is decided in one place (agent/job), from all of them.
//! Deliberately not here: where notices come from (sources).

use super::clock::Moment;

/// A source's word. The newest one of each source counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// For people, and to tell sources apart: "Slurm", "AWS spot", "notice file".
    pub source: String,
    pub call: Call,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// The machine or the allocation ends at this moment: the final snapshot must be durable before.
    EndsAt(Moment),
    /// It does not end then after all.
    Withdrawn,
    /// The risk has risen: snapshot now, go on.
    Snapshot,
    /// End the session now: final snapshot, exit code 75.
    Finish,
}
