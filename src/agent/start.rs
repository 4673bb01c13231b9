//! What comes before the event loop: the lock, the run's id.

use std::io::Read;
use std::time::{Duration, Instant};

use tracing::{debug, info};

use super::job::{Event, Signal};
use super::{Input, Queue};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::store::{Lock, Store};

/// How long the worker of an agent that is gone may take to commit its last snapshot.
const ORPHAN_TIMEOUT: Duration = Duration::from_secs(60);
const LOCK_INTERVAL: Duration = Duration::from_millis(50);

/// Takes the store's lock. A worker whose agent is gone is committing its last snapshot: it is waited for. `None`: a
/// signal ended the wait.
pub async fn lock(store: &Store, job: &str, queue: &mut Queue) -> Result<Option<Lock>> {
    let give_up_at = Instant::now() + ORPHAN_TIMEOUT;
    let mut told = false;
    loop {
        let error = match store.lock(&format!("ckptd run, job {job}")) {
            Ok(lock) => return Ok(Some(lock)),
            Err(error) => error,
        };
        match &error {
            Error::Locked { alive: false, .. } if Instant::now() < give_up_at => {}
            _ => return Err(error),
        }
        if !std::mem::replace(&mut told, true) {
            info!("waiting for the worker of the last session, which is saving its last snapshot");
        }
        let input = queue.next(Some(Instant::now() + LOCK_INTERVAL)).await;
        if let Input::Job(Event::Signal(Signal::Interrupt | Signal::Terminate | Signal::Finish)) = input {
            return Ok(None);
        }
    }
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
