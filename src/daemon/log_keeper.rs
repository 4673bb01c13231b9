//! Keeps a session's log in its store: one thread that writes what was said to a bounded file.
//!
//! Invariant: a disk that is slow, stuck or full costs lines of the kept log and nothing else. What is said before the
//! store is open is kept until it is. Nothing is logged from here. Deliberately not here: the file (core's store).

use std::io::Write;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ckptd_core::store::log::SESSION_LINE;
use ckptd_core::store::{Store, StoreLock};

/// Lines that wait for a slow disk; more are dropped.
const QUEUE: usize = 1024;
/// Bytes that wait for the store.
const EARLY_BYTES: usize = 64 << 10;

/// Takes what is said; clones share it.
#[derive(Clone, Default)]
pub struct LogKeeper(Arc<Mutex<Keeping>>);

enum Keeping {
    /// No store is open.
    Waiting(Vec<u8>),
    To(SyncSender<Vec<u8>>),
}

/// The log of one session, kept until this is finished.
pub struct KeptSession {
    keeper: LogKeeper,
    end: Receiver<()>,
}

impl Default for Keeping {
    fn default() -> Keeping {
        Keeping::Waiting(Vec::new())
    }
}

impl LogKeeper {
    /// Keeps what was said and what will be in `store`. Where that cannot be, the session goes on without.
    pub fn keep(&self, store: Arc<Store>, lock: Arc<StoreLock>) -> KeptSession {
        let (lines, queue) = sync_channel::<Vec<u8>>(QUEUE);
        let (ends, end) = sync_channel(1);
        let head = format!(
            "{SESSION_LINE}{}, process {} --\n",
            jiff::ZonedDateTime::now().strftime("%Y-%m-%d %H:%M:%S %:z"),
            std::process::id()
        );
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Keeping::Waiting(early) = std::mem::replace(&mut *state, Keeping::To(lines.clone())) {
            let _ = lines.try_send([head.into_bytes(), early].concat());
        }
        let _ = std::thread::Builder::new().name("log".into()).spawn(move || {
            write_all(&store, &lock, &queue);
            // The store must be free when the end is known.
            drop((store, lock));
            drop(ends);
        });
        KeptSession { keeper: self.clone(), end }
    }

    fn take(&self, bytes: Vec<u8>) {
        match &mut *self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            Keeping::Waiting(early) if early.len() + bytes.len() <= EARLY_BYTES => early.extend(bytes),
            Keeping::Waiting(_) => {}
            Keeping::To(lines) => drop(lines.try_send(bytes)),
        }
    }
}

impl KeptSession {
    /// Keeps `line`, which is said elsewhere.
    pub fn note(&self, line: &str) {
        self.keeper.take(format!("{line}\n").into_bytes());
    }

    /// Lets the thread write what it was given, for at most `timeout`.
    pub fn finish(self, timeout: Duration) {
        *self.keeper.0.lock().unwrap_or_else(PoisonError::into_inner) = Keeping::default();
        let _ = self.end.recv_timeout(timeout);
    }
}

fn write_all(store: &Store, lock: &StoreLock, queue: &Receiver<Vec<u8>>) {
    let mut log = store.open_log(lock).ok();
    while let Ok(lines) = queue.recv() {
        if let Some(open) = &mut log {
            // A full disk may have room again for the next line.
            let _ = store.append_log(open, lock, &lines);
        }
    }
}

/// Lets tracing keep one event: one write.
pub struct KeptLine {
    keeper: LogKeeper,
    bytes: Vec<u8>,
}

impl Write for KeptLine {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Drop for KeptLine {
    fn drop(&mut self) {
        self.keeper.take(std::mem::take(&mut self.bytes));
    }
}

impl<'a> tracing_subscriber::fmt::MakeWriter<'a> for LogKeeper {
    type Writer = KeptLine;

    fn make_writer(&'a self) -> KeptLine {
        KeptLine { keeper: self.clone(), bytes: Vec::new() }
    }
}
