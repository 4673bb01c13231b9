//! A machine is killed at each request of an upload in parts, and started again: it goes on with what has arrived.

use std::path::Path;
use std::sync::{Arc, Mutex};

use anyhow::Result;
use ckptd_remote::MemoryStorage;

use super::judge::{Expectation, judge, require_all};
use super::machine::{ReplicaMachine, SessionPlan, storage};
use super::requests::RequestEffort;
use super::wire::{FaultyWire, WireFault};
use crate::campaign::{CampaignScratch, FaultRow, add, each, guarded, violated};

/// Rows of a snapshot that goes in more parts than are under way at a time, so that some have arrived before one fails.
const LARGE: usize = 40_000;

/// A machine with a large snapshot that is at no remote yet.
fn scene(folder: &Path) -> Result<(MemoryStorage, ReplicaMachine)> {
    let there = storage(true);
    let machine = ReplicaMachine::new(folder, 0)?;
    machine.session(Arc::new(there.clone()), &SessionPlan::saves(1))?;
    machine.save(LARGE)?;
    Ok((there, machine))
}

fn awaiting(seq: u64) -> SessionPlan {
    SessionPlan { awaited: Some(seq), ..SessionPlan::saves(0) }
}

/// Kills at every so many-th request; the machine then has the same snapshot to send, or a newer one.
pub fn run(below: &Path, seed: u64, effort: RequestEffort) -> Result<Vec<FaultRow>> {
    let row = Mutex::new(FaultRow::new("replication, kill at a request: upload in parts", seed));
    let scratch = CampaignScratch::new(below);
    let (there, machine) = scene(scratch.empty()?)?;
    let wire = FaultyWire::new(&there, None);
    machine.session(wire.clone(), &awaiting(2))?;
    let requests = wire.seen();
    // From the first part on there is something to go on with.
    let first = requests.iter().position(|request| request.what.starts_with("begin")).unwrap_or(0);
    let last = requests.iter().rposition(|request| request.what.contains("commits/")).unwrap_or(requests.len() - 1);
    let count = 4 * (last + 1 - first) as u64;
    drop(scratch);
    each(count.div_ceil(effort.stride), |i| {
        if effort.first && violated(&row) {
            return;
        }
        let number = i * effort.stride + seed % effort.stride;
        let (at, newer) = (first + (number / 4) as usize, number % 2 == 1);
        let fault = if number % 4 < 2 { WireFault::DiesBefore } else { WireFault::DiesAfter };
        let mut what = format!("request {at}");
        let broken = guarded(|| one(below, (at, fault), newer, &mut what).unwrap_or_else(|e| vec![format!("{e:#}")]));
        add(&row, || what, broken);
    });
    Ok(vec![row.into_inner().unwrap_or_else(|e| e.into_inner())])
}

fn one(below: &Path, fault: (usize, WireFault), newer: bool, what: &mut String) -> Result<Vec<String>> {
    let scratch = CampaignScratch::new(below);
    let folder = scratch.empty()?;
    let (there, machine) = scene(folder)?;
    let wire = FaultyWire::new(&there, Some(fault));
    machine.session(wire.clone(), &awaiting(2))?;
    *what = format!(
        "{fault:?} ({}), then {}",
        wire.hit().map_or_else(String::new, |request| request.what),
        if newer { "a newer snapshot" } else { "the same one" }
    );
    if newer {
        machine.save(LARGE)?;
    }
    // What is at the remote already is not sent again.
    let has_marker = there_is_marker(&there, 2)?;
    let seq = if newer { 3 } else { 2 };
    let told = machine
        .session(Arc::new(there.clone()), &if newer || !has_marker { awaiting(seq) } else { SessionPlan::saves(0) })?;
    let mut broken = Vec::new();
    if newer || !has_marker {
        require_all(&told, 10 * seq, &mut broken);
    }
    broken.extend(told.troubles.iter().map(|trouble| format!("a store without faults gave trouble: {trouble}")));
    broken.extend(judge(&there, folder, Expectation::Newest { at_least: 10 * seq }, 0)?);
    Ok(broken)
}

fn there_is_marker(there: &MemoryStorage, seq: u64) -> Result<bool> {
    let job = ckptd_remote::job::RemoteJob::new(Arc::new(there.clone()));
    let survey = super::machine::block_on(ckptd_remote::job::Survey::of(&job))??;
    Ok(survey.markers.iter().any(|name| name.seq == seq))
}
