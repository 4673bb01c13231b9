//! Which snapshots stay at a remote, and how the others go.
//!
//! In two phases: a marker is written to `trash/` and then taken away; at least an hour later its data goes, if no
//! marker names it, and then the record. So there is never a marker without data, whatever is interrupted or lands
//! late. What snapshots share goes likewise (`unnamed`).
//!
//! Invariant: the plan is that of the store on a disk ([`retain`]), made of whole lists only. Only what was checked
//! whole counts as verified. Orphans go once a snapshot that counts is newer than all of them.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use ckptd_core::ids::SnapshotId;
use ckptd_core::store::retain::{self, RetentionPolicy, SnapshotFacts};

use super::error::Result;
use super::place::RemoteJob;
use super::survey::Survey;
use super::unnamed;
use crate::layout::{ContentHash, JobObject, MarkerName, Prefix};
use crate::records::{Marker, TRASH_TIME, TrashRecord};

/// What becomes of a snapshot at a remote.
#[derive(Clone, Debug)]
pub struct RemoteVerdict {
    /// Which one.
    pub marker: Marker,
    /// Another machine went on from before it.
    pub orphan: bool,
    /// Why it is kept; empty where nothing keeps it.
    pub reasons: Vec<String>,
}

impl RemoteVerdict {
    /// Whether it stays.
    pub fn keeps(&self) -> bool {
        !self.reasons.is_empty()
    }
}

/// What the policy keeps and gives up, the newest first. `pins` are file hashes that a user keeps.
pub fn plan(
    survey: &Survey,
    markers: &BTreeMap<MarkerName, Marker>,
    pins: &BTreeSet<ContentHash>,
    policy: &RetentionPolicy,
    now: Timestamp,
) -> Vec<RemoteVerdict> {
    let ordered: Vec<&Marker> = {
        let all: Vec<&Marker> = markers.values().collect();
        survey.fence.in_order(all, |marker| (marker.epoch, marker.seq))
    };
    // The planner orders by number, and the history may have gone back to lower ones: the place is what counts.
    let facts: Vec<SnapshotFacts> = ordered
        .iter()
        .rev()
        .zip(1..)
        .map(|(marker, place)| SnapshotFacts {
            id: SnapshotId::from(marker.name().to_string()),
            own: true,
            seq: place,
            step: marker.step,
            created_at: marker.created_at,
            bytes: marker.bytes,
            verified: marker.checked.is_verified(),
            healthy: marker.healthy,
            val_loss: marker.val_loss,
            pinned: pins.contains(&marker.file_hash),
        })
        .collect();
    let mut reasons: BTreeMap<String, Vec<String>> = retain::plan(&facts, policy, now)
        .into_iter()
        .map(|verdict| {
            let texts = if verdict.keeps() { verdict.texts() } else { Vec::new() };
            (verdict.id.into(), texts)
        })
        .collect();
    release_sampled(&ordered, &mut reasons);
    let newest = ordered.iter().find(|marker| marker.checked.is_verified() && marker.healthy).map(|m| m.epoch);
    let verdict = |marker: &Marker| {
        let orphan = survey.is_orphan(&marker.name());
        let reasons = match (orphan, newest) {
            (false, _) => reasons.remove(&marker.name().to_string()).unwrap_or_default(),
            (true, Some(epoch)) if epoch > marker.epoch => Vec::new(),
            (true, _) => vec!["nothing newer was committed yet".to_owned()],
        };
        RemoteVerdict { marker: marker.clone(), orphan, reasons }
    };
    markers.values().rev().map(verdict).collect()
}

/// The planner keeps what is not verified, since a store on a disk soon verifies it. Here nothing will: what is older
/// than two verified ones goes.
fn release_sampled(ordered: &[&Marker], reasons: &mut BTreeMap<String, Vec<String>>) {
    let mut verified = 0;
    for marker in ordered {
        if marker.checked.is_verified() {
            verified += usize::from(marker.healthy);
        } else if verified >= 2
            && let Some(reasons) = reasons.get_mut(&marker.name().to_string())
        {
            reasons.retain(|reason| *reason != retain::KeepReason::Unverified.to_string());
        }
    }
}

/// All markers with what they say. Fails where one cannot be read: nothing is planned on half of them. `known` spares
/// reading again what never changes.
pub async fn read_markers(
    job: &RemoteJob,
    survey: &Survey,
    known: &BTreeMap<MarkerName, Marker>,
) -> Result<BTreeMap<MarkerName, Marker>> {
    let mut markers = BTreeMap::new();
    for name in &survey.markers {
        let marker = match known.get(name) {
            Some(marker) => Some(marker.clone()),
            None => job.marker(name).await?,
        };
        markers.extend(marker.map(|marker| (name.clone(), marker)));
    }
    Ok(markers)
}

/// The first phase: markers that nothing keeps are taken away. `may_write` is asked before each. Returns how many.
pub async fn take_away(
    job: &RemoteJob,
    verdicts: &[RemoteVerdict],
    by_epoch: u64,
    may_write: impl Fn() -> bool,
) -> Result<usize> {
    let mut taken = 0;
    for RemoteVerdict { marker, .. } in verdicts.iter().filter(|verdict| !verdict.keeps()) {
        if !may_write() {
            break;
        }
        let name = marker.name();
        let record = TrashRecord { marker: marker.clone(), by_epoch, at: Timestamp::now() };
        job.create(&JobObject::Trash(name.clone()), &record).await?;
        job.delete(&JobObject::Commit(name)).await?;
        taken += 1;
    }
    Ok(taken)
}

/// The second phase: data of markers that were taken away an hour ago; and both phases for files that no marker names
/// any longer. Returns how many bytes went.
pub async fn remove_data(job: &RemoteJob, now: Timestamp, may_write: impl Fn() -> bool) -> Result<u64> {
    let trashed: Vec<MarkerName> = objects(job, Prefix::Trash).await?;
    let mut removed = 0;
    for name in trashed {
        let Some(record) = job.trashed(&name).await? else { continue };
        let age = now.duration_since(record.at);
        if age < TRASH_TIME || !may_write() {
            continue;
        }
        let hash = &record.marker.file_hash;
        // Asked anew each time: what landed late, and what was committed again.
        let named = objects(job, Prefix::Commits).await?;
        if named.contains(&name) {
            job.delete(&JobObject::Trash(name)).await?;
            continue;
        }
        if !named.iter().any(|other| other.short_hash() == hash.short()) {
            job.delete(&JobObject::Data(hash.clone())).await?;
            removed += record.marker.bytes;
        }
        job.delete(&JobObject::Trash(name)).await?;
    }
    Ok(removed + unnamed::clear(job, now, may_write).await?)
}

async fn objects(job: &RemoteJob, prefix: Prefix) -> Result<Vec<MarkerName>> {
    let name = |(object, _)| match object {
        JobObject::Commit(name) | JobObject::Trash(name) => Some(name),
        _ => None,
    };
    Ok(job.list(prefix).await?.into_iter().filter_map(name).collect())
}
