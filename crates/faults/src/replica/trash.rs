//! The second phase of a deletion, an hour later: each request meets each fault, while a marker that was taken away has
//! come back.

use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result};
use ckptd_remote::MemoryStorage;
use ckptd_remote::job::{RemoteJob, retention};
use ckptd_remote::layout::{JobObject, Prefix};
use jiff::{SignedDuration, Timestamp};

use super::judge::{Expectation, judge};
use super::machine::{ReplicaMachine, SessionPlan, block_on, storage};
use super::wire::{FaultyWire, WireFault};
use crate::campaign::{CampaignScratch, FaultRow, add, each, guarded};

const FAULTS: [WireFault; 4] = [WireFault::DiesBefore, WireFault::DiesAfter, WireFault::Lost, WireFault::AnswerLost];

/// A job of which two of four snapshots were taken away, one of them with a marker that landed late.
fn scene(folder: &Path) -> Result<MemoryStorage> {
    let there = storage(true);
    ReplicaMachine::new(folder, 0)?.session(Arc::new(there.clone()), &SessionPlan::saves(4))?;
    let job = RemoteJob::new(Arc::new(there.clone()));
    block_on(async {
        let trashed = job.list(Prefix::Trash).await?;
        let Some((JobObject::Trash(name), _)) = trashed.first() else { anyhow::bail!("nothing was taken away") };
        let record = job.trashed(name).await?.context("an empty record")?;
        job.create(&JobObject::Commit(name.clone()), &record.marker).await?;
        Ok(there)
    })?
}

async fn remove(storage: Arc<FaultyWire>) -> ckptd_remote::job::Result<u64> {
    let later = Timestamp::now() + SignedDuration::from_hours(2);
    retention::remove_data(&RemoteJob::new(storage), later, || true).await
}

pub fn run(below: &Path, seed: u64) -> Result<Vec<FaultRow>> {
    let row = Mutex::new(FaultRow::new("replication, a fault at a request: data is removed", seed));
    let scratch = CampaignScratch::new(below);
    let wire = FaultyWire::new(&scene(scratch.empty()?)?, None);
    block_on(remove(wire.clone()))??;
    each((wire.seen().len() * FAULTS.len()) as u64, |i| {
        let (at, fault) = (i as usize / FAULTS.len(), FAULTS[i as usize % FAULTS.len()]);
        let mut what = String::new();
        let broken = guarded(|| one(below, (at, fault), &mut what).unwrap_or_else(|e| vec![format!("{e:#}")]));
        add(&row, || what, broken);
    });
    Ok(vec![row.into_inner().unwrap_or_else(|e| e.into_inner())])
}

fn one(below: &Path, fault: (usize, WireFault), what: &mut String) -> Result<Vec<String>> {
    let scratch = CampaignScratch::new(below);
    let folder = scratch.empty()?;
    let there = scene(folder)?;
    let wire = FaultyWire::new(&there, Some(fault));
    // It may die, and it may fail.
    let _ = std::panic::catch_unwind(AssertUnwindSafe(|| block_on(remove(wire.clone()))));
    *what = format!("{:?} at request {} ({})", fault.1, fault.0, wire.hit().map_or_else(String::new, |r| r.what));
    // Whoever comes next completes it.
    block_on(remove(FaultyWire::new(&there, None)))??;
    let mut broken = Vec::new();
    let job = RemoteJob::new(Arc::new(there.clone()));
    let (data, markers, trash) = block_on(async {
        let count = async |prefix| job.list(prefix).await.map(|objects| objects.len());
        Ok::<_, ckptd_remote::job::JobError>((
            count(Prefix::Data).await?,
            count(Prefix::Commits).await?,
            count(Prefix::Trash).await?,
        ))
    })??;
    if (data, markers, trash) != (3, 3, 0) {
        broken
            .push(format!("{markers} markers, {data} files and {trash} records are there in the place of 3, 3 and 0"));
    }
    broken.extend(judge(&there, folder, Expectation::Newest { at_least: 40 }, 0)?);
    Ok(broken)
}
