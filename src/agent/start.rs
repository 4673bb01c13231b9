//! What comes before the event loop: the lock, the run's id.

use std::io::Read;
use std::path::Path;
use std::time::{Duration, Instant};

use tracing::{debug, info};

use super::job::{Event, Signal};
use super::{Input, Queue};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::store::lock::SESSION;
use crate::store::{Lock, Store};

/// How long the worker of an agent that is gone may take to commit its last snapshot.
const ORPHAN_TIMEOUT: Duration = Duration::from_secs(60);
const NAMELESS_TIMEOUT: Duration = Duration::from_secs(1);
const LOCK_INTERVAL: Duration = Duration::from_millis(50);

/// Takes the store's lock. A worker whose agent is gone is committing its last snapshot: it is waited for. `None`: a
/// signal ended the wait.
pub async fn lock(store: &Store, job: &str, queue: &mut Queue) -> Result<Option<Lock>> {
    let began = Instant::now();
    let mut told = false;
    loop {
        let error = match store.lock(&format!("{SESSION}, job {job}")) {
            Ok(lock) => return Ok(Some(lock)),
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
        let input = queue.next(Some(Instant::now() + LOCK_INTERVAL)).await;
        if let Input::Job(Event::Signal(Signal::Interrupt | Signal::Terminate | Signal::Finish)) = input {
            return Ok(None);
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

/// The id of the store's run; a new store gets one of 128 random bits.
pub fn run_id(store: &Store) -> Result<String> {
    if let Some(run_id) = store.run_id()? {
        return Ok(run_id);
    }
    let mut bits = [0; 16];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut source| source.read_exact(&mut bits))
        .map_err(|e| Error::io("reading", "/dev/urandom", e))?;
    let run_id: String = bits.iter().map(|byte| format!("{byte:02x}")).collect();
    store.set_run_id(&run_id)?;
    debug!("the run is {run_id}");
    Ok(run_id)
}

/// What is trained, in a few words.
pub fn describe(config: &Config) -> String {
    match (&config.model.preset, &config.model.from) {
        (Some(preset), _) => preset.clone(),
        (None, Some(folder)) => folder.display().to_string(),
        (None, None) => "a model".to_owned(),
    }
}
