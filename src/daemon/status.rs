//! The status socket: a client gets the report of the running job, or gives it an order.
//!
//! One request, one JSON line each way. Invariant: a client costs the job one report and nothing else: requests are
//! read to 64 KiB and for 2 s, by at most 16 clients at a time, on tasks of their own. The socket is the owner's only
//! (0600). Deliberately not here: what a report says (report), and what is reported when no daemon runs (cli).

use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::process::umask;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixListener;
use tokio::sync::{Semaphore, oneshot};
use tracing::debug;

use super::inbox::{DaemonInput, InboxSender};
use super::order::{DaemonOrder, OrderReply};
use super::report::StatusReport;
use ckptd_core::error::{Error, Result};

const MAX_REQUEST: u64 = 64 << 10;
const MAX_REPLY: u64 = 1 << 20;
const TIMEOUT: Duration = Duration::from_secs(2);
const MAX_CLIENTS: usize = 16;

/// What a client may ask for.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case")]
pub enum StatusRequest {
    Status,
    /// End the session with a last snapshot, or at once.
    Stop {
        #[serde(default)]
        now: bool,
    },
    /// Take a snapshot.
    Snapshot,
}

impl StatusRequest {
    /// What a line asks for.
    pub fn parse(line: &[u8]) -> std::io::Result<StatusRequest> {
        Ok(serde_json::from_slice(line)?)
    }
}

/// A listening socket; its file goes with it.
pub struct StatusSocket {
    path: PathBuf,
    listener: UnixListener,
}

impl StatusSocket {
    /// Binds `path`, in the place of one that a dead daemon left. The caller holds the store's lock.
    pub fn bind(path: &Path) -> Result<StatusSocket> {
        let context = |e| Error::io("listening on the status socket", path, e);
        match std::fs::symlink_metadata(path) {
            Ok(found) if !found.file_type().is_socket() => {
                return Err(Error::Config(format!("[status] socket: {} is there and no socket", path.display())));
            }
            Ok(_) if connect(path).is_ok() => {
                return Err(Error::Config(format!("[status] socket: {} is another daemon's", path.display())));
            }
            Ok(_) => std::fs::remove_file(path).map_err(context)?,
            Err(_) => {}
        }
        let (_folder, short) = short_path(path).map_err(context)?;
        let before = umask(Mode::from_raw_mode(0o177));
        let bound = UnixListener::bind(&short);
        umask(before);
        let listener = bound.map_err(context)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(context)?;
        Ok(StatusSocket { path: path.to_path_buf(), listener })
    }

    /// Answers until the task is dropped.
    pub async fn serve<E: Send + 'static>(self, inputs: InboxSender<E>) {
        let places = Arc::new(Semaphore::new(MAX_CLIENTS));
        loop {
            let client = match self.listener.accept().await {
                Ok((client, _)) => client,
                Err(e) => {
                    // Out of file descriptors, for one: that passes, or it does not, but it must not spin.
                    debug!("a status client could not be accepted: {e}");
                    tokio::time::sleep(TIMEOUT).await;
                    continue;
                }
            };
            let Ok(place) = Arc::clone(&places).try_acquire_owned() else { continue };
            let inputs = inputs.clone();
            tokio::spawn(async move {
                if !matches!(tokio::time::timeout(TIMEOUT, answer(client, inputs)).await, Ok(Ok(()))) {
                    debug!("a status client was too slow, or asked for something unknown");
                }
                drop(place);
            });
        }
    }
}

impl Drop for StatusSocket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

async fn answer<E>(client: tokio::net::UnixStream, inputs: InboxSender<E>) -> std::io::Result<()> {
    let mut client = BufReader::new(client);
    let mut line = Vec::new();
    (&mut client).take(MAX_REQUEST).read_until(b'\n', &mut line).await?;
    let over = |_| std::io::Error::other("the job is over");
    // Where the loop is over, it drops what would be replied to.
    let mut json = match StatusRequest::parse(&line)? {
        StatusRequest::Status => {
            let (reply, report) = oneshot::channel();
            let _ = inputs.send(DaemonInput::Status(reply)).await;
            serde_json::to_vec(&report.await.map_err(over)?)?
        }
        StatusRequest::Stop { now } => {
            let order = if now { DaemonOrder::StopNow } else { DaemonOrder::Stop };
            serde_json::to_vec(&give(order, &inputs).await.map_err(over)?)?
        }
        StatusRequest::Snapshot => serde_json::to_vec(&give(DaemonOrder::Snapshot, &inputs).await.map_err(over)?)?,
    };
    json.push(b'\n');
    client.get_mut().write_all(&json).await
}

async fn give<E>(order: DaemonOrder, inputs: &InboxSender<E>) -> Result<OrderReply, oneshot::error::RecvError> {
    let (reply, said) = oneshot::channel();
    let _ = inputs.send(DaemonInput::Order(order, reply)).await;
    said.await
}

/// The report of the daemon that listens on `path`; `None` where none does.
pub fn ask(path: &Path) -> Result<Option<StatusReport>> {
    request(path, &StatusRequest::Status)
}

/// Gives the daemon that listens on `path` an order; `None` where none does, or where it does not know the order.
pub fn order(path: &Path, order: DaemonOrder) -> Result<Option<OrderReply>> {
    request(
        path,
        &match order {
            DaemonOrder::Stop => StatusRequest::Stop { now: false },
            DaemonOrder::StopNow => StatusRequest::Stop { now: true },
            DaemonOrder::Snapshot => StatusRequest::Snapshot,
        },
    )
}

