//! What a run writes on stderr: lines, and on a terminal a live panel of two lines below them.
//!
//! Invariant: a reader that is slow, stuck or gone costs lines and nothing else; the training never waits for it.
//! All writing is done by one thread behind a bounded queue. Deliberately not here: what is said (job), and in which
//! format (cli).

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

use super::panel::{LivePanel, ProgressPanel};

/// Lines that wait for a slow reader; more are dropped and counted.
const QUEUE: usize = 1024;
/// How long the end of the program waits for its last lines to be read.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// A handle to the printing thread; clones share it.
#[derive(Clone)]
pub struct LogPrinter {
    queue: SyncSender<Print>,
    dropped: Arc<AtomicU64>,
    live: bool,
}

enum Print {
    Lines(Vec<u8>),
    Panel(ProgressPanel),
    Flush(SyncSender<()>),
}

impl LogPrinter {
    /// `live`: with a panel, which needs a terminal.
    pub fn start(live: bool) -> LogPrinter {
        let (queue, prints) = sync_channel(QUEUE);
        let dropped = Arc::new(AtomicU64::new(0));
        let printer = LogPrinter { queue, dropped: Arc::clone(&dropped), live };
        // Without the thread nothing is printed, which is no reason not to train.
        let _ = std::thread::Builder::new().name("printer".into()).spawn(move || print(&prints, &dropped, live));
        printer
    }

    pub fn is_live(&self) -> bool {
        self.live
    }

    pub fn panel(&self, panel: ProgressPanel) {
        let _ = self.queue.try_send(Print::Panel(panel));
    }

    fn lines(&self, bytes: Vec<u8>) {
        if let Err(TrySendError::Full(_)) = self.queue.try_send(Print::Lines(bytes)) {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Waits a moment for what was printed to be written, and takes the panel away.
    pub fn finish(&self) {
        let (done, is_done) = sync_channel(1);
        if self.queue.try_send(Print::Flush(done)).is_ok() {
            let _ = is_done.recv_timeout(FLUSH_TIMEOUT);
        }
    }
}

fn print(prints: &Receiver<Print>, dropped: &AtomicU64, live: bool) {
    let mut panel = live.then(LivePanel::default);
    // Nobody is left to tell when stderr fails.
    let write = |bytes: &[u8]| drop(std::io::stderr().lock().write_all(bytes));
    let lines = |panel: &mut Option<LivePanel>, bytes: &[u8]| match panel {
        Some(panel) => write(&panel.around(bytes, columns())),
        None => write(bytes),
    };
    while let Ok(message) = prints.recv() {
        match (message, &mut panel) {
            (Print::Lines(bytes), _) => {
                lines(&mut panel, &bytes);
                let lost = dropped.swap(0, Ordering::Relaxed);
                if lost > 0 {
                    lines(&mut panel, format!("({lost} lines were not read in time and are lost)\n").as_bytes());
                }
            }
            (Print::Panel(shown), Some(panel)) => write(&panel.draw(&shown, columns())),
            (Print::Panel(_), None) => {}
            (Print::Flush(done), shown) => {
                if let Some(panel) = shown {
                    write(&panel.clear(columns()));
                }
                let _ = done.try_send(());
            }
        }
    }
}

/// How wide the terminal is now.
fn columns() -> usize {
    let size = rustix::termios::tcgetwinsize(std::io::stderr());
    size.map_or(80, |size| usize::from(size.ws_col)).max(1)
}

/// Lets tracing print through the thread: one event, one write.
pub struct LogLine {
    printer: LogPrinter,
    bytes: Vec<u8>,
}

impl Write for LogLine {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Drop for LogLine {
    fn drop(&mut self) {
        self.printer.lines(std::mem::take(&mut self.bytes));
    }
}

impl<'a> tracing_subscriber::fmt::MakeWriter<'a> for LogPrinter {
    type Writer = LogLine;

    fn make_writer(&'a self) -> LogLine {
        LogLine { printer: self.clone(), bytes: Vec::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_printer_whose_thread_is_stuck_drops_lines_without_waiting() {
        let (queue, _stuck) = sync_channel(1);
        let printer = LogPrinter { queue, dropped: Arc::default(), live: false };
        for _ in 0..5 {
            printer.lines(b"x\n".to_vec());
        }
        assert_eq!(printer.dropped.load(Ordering::Relaxed), 4);
    }
}
