//! What comes before the event loop: when the session began, the lock.

use std::path::Path;
use std::time::{Duration, Instant};

use tracing::info;

use super::job::{ClockReading, JobEvent, Signal};
use super::{Input, Queue};
use crate::session::clock::BootInstant;
use ckptd_core::config::Config;
use ckptd_core::error::{Error, Result};
use ckptd_core::os::process::started_since_boot;
use ckptd_core::store::lock::SESSION;
use ckptd_core::store::{Store, StoreLock};

/// How long the worker of an agent that is gone may take to commit its last snapshot.
const ORPHAN_TIMEOUT: Duration = Duration::from_secs(60);
const NAMELESS_TIMEOUT: Duration = Duration::from_secs(1);
const LOCK_INTERVAL: Duration = Duration::from_millis(50);
/// A start that took longer than this did not happen.
const MAX_STARTUP: Duration = Duration::from_secs(60);

/// When the session began: with the process, since that is what a budget is counted from.
pub fn began(config: &Config) -> Result<ClockReading> {
    let now = ClockReading::now();
    if let Some(deadline) = config.session.deadline.filter(|deadline| deadline.0 <= now.wall) {
        return Err(Error::Config(format!("[session] deadline: {} is past", deadline.0)));
    }
    let started = started_since_boot().map(BootInstant::since_boot);
    // Nonsense, in a namespace with a clock of its own for example, is not believed.
    let at = started.filter(|at| *at <= now.at && now.at - *at < MAX_STARTUP).unwrap_or(now.at);
    Ok(ClockReading { at, wall: now.wall_at(at) })
}

/// Takes the store's lock. A worker whose agent is gone is committing its last snapshot: it is waited for. `None`: a
/// signal or the budget ended the wait.
pub async fn lock(
    store: &Store,
    config: &Config,
    session: ClockReading,
    queue: &mut Queue,
) -> Result<Option<StoreLock>> {
    let began = Instant::now();
    let budget_ends = config.session.budget.map(|budget| session.at + budget.0);
    let mut held = Vec::new();
    let mut told = false;
    loop {
        let error = match store.lock(&format!("{SESSION}, job {}", config.job.name)) {
            Ok(lock) => {
                // What was said meanwhile is for the job.
                queue.held.extend(held);
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
                if !std::mem::replace(&mut told, true) {
                    info!("waiting for the worker of the last session, which is saving its last snapshot");
                }
            }
            _ => return Err(error),
        }
        let input = queue.next(Some(BootInstant::now() + LOCK_INTERVAL)).await;
        match input {
            Input::Job(JobEvent::Signal(Signal::Interrupt | Signal::Terminate | Signal::Finish)) => return Ok(None),
            Input::Job(JobEvent::Notice(_)) => held.push(input),
            _ if budget_ends.is_some_and(|end| BootInstant::now() >= end) => return Ok(None),
            _ => {}
        }
    }
}

/// A worker that neither saves nor leaves must be ended by somebody who knows what it is.
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

/// What is trained, in a few words.
pub fn describe(config: &Config) -> String {
    match (&config.model.preset, &config.model.from) {
        (Some(preset), _) => preset.clone(),
        (None, Some(folder)) => folder.display().to_string(),
        (None, None) => "a model".to_owned(),
    }
}
