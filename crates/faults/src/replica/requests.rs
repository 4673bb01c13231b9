//! Each request of a machine meets each fault: of one that uploads, commits and gives up, and of one that takes over.

use std::path::Path;
use std::sync::{Arc, Mutex};

use anyhow::Result;
use ckptd_remote::MemoryStorage;

use super::judge::{Expectation, judge, require_all};
use super::machine::{ReplicaMachine, SessionPlan, SessionReport, block_on, storage};
use super::wire::{FaultyWire, RequestKind, WireFault};
use crate::campaign::{CampaignScratch, FaultRow, add, each, each_waiting, guarded, violated};

/// What the history may lack after a kill: the steps of the newest marker, and of the one that was sent beside its own
/// list.
const MAY_LACK: u64 = 20;

/// How much of it is tried.
#[derive(Clone, Copy)]
pub struct RequestEffort {
    /// Every so many-th point.
    pub stride: u64,
    /// Ends after the first violation.
    pub first: bool,
}

/// Whose requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Subject {
    /// A machine's second session: three snapshots are sent, checked and committed, older ones given up.
    Session,
    /// An empty machine takes over from a killed one, sends one snapshot and leaves.
    Takeover,
}

impl Subject {
    const ALL: [(Subject, bool); 4] =
        [(Subject::Session, true), (Subject::Session, false), (Subject::Takeover, true), (Subject::Takeover, false)];

    fn text(self) -> &'static str {
        match self {
            Subject::Session => "upload, commit, retention",
            Subject::Takeover => "lease change",
        }
    }

    fn saves(self) -> u64 {
        if self == Subject::Session { 3 } else { 1 }
    }
}

/// A job with two snapshots, and the machine whose requests are looked at.
struct RequestScene {
    there: MemoryStorage,
    machine: ReplicaMachine,
}

impl RequestScene {
    fn new(folder: &Path, subject: Subject, swaps: bool) -> Result<RequestScene> {
        let there = storage(swaps);
        let one = ReplicaMachine::new(folder, 0)?;
        one.session(Arc::new(there.clone()), &SessionPlan::saves(2))?;
        let machine = if subject == Subject::Session { one } else { ReplicaMachine::new(folder, 1)? };
        Ok(RequestScene { there, machine })
    }

    /// The session in which one request meets `fault`.
    fn run(&self, subject: Subject, fault: Option<(usize, WireFault)>) -> Result<(Arc<FaultyWire>, SessionReport)> {
        let wire = FaultyWire::new(&self.there, fault);
        let told = self.machine.session(wire.clone(), &SessionPlan::saves(subject.saves()))?;
        Ok((wire, told))
    }
}

/// A request and what befalls it.
#[derive(Clone, Copy, Debug)]
struct RequestPoint {
    subject: Subject,
    swaps: bool,
    at: usize,
    fault: WireFault,
}

/// Every request of every subject with each of `faults` that its kind can meet, or a share of them.
fn points(
    below: &Path,
    seed: u64,
    effort: RequestEffort,
    faults: impl Fn(RequestKind) -> &'static [WireFault],
) -> Result<Vec<RequestPoint>> {
    let mut all = Vec::new();
    for (subject, swaps) in Subject::ALL {
        let scratch = CampaignScratch::new(below);
        let (wire, _) = RequestScene::new(scratch.empty()?, subject, swaps)?.run(subject, None)?;
        for (at, request) in wire.seen().into_iter().enumerate() {
            all.extend(faults(request.kind).iter().map(|fault| RequestPoint { subject, swaps, at, fault: *fault }));
        }
    }
    let stride = effort.stride as usize;
    Ok(all.into_iter().skip(seed as usize % stride).step_by(stride).collect())
}

impl RequestPoint {
    fn text(&self, wire: &FaultyWire) -> String {
        let hit = wire.hit().map_or_else(String::new, |request| format!(" ({})", request.what));
        let store = if self.swaps { "a store that swaps" } else { "a store that only creates" };
        format!("{:?} at request {}{hit} of {:?} on {store}", self.fault, self.at, self.subject)
    }
}

