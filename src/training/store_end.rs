//! What a store holds at the end of a session.
//!
//! Invariant: it is looked up by its path, as the next session will; a folder that was moved or deleted meanwhile is
//! not found through what is still open of it. Deliberately not here: what is said about it (job).

use std::path::Path;

use super::progress::KeptSnapshot;
use ckptd_core::error::Result;
use ckptd_core::store::{SnapshotEntry, SnapshotState, Store};

/// The snapshot that the next session goes on from, as far as is known without reading it back: the newest that is
/// verified, or one after it that may be.
pub(super) fn kept(store: &Path) -> Result<Option<KeptSnapshot>> {
    let entries = Store::open(store)?.entries()?;
    let newest = entries.iter().find(|entry| entry.own && entry.healthy());
    Ok(newest.and_then(describe))
}

fn describe(entry: &SnapshotEntry) -> Option<KeptSnapshot> {
    let manifest = entry.manifest.as_ref()?;
    Some(KeptSnapshot {
        id: entry.id.clone(),
        step: manifest.train.step,
        is_verified: entry.state == SnapshotState::Verified,
        created_at: manifest.created_at,
    })
}
