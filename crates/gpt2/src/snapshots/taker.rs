//! Takes snapshots: by request, by steps, and the last one of a session.
//!
//! Invariant: a request waits for the capture only, unless it is for the last snapshot. Deliberately not here: encoding
//! and writing (`committer`).

use std::sync::atomic::Ordering;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use ckptd_core::os::process::{YIELDING_NICE, lower_other_threads};
use ckptd_core::protocol::WorkerEvent;
use ckptd_core::snapshot::DistantTensor;
use ckptd_core::store::{CommitHandle, CommitPace};
use ckptd_core::{Error, Result};

use super::committer::{self, CommitSettings};
use super::ending::{self, EndingChoice, EndingInputs};
use super::flight::{CommitJob, DurableState, InFlight, SnapshotFlight};
use super::policy::SnapshotPolicy;
use super::sharded::ShardedMoments;
use crate::capture::{StallMeter, StateCapture, StateCapturer};
use crate::events::{self, EventSender};
use crate::ranks::RANKS_THREAD;

/// What a request does where the same state is durable already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SameState {
    Skip,
    TakeAgain,
}

/// What is captured here, and the tensors of which other ranks hold parts.
type TakenCut = (StateCapture, Vec<DistantTensor>);

/// Takes snapshots; clones go to other threads.
#[derive(Clone)]
pub struct SnapshotTaker {
    capturer: StateCapturer,
    jobs: SyncSender<CommitJob>,
    flight: Arc<SnapshotFlight>,
    policy: Arc<SnapshotPolicy>,
    events: EventSender,
    moments: Option<ShardedMoments>,
}

impl SnapshotTaker {
    /// Starts the thread that commits what `capturer` captures.
    ///
    /// # Errors
    /// [`Error::Io`] where there is no thread for it.
    pub fn new(
        capturer: StateCapturer,
        settings: CommitSettings,
        policy: Arc<SnapshotPolicy>,
        events: EventSender,
    ) -> Result<SnapshotTaker> {
        let moments = settings.moments.clone();
        let newest = settings.resumed.as_ref().map(|resumed| resumed.train.clone());
        let flight = Arc::new(SnapshotFlight::new(newest));
        let (jobs, receiver) = sync_channel(1);
        committer::spawn(receiver, settings, flight.clone(), policy.clone(), capturer.clone(), events.clone())?;
        Ok(SnapshotTaker { capturer, jobs, flight, policy, events, moments })
    }

    /// [`SnapshotTaker::take`] for the training thread, whose time in here counts as held up.
    pub fn take_between_steps(&self, reason: &str) {
        let began = Instant::now();
        if let Some(meter) = self.take(reason) {
            meter.add(began.elapsed());
        }
    }

    /// Captures the state as it is now, and returns; the rest happens in the background. What is returned measures
    /// how long this snapshot holds up the training.
    pub fn take(&self, reason: &str) -> Option<StallMeter> {
        let mut durable = self.flight.lock();
        if self.flight.ending.load(Ordering::Relaxed) {
            return None; // The last one takes what is there.
        }
        if durable.in_flight.is_some() {
            let step = self.capturer.step();
            self.events.send(WorkerEvent::SnapshotSkipped { step, reason: reason.into() });
            return None;
        }
        match self.capture(&durable) {
            Ok(Some(capture)) => {
                let meter = capture.0.stall_meter();
                let job = self.prepare(&mut durable, capture, reason, CommitPace::Background, None);
                drop(durable);
                self.launch(job);
                Some(meter)
            }
            // Nothing has happened since the last one.
            Ok(None) => None,
            Err(e) => {
                self.failed(&e);
                None
            }
        }
    }

    /// Steps completed.
    pub fn step(&self) -> u64 {
        self.capturer.step()
    }

    /// Steps of the newest one that was taken in this session; `None`: none was.
    pub fn newest_taken(&self) -> Option<u64> {
        self.flight.lock().newest_taken
    }

    /// Whether one is due after `step` steps.
    pub fn is_due(&self, step: u64) -> bool {
        self.policy.is_due(step)
    }

    /// Whether other ranks hold shards of the moments.
    pub fn is_sharded(&self) -> bool {
        self.moments.is_some()
    }

    /// Called by the training when all ranks have met in a step, before any of them updates.
    pub fn begin_update(&self) {
        if let Some(moments) = &self.moments {
            self.capturer.held_up(moments.gate.begin_update());
        }
    }

    /// Called by the training when that update is done, or has failed.
    pub fn end_update(&self) {
        if let Some(moments) = &self.moments {
            moments.gate.end_update();
        }
    }

