//! What can happen to a job, and what it can want done: both closed.

use std::path::PathBuf;
use std::time::Duration;

use jiff::Timestamp;

pub use crate::session::clock::ClockReading;
use crate::session::notice::SessionNotice;
use crate::session::records::SessionRecords;
use ckptd_core::config::{Config, LogLevel};
use ckptd_core::error::{Error, Result};
use ckptd_core::ids::SnapshotId;
use ckptd_core::protocol::{self, AgentCommand};
use ckptd_core::snapshot::TrainState;

/// Everything that can happen to a job.
#[derive(Debug)]
pub enum JobEvent {
    /// The keeper has picked the snapshot to go on from.
    Chosen(Result<ResumeDecision>),
    /// The keeper has read a snapshot back.
    Judged {
        id: SnapshotId,
        verdict: ReadBack,
    },
    Started {
        pid: u32,
    },
    NotStarted(Error),
    Said(Box<protocol::WorkerEvent>),
    /// The worker wrote something that is no message; nothing more will be heard of it.
    Garbage(String),
    /// The worker is gone, and everything that it said has been heard.
    Exited(WorkerExit),
    Signal(Signal),
    /// The job file was changed, or somebody asked to read it again.
    Config(Result<Box<Config>>),
    /// A notice source has something to say.
    Notice(SessionNotice),
    /// The time that [`Job::wake_at`] named has come.
    Tick,
}

impl JobEvent {
    /// Whether it shows that the worker or the keeper lives: all that they say and do does.
    pub fn is_sign_of_life(&self) -> bool {
        !matches!(self, JobEvent::Tick | JobEvent::Signal(_) | JobEvent::Notice(_) | JobEvent::Config(_))
    }
}

/// Everything that a job wants done.
#[derive(Debug)]
pub enum JobAction {
    /// Quarantine `discard` (id, reason), then pick the snapshot to go on from.
    Choose {
        discard: Option<(SnapshotId, String)>,
    },
    Spawn,
    Send(AgentCommand),
    /// SIGKILL to the worker's process group.
    Kill,
    /// Read a snapshot back, quarantine it if it is not what was written, rotate if it is.
    Verify {
        id: SnapshotId,
    },
    /// Write the records to the store.
    Record(Box<SessionRecords>),
    /// Read the job file again.
    Reload,
    /// Log from this level on.
    SetLogLevel(LogLevel),
    /// Remember the job in the store as it is now.
    Remember(Box<Config>),
    /// The session is over.
    End(Result<Outcome>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All steps are done and the last snapshot is verified.
    Finished,
    /// The session is over before the training is.
    Resume,
}

#[derive(Debug)]
pub struct ResumeDecision {
    /// `None`: the training begins with its first step.
    pub resume: Option<Resume>,
    pub next_seq: u64,
}

#[derive(Clone, Debug)]
pub struct Resume {
    pub id: SnapshotId,
    pub path: PathBuf,
    pub step: u64,
    pub train: TrainState,
    pub created_at: Timestamp,
    pub why: String,
}

#[derive(Debug)]
pub enum ReadBack {
    Verified {
        step: u64,
        bytes: u64,
        raw_bytes: u64,
        healthy: bool,
        created_at: Timestamp,
        took: Duration,
    },
    /// It is not what was written, and in quarantine now.
    Quarantined {
        reason: String,
    },
    /// It could not be judged, and stays where it is.
    Unknown {
        reason: String,
    },
    /// Somebody took it away, or the worker put it elsewhere.
    Gone,
}

#[derive(Debug)]
pub struct WorkerExit {
    pub code: Option<i32>,
    pub signal: Option<i32>,
    /// The kernel killed a process for lack of memory meanwhile.
    pub out_of_memory: bool,
    /// The end of what it wrote on stderr.
    pub last_words: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    Interrupt,
    Terminate,
    /// SIGUSR1: a snapshot now.
    Snapshot,
    /// SIGUSR2: end the session.
    Finish,
    /// SIGHUP: read the job file again (or the terminal is gone, which changes nothing).
    Hangup,
}

impl Signal {
    pub const fn name(self) -> &'static str {
        match self {
            Signal::Interrupt => "SIGINT",
            Signal::Terminate => "SIGTERM",
            Signal::Snapshot => "SIGUSR1",
            Signal::Finish => "SIGUSR2",
            Signal::Hangup => "SIGHUP",
        }
    }
}
