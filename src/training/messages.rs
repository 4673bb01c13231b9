//! Messages to and from a worker, line by line, over whatever carries them.
//!
//! Invariant: a line that is no message ends the listening, and is told. Deliberately not here: what carries it.

use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::sync::mpsc;

use super::job::events::JobEvent;
use crate::daemon::inbox::{DaemonInput, InboxSender};
use ckptd_core::protocol::{self, AgentCommand, WorkerEvent};

/// Writes commands as they come, until there are no more or the worker takes none.
pub(super) async fn write_commands(
    mut stdin: impl AsyncWrite + Unpin,
    mut queue: mpsc::UnboundedReceiver<AgentCommand>,
) {
    while let Some(command) = queue.recv().await {
        // A worker that closed its stdin is about to be noticed by its exit or its silence.
        if stdin.write_all(protocol::line(&command).as_bytes()).await.is_err() {
            return;
        }
    }
}

/// Passes the worker's messages on, up to its end or the first line that is no message; `heard` is told first.
pub(super) async fn listen(
    words: impl AsyncRead + Unpin,
    heard: impl Fn(&WorkerEvent),
    inputs: &InboxSender<JobEvent>,
) {
    let mut reader = BufReader::new(words);
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = (&mut reader).take(protocol::MAX_LINE as u64 + 1).read_until(b'\n', &mut line).await;
        if read.is_err() || (line.last() != Some(&b'\n') && line.len() <= protocol::MAX_LINE) {
            return; // Its end, perhaps in the middle of a line.
        }
        let parsed = match std::str::from_utf8(line.trim_ascii_end()) {
            Ok(text) => protocol::parse(text),
            Err(_) => Err("a line that is not UTF-8".to_owned()),
        };
        let (event, last) = match parsed {
            Ok(message) => {
                heard(&message);
                (JobEvent::Said(Box::new(message)), false)
            }
            Err(what) => (JobEvent::ProtocolError(what), true),
        };
        if inputs.send(DaemonInput::Event(event)).await.is_break() || last {
            return;
        }
    }
}
