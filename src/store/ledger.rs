//! The store's ledger: its sessions, and what they taught.

use super::{Store, layout};
use crate::error::{Error, Result};
use crate::session::ledger::Ledger;

/// Largest ledger that is read.
const MAX_LEDGER: u64 = 4 << 20;

impl Store {
    /// The ledger as it was written last; an empty one where there is none, or one that cannot be understood: it only
    /// makes plans better.
    pub fn ledger(&self) -> Ledger {
        let json = self.dir.read_small(layout::SESSIONS, MAX_LEDGER).ok().flatten();
        json.and_then(|json| serde_json::from_slice(&json).ok()).unwrap_or_default()
    }

    /// Replaces the ledger durably; the caller holds the lock.
    pub fn set_ledger(&self, ledger: &Ledger) -> Result<()> {
        let json =
            serde_json::to_vec(ledger).map_err(|e| Error::Other(format!("writing {}: {e}", layout::SESSIONS)))?;
        self.dir.write_durably(layout::SESSIONS, &json)
    }
}
