//! What a notice source says about the end of the session.
//!
//! Invariant: a source only reports; what follows is decided in one place (training/job), from all of them.
//! Deliberately not here: where notices come from (notices).

use super::clock::BootInstant;

/// What one source says. The newest notice of each source counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionNotice {
    /// For people, and to tell sources apart: "Slurm", "AWS spot", "notice file".
    pub source: String,
    pub kind: NoticeKind,
}

/// What is announced, or asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoticeKind {
    /// The machine or the allocation ends at this moment: the final snapshot must be durable before.
    EndsAt(BootInstant),
    /// It does not end then after all.
    Withdrawn,
    /// The risk has risen: snapshot now, go on.
    Snapshot,
    /// End the session now: final snapshot, exit code 75.
    Finish,
}
