//! A training script as a worker: its stdin, stdout and stderr are its own, and its Python package speaks the protocol
//! over a socket that the environment names.
//!
//! Invariant: `hello` is said for it as soon as it runs, since its imports may take minutes; until it is heard, its
//! being alive is its sign of life. Its exit code 0 says that the training is complete. One connection is taken: of
//! several ranks behind a launcher that of rank 0, which the others find in the folder of the socket. That is the
//! user's own, and stays until the connection is over. Deliberately not here: what the messages mean (job).

use std::io::IsTerminal;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::job::events::JobEvent;
use super::messages::{listen, write_commands};
use crate::daemon::inbox::{DaemonInput, InboxSender};
use ckptd_core::error::{Error, Result};
use ckptd_core::protocol::{self, AgentCommand, WorkerEvent, WorkerFailure};

/// Names the socket in the script's environment.
pub const SOCKET_VARIABLE: &str = "CKPTD_SOCKET";
/// How often a script that has not spoken yet is said to be starting.
const STARTING_INTERVAL: Duration = Duration::from_millis(500);

/// What a script has said so far, as far as its exit code needs it to be understood.
#[derive(Debug, Default)]
pub(super) struct ScriptWords {
    /// Steps completed; `None`: it has not begun to train.
    step: Option<u64>,
    /// It has said its last word itself.
    has_ended: bool,
}

/// The task that hears a script, and what it has heard.
pub(super) struct ScriptListener {
    pub(super) listener: JoinHandle<()>,
    pub(super) heard: Arc<Mutex<ScriptWords>>,
}

impl ScriptListener {
    /// Whether the script has begun to train.
    pub(super) fn has_begun(&self) -> bool {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).step.is_some()
    }
}

/// Where a script is waited for. The folder goes with its connection.
pub(super) struct ScriptSocket {
    listener: UnixListener,
    path: PathBuf,
    _folder: tempfile::TempDir,
}

impl ScriptWords {
    fn hear(&mut self, event: &WorkerEvent) {
        match event {
            WorkerEvent::Ready { step, .. } | WorkerEvent::Step { step, .. } => self.step = Some(*step),
            WorkerEvent::Done { .. } | WorkerEvent::Failed { .. } => self.has_ended = true,
            _ => {}
        }
    }

    /// The last word of a script that exits with `code` and has said none.
    pub(super) fn at_exit(&self, code: Option<i32>) -> Option<WorkerEvent> {
        match (self.has_ended, code, self.step) {
            (false, Some(0), Some(step)) => Some(WorkerEvent::Done { step, finished: true }),
            (false, Some(0), None) => Some(WorkerEvent::Failed {
                failure: WorkerFailure::Config,
                what: "the script ended and never called ckptd.attach(model, optimizer)".into(),
            }),
            _ => None,
        }
    }
}

impl ScriptSocket {
    pub(super) fn bind() -> Result<ScriptSocket> {
        let folder = tempfile::Builder::new().prefix("ckptd-").tempdir();
        let folder = folder.map_err(|e| Error::Other(format!("making a folder for the script's socket: {e}")))?;
        let path = folder.path().join("worker.sock");
        let listener = UnixListener::bind(&path).map_err(|e| Error::io("listening on", &path, e))?;
        Ok(ScriptSocket { listener, path, _folder: folder })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Says hello for the script, waits for it, and passes messages in both directions until it is gone.
    pub(super) async fn serve(
        self,
        pid: u32,
        commands: mpsc::UnboundedReceiver<AgentCommand>,
        heard: Arc<Mutex<ScriptWords>>,
        inputs: InboxSender<JobEvent>,
    ) {
        let hello = WorkerEvent::Hello {
            protocol: protocol::VERSION,
            worker: "script".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            pid,
            accepts: vec!["configure".into()],
        };
        say(hello, &inputs).await;
        let Some(stream) = self.accept(&inputs).await else { return };
        if let Some(pid) = stream.peer_cred().ok().and_then(|peer| peer.pid()).and_then(|pid| u32::try_from(pid).ok()) {
            // The job may be over already.
            let _ = inputs.send(DaemonInput::Event(JobEvent::Connected { pid })).await;
        }
        // It is the one that was waited for, and nothing else may come.
        let ScriptSocket { listener, _folder, .. } = self;
        drop(listener);
        let (words, to_script) = stream.into_split();
        let writer = tokio::spawn(write_commands(to_script, commands));
        let hear = |event: &WorkerEvent| heard.lock().unwrap_or_else(PoisonError::into_inner).hear(event);
        listen(words, hear, &inputs).await;
        writer.abort();
    }

    async fn accept(&self, inputs: &InboxSender<JobEvent>) -> Option<UnixStream> {
        loop {
            tokio::select! {
                accepted = self.listener.accept() => return accepted.ok().map(|(stream, _)| stream),
                () = tokio::time::sleep(STARTING_INTERVAL) => {
                    let stage = "the script is starting".to_owned();
                    say(WorkerEvent::Progress { stage, fraction: None }, inputs).await;
                }
            }
        }
    }
}

async fn say(event: WorkerEvent, inputs: &InboxSender<JobEvent>) {
    // The job may be over already.
    let _ = inputs.send(DaemonInput::Event(JobEvent::Said(Box::new(event)))).await;
}

/// The stdin of a script: this process's own, unless that is a terminal, which is for the daemon and its Ctrl-C; from
/// there a process in the background is not let read.
pub(super) fn script_stdin() -> Stdio {
    let stdin = std::io::stdin();
    if stdin.is_terminal() {
        return Stdio::null();
    }
    stdin.as_fd().try_clone_to_owned().map_or_else(|_| Stdio::null(), Stdio::from)
}
