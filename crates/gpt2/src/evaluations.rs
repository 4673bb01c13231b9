//! What the agent may change about evaluations while the worker runs.
//!
//! Deliberately not here: evaluating (`train`).

use std::sync::{Mutex, PoisonError};

/// Steps between evaluations and batches of one, as they were asked for last.
#[derive(Debug, Default)]
pub struct EvaluationPolicy(Mutex<Option<(u64, u64)>>);

impl EvaluationPolicy {
    /// From now on every `every` steps (0: never), on `batches` micro-batches.
    pub fn set(&self, every: u64, batches: u64) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((every, batches));
    }

    /// What was asked for since the last call.
    pub fn take(&self) -> Option<(u64, u64)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}