/// A row for each subject; `work` says what a point broke.
fn rows(
    (kind, seed): (&str, u64),
    (points, effort): (Vec<RequestPoint>, RequestEffort),
    each: impl Fn(u64, &(dyn Fn(u64) + Sync)),
    work: impl Fn(&RequestPoint, &mut String) -> Result<Vec<String>> + Sync,
) -> Vec<FaultRow> {
    let subjects = [Subject::Session, Subject::Takeover];
    let rows = subjects.map(|subject| Mutex::new(FaultRow::new(&format!("{kind}: {}", subject.text()), seed)));
    each(points.len() as u64, &|i| {
        if effort.first && rows.iter().any(violated) {
            return;
        }
        let point = &points[i as usize];
        let mut what = format!("{point:?}");
        let broken = guarded(|| work(point, &mut what).unwrap_or_else(|e| vec![format!("{e:#}")]));
        let row = subjects.iter().position(|subject| *subject == point.subject).unwrap_or(0);
        add(&rows[row], || what, broken);
    });
    rows.into_iter().map(|row| row.into_inner().unwrap_or_else(|e| e.into_inner())).collect()
}

/// A kill before and after each request: an empty machine goes on from the newest marker.
pub fn kills(below: &Path, seed: u64, effort: RequestEffort) -> Result<Vec<FaultRow>> {
    let points = points(below, seed, effort, |_| &[WireFault::DiesBefore, WireFault::DiesAfter])?;
    Ok(rows(
        ("replication, kill at a request", seed),
        (points, effort),
        |n, work| each(n, work),
        |point, what| {
            let scratch = CampaignScratch::new(below);
            let folder = scratch.empty()?;
            let scene = RequestScene::new(folder, point.subject, point.swaps)?;
            let (wire, told) = scene.run(point.subject, Some((point.at, point.fault)))?;
            *what = point.text(&wire);
            // Two were there before.
            judge(&scene.there, folder, Expectation::Newest { at_least: told.step().max(20) }, MAY_LACK)
        },
    ))
}

/// Each request fails once, in every way: the session does all that it was to do.
pub fn errors(below: &Path, seed: u64, effort: RequestEffort) -> Result<Vec<FaultRow>> {
    use WireFault::{AnswerLost, Flipped, Lost, RefusedForNothing, ToldRefused};
    let points = points(below, seed, effort, |kind| match kind {
        RequestKind::Read => &[Lost],
        RequestKind::Write => &[Lost, AnswerLost],
        RequestKind::Conditional => &[Lost, AnswerLost, ToldRefused, RefusedForNothing],
        RequestKind::Data => &[Lost, AnswerLost, Flipped],
    })?;
    Ok(rows(
        ("replication, a request fails", seed),
        (points, effort),
        |n, work| each_waiting(n, work),
        |point, what| {
            let scratch = CampaignScratch::new(below);
            let folder = scratch.empty()?;
            let scene = RequestScene::new(folder, point.subject, point.swaps)?;
            let (wire, mut told) = scene.run(point.subject, Some((point.at, point.fault)))?;
            *what = point.text(&wire);
            if !told.began {
                // It ended with the reason. It is started again.
                told = scene.machine.session(wire, &SessionPlan::saves(point.subject.saves()))?;
            }
            let (seq, number) = if point.subject == Subject::Session { (5, 0) } else { (3, 1) };
            let mut broken = Vec::new();
            require_all(&told, 10 * seq + number, &mut broken);
            if broken.is_empty() {
                broken = judge(&scene.there, folder, Expectation::Newest { at_least: told.step() }, 0)?;
            }
            Ok(broken)
        },
    ))
}

/// A machine dies, another one takes over, and then what the first one sent last lands: it is never chosen.
pub fn late(below: &Path, seed: u64, effort: RequestEffort) -> Result<Vec<FaultRow>> {
    let points = points(below, seed, effort, |kind| match kind {
        RequestKind::Read => &[],
        _ => &[WireFault::LandsLate],
    })?;
    let kind = "replication, a write lands late";
    Ok(rows(
        (kind, seed),
        (points, effort),
        |n, work| each(n, work),
        |point, what| {
            let mut broken = Vec::new();
            for commits in [0, 1] {
                let scratch = CampaignScratch::new(below);
                let folder = scratch.empty()?;
                let scene = RequestScene::new(folder, point.subject, point.swaps)?;
                let (wire, _) = scene.run(point.subject, Some((point.at, point.fault)))?;
                *what = format!("{}, after the next owner committed {commits}", point.text(&wire));
                let next = ReplicaMachine::new(folder, 2)?;
                let told = next.session(Arc::new(scene.there.clone()), &SessionPlan::saves(commits))?;
                let expected = next.newest_before(u64::MAX)?;
                if !told.began || commits > 0 && told.step() != expected {
                    broken.push(format!("the next owner does not go on: {:?}", told.troubles));
                    return Ok(broken);
                }
                block_on(wire.land())?;
                broken.extend(judge(&scene.there, folder, Expectation::Exactly(expected), MAY_LACK + 10 * commits)?);
            }
            Ok(broken)
        },
    ))
}
