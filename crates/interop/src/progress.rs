//! What long work tells whoever watches, and how it is called off.

use std::sync::atomic::{AtomicBool, Ordering};

use ckptd_core::error::{Error, Result};

/// A stage begins with its size and advances by bytes; the work ends where `advance` returns an error.
pub trait Progress: Sync {
    fn begin(&self, stage: &str, total_bytes: u64);
    fn advance(&self, bytes: u64) -> Result<()>;
}

/// Nobody watches.
pub struct Silent;

impl Progress for Silent {
    fn begin(&self, _stage: &str, _total_bytes: u64) {}

    fn advance(&self, _bytes: u64) -> Result<()> {
        Ok(())
    }
}

/// Nobody watches, but a signal or another thread may end the work.
pub struct Cancel<'a>(pub &'a AtomicBool);

impl Progress for Cancel<'_> {
    fn begin(&self, _stage: &str, _total_bytes: u64) {}

    fn advance(&self, _bytes: u64) -> Result<()> {
        match self.0.load(Ordering::Relaxed) {
            false => Ok(()),
            true => Err(interrupted()),
        }
    }
}

pub fn interrupted() -> Error {
    Error::Other("interrupted; nothing was left behind".into())
}
