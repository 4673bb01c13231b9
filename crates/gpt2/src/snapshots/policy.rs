//! What the agent may change about snapshots while the worker runs.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use ckptd_core::os::process::processors;

/// What the agent may change while the worker runs.
#[derive(Debug, Default)]
pub struct SnapshotPolicy {
    /// 0: not by steps.
    every_steps: AtomicU64,
    level: AtomicUsize,
    threads: AtomicUsize,
}

impl SnapshotPolicy {
    /// Takes over the `[snapshot]` settings; 0 encoding threads are one per processor.
    pub fn set(&self, every_steps: Option<u64>, level: u8, encode_threads: usize) {
        // The training's threads wait for the slowest among them: it is best that all are held up a little.
        let threads = if encode_threads == 0 { processors() } else { encode_threads };
        self.every_steps.store(every_steps.unwrap_or(0), Ordering::Relaxed);
        self.level.store(level.into(), Ordering::Relaxed);
        self.threads.store(threads, Ordering::Relaxed);
    }

    /// Whether one is due after `step` steps.
    pub fn is_due(&self, step: u64) -> bool {
        let every = self.every_steps.load(Ordering::Relaxed);
        every > 0 && step.is_multiple_of(every)
    }

    /// `[snapshot] level`.
    pub fn level(&self) -> u8 {
        u8::try_from(self.level.load(Ordering::Relaxed)).unwrap_or(1)
    }

    /// Encoding threads beside the training, at least 1.
    pub fn threads(&self) -> usize {
        self.threads.load(Ordering::Relaxed)
    }
}
