//! What comes before the event loop, step by step.
//!
//! Invariant: the order is a contract. The beginning is read first, since a budget counts from the process's start.
//! Signals and notices are heard before the lock is waited for: both can end the wait. Nothing in the store is
//! touched without the lock.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;
use tracing::{debug, info, warn};

use super::companions;
use super::job::events::JobEvent;
use super::opening::MachineRoom;
use super::remote::{self, SessionBeginning};
use crate::daemon::inbox::{DaemonInput, Inbox, InboxSender};
use crate::daemon::recorder;
use crate::daemon::signals::{self, DaemonSignal};
use crate::daemon::status::StatusSocket;
use crate::once_flag::OnceFlag;
use crate::session::clock::{BootInstant, ClockReading};
use crate::session::records::SessionRecords;
use ckptd_core::config::{Config, DataSection};
use ckptd_core::error::{Error, Result};
use ckptd_core::ids::RunId;
use ckptd_core::os::fs::free_space;
use ckptd_core::os::process::{available_memory, started_since_boot};
use ckptd_core::store::lock::SESSION;
use ckptd_core::store::{Record, Store, StoreLock};
use ckptd_remote::job::replicator::Replicator;

/// How long the worker of a daemon that is gone may take to commit its last snapshot.
const ORPHAN_TIMEOUT: Duration = Duration::from_secs(60);
const NAMELESS_TIMEOUT: Duration = Duration::from_secs(1);
const LOCK_INTERVAL: Duration = Duration::from_millis(50);
/// A start that took longer than this did not happen.
const MAX_STARTUP: Duration = Duration::from_secs(60);

/// What a session has once it has begun.
pub(super) struct Started {
    pub store: Arc<Store>,
    pub lock: Arc<StoreLock>,
    pub run_id: RunId,
    /// The sessions before this one.
    pub records: SessionRecords,
    pub room: MachineRoom,
    /// Answers status requests; aborted, it removes its socket.
    pub status_server: JoinHandle<()>,
    /// `None`: the job has no remote.
    pub replicator: Option<Replicator>,
    /// What is trained on where the job's own data is not on this machine.
    pub data: Option<DataSection>,
}

/// When the session began: the first one of a process with the process, since that is what a budget is counted from.
pub(super) fn began(config: &Config, is_first: bool) -> Result<ClockReading> {
    let now = ClockReading::now();
    if let Some(deadline) = config.session.deadline.filter(|deadline| deadline.0 <= now.wall) {
        return Err(Error::Config(format!("[session] deadline: {} is past", deadline.0)));
    }
    let started = started_since_boot().map(BootInstant::since_boot).filter(|_| is_first);
    // Nonsense, in a namespace with a clock of its own for example, is not believed.
    let at = started.filter(|at| *at <= now.at && now.at - *at < MAX_STARTUP).unwrap_or(now.at);
    Ok(ClockReading { at, wall: now.wall_at(at) })
}

/// Opens, locks and tidies the store, and begins to answer status requests. `None`: a signal or the budget ended the
/// wait for the lock.
pub(super) async fn start(
    config: &Config,
    beginning: SessionBeginning<'_>,
    inputs: &InboxSender<JobEvent>,
    inbox: &mut Inbox<JobEvent>,
) -> Result<Option<Started>> {
    let store = Arc::new(Store::create(&config.job.store)?);
    let Some(lock) = take_lock(&store, config, beginning.budget_ends(config), inbox).await? else { return Ok(None) };
    let lock = Arc::new(lock);
    // First, since an empty store becomes that of the remote's training.
    let begun = remote::begin(config, (&store, &lock), beginning, inputs, inbox).await?;
    let ControlFlow::Continue(replicator) = begun else { return Ok(None) };
    let run_id = store.begin_run(&lock, RunId::random)?;
    debug!("the run is {run_id}");
    if let Err(e) = store.write_record(&lock, Record::Job, config) {
        // A full disk must not keep a training from going on: only `status` and `list` know less for it.
        warn!("the job is not remembered in the store: {e}");
    }
    let status_server = serve_status(config, inputs)?;
    let records = recorder::sessions(&store);
    let room = MachineRoom { memory_bytes: available_memory(), disk_bytes: free_space(store.path()) };
    let data = companions::travelled(config, &store);
    if let Some(tokens) = data.as_ref().and_then(|data| data.tokens.as_ref()) {
        info!("the data that the job names is not on this machine: training on {}", tokens.display());
    }
    Ok(Some(Started { store, lock, run_id, records, room, status_server, replicator, data }))
}

/// Takes the store's lock. A worker whose daemon is gone is committing its last snapshot: it is waited for.
async fn take_lock(
    store: &Store,
    config: &Config,
    budget_ends: Option<BootInstant>,
    inbox: &mut Inbox<JobEvent>,
) -> Result<Option<StoreLock>> {
    let began = Instant::now();
    let mut held = Vec::new();
    let mut told = OnceFlag::default();
    loop {
        let error = match store.lock(&format!("{SESSION}, job {}", config.job.name)) {
            Ok(lock) => {
                // What was said meanwhile is for the job.
                inbox.hold(held);
                return Ok(Some(lock));
            }
            Err(error) => error,
        };
        match &error {
            // Its holder has not even written its name yet.
            Error::Locked { pid: 0, .. } if began.elapsed() < NAMELESS_TIMEOUT => {}
            Error::Locked { alive: false, path, .. } if began.elapsed() >= ORPHAN_TIMEOUT => {
                return Err(orphaned(path, store));
            }
            Error::Locked { alive: false, .. } => {
                if told.raise() {
                    info!("waiting for the worker of the last session, which is saving its last snapshot");
                }
            }
            _ => return Err(error),
        }
        let input = inbox.next(Some(BootInstant::now() + LOCK_INTERVAL)).await;
        match input {
            Some(DaemonInput::Event(JobEvent::Signal(
                DaemonSignal::Interrupt | DaemonSignal::Terminate | DaemonSignal::Finish,
            ))) => return Ok(None),
            Some(DaemonInput::Event(JobEvent::Signal(DaemonSignal::Suspend))) => signals::stand_still(),
            Some(DaemonInput::Event(JobEvent::Notice(_))) => held.extend(input),
            _ if budget_ends.is_some_and(|end| BootInstant::now() >= end) => return Ok(None),
            _ => {}
        }
    }
}

/// A worker that neither saves nor exits must be ended by a person, who knows what it is.
fn orphaned(path: &Path, store: &Store) -> Error {
    let pids = store.lock_holders();
    let end = match pids.as_slice() {
        [] => "end it".to_owned(),
        pids => format!("end it: kill -9 {}", pids.iter().map(u32::to_string).collect::<Vec<_>>().join(" ")),
    };
    Error::Other(format!(
        "the store {} is held by the worker of a session whose ckptd is gone, and it does not leave; {end}",
        path.display()
    ))
}

fn serve_status(config: &Config, inputs: &InboxSender<JobEvent>) -> Result<JoinHandle<()>> {
    match StatusSocket::bind(&config.status.socket) {
        Ok(socket) => Ok(tokio::spawn(socket.serve(inputs.clone()))),
        Err(error @ Error::Config(_)) => Err(error),
        Err(error) => {
            // Some shared and cloud file systems know no sockets, which is no reason not to train.
            warn!("{error}; `ckptd status` will show the store's files only");
            Ok(tokio::spawn(std::future::ready(())))
        }
    }
}
