//! The worker's side of the protocol: events out, commands in.
//!
//! Invariant: sending an event never waits for its reader: neither a slow agent nor a stopped terminal holds up the
//! training. Deliberately not here: what commands do (`main`).

use std::io::{BufRead, BufReader, Read, Write};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use ckptd_core::progress::ProgressSink;
use ckptd_core::protocol::{self, AgentCommand, MAX_LINE, MessageLevel, WorkerEvent};

/// The thread that writes events.
pub const THREAD: &str = "events";
/// The thread that serves commands.
pub const COMMANDS_THREAD: &str = "commands";

/// Sends events; clones go to other threads.
#[derive(Clone)]
pub struct EventSender {
    sender: Sender<OutboxMessage>,
}

enum OutboxMessage {
    Event(WorkerEvent),
    /// Everything sent before is written.
    Flush(Sender<()>),
}

/// How long the last events may take to leave when the process ends.
const LAST_WORDS: Duration = Duration::from_secs(5);

impl EventSender {
    /// Events that leave as lines on standard output.
    pub fn to_stdout() -> std::io::Result<EventSender> {
        let (sender, receiver) = channel();
        std::thread::Builder::new().name(THREAD.into()).spawn(move || write_all(receiver))?;
        Ok(EventSender { sender })
    }

    /// Events that nobody hears: those of a rank that does not speak for the training.
    pub fn unheard() -> EventSender {
        EventSender { sender: channel().0 }
    }

    pub fn send(&self, event: WorkerEvent) {
        // The writer lives as long as the process: it drops what has no reader.
        let _ = self.sender.send(OutboxMessage::Event(event));
    }

    pub fn log(&self, level: MessageLevel, message: impl Into<String>) {
        self.send(WorkerEvent::Log { level, message: message.into() });
    }

    /// Waits until everything sent so far has left, up to a few seconds.
    pub fn flush(&self) {
        let (done, wait) = channel();
        if self.sender.send(OutboxMessage::Flush(done)).is_ok() {
            let _ = wait.recv_timeout(LAST_WORDS);
        }
    }
}

/// A progress sink whose news leave as events: each is a sign of life.
pub struct EventProgress<'a> {
    events: &'a EventSender,
    stage: Mutex<StageProgress>,
}

#[derive(Default)]
struct StageProgress {
    name: String,
    total_bytes: u64,
    done_bytes: u64,
}

impl<'a> EventProgress<'a> {
    /// Tells `events`.
    pub fn new(events: &'a EventSender) -> EventProgress<'a> {
        EventProgress { events, stage: Mutex::default() }
    }

    fn tell(&self, change: impl FnOnce(&mut StageProgress)) {
        // Plain values, which a panic under the lock leaves whole.
        let mut stage = self.stage.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut stage);
        let known = stage.total_bytes > 0;
        let fraction = known.then(|| (stage.done_bytes as f64 / stage.total_bytes as f64).min(1.0));
        self.events.send(WorkerEvent::Progress { stage: stage.name.clone(), fraction });
    }
}

impl ProgressSink for EventProgress<'_> {
    fn begin(&self, stage: &str, total_bytes: u64) {
        self.tell(|now| *now = StageProgress { name: stage.to_owned(), total_bytes, done_bytes: 0 });
    }

    fn advance(&self, bytes: u64) -> ckptd_core::Result<()> {
        self.tell(|now| now.done_bytes += bytes);
        Ok(())
    }
}

fn write_all(messages: Receiver<OutboxMessage>) {
    let mut out = std::io::stdout();
    for message in messages {
        match message {
            // A closed pipe means that the agent is gone, which the commands' side notices and acts on.
            OutboxMessage::Event(event) => {
                drop(out.write_all(protocol::line(&event).as_bytes()).and_then(|()| out.flush()))
            }
            OutboxMessage::Flush(done) => drop(done.send(())),
        }
    }
}

/// The next line of at most [`MAX_LINE`] bytes; `None` at the end of the input.
fn next_line(input: &mut impl BufRead) -> Result<Option<String>, String> {
    let mut line = Vec::new();
    let read = input.by_ref().take(MAX_LINE as u64 + 1).read_until(b'\n', &mut line);
    match read {
        Err(e) => Err(format!("reading commands: {e}")),
        Ok(0) => Ok(None),
        Ok(n) if n > MAX_LINE => Err(format!("a command of more than {MAX_LINE} bytes")),
        Ok(_) => String::from_utf8(line).map(Some).map_err(|_| "a command that is not UTF-8".into()),
    }
}

/// Commands from standard input, blank lines passed over.
pub struct CommandReader {
    input: BufReader<std::io::Stdin>,
}

impl CommandReader {
    pub fn from_stdin() -> CommandReader {
        CommandReader { input: BufReader::new(std::io::stdin()) }
    }

    /// The next command; `None` when the agent is gone.
    pub fn next_command(&mut self) -> Result<Option<AgentCommand>, String> {
        loop {
            match next_line(&mut self.input)? {
                None => return Ok(None),
                Some(line) if line.trim().is_empty() => {}
                Some(line) => return protocol::parse(line.trim()).map(Some),
            }
        }
    }
}
