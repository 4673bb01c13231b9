//! Whether somebody has asked this process to end, over all sessions of it.
//!
//! Invariant: no signal is lost between two sessions, while neither of them listens. Deliberately not here: what a
//! session does about a signal (training/job).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::signal::unix::{SignalKind, signal};

use ckptd_core::error::{Error, Result};

/// Raised by SIGINT, SIGTERM or SIGUSR2, for good.
#[derive(Clone, Debug)]
pub struct UserStop(Arc<AtomicBool>);

impl UserStop {
    /// Listens from now on, on a thread of its own.
    pub fn listen() -> Result<UserStop> {
        let failed = |e| Error::Other(format!("listening to signals: {e}"));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
        let inside = runtime.enter();
        let [mut first, mut second, mut third] = [
            signal(SignalKind::interrupt()).map_err(failed)?,
            signal(SignalKind::terminate()).map_err(failed)?,
            signal(SignalKind::user_defined2()).map_err(failed)?,
        ];
        drop(inside);
        let flag = Arc::new(AtomicBool::new(false));
        let raised = Arc::clone(&flag);
        let wait = move || {
            runtime.block_on(async {
                tokio::select! { _ = first.recv() => {}, _ = second.recv() => {}, _ = third.recv() => {} }
            });
            raised.store(true, Ordering::Relaxed);
        };
        std::thread::Builder::new().name("user stop".into()).spawn(wait).map_err(failed)?;
        Ok(UserStop(flag))
    }

    /// Whether it was asked for.
    pub fn is_asked(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
