//! Keeps the history: one thread that writes what happened to the store, in batches.
//!
//! Invariant: nobody waits for it. A disk that is slow or full costs history and nothing else, which is told once. What
//! is given is written two seconds later at most, so that a crash loses little more than that.
//! Deliberately not here: files and their format (ckptd-history).

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tracing::{debug, info, warn};

use crate::once_flag::OnceFlag;
use ckptd_core::error::{Error, Result};
use ckptd_core::store::{Store, StoreLock};
use ckptd_history::record::{HistoryEvent, HistoryRecord, TimedEvent};
use ckptd_history::writer::HistoryWriter;

/// Records that wait for a slow disk; more are lost and counted.
const QUEUE: usize = 64 << 10;
/// How long a batch is.
const BATCH: Duration = Duration::from_secs(2);
/// How long a disk that takes nothing is left alone.
const RETRY: Duration = Duration::from_secs(10);

/// What the thread is given.
enum HistoryNote {
    Record(HistoryRecord),
    /// Write what there is now; the sender goes when that is done.
    Flush(mpsc::Sender<()>),
}

/// A handle to the thread.
pub struct HistoryKeeper {
    /// `None` once it was told to finish.
    records: Option<SyncSender<HistoryNote>>,
    lost: Arc<LostRecords>,
    /// Closed by the thread's end.
    end: Receiver<()>,
}

/// What did not fit into the queue.
#[derive(Default)]
struct LostRecords {
    steps: AtomicU64,
    events: AtomicU64,
}

impl HistoryKeeper {
    /// Starts the thread.
    pub fn start(store: Arc<Store>, lock: Arc<StoreLock>) -> Result<HistoryKeeper> {
        let (records, queue) = sync_channel(QUEUE);
        let (ends, end) = mpsc::channel();
        let lost = Arc::new(LostRecords::default());
        let lost_there = lost.clone();
        std::thread::Builder::new()
            .name("history".into())
            .spawn(move || {
                keep(&store, &lock, &queue, &lost_there);
                // The store must be free when the end is known.
                drop((store, lock));
                drop(ends);
            })
            .map_err(|e| Error::Other(format!("starting a thread: {e}")))?;
        Ok(HistoryKeeper { records: Some(records), lost, end })
    }

    /// Has `record` written soon.
    pub fn give(&self, record: HistoryRecord) {
        let Some(records) = &self.records else { return };
        let lost = match &record {
            HistoryRecord::Step(_) => &self.lost.steps,
            HistoryRecord::Event(_) => &self.lost.events,
        };
        if records.try_send(HistoryNote::Record(record)).is_err() {
            lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Has what it was given so far written now.
    pub fn hurry(&self) {
        // Its own time comes soon anyway.
        let _ = self.records.as_ref().map(|records| records.try_send(HistoryNote::Flush(mpsc::channel().0)));
    }

    /// Lets it write what it was given so far, for at most `timeout`.
    pub fn flush(&self, timeout: Duration) {
        let (done, written) = mpsc::channel();
        if self.records.as_ref().is_some_and(|records| records.try_send(HistoryNote::Flush(done)).is_ok()) {
            let _ = written.recv_timeout(timeout);
        }
    }

    /// Lets it write what it was given, for at most `timeout`.
    pub fn finish(&mut self, timeout: Duration) {
        self.records = None;
        let _ = self.end.recv_timeout(timeout);
    }
}

fn keep(store: &Store, lock: &StoreLock, queue: &Receiver<HistoryNote>, lost: &LostRecords) {
    let mut writer = match HistoryWriter::open(store, lock) {
        Ok(writer) => writer,
        Err(error) => {
            warn!("no history is kept of this session: {error}");
            // Until the session is over, so that nothing fills up.
            return queue.iter().for_each(drop);
        }
    };
    if let Some(bytes) = writer.torn() {
        debug!("the last session was killed while it wrote its history: {bytes} bytes of half a batch were cut off");
        let event = HistoryEvent::Torn { bytes };
        writer.push(HistoryRecord::Event(TimedEvent { at_ms: Timestamp::now().as_millisecond(), event }));
    }
    let (mut flush_at, mut told) = (None, OnceFlag::default());
    loop {
        let wait = flush_at.map_or(Duration::MAX, |at: Instant| at.saturating_duration_since(Instant::now()));
        match queue.recv_timeout(wait) {
            Ok(HistoryNote::Record(record)) => {
                writer.push(record);
                flush_at.get_or_insert_with(|| Instant::now() + BATCH);
            }
            Ok(HistoryNote::Flush(done)) => {
                flush_at = flush(&mut writer, lost, &mut told);
                drop(done);
            }
            Err(RecvTimeoutError::Timeout) => flush_at = flush(&mut writer, lost, &mut told),
            Err(RecvTimeoutError::Disconnected) => {
                flush(&mut writer, lost, &mut told);
                return;
            }
        }
    }
}

/// Writes a batch. When the next one is due although nothing new has come: after a failure.
fn flush(writer: &mut HistoryWriter, lost: &LostRecords, told: &mut OnceFlag) -> Option<Instant> {
    writer.count_lost(lost.steps.swap(0, Ordering::Relaxed), lost.events.swap(0, Ordering::Relaxed));
    match writer.flush(Timestamp::now().as_millisecond()) {
        Ok(()) => {
            if told.lower() {
                info!("the history is written again");
            }
            None
        }
        Err(error) => {
            // A full disk must not keep a training from going on, nor fill the log: of that the snapshots warn.
            match (told.raise(), &error) {
                (true, Error::NoSpace { .. }) => info!("the history is not written: {error}; the training goes on"),
                (true, _) => warn!("the history is not written: {error}; the training goes on"),
                (false, _) => debug!("the history is not written: {error}"),
            }
            Some(Instant::now() + RETRY)
        }
    }
}
