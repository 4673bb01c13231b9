//! A world of processes, one store and messages between them, and what must hold in it.
//!
//! The processes are the machine that the agent runs. The store is what a store is (a lease that is swapped, epochs
//! that are created once, markers, data); the way to it is as bad as it gets: a write is done and told, done and not
//! told, done and told as refused, not done and told as refused or failed, done later, done twice. Time passes for each
//! process by itself. What must hold is in `invariants`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::{LeaseAction, LeaseEvent, LeaseMachine, LeaseNews, LeaseSettings, SeenLease, WriteOutcome};
use crate::fence::Fence;
use crate::holder::Holder;
use crate::layout::{ContentHash, MarkerName};
use crate::records::{LeaseRecord, Nonce};

pub(super) const TTL: Duration = Duration::from_secs(16);
/// The least time that the machine tells apart: a sixteenth of the ttl.
pub(super) const TICK: Duration = Duration::from_secs(4);

/// Whether the store swaps, or only creates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StoreKind {
    /// It replaces what is still of an expected version.
    Swaps,
    /// It creates what is not there.
    Creates,
}

/// A write that may take effect.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Write {
    /// Of the lease, in the place of a version.
    Lease(LeaseRecord, Option<u64>),
    /// The next sign of life of an epoch's owner, where the store does not swap.
    Beat(LeaseRecord),
    Marker(MarkerName, usize),
}

/// How a write goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// Done, and told as it is.
    Told,
    /// Done if it can be, and an error is told.
    AnswerLost,
    /// Done if it can be, and a refusal is told: the client sent it twice.
    ToldRefused,
    /// Not done, and an error is told.
    Lost,
    /// Not done, and a refusal is told.
    RefusedForNothing,
    /// Not done now, an error is told, and it lands later.
    Late,
    /// Done and told, and done once more later.
    Doubled,
}

impl Fate {
    pub(super) const ALL: [Fate; 7] = [
        Fate::Told,
        Fate::AnswerLost,
        Fate::ToldRefused,
        Fate::Lost,
        Fate::RefusedForNothing,
        Fate::Late,
        Fate::Doubled,
    ];
}

/// What a store holds.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub(super) struct Store {
    pub(super) lease: Option<(LeaseRecord, u64)>,
    versions: u64,
    /// (epoch, base): what a reader knows of the epochs.
    pub(super) epochs: BTreeMap<u64, LeaseRecord>,
    beats: BTreeMap<u64, (LeaseRecord, u64)>,
    pub(super) markers: BTreeMap<MarkerName, usize>,
    pub(super) data: BTreeSet<u64>,
}

/// A process and what surrounds it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Process {
    pub(super) machine: LeaseMachine<u64>,
    pub(super) now: Duration,
    /// What it wants and has no answer to.
    wanted: Vec<LeaseAction<u64>>,
    /// The snapshot that it goes on from, and then its newest one: (epoch, seq).
    pub(super) at: (u64, u64),
    /// How many snapshots it has put to their destination.
    pub(super) sent: u64,
    pub(super) is_dead: bool,
    /// The lease, and since when by its own clock it has seen nothing else; kept where schedules are long.
    pub(super) watched: Option<(LeaseRecord, Duration)>,
}

/// All of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct World {
    pub(super) kind: StoreKind,
    pub(super) store: Store,
    pub(super) processes: Vec<Process>,
    pub(super) late: BTreeSet<Write>,
    /// Which process said that it owns an epoch.
    pub(super) owners: BTreeMap<u64, usize>,
    pub(super) committed: u64,
    /// Whether it is held that who takes a lease has watched it.
    watches: bool,
}

/// One thing that can happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// A wish of a process reaches the store.
    Answer {
        process: usize,
        wish: usize,
        fate: Fate,
    },
    /// Nothing is heard in answer to a read.
    Silence {
        process: usize,
        wish: usize,
    },
    /// A late write lands.
    Land(usize),
    /// Time passes for a process.
    Tick {
        process: usize,
        by: Duration,
    },
    /// A snapshot comes to its destination and is checked.
    Send(usize),
    /// The process is killed.
    Kill(usize),
    Leave(usize),
}

pub(super) fn nonce(process: usize) -> Nonce {
    Nonce(format!("{process}"))
}

/// The hash of the file that has this place in the history.
fn hash_of(epoch: u64, seq: u64) -> ContentHash {
    ContentHash::from([(epoch * 16 + seq) as u8; 32])
}

pub(super) fn data_of(marker: &MarkerName) -> u64 {
    marker.epoch * 1000 + marker.seq
}

impl World {
    pub(super) fn new(kind: StoreKind, count: usize) -> World {
        let process = |index| {
            let holder = Holder { pid: index as u32, ..Holder::default() };
            let settings = LeaseSettings { ttl: TTL, nonce: nonce(index), holder, take_over: false };
            Process {
                machine: LeaseMachine::new(settings, Duration::ZERO),
                now: Duration::ZERO,
                wanted: Vec::new(),
                at: (0, 0),
                sent: 0,
                is_dead: false,
                watched: None,
            }
        };
        let mut world = World {
            kind,
            store: Store::default(),
            processes: (0..count).map(process).collect(),
            late: BTreeSet::new(),
            owners: BTreeMap::new(),
            committed: 0,
            watches: false,
        };
        (0..count).for_each(|index| world.tell(index, LeaseEvent::Tick).unwrap_or_default());
        world
    }