/// Whether anything listens on `path`.
pub fn answers(path: &Path) -> bool {
    connect(path).is_ok()
}

fn request<T: DeserializeOwned>(path: &Path, request: &StatusRequest) -> Result<Option<T>> {
    let context = |e: std::io::Error| match e.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => Error::Other(format!(
            "the daemon on {} does not answer; is it suspended? (`kill -CONT` wakes it, Ctrl-Z suspends)",
            path.display()
        )),
        _ => Error::io("asking the daemon on", path, e),
    };
    let Ok(mut stream) = connect(path) else { return Ok(None) };
    stream.set_read_timeout(Some(TIMEOUT)).and_then(|()| stream.set_write_timeout(Some(TIMEOUT))).map_err(context)?;
    let request = serde_json::to_string(request).map_err(|e| Error::Other(e.to_string()))?;
    stream.write_all(format!("{request}\n").as_bytes()).map_err(context)?;
    let mut reply = Vec::new();
    stream.take(MAX_REPLY).read_to_end(&mut reply).map_err(context)?;
    if reply.is_empty() {
        return Ok(None); // It ended, or turned us away, between the two.
    }
    serde_json::from_slice(&reply).map(Some).map_err(|e| {
        Error::Other(format!("asking the daemon on {}: {e}; is it of another release of ckptd?", path.display()))
    })
}

fn connect(path: &Path) -> std::io::Result<UnixStream> {
    let (_folder, short) = short_path(path)?;
    UnixStream::connect(short)
}

/// `path` by way of its opened folder: a socket's address has room for 107 bytes, a path may be longer.
fn short_path(path: &Path) -> std::io::Result<(Option<std::os::fd::OwnedFd>, PathBuf)> {
    const ROOM: usize = 107;
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else { return Ok((None, path.to_path_buf())) };
    if path.as_os_str().len() <= ROOM {
        return Ok((None, path.to_path_buf()));
    }
    let folder = rustix::fs::open(folder, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let short = Path::new("/proc/self/fd").join(folder.as_raw_fd().to_string()).join(name);
    Ok((Some(folder), short))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::daemon::inbox::Inbox;
    use crate::daemon::report::{DaemonReport, StallReport, StoredCounts, WorkerReport};
    use crate::daemon::report::{HistoryReport, IntervalReport, JobState, SessionReport, SnapshotCounts};

    fn report() -> StatusReport {
        StatusReport {
            state: JobState::Starting,
            step: 0,
            total_steps: Some(7),
            percent: None,
            seconds_to_finish: None,
            loss: None,
            learning_rate: None,
            tokens_per_second: None,
            session: SessionReport::default(),
            last_snapshot: None,
            snapshots: SnapshotCounts::default(),
            stored: StoredCounts::default(),
            daemon: DaemonReport::default(),
            warnings: Vec::new(),
            stall_ms: StallReport::default(),
            worker: WorkerReport::default(),
            ranks: None,
            interval: IntervalReport::default(),
            history: HistoryReport::default(),
            remote: None,
            problem: None,
        }
    }

    /// A socket whose job always gives the same report, for as long as this lives.
    struct Server {
        stop: Option<oneshot::Sender<()>>,
        thread: Option<std::thread::JoinHandle<()>>,
    }

    impl Server {
        fn start(path: &Path) -> Server {
            let (ready, is_ready) = std::sync::mpsc::channel();
            let (stop, stopped) = oneshot::channel();
            let path = path.to_path_buf();
            let thread = std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(async {
                    let (inputs, mut inbox) = Inbox::<()>::new();
                    let server = tokio::spawn(StatusSocket::bind(&path).unwrap().serve(inputs));
                    ready.send(()).unwrap();
                    let answer = async {
                        while let Some(DaemonInput::Status(reply)) = inbox.next(None).await {
                            reply.send(report()).unwrap();
                        }
                    };
                    tokio::select! { () = answer => {}, _ = stopped => {} }
                    server.abort();
                    let _ = server.await;
                });
            });
            is_ready.recv().unwrap();
            Server { stop: Some(stop), thread: Some(thread) }
        }

        fn end(&mut self) {
            self.stop.take().unwrap().send(()).unwrap();
            self.thread.take().unwrap().join().unwrap();
        }
    }

    #[test]
    fn a_socket_with_a_long_path_answers_and_is_its_owners_only() {
        let folder = tempfile::tempdir().unwrap();
        let deep = folder.path().join("d".repeat(200));
        std::fs::create_dir(&deep).unwrap();
        let path = deep.join("status.sock");
        let mut server = Server::start(&path);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(ask(&path).unwrap().unwrap().total_steps, Some(7));
        server.end();
        assert!(!path.exists(), "the socket outlived its server");
    }

    #[test]
    fn clients_that_say_nothing_or_nonsense_delay_nobody() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("status.sock");
        let mut server = Server::start(&path);
        let silent: Vec<UnixStream> = (0..8).map(|_| UnixStream::connect(&path).unwrap()).collect();
        let mut nonsense = UnixStream::connect(&path).unwrap();
        nonsense.write_all(b"\xff\x00{\n").unwrap();
        assert_eq!(ask(&path).unwrap().unwrap().total_steps, Some(7));
        drop(silent);
        server.end();
    }

    #[test]
    fn only_a_socket_that_a_dead_daemon_left_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("status.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let _context = runtime.enter();
        drop(StatusSocket::bind(&path).unwrap());
        std::fs::write(&path, "mine").unwrap();
        let error = StatusSocket::bind(&path).err().unwrap();
        assert_eq!((error.exit_code(), std::fs::read(&path).unwrap()), (78, b"mine".to_vec()));
    }
}
