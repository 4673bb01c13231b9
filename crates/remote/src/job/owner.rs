//! The owner of a job, or who wants to be: the machine of [`protocol`](crate::protocol), and what it wants, carried
//! out.
//!
//! Invariant: nothing is decided here. Time is the one that runs on while the machine sleeps and that nobody sets.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use async_trait::async_trait;
use rustix::time::{ClockId, clock_gettime};

use ckptd_core::os::process::start_ticks;

use super::error::{JobError, Result};
use super::lease_io;
use super::place::{RemoteJob, json};
use super::troubles::Concern;
use crate::errors::Operation;
use crate::holder::Holder;
use crate::layout::{JobObject, MarkerName};
use crate::objects::{Created, ObjectVersion};
use crate::protocol::{LeaseAction, LeaseEvent, LeaseMachine, LeaseNews, LeaseSettings, SeenLease, WriteOutcome};
use crate::records::{LeaseRecord, Marker, Nonce};

/// After so long without a sign of life a job is free, unless its job file says otherwise.
pub const TTL: Duration = Duration::from_secs(60);
/// How long a wait for the job to become free sleeps at most.
const LONGEST_SLEEP: Duration = Duration::from_secs(1);

/// Finds what to go on from, when a job is free.
#[async_trait]
pub trait Prepare: Send {
    /// The sequence number of the snapshot that this machine goes on from, 0 for the beginning, and the newest epoch
    /// that any object of the job names.
    async fn prepare(&mut self, job: &RemoteJob) -> Result<(u64, u64)>;
}

/// How a job is owned.
#[derive(Clone, Debug)]
pub struct OwnerSettings {
    /// After so long without a sign of life the job is free.
    pub ttl: Duration,
    /// False: no lease is kept, and a person sees to it that one machine at a time runs the job.
    pub fenced: bool,
    /// Take the job from an owner that may live.
    pub take_over: bool,
    /// What this process does, for messages.
    pub who: String,
}

/// This process beside a job.
pub struct JobOwner {
    job: RemoteJob,
    machine: LeaseMachine<ObjectVersion>,
    settings: OwnerSettings,
    here: Holder,
    nonce: Nonce,
    /// The lease as it was read last.
    seen: Option<(LeaseRecord, ObjectVersion)>,
    /// The markers of snapshots that were checked.
    checked: BTreeMap<MarkerName, Marker>,
    /// The last failure of the way to the store, and what it concerns.
    trouble: Option<(Concern, JobError)>,
    /// Why the lease was not written the last time, where it was not.
    unwritten: Option<JobError>,
}