    /// Sets the clocks of the processes, which have done nothing yet, and holds what they see against them.
    pub(super) fn set_clocks(&mut self, clocks: impl IntoIterator<Item = Duration>) {
        self.watches = true;
        for (process, clock) in self.processes.iter_mut().zip(clocks) {
            process.now = clock;
            process.machine = LeaseMachine::new(process.machine.settings.clone(), clock);
            process.wanted = process.machine.on(LeaseEvent::Tick, clock);
        }
    }

    /// What can happen now. Time passes in steps of `TICK`.
    pub(super) fn steps(&self) -> Vec<Step> {
        let mut steps: Vec<Step> = (0..self.late.len()).map(Step::Land).collect();
        for (process, state) in self.processes.iter().enumerate().filter(|(_, state)| !state.is_dead) {
            for (wish, wanted) in state.wanted.iter().enumerate() {
                match wanted {
                    LeaseAction::Claim(..)
                    | LeaseAction::Renew(..)
                    | LeaseAction::Release(..)
                    | LeaseAction::Commit(_) => {
                        steps.extend(Fate::ALL.map(|fate| Step::Answer { process, wish, fate }));
                    }
                    LeaseAction::Read | LeaseAction::ReadMarker(_) => {
                        steps.push(Step::Answer { process, wish, fate: Fate::Told });
                        steps.push(Step::Silence { process, wish });
                    }
                    _ => steps.push(Step::Answer { process, wish, fate: Fate::Told }),
                }
            }
            steps.push(Step::Tick { process, by: TICK });
            if state.machine.epoch().is_some() {
                steps.push(Step::Send(process));
            }
            steps.push(Step::Kill(process));
            steps.push(Step::Leave(process));
        }
        steps
    }

    /// Lets it happen. The error says what must not be so.
    pub(super) fn step(&mut self, step: Step) -> Result<(), String> {
        match step {
            Step::Land(index) => {
                let write = self.late.iter().nth(index).cloned().ok_or("no such write")?;
                self.late.remove(&write);
                self.apply(&write);
            }
            Step::Tick { process, by } => {
                self.processes[process].now += by;
                self.tell(process, LeaseEvent::Tick)?;
            }
            Step::Send(process) => self.send(process)?,
            Step::Kill(process) => self.processes[process].is_dead = true,
            Step::Leave(process) => self.tell(process, LeaseEvent::Leave)?,
            Step::Silence { process, wish } => {
                let event = match self.processes[process].wanted.remove(wish) {
                    LeaseAction::ReadMarker(marker) => LeaseEvent::MarkerNotRead(marker),
                    _ => LeaseEvent::NotRead,
                };
                self.tell(process, event)?;
            }
            Step::Answer { process, wish, fate } => {
                let wanted = self.processes[process].wanted.remove(wish);
                let event = self.answer(process, wanted, fate);
                if let (LeaseEvent::Read(found), true) = (&event, self.watches) {
                    self.processes[process].watches(found.as_ref());
                }
                self.tell(process, event)?;
            }
        }
        self.check()
    }

    fn send(&mut self, process: usize) -> Result<(), String> {
        let state = &mut self.processes[process];
        let Some(epoch) = state.machine.epoch() else { return Ok(()) };
        let seq = state.at.1 + 1;
        (state.at, state.sent) = ((epoch, seq), state.sent + 1);
        let marker = MarkerName::new(epoch, seq, &hash_of(epoch, seq));
        self.store.data.insert(data_of(&marker));
        self.tell(process, LeaseEvent::Checked(marker))
    }

    fn answer(&mut self, process: usize, wanted: LeaseAction<u64>, fate: Fate) -> LeaseEvent<u64> {
        match wanted {
            LeaseAction::Read => LeaseEvent::Read(self.seen()),
            LeaseAction::Prepare => {
                let place = |marker: &&MarkerName| (marker.epoch, marker.seq);
                let newest = self.fence().in_order(self.store.markers.keys(), place).first().map(place_of);
                let at = newest.unwrap_or((0, 0)).max(self.own_place(process));
                self.processes[process].at = at;
                let newest_epoch = self.fence().newest_epoch().max(at.0);
                LeaseEvent::Prepared { base: at.1, newest_epoch }
            }
            LeaseAction::Claim(record, version) => {
                let write = match self.kind {
                    StoreKind::Swaps => Write::Lease(record, version),
                    StoreKind::Creates => Write::Lease(record, None),
                };
                LeaseEvent::Written(self.write(write, fate))
            }
            LeaseAction::Renew(record, version) | LeaseAction::Release(record, version) => {
                LeaseEvent::Written(match self.kind {
                    StoreKind::Swaps => self.write(Write::Lease(record, Some(version)), fate),
                    StoreKind::Creates => self.beat(record, fate),
                })
            }
            LeaseAction::Commit(marker) => {
                let outcome = match self.write(Write::Marker(marker.clone(), process), fate) {
                    WriteOutcome::Done(_) => WriteOutcome::Done(()),
                    WriteOutcome::Refused => WriteOutcome::Refused,
                    WriteOutcome::Unknown => WriteOutcome::Unknown,
                };
                LeaseEvent::MarkerWritten(marker, outcome)
            }
            LeaseAction::ReadMarker(marker) => {
                let found = self.store.markers.get(&marker).map(|writer| nonce(*writer));
                LeaseEvent::MarkerRead(marker, found)
            }
            LeaseAction::Tell(_) => LeaseEvent::Tick,
        }
    }

