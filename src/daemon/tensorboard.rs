//! Writes an event file for TensorBoard while a job runs: one thread.
//!
//! Each session has a file of its own, which goes on where the one before ended; a resume from an earlier step voids
//! what was shown beyond it. Invariant: nobody waits for it. A disk that is slow or full costs points of TensorBoard's,
//! never of the history, and that is told once. Deliberately not here: the file (event_file), its records
//! (ckptd-history).

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, channel, sync_channel};
use std::time::{Duration, Instant};

use tracing::{debug, warn};

use super::event_file::EventFile;
use ckptd_core::config::Config;
use ckptd_core::error::{Error, Result};
use ckptd_core::store::Store;
use ckptd_history::reader::{HistoryItem, TrainingHistory};
use ckptd_history::record::HistoryRecord;

/// Records that wait for a slow disk; more are left out.
const QUEUE: usize = 16 << 10;
/// What was written is there for readers after this time.
const FLUSH: Duration = Duration::from_secs(2);

/// A handle to the thread.
pub struct TensorBoardWriter {
    /// `None` once it was told to finish.
    records: Option<SyncSender<HistoryRecord>>,
    /// Closed by the thread's end.
    end: Receiver<()>,
}

impl TensorBoardWriter {
    /// Writes into `folder` from now on; where nothing is there, first what `store` has of earlier sessions, up to the
    /// moment `began_ms`.
    pub fn start(folder: PathBuf, store: Store, config: Config, began_ms: i64) -> Result<TensorBoardWriter> {
        let ((records, queue), (ends, end)) = (sync_channel(QUEUE), channel());
        std::thread::Builder::new()
            .name("tensorboard".into())
            .spawn(move || {
                let kept = begin(&folder, &store, &config, began_ms).and_then(|file| keep(file, &queue));
                if let Err(error) = kept {
                    warn!("nothing more is written for TensorBoard in this session: {error}; the training goes on");
                    // So that nothing fills up.
                    queue.iter().for_each(drop);
                }
                drop(ends);
            })
            .map_err(|e| Error::Other(format!("starting a thread: {e}")))?;
        Ok(TensorBoardWriter { records: Some(records), end })
    }

    /// Has `record` written soon.
    pub fn give(&self, record: &HistoryRecord) {
        let full = self.records.as_ref().is_some_and(|records| records.try_send(record.clone()).is_err());
        if full {
            debug!("a point is left out for TensorBoard");
        }
    }

    /// Lets it write what it was given, for at most `timeout`.
    pub fn finish(&mut self, timeout: Duration) {
        self.records = None;
        let _ = self.end.recv_timeout(timeout);
    }
}

fn begin(folder: &Path, store: &Store, config: &Config, began_ms: i64) -> Result<EventFile> {
    let (mut file, is_first) = EventFile::append(folder)?;
    file.describe(Some(config))?;
    if is_first {
        let history = TrainingHistory::read(store)?;
        let take = &mut |item: HistoryItem| {
            let at_ms = match &item.record {
                HistoryRecord::Step(row) => row.at_ms,
                HistoryRecord::Event(timed) => timed.at_ms,
            };
            if item.is_abandoned || at_ms >= began_ms { Ok(()) } else { file.add(&item.record) }
        };
        history.each(take, &mut |problem| debug!("{problem}"))?;
    }
    file.flush()?;
    Ok(file)
}

fn keep(mut file: EventFile, queue: &Receiver<HistoryRecord>) -> Result<()> {
    let mut flush_at = Instant::now() + FLUSH;
    loop {
        match queue.recv_timeout(flush_at.saturating_duration_since(Instant::now())) {
            Ok(record) => file.add(&record)?,
            Err(RecvTimeoutError::Timeout) => {
                file.flush()?;
                flush_at = Instant::now() + FLUSH;
            }
            Err(RecvTimeoutError::Disconnected) => return file.flush(),
        }
    }
}
