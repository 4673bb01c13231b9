//! What can happen to a job, and what it can want done: two closed lists.

use crate::daemon::hooks::HookCall;
use crate::daemon::signals::DaemonSignal;
use crate::daemon::verifier::{ReadBack, ResumeDecision};
use crate::session::notice::SessionNotice;
use crate::session::records::{SessionRecord, SessionRecords};
use crate::training::progress::KeptSnapshot;
use ckptd_core::config::{Config, LogLevel};
use ckptd_core::error::{Error, Result};
use ckptd_core::ids::SnapshotId;
use ckptd_core::protocol::{self, AgentCommand};
use ckptd_history::record::HistoryRecord;
use ckptd_remote::job::replicator::ReplicaNews;

/// Everything that can happen to a job.
#[derive(Debug)]
pub enum JobEvent {
    /// The verifier has picked the snapshot to go on from.
    Chosen(Result<ResumeDecision>),
    /// The verifier has read a snapshot back.
    ReadBack {
        id: SnapshotId,
        result: ReadBack,
    },
    Started {
        pid: u32,
        /// How many ranks were asked for.
        ranks: usize,
    },
    NotStarted(Error),
    /// The process that trains has connected: the script itself, or rank 0 behind a launcher.
    Connected {
        pid: u32,
    },
    Said(Box<protocol::WorkerEvent>),
    /// The worker broke the protocol; nothing more will be heard of it.
    ProtocolError(String),
    /// The worker is gone, and everything that it said has been heard.
    Exited(WorkerExit),
    Signal(DaemonSignal),
    /// The job file was changed, or was read again on request.
    Config(Result<Box<Config>>),
    /// A notice source has something to say.
    Notice(SessionNotice),
    /// What the store holds at the end: the snapshot that the next session goes on from.
    Kept(Result<Option<KeptSnapshot>>),
    /// What came of the job's snapshots at its remote.
    Remote(ReplicaNews),
    /// The time that [`JobMachine::wake_at`](super::machine::JobMachine::wake_at) named has come.
    Tick,
}

impl JobEvent {
    /// Whether it shows that the worker or the verifier lives: all that they say and do does.
    pub fn is_sign_of_life(&self) -> bool {
        !matches!(
            self,
            JobEvent::Tick
                | JobEvent::Signal(_)
                | JobEvent::Notice(_)
                | JobEvent::Config(_)
                | JobEvent::Kept(_)
                | JobEvent::Remote(_)
        ) && !self.is_beside_training()
    }

    /// Whether it comes from a thread that goes on when the training hangs.
    fn is_beside_training(&self) -> bool {
        matches!(self, JobEvent::Said(message) if matches!(**message, protocol::WorkerEvent::Ranks { .. }))
    }
}

/// Everything that a job wants done.
#[derive(Debug)]
pub enum JobAction {
    /// Quarantine each of `discard` (id, reason), then pick the snapshot to go on from.
    Choose {
        discard: Vec<(SnapshotId, String)>,
    },
    /// Quarantine these (id, reason).
    SetAside {
        spoiled: Vec<(SnapshotId, String)>,
    },
    Spawn,
    Send(AgentCommand),
    /// SIGKILL to the worker's process group.
    Kill,
    /// Read a snapshot back, quarantine it if it is not what was written, rotate if it is.
    Verify {
        id: SnapshotId,
    },
    /// Send a verified snapshot to the job's remote.
    Replicate {
        id: SnapshotId,
    },
    /// Write to the store what of this session is at the job's remote.
    RecordReplication(serde_json::Value),
    /// Write the sessions so far to the store.
    Record(Box<SessionRecords>),
    /// Have it stand in the history of the training.
    Keep(HistoryRecord),
    /// Have the user's program told.
    Tell(Box<HookCall>),
    /// Write how far the session is where its death cannot lose it.
    Mark(Box<SessionRecord>),
    /// Read the job file again.
    Reload,
    /// Look into the store: what does it hold now?
    LookAtStore,
    /// Ask every source of notices now, whenever it was asked last.
    AskSources,
    /// Stop the worker and this process until SIGCONT comes.
    StandStill,
    /// Log from this level on.
    SetLogLevel(LogLevel),
    /// Remember the job in the store as it is now.
    Remember(Box<Config>),
    /// The session is over.
    End(Result<SessionOutcome>),
}

/// How a session ended without an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionOutcome {
    /// All steps are done and the last snapshot is verified.
    Finished,
    /// The session is over before the training is.
    Resume,
    /// As `Resume`, and nothing but its budget has ended it: the next session may begin at once.
    BudgetOver,
}

/// How the worker ended.
#[derive(Debug)]
pub struct WorkerExit {
    pub code: Option<i32>,
    pub signal: Option<i32>,
    /// The kernel killed a process for lack of memory meanwhile.
    pub out_of_memory: bool,
    /// The end of what it wrote on stderr.
    pub stderr_tail: Vec<String>,
}
