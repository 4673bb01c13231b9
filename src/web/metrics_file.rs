//! The metrics as a file, for node_exporter's textfile collector.
//!
//! One thread writes it every few seconds. Invariant: who reads the file finds all of it; what cannot be written costs
//! the metrics and nothing else, which is told once.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use tracing::{debug, warn};

use crate::once_flag::OnceFlag;
use ckptd_core::error::{Error, Result};
use ckptd_core::os::process::lower_priority;
use ckptd_core::os::publish::{Existing, publish};
use ckptd_page::board::JobBoard;
use ckptd_page::metrics::{self, MeasuredJob, MetricsFormat};

const INTERVAL: Duration = Duration::from_secs(15);
const PATIENCE: Duration = Duration::from_secs(5);
/// How long the last writing is waited for.
const END_PATIENCE: Duration = Duration::from_millis(200);
const NICE: i32 = 10;

/// The file is kept up to date for as long as this lives.
pub struct MetricsFile {
    /// `None` once the thread was told to end.
    stop: Option<Sender<()>>,
    /// Closed by the thread's end.
    end: Receiver<()>,
}

impl MetricsFile {
    /// Keeps the file at `path`, of the first job of `board`.
    pub fn start(path: PathBuf, board: JobBoard) -> Result<MetricsFile> {
        let ((stop, stopped), (ends, end)) = (channel(), channel());
        std::thread::Builder::new()
            .name("metrics".into())
            .spawn(move || {
                lower_priority(NICE);
                keep(&path, &board, &stopped);
                drop(ends);
            })
            .map_err(|e| Error::Other(format!("starting a thread: {e}")))?;
        Ok(MetricsFile { stop: Some(stop), end })
    }
}

impl Drop for MetricsFile {
    fn drop(&mut self) {
        self.stop = None;
        let _ = self.end.recv_timeout(END_PATIENCE);
    }
}

fn keep(path: &Path, board: &JobBoard, stopped: &Receiver<()>) {
    let (mut told, mut last) = (OnceFlag::default(), None);
    loop {
        if let Some(now) = board.wait_for(0, PATIENCE) {
            write_or_tell(path, &now.measured(), &mut told);
            last = Some(now);
        }
        if let Err(RecvTimeoutError::Disconnected) = stopped.recv_timeout(INTERVAL) {
            break;
        }
    }
    // What the file says from now on: nothing is under way.
    if let Some(now) = last {
        let mut view = now.view.clone();
        (view.is_live, view.tokens_per_second) = (false, None);
        view.state = "stopped".to_owned();
        write_or_tell(path, &MeasuredJob { view: &view, ..now.measured() }, &mut told);
    }
}

fn write_or_tell(path: &Path, job: &MeasuredJob<'_>, told: &mut OnceFlag) {
    match write(path, job) {
        Ok(()) => drop(told.lower()),
        Err(error) if told.raise() => warn!("the metrics are not written: {error}; the training goes on"),
        Err(error) => debug!("the metrics are not written: {error}"),
    }
}

fn write(path: &Path, job: &MeasuredJob<'_>) -> Result<()> {
    let text = metrics::exposition(std::slice::from_ref(job), MetricsFormat::Prometheus);
    let mut partial = path.as_os_str().to_owned();
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    let mut file = File::create(&partial).map_err(|e| Error::io("creating", &partial, e))?;
    file.write_all(text.as_bytes()).map_err(|e| Error::io("writing", &partial, e))?;
    publish(&file, &partial, path, Existing::Replace)
}
