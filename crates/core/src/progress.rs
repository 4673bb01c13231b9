//! What long work tells its caller, and how the caller calls it off.
//!
//! Invariant: work that is called off returns the sink's error and removes what it had begun.
//! Deliberately not here: bars and events, which are sinks.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::{Error, Result};

/// Is told by long work how far it has come; any of its threads may call.
pub trait ProgressSink: Sync {
    /// A stage ("verifying") begins. It has `total_bytes` bytes to go through; 0 where that is not known.
    fn begin(&self, stage: &str, total_bytes: u64);

    /// Another `bytes` of the stage are done; 0 is a sign of life.
    ///
    /// # Errors
    /// Where the work is to end; it returns this error.
    fn advance(&self, bytes: u64) -> Result<()>;
}

/// Nothing is shown, and the work runs to its end.
#[derive(Clone, Copy, Debug)]
pub struct NoProgress;

impl ProgressSink for NoProgress {
    fn begin(&self, _stage: &str, _total_bytes: u64) {}

    fn advance(&self, _bytes: u64) -> Result<()> {
        Ok(())
    }
}

/// Nothing is shown; the work ends once the flag is raised by a signal or another thread.
#[derive(Clone, Copy, Debug)]
pub struct CancelFlag<'a>(pub &'a AtomicBool);

impl ProgressSink for CancelFlag<'_> {
    fn begin(&self, _stage: &str, _total_bytes: u64) {}

    fn advance(&self, _bytes: u64) -> Result<()> {
        if self.0.load(Ordering::Relaxed) { Err(interrupted()) } else { Ok(()) }
    }
}

/// The error of work that a signal has called off.
pub fn interrupted() -> Error {
    Error::Other("interrupted; nothing was left behind".into())
}