/// The time since the machine was started, its sleep included. In a test of this crate it is that of the runtime, which
/// may let it pass by itself.
pub fn now() -> Duration {
    #[cfg(test)]
    if tokio::runtime::Handle::try_current().is_ok() {
        static BEGINNING: std::sync::OnceLock<std::time::Instant> = std::sync::OnceLock::new();
        let beginning = *BEGINNING.get_or_init(std::time::Instant::now);
        return tokio::time::Instant::now().into_std().saturating_duration_since(beginning);
    }
    let now = clock_gettime(ClockId::Boottime);
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

impl JobOwner {
    /// One that owns nothing yet.
    pub fn new(job: RemoteJob, settings: OwnerSettings) -> Result<JobOwner> {
        let (here, nonce) = (Holder::this(&settings.who), Nonce::random()?);
        let lease = LeaseSettings {
            ttl: settings.ttl,
            nonce: nonce.clone(),
            holder: here.clone(),
            take_over: settings.take_over,
        };
        let machine = LeaseMachine::new(lease, now());
        let (seen, checked, trouble, unwritten) = (None, BTreeMap::new(), None, None);
        Ok(JobOwner { job, machine, settings, here, nonce, seen, checked, trouble, unwritten })
    }

    /// The job.
    pub fn job(&self) -> &RemoteJob {
        &self.job
    }

    /// By which this process knows what it wrote.
    pub fn nonce(&self) -> &Nonce {
        &self.nonce
    }

    /// The epoch that this process owns, as far as it knows.
    pub fn epoch(&self) -> Option<u64> {
        self.machine.epoch()
    }

    /// Whether markers may be written and taken away now.
    pub fn may_write(&self) -> bool {
        self.machine.may_write(now())
    }

    /// Until when they may be.
    pub fn write_until(&self) -> Option<Duration> {
        self.machine.write_until()
    }

    /// What this process wrote of its ownership last.
    pub fn record(&self) -> Option<LeaseRecord> {
        self.machine.record().cloned()
    }

    /// Whether a marker waits to be written.
    pub fn is_committing(&self) -> bool {
        self.machine.is_committing()
    }

    /// Whether this process will never own the job again.
    pub fn is_over(&self) -> bool {
        self.machine.is_over()
    }

    /// How long nothing is due.
    pub fn idle(&self) -> Duration {
        self.machine.wake_at().map_or(LONGEST_SLEEP, |at| at.saturating_sub(now()).min(LONGEST_SLEEP))
    }

    /// The last failure of the way to the store, which is forgotten.
    pub fn take_trouble(&mut self) -> Option<(Concern, JobError)> {
        self.trouble.take()
    }

    /// Why the lease could not be renewed, as far as the store said.
    pub fn take_unwritten(&mut self) -> Option<JobError> {
        self.unwritten.take()
    }

    /// Lets time pass, and does what is due.
    pub async fn tick(&mut self, prepare: &mut dyn Prepare) -> Vec<LeaseNews> {
        self.step(LeaseEvent::Tick, prepare).await
    }

    /// A snapshot is at its destination, and was checked there: its marker is written as soon as that is allowed.
    pub async fn commit(&mut self, marker: Marker, prepare: &mut dyn Prepare) -> Vec<LeaseNews> {
        let name = marker.name();
        self.checked.insert(name.clone(), marker);
        self.step(LeaseEvent::Checked(name), prepare).await
    }

    /// Waits until the job is this process's. `told` hears what happens meanwhile, and may call it off.
    pub async fn acquire(
        &mut self,
        prepare: &mut dyn Prepare,
        told: &mut (dyn FnMut(LeaseNews) -> ckptd_core::Result<()> + Send),
    ) -> Result<u64> {
        loop {
            for news in self.tick(prepare).await {
                told(news)?;
            }
            if let Some(epoch) = self.epoch() {
                return Ok(epoch);
            }
            if let Some((_, trouble)) = self.take_trouble() {
                return Err(self.unwritten.take().unwrap_or(trouble));
            }
            // What was refused is refused the next time, too; what did not arrive may.
            if let Some(refused) = self.unwritten.take_if(|error| !error.is_of_the_way()) {
                return Err(refused);
            }
            tokio::time::sleep(self.idle()).await;
        }
    }

    /// Leaves the job to others, within `patience`.
    pub async fn leave(&mut self, patience: Duration) {
        let until = now() + patience;
        let mut event = LeaseEvent::Leave;
        while !self.is_over() && now() < until {
            self.step(event, &mut Unprepared).await;
            event = LeaseEvent::Tick;
            if !self.is_over() {
                tokio::time::sleep(self.idle().min(Duration::from_millis(200))).await;
            }
        }
    }

    async fn step(&mut self, event: LeaseEvent<ObjectVersion>, prepare: &mut dyn Prepare) -> Vec<LeaseNews> {
        let mut news = Vec::new();
        let mut wanted = VecDeque::from(self.machine.on(event, now()));
        while let Some(action) = wanted.pop_front() {
            match action {
                LeaseAction::Tell(what) => {
                    if let LeaseNews::Committed(name) | LeaseNews::NotCommitted(name) = &what {
                        self.checked.remove(name);
                    }
                    news.push(what);
                }
                action => {
                    let event = self.carry_out(action, prepare).await;
                    wanted.extend(self.machine.on(event, now()));
                }
            }
        }
        news
    }

    async fn carry_out(
        &mut self,
        action: LeaseAction<ObjectVersion>,
        prepare: &mut dyn Prepare,
    ) -> LeaseEvent<ObjectVersion> {
        let patience = self.settings.ttl / 4;
        match action {
            LeaseAction::Read => self.read(patience).await,
            LeaseAction::Prepare => match prepare.prepare(&self.job).await {
                Ok((base, newest_epoch)) => LeaseEvent::Prepared { base, newest_epoch },
                Err(error) => self.failed(error),
            },
            LeaseAction::Claim(record, version) => {
                let before = self.seen.as_ref().filter(|(_, seen)| Some(seen) == version.as_ref());
                let before = before.map(|(record, version)| (record, version));
                LeaseEvent::Written(if self.settings.fenced {
                    let written = lease_io::claim(&self.job, &record, before, patience).await;
                    self.wrote(written)
                } else {
                    self.note_epoch(&record).await
                })
            }
            LeaseAction::Renew(record, version) | LeaseAction::Release(record, version) => {
                LeaseEvent::Written(if self.settings.fenced {
                    let written = lease_io::renew(&self.job, &record, &version, patience).await;
                    self.wrote(written)
                } else {
                    WriteOutcome::Done(version)
                })
            }
            LeaseAction::Commit(name) => {
                let outcome = self.create_marker(&name).await;
                LeaseEvent::MarkerWritten(name, outcome)
            }
            LeaseAction::ReadMarker(name) => match self.job.marker(&name).await {
                Ok(found) => LeaseEvent::MarkerRead(name, found.map(|marker| marker.nonce)),
                Err(error) => {
                    self.trouble = Some((Concern::Sending, error));
                    LeaseEvent::MarkerNotRead(name)
                }
            },
            LeaseAction::Tell(_) => LeaseEvent::Tick,
        }
    }

    fn failed(&mut self, error: JobError) -> LeaseEvent<ObjectVersion> {
        self.trouble = Some((Concern::Lease, error));
        LeaseEvent::NotRead
    }

    fn wrote(&mut self, (outcome, unwritten): lease_io::LeaseWritten) -> WriteOutcome<ObjectVersion> {
        self.unwritten = unwritten;
        outcome
    }

    async fn read(&mut self, patience: Duration) -> LeaseEvent<ObjectVersion> {
        if !self.settings.fenced {
            return LeaseEvent::Read(None);
        }
        let read = tokio::time::timeout(patience, lease_io::read_lease(&self.job)).await;
        let slow = || lease_io::no_answer(&self.job, Operation::Get, patience);
        match read.unwrap_or_else(|_| Err(slow())) {
            Ok(found) => {
                self.seen = found.clone();
                LeaseEvent::Read(found.map(|(record, version)| {
                    let holder_is_gone = record.holder.is_gone(&self.here, start_ticks);
                    SeenLease { record, version, holder_is_gone }
                }))
            }
            Err(error) => self.failed(error),
        }
    }

    /// Without a lease, an epoch is noted all the same: it orders the markers.
    async fn note_epoch(&mut self, record: &LeaseRecord) -> WriteOutcome<ObjectVersion> {
        match self.job.put(&JobObject::Epoch(record.epoch), record).await {
            Ok(()) => WriteOutcome::Done(ObjectVersion(String::new())),
            Err(error) => {
                self.trouble = Some((Concern::Lease, error));
                WriteOutcome::Unknown
            }
        }
    }

    async fn create_marker(&mut self, name: &MarkerName) -> WriteOutcome<()> {
        let Some(marker) = self.checked.get(name) else { return WriteOutcome::Refused };
        let Ok(body) = json(marker) else { return WriteOutcome::Refused };
        match self.job.storage().create(&JobObject::Commit(name.clone()).name(), body).await {
            Ok(Created::Created(_)) => WriteOutcome::Done(()),
            Ok(Created::AlreadyThere) => WriteOutcome::Refused,
            Err(error) => {
                self.trouble = Some((Concern::Sending, error.into()));
                WriteOutcome::Unknown
            }
        }
    }
}

/// For who leaves: a job that becomes free is not taken.
struct Unprepared;

#[async_trait]
impl Prepare for Unprepared {
    async fn prepare(&mut self, _job: &RemoteJob) -> Result<(u64, u64)> {
        Err(JobError::other("leaving"))
    }
}