    /// Ends the training where it is, in the middle of a step: no other update begins, and whatever libtorch still
    /// computes gives way. The last snapshot has the processors for itself, and the process ends after it.
    pub fn end_training(&self) {
        self.flight.ending.store(true, Ordering::Relaxed);
        if let Some(moments) = &self.moments {
            // For ever: no rank begins another update, and an update that is under way ends on all of them.
            std::mem::forget(moments.gate.hold());
            moments.parts.end_training();
        }
        // Before the threads' priority: an update that is under way holds up the last snapshot.
        self.capturer.freeze();
        // libtorch's threads cannot be stopped within an operation (one may hold a lock that is needed elsewhere). They
        // still get a share: they may hold such a lock, and have to die when the process ends, on a crowded machine
        // too.
        let spared = [committer::THREAD, events::THREAD, events::COMMANDS_THREAD, RANKS_THREAD];
        lower_other_threads(YIELDING_NICE, &spared);
    }

    /// Called by the training between micro-batches; does not return once the session ends.
    pub fn pause_if_ending(&self) {
        while self.flight.ending.load(Ordering::Relaxed) {
            std::thread::park();
        }
    }

    /// Makes the newest state durable, and returns when it is. What is in flight is finished first, or given up where
    /// there is no time for both. Nothing trains meanwhile; `pace` says whether a deadline comes nearer, `within` when.
    pub fn take_last(&self, reason: &str, pace: CommitPace, within: Option<Duration>) -> Result<()> {
        let durable = self.flight.lock();
        if let Some(flight) = &durable.in_flight {
            let elapsed = flight.began.elapsed();
            let rest = ending::rest(flight.handle.fraction(), elapsed);
            let inputs = EndingInputs {
                newer: self.capturer.train() != flight.train,
                rest,
                fresh: durable.last_time.or(rest.map(|rest| elapsed + rest)),
                time: within,
            };
            match ending::decide(&inputs) {
                EndingChoice::Finish => flight.handle.hurry(),
                EndingChoice::Abandon => flight.handle.cancel(),
            }
        }
        drop(durable);
        self.take_and_wait(reason, SameState::Skip, pace)
    }

    /// Gives up what is in flight, and takes no more between steps: the state is not to be gone on from. Returns when
    /// nothing of it is written any more, so that what was committed nevertheless has been told.
    pub fn give_up(&self) {
        self.flight.ending.store(true, Ordering::Relaxed);
        let mut durable = self.flight.lock();
        while let Some(flight) = &durable.in_flight {
            flight.handle.cancel();
            durable = self.flight.landed.wait(durable).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Keeps the state for a look at what went wrong, also where the same state is durable as a healthy one.
    pub fn take_post_mortem(&self) -> Result<()> {
        self.take_and_wait("post-mortem", SameState::TakeAgain, CommitPace::Alone)
    }

    fn take_and_wait(&self, reason: &str, same: SameState, pace: CommitPace) -> Result<()> {
        let mut durable = self.flight.lock();
        while durable.in_flight.is_some() {
            durable = self.flight.landed.wait(durable).unwrap_or_else(PoisonError::into_inner);
        }
        if same == SameState::TakeAgain {
            durable.newest = None;
        }
        let Some(capture) = self.capture(&durable).inspect_err(|e| self.failed(e))? else { return Ok(()) };
        let (outcome, landed) = sync_channel(1);
        let job = self.prepare(&mut durable, capture, reason, pace, Some(outcome));
        drop(durable);
        self.launch(job);
        landed.recv().unwrap_or_else(|_| Err(Error::Other("the thread that commits snapshots died".into())))
    }

    /// The state as it is now, unless that is durable already.
    fn capture(&self, durable: &DurableState) -> Result<Option<TakenCut>> {
        if durable.newest.as_ref() == Some(&self.capturer.train()) {
            return Ok(None);
        }
        // Handles of the snapshot before are dropped before it lands, so none is in flight here.
        let cut = match &self.moments {
            Some(moments) => moments.capture(&self.capturer)?,
            None => self.capturer.capture()?.map(|capture| (capture, Vec::new())),
        };
        cut.map(Some).ok_or_else(|| Error::Other("a snapshot is held twice".into()))
    }

    /// Takes the one place in flight.
    fn prepare(
        &self,
        durable: &mut DurableState,
        (capture, sharded): TakenCut,
        reason: &str,
        pace: CommitPace,
        outcome: Option<SyncSender<Result<()>>>,
    ) -> CommitJob {
        let handle: Arc<CommitHandle> = Arc::default();
        durable.newest_taken = Some(capture.train.step);
        durable.in_flight =
            Some(InFlight { train: capture.train.clone(), began: Instant::now(), handle: handle.clone() });
        CommitJob { capture, sharded, reason: reason.into(), pace, handle, outcome }
    }

    fn launch(&self, job: CommitJob) {
        let capture_ms = job.capture.capture_time.as_secs_f64() * 1e3;
        let (step, reason) = (job.capture.train.step, job.reason.clone());
        self.events.send(WorkerEvent::SnapshotStarted { step, reason, capture_ms });
        // The channel has room: only one is in flight. The committer lives as long as the process.
        let _ = self.jobs.send(job);
    }

    fn failed(&self, error: &Error) {
        let (step, what) = (self.capturer.step(), error.to_string());
        self.events.send(WorkerEvent::SnapshotFailed { step, what, disk_full: false });
    }
}
