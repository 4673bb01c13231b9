//! Where notices of the session's end come from: Slurm, systemd, a file that is touched, the clouds' metadata services.
//!
//! Each source is asked on a thread of its own, beside the training. Invariant: a source that does not answer, answers
//! nonsense or answers too much changes nothing, neither the training nor what it said before, and costs one line of
//! the log until it answers again; what was announced once is not announced again. Deliberately not here: what follows
//! from a notice (training/job), signals (daemon/signals).
//!
//! Reading order: [`source`], [`http`] and [`program`] (how sources are asked), a file per source, `ask` and `trouble`
//! (the loop around one), [`sources`] (which are asked).

mod ask;
pub mod aws;
pub mod azure;
pub mod gcp;
#[cfg(test)]
mod hostile_answers;
pub mod http;
pub mod notice_file;
pub mod program;
pub mod slurm;
pub mod source;
pub mod sources;
pub mod systemd;
mod trouble;