    /// What a process has on its own disk still counts where it is no orphan.
    fn own_place(&self, process: usize) -> (u64, u64) {
        let at = self.processes[process].at;
        if self.fence().is_orphan(at.0, at.1) { (0, 0) } else { at }
    }

    pub(super) fn fence(&self) -> Fence {
        let lease = self.store.lease.iter().map(|(record, _)| record);
        Fence::new(self.store.epochs.values().chain(lease).map(|record| (record.epoch, record.base)))
    }

    fn seen(&self) -> Option<SeenLease<u64>> {
        let seen = |(record, version): &(LeaseRecord, u64)| SeenLease {
            record: record.clone(),
            version: *version,
            holder_is_gone: false,
        };
        match self.kind {
            StoreKind::Swaps => self.store.lease.as_ref().map(seen),
            StoreKind::Creates => {
                let (epoch, record) = self.store.epochs.iter().next_back()?;
                Some(seen(self.store.beats.get(epoch).unwrap_or(&(record.clone(), 0))))
            }
        }
    }

    /// A sign of life without a swap: written, and then a later epoch is looked for.
    fn beat(&mut self, record: LeaseRecord, fate: Fate) -> WriteOutcome<u64> {
        let epoch = record.epoch;
        let outcome = self.write(Write::Beat(record), fate);
        match self.store.epochs.keys().next_back() {
            Some(newest) if *newest > epoch => WriteOutcome::Refused,
            _ => outcome,
        }
    }

    fn write(&mut self, write: Write, fate: Fate) -> WriteOutcome<u64> {
        let done = match fate {
            Fate::Lost | Fate::RefusedForNothing => None,
            Fate::Late => {
                self.late.insert(write);
                return WriteOutcome::Unknown;
            }
            Fate::Doubled => {
                self.late.insert(write.clone());
                self.apply(&write)
            }
            Fate::Told | Fate::AnswerLost | Fate::ToldRefused => self.apply(&write),
        };
        match (fate, done) {
            (Fate::Told | Fate::Doubled, Some(version)) => WriteOutcome::Done(version),
            (Fate::AnswerLost | Fate::Lost, _) => WriteOutcome::Unknown,
            _ => WriteOutcome::Refused,
        }
    }

    /// What the store does with a write; `None`: its condition does not hold.
    fn apply(&mut self, write: &Write) -> Option<u64> {
        let store = &mut self.store;
        let version = store.versions + 1;
        match write {
            Write::Lease(record, expected) if self.kind == StoreKind::Swaps => {
                if store.lease.as_ref().map(|(_, version)| *version) != *expected {
                    return None;
                }
                // Whoever takes the lease writes down first what it replaces.
                if let Some((before, _)) = store.lease.take() {
                    store.epochs.entry(before.epoch).or_insert(before);
                }
                store.lease = Some((record.clone(), version));
            }
            Write::Lease(record, _) => {
                if store.epochs.contains_key(&record.epoch) {
                    return None;
                }
                store.epochs.insert(record.epoch, record.clone());
            }
            Write::Beat(record) => {
                store.beats.insert(record.epoch, (record.clone(), version));
            }
            Write::Marker(marker, writer) => {
                if store.markers.contains_key(marker) {
                    return None;
                }
                store.markers.insert(marker.clone(), *writer);
            }
        }
        store.versions = version;
        Some(version)
    }

    fn tell(&mut self, process: usize, event: LeaseEvent<u64>) -> Result<(), String> {
        let state = &mut self.processes[process];
        let actions = state.machine.on(event, state.now);
        for action in actions {
            match action {
                LeaseAction::Tell(LeaseNews::Owned { epoch }) => self.owns(process, epoch)?,
                LeaseAction::Tell(LeaseNews::Committed(marker)) => {
                    self.committed += 1;
                    if self.store.markers.get(&marker) != Some(&process) {
                        return Err(format!("{marker} is said to be committed, and is not there"));
                    }
                }
                LeaseAction::Tell(_) => {}
                wanted => {
                    self.check_claim(process, &wanted)?;
                    self.processes[process].wanted.push(wanted);
                }
            }
        }
        Ok(())
    }
}

fn place_of(marker: &&MarkerName) -> (u64, u64) {
    (marker.epoch, marker.seq)
}
