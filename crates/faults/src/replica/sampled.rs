//! Snapshots that were only sampled rot: the last ones that were checked whole are still there.

use std::path::Path;
use std::sync::{Arc, Mutex};

use anyhow::Result;
use ckptd_remote::MemoryStorage;
use ckptd_remote::job::send::CheckDepth;
use ckptd_remote::job::{RemoteJob, retention};
use ckptd_remote::layout::JobObject;
use ckptd_remote::records::Marker;
use ckptd_testkit::random::SeededRandom;
use jiff::{SignedDuration, Timestamp};

use super::machine::{ReplicaMachine, SessionPlan, block_on, storage};
use crate::campaign::{CampaignScratch, FaultRow, add, each, guarded};

pub fn run(below: &Path, seed: u64, short: bool) -> Result<Vec<FaultRow>> {
    let row = Mutex::new(FaultRow::new("replication, rot under sampled checks", seed));
    each(if short { 8 } else { 64 }, |i| {
        let broken = guarded(|| one(below, seed + i).unwrap_or_else(|e| vec![format!("{e:#}")]));
        add(&row, || format!("point {i}"), broken);
    });
    Ok(vec![row.into_inner().unwrap_or_else(|e| e.into_inner())])
}

fn one(below: &Path, seed: u64) -> Result<Vec<String>> {
    let scratch = CampaignScratch::new(below);
    let folder = scratch.empty()?;
    let there = storage(seed.is_multiple_of(2));
    let machine = ReplicaMachine::new(folder, 0)?;
    machine.session(Arc::new(there.clone()), &SessionPlan::saves(2))?;
    let sampled = SessionPlan { depth: CheckDepth::Share(1e-9), ..SessionPlan::saves(3) };
    let told = machine.session(Arc::new(there.clone()), &sampled)?;
    let mut random = SeededRandom::of(&[seed, 4]);
    for marker in &told.committed {
        block_on(rot(&there, marker, &mut random))??;
    }
    let job = RemoteJob::new(Arc::new(there.clone()));
    block_on(retention::remove_data(&job, Timestamp::now() + SignedDuration::from_hours(2), || true))??;
    let next = ReplicaMachine::new(folder, 1)?;
    let resumed = next.session(Arc::new(there), &SessionPlan::saves(0))?;
    let found = next.newest_before(u64::MAX)?;
    Ok(match (told.committed.len(), found) {
        (3, 20) => Vec::new(),
        (3, _) => vec![format!("an empty machine finds step {found}, not step 20: {:?}", resumed.troubles)],
        (count, _) => vec![format!("{count} of 3 were committed: {:?}", told.troubles)],
    })
}

/// One bit of a chunk changes.
async fn rot(there: &MemoryStorage, marker: &Marker, random: &mut SeededRandom) -> Result<()> {
    use ckptd_remote::ObjectStorage;
    let name = JobObject::Data(marker.file_hash.clone()).name();
    let mut bytes = there.get_range(&name, 0..marker.bytes).await?.to_vec();
    // Chunks begin after the head, and fill most of the file.
    let at = 64 + random.below(marker.bytes / 2) as usize;
    bytes[at] ^= 1 << random.below(8);
    there.put(&name, bytes.into()).await?;
    Ok(())
}
