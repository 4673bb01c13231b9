//! The job that a store serves, remembered so that its retention and its status socket are known without its file, and
//! how its last session ended, remembered so that a job that stopped can say why.

use serde::{Deserialize, Serialize};

use super::lock::{Holder, SESSION};
use super::{Store, layout};
use crate::config::Config;
use crate::error::{Error, Result};

/// Largest remembered config that is read.
const MAX_JOB: u64 = 1 << 20;
const MAX_ENDING: u64 = 1 << 16;

/// How a session ended, in its own words.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ending {
    /// Which session that was.
    pid: u32,
    started: u64,
    /// What it failed with; `None`: it ended as it should.
    pub problem: Option<String>,
}

/// What is known of the last session in a store.
#[derive(Clone, Debug, PartialEq)]
pub enum LastSession {
    /// There was none, or it still runs.
    Unknown,
    Ended(Ending),
    /// It is gone without a word: killed, or the machine went down.
    Killed { pid: u32 },
}

impl Store {
    /// The job that ran here last; `None` where none has, or one of another release whose config is not understood.
    pub fn job(&self) -> Result<Option<Config>> {
        let json = self.dir.read_small(layout::JOB, MAX_JOB)?;
        Ok(json.and_then(|json| serde_json::from_slice(&json).ok()))
    }

    /// Remembers the job that runs here; the caller holds the lock.
    pub fn set_job(&self, config: &Config) -> Result<()> {
        let json =
            serde_json::to_vec_pretty(config).map_err(|e| Error::Other(format!("writing {}: {e}", layout::JOB)))?;
        self.dir.write_durably(layout::JOB, &json)
    }

    /// Remembers how this process' session ended; the caller holds the lock.
    pub fn set_ending(&self, problem: Option<&str>) -> Result<()> {
        let Holder { pid, started, .. } = Holder::this("");
        let ending = Ending { pid, started, problem: problem.map(str::to_owned) };
        let json =
            serde_json::to_vec_pretty(&ending).map_err(|e| Error::Other(format!("writing {}: {e}", layout::ENDING)))?;
        self.dir.write_durably(layout::ENDING, &json)
    }

    /// What became of the last session.
    pub fn last_session(&self) -> Result<LastSession> {
        let small = |name| self.dir.read_small(name, MAX_ENDING).map(Option::unwrap_or_default);
        let ending = serde_json::from_slice::<Ending>(&small(layout::ENDING)?).ok();
        let holder = serde_json::from_slice::<Holder>(&small(layout::LOCK)?).ok();
        let of_session = holder.filter(|holder| holder.who.starts_with(SESSION));
        Ok(match (ending, of_session) {
            // Whoever took the lock since, a pruning for one, was no session.
            (Some(ending), None) => LastSession::Ended(ending),
            (Some(ending), Some(last)) if (ending.pid, ending.started) == (last.pid, last.started) => {
                LastSession::Ended(ending)
            }
            (_, Some(last)) if !last.alive() => LastSession::Killed { pid: last.pid },
            _ => LastSession::Unknown,
        })
    }
}
