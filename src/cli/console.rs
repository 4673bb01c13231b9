//! Long work on a terminal: a progress bar once it takes a while, and an end by signal.
//!
//! Invariant: a signal never ends the process in the middle of a write; it raises a flag, the work returns an error,
//! and what it had begun is removed.

use std::io::IsTerminal;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::signal::unix::{SignalKind, signal};

use ckptd_core::error::{Error, Result};
use ckptd_core::progress::{ProgressSink, interrupted};

/// Work that is done by then is not worth a bar.
const PATIENCE: Duration = Duration::from_millis(700);

/// A progress bar and a flag that signals raise; it goes with this.
pub(super) struct Console {
    cancelled: Arc<AtomicBool>,
    stage: Arc<Mutex<Stage>>,
}

struct Stage {
    bar: ProgressBar,
    /// Bars are drawn from now on.
    shown: bool,
    ended: bool,
}

impl Console {
    /// Listens to SIGINT, SIGTERM and SIGHUP from now on.
    pub(super) fn start() -> Result<Console> {
        let cancelled = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&cancelled);
        let listening = |e| Error::Other(format!("listening to signals: {e}"));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(listening)?;
        let mut streams = Vec::new();
        {
            let _inside = runtime.enter();
            for kind in [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()] {
                streams.push(signal(kind).map_err(listening)?);
            }
        }
        let listen = move || {
            runtime.block_on(async {
                let [first, second, third] = streams.as_mut_slice() else { return };
                tokio::select! { _ = first.recv() => {}, _ = second.recv() => {}, _ = third.recv() => {} }
                flag.store(true, Ordering::Relaxed);
            });
        };
        std::thread::Builder::new().name("signals".into()).spawn(listen).map_err(listening)?;
        let stage = Arc::new(Mutex::new(Stage { bar: ProgressBar::hidden(), shown: false, ended: false }));
        if std::io::stderr().is_terminal() {
            // What says nothing of its progress is shown to be under way, too.
            let stage = Arc::downgrade(&stage);
            let show = move || {
                std::thread::sleep(PATIENCE);
                let Some(stage) = stage.upgrade() else { return };
                stage.lock().unwrap_or_else(PoisonError::into_inner).show();
            };
            std::thread::Builder::new().name("progress".into()).spawn(show).map_err(listening)?;
        }
        Ok(Console { cancelled, stage })
    }

    /// Raised by a signal.
    pub(super) fn cancelled(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.cancelled)
    }

    /// Lets `write` write to the terminal without a bar in its way.
    pub(super) fn around<T>(&self, write: impl FnOnce() -> T) -> T {
        let bar = self.stage().bar.clone();
        bar.suspend(write)
    }

    fn stage(&self) -> std::sync::MutexGuard<'_, Stage> {
        self.stage.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ProgressSink for Console {
    fn begin(&self, stage: &str, total_bytes: u64) {
        let mut current = self.stage();
        current.bar.finish_and_clear();
        let template = match total_bytes {
            0 => "{msg} {spinner}",
            _ => "{msg} {wide_bar} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec}",
        };
        let bar = ProgressBar::with_draw_target(Some(total_bytes), ProgressDrawTarget::hidden());
        // The templates are constants, which a test draws.
        bar.set_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.set_message(stage.to_owned());
        current.bar = bar;
        if current.shown {
            current.show();
        }
    }

    fn advance(&self, bytes: u64) -> Result<()> {
        if self.cancelled.load(Ordering::Relaxed) {
            return Err(interrupted());
        }
        self.stage().bar.inc(bytes);
        Ok(())
    }
}

impl Stage {
    fn show(&mut self) {
        if self.ended {
            return;
        }
        self.shown = true;
        self.bar.set_draw_target(ProgressDrawTarget::stderr());
        self.bar.enable_steady_tick(Duration::from_millis(200));
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        let mut stage = self.stage();
        stage.ended = true;
        stage.bar.finish_and_clear();
    }
}
