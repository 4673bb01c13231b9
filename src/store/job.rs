//! The job that a store serves, remembered so that its retention and its status socket are known without its file.

use super::{Store, layout};
use crate::config::Config;
use crate::error::{Error, Result};

/// Largest remembered config that is read.
const MAX_JOB: u64 = 1 << 20;

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
}
