//! The recorder: one thread that writes the store's small files, so that the event loop waits for no disk.
//!
//! Invariant: of several records of a kind that wait only the newest is written; a failure costs better plans and
//! nothing else.

use std::sync::{Arc, mpsc};
use std::time::Duration;

use tracing::{debug, warn};

use crate::once_flag::OnceFlag;
use crate::session::records::{SessionRecord, SessionRecords};
use ckptd_core::config::Config;
use ckptd_core::error::{Error, Result};
use ckptd_core::store::{Record, Store, StoreLock};

/// The sessions of `store` so far, the last one to its last step; none where nothing can be read.
pub fn sessions(store: &Store) -> SessionRecords {
    let mut records: SessionRecords = store.read_record(Record::Sessions).ok().flatten().unwrap_or_default();
    if let Some(mark) = store.read_mark() {
        records.take_mark(mark);
    }
    records
}

/// What is to be written.
pub enum RecorderNote {
    Sessions(Box<SessionRecords>),
    /// What is at the job's remote.
    Replication(serde_json::Value),
    Job(Box<Config>),
    /// How far the session under way is; it costs no wait for the disk.
    Mark(Box<SessionRecord>),
}

/// A handle to the recording thread.
pub struct Recorder {
    /// `None` once it was told to finish.
    notes: Option<mpsc::Sender<RecorderNote>>,
    /// Closed by the thread's end.
    end: mpsc::Receiver<()>,
}

impl Recorder {
    /// Starts the thread.
    pub fn start(store: Arc<Store>, lock: Arc<StoreLock>) -> Result<Recorder> {
        let (notes, queue) = mpsc::channel();
        let (ends, end) = mpsc::channel::<()>();
        std::thread::Builder::new()
            .name("recorder".into())
            .spawn(move || {
                write_all(&store, &lock, &queue);
                drop(ends);
            })
            .map_err(|e| Error::Other(format!("starting a thread: {e}")))?;
        Ok(Recorder { notes: Some(notes), end })
    }

    /// Has `note` written soon.
    pub fn give(&self, note: RecorderNote) {
        // The thread ends only after this handle does.
        let _ = self.notes.as_ref().map(|notes| notes.send(note));
    }

    /// Lets it write what it was given, for at most `timeout`.
    pub fn finish(&mut self, timeout: Duration) {
        self.notes = None;
        let _ = self.end.recv_timeout(timeout);
    }
}

fn write_all(store: &Store, lock: &StoreLock, queue: &mpsc::Receiver<RecorderNote>) {
    let mut told = OnceFlag::default();
    // Without one the history of a killed session is less exact.
    let open_mark = store.open_mark(lock).ok();
    while let Ok(first) = queue.recv() {
        let (mut records, mut job, mut mark, mut replication) = (None, None, None, None);
        for note in std::iter::once(first).chain(queue.try_iter()) {
            match note {
                RecorderNote::Sessions(newer) => records = Some(newer),
                RecorderNote::Job(newer) => job = Some(newer),
                RecorderNote::Mark(newer) => mark = Some(newer),
                RecorderNote::Replication(newer) => replication = Some(newer),
            }
        }
        if let (Some(open), Some(mark)) = (&open_mark, mark) {
            let _ = store.write_mark(open, &mark);
        }
        let written = [
            records.map(|records| store.write_record(lock, Record::Sessions, &records)),
            job.map(|job| store.write_record(lock, Record::Job, &job)),
            replication.map(|replication| store.write_record(lock, Record::Replication, &replication)),
        ];
        for error in written.into_iter().flatten().filter_map(Result::err) {
            // A full disk must not keep a training from going on, nor fill the log.
            if told.raise() {
                warn!("the session is not remembered in the store: {error}");
            } else {
                debug!("the session is not remembered in the store: {error}");
            }
        }
    }
}
