//! Snapshots of the running training: captured on whatever thread asks, encoded and committed on one of their own.
//!
//! Invariant: at most one snapshot is in flight, from its capture to its last fsync; another request meanwhile is
//! skipped and told, not queued. A commit that fails costs that snapshot and nothing else.
//! Deliberately not here: when to ask (the agent, the training loop), how capture and commit work.

mod ending;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ckptd_core::ids::{RunId, StateRoot};
use ckptd_core::os::process::{YIELDING_NICE, lower_other_threads, processors};
use ckptd_core::protocol::{MessageLevel, WorkerEvent};
use ckptd_core::snapshot::{CarriedFile, Metrics, Provenance, Snapshot, TrainState};
use ckptd_core::store::{CommitHandle, CommitOptions, CommitPace, Store, StoreLock, commit};
use ckptd_core::{Error, Result};

use crate::capture::{StallMeter, StateCapture, StateCapturer};
use crate::events::EventSender;
use crate::probe::LogitsProbe;
use crate::setup::ResumedFrom;

/// The thread that commits, and those that encode for it.
const THREAD: &str = "snapshots";

/// What every snapshot of this session has in common.
pub struct CommitSettings {
    pub store: Store,
    /// Held for as long as the committing thread lives.
    pub lock: StoreLock,
    pub run_id: RunId,
    pub next_seq: u64,
    /// The state that the store holds already, and its root: what the session resumed from.
    pub resumed: Option<ResumedFrom>,
    pub files: Vec<CarriedFile>,
    pub provenance: Provenance,
    /// What computes the hash of the model's answers, where snapshots are to hold one.
    pub probe: Option<LogitsProbe>,
}

/// What the agent may change while the worker runs.
#[derive(Debug, Default)]
pub struct SnapshotPolicy {
    /// 0: not by steps.
    every_steps: AtomicU64,
    level: AtomicUsize,
    threads: AtomicUsize,
}

impl SnapshotPolicy {
    pub fn set(&self, every_steps: Option<u64>, level: u8, encode_threads: usize) {
        let threads = match encode_threads {
            // The training's threads wait for the slowest among them: all of them are held up a little.
            0 => processors(),
            n => n,
        };
        self.every_steps.store(every_steps.unwrap_or(0), Ordering::Relaxed);
        self.level.store(level.into(), Ordering::Relaxed);
        self.threads.store(threads, Ordering::Relaxed);
    }

    /// Whether one is due after `step` steps.
    pub fn is_due(&self, step: u64) -> bool {
        let every = self.every_steps.load(Ordering::Relaxed);
        every > 0 && step.is_multiple_of(every)
    }
}

/// Takes snapshots; clones go to other threads.
#[derive(Clone)]
pub struct SnapshotTaker {
    capturer: StateCapturer,
    jobs: SyncSender<CommitJob>,
    flight: Arc<SnapshotFlight>,
    policy: Arc<SnapshotPolicy>,
    events: EventSender,
}

/// What is in flight and what is durable.
struct SnapshotFlight {
    state: Mutex<DurableState>,
    landed: Condvar,
    /// The session ends: no further step is to be computed.
    ending: AtomicBool,
}

struct DurableState {
    in_flight: Option<InFlight>,
    /// The newest state that is durable.
    newest: Option<TrainState>,
    /// What the last commit took.
    last_time: Option<Duration>,
}

struct InFlight {
    train: TrainState,
    began: Instant,
    handle: Arc<CommitHandle>,
}

struct CommitJob {
    capture: StateCapture,
    reason: String,
    pace: CommitPace,
    handle: Arc<CommitHandle>,
    outcome: Option<SyncSender<Result<()>>>,
}

impl SnapshotTaker {
    pub fn new(
        capturer: StateCapturer,
        settings: CommitSettings,
        policy: Arc<SnapshotPolicy>,
        events: EventSender,
    ) -> Result<SnapshotTaker> {
        let newest = settings.resumed.as_ref().map(|resumed| resumed.train.clone());
        let flight = Arc::new(SnapshotFlight {
            state: Mutex::new(DurableState { in_flight: None, newest, last_time: None }),
            landed: Condvar::new(),
            ending: AtomicBool::new(false),
        });
        let (jobs, receiver) = sync_channel(1);
        let committer = SnapshotCommitter {
            parent: settings.resumed.as_ref().map(|resumed| resumed.root.clone()),
            settings,
            flight: flight.clone(),
            policy: policy.clone(),
            capturer: capturer.clone(),
            events: events.clone(),
            expected_bytes: 0,
        };
        std::thread::Builder::new()
            .name(THREAD.into())
            .spawn(move || committer.run(receiver))
            .map_err(|e| Error::io("starting a thread for", PathBuf::from("snapshots"), e))?;
        Ok(SnapshotTaker { capturer, jobs, flight, policy, events })
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
                let meter = capture.stall_meter();
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

    /// Whether one is due after `step` steps.
    pub fn is_due(&self, step: u64) -> bool {
        self.policy.is_due(step)
    }

    /// Ends the training where it is, in the middle of a step: no other update begins, and whatever libtorch still
    /// computes gives way. The last snapshot has the processors for itself, and the process ends after it.
    pub fn end_training(&self) {
        self.flight.ending.store(true, Ordering::Relaxed);
        // Before the threads' priority: an update that is under way holds up the last snapshot.
        self.capturer.freeze();
        // libtorch's threads cannot be stopped within an operation (one may hold a lock that is needed elsewhere). They
        // still get a share: they may hold such a lock, and have to die when the process ends, on a crowded machine too.
        lower_other_threads(YIELDING_NICE, &[THREAD, crate::events::THREAD, crate::COMMANDS_THREAD]);
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
            let facts = ending::EndingInputs {
                newer: self.capturer.train() != flight.train,
                rest,
                fresh: durable.last_time.or(rest.map(|rest| elapsed + rest)),
                time: within,
            };
            match ending::decide(&facts) {
                ending::EndingChoice::Finish => flight.handle.hurry(),
                ending::EndingChoice::Abandon => flight.handle.cancel(),
            }
        }
        drop(durable);
        self.take_and_wait(reason, false, pace)
    }

    /// Keeps the state for a look at what went wrong, also where the same state is durable as a healthy one.
    pub fn take_post_mortem(&self) -> Result<()> {
        self.take_and_wait("post-mortem", true, CommitPace::Alone)
    }

    fn take_and_wait(&self, reason: &str, even_if_durable: bool, pace: CommitPace) -> Result<()> {
        let mut durable = self.flight.lock();
        while durable.in_flight.is_some() {
            durable = self.flight.landed.wait(durable).unwrap_or_else(PoisonError::into_inner);
        }
        if even_if_durable {
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
    fn capture(&self, durable: &DurableState) -> Result<Option<StateCapture>> {
        // Handles of the snapshot before are dropped before it lands, so none is in flight here.
        let capture = self.capturer.capture()?.ok_or_else(|| Error::Other("a snapshot is held twice".into()))?;
        Ok(Some(capture).filter(|c| durable.newest.as_ref() != Some(&c.train)))
    }

    /// Takes the one place in flight.
    fn prepare(
        &self,
        durable: &mut DurableState,
        capture: StateCapture,
        reason: &str,
        pace: CommitPace,
        outcome: Option<SyncSender<Result<()>>>,
    ) -> CommitJob {
        let handle: Arc<CommitHandle> = Arc::default();
        durable.in_flight =
            Some(InFlight { train: capture.train.clone(), began: Instant::now(), handle: handle.clone() });
        CommitJob { capture, reason: reason.into(), pace, handle, outcome }
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

impl SnapshotFlight {
    fn lock(&self) -> MutexGuard<'_, DurableState> {
        // Every change under this lock is one assignment.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The thread that commits.
struct SnapshotCommitter {
    settings: CommitSettings,
    parent: Option<StateRoot>,
    flight: Arc<SnapshotFlight>,
    policy: Arc<SnapshotPolicy>,
    capturer: StateCapturer,
    events: EventSender,
    expected_bytes: u64,
}

impl SnapshotCommitter {
    fn run(mut self, jobs: Receiver<CommitJob>) {
        for job in jobs {
            let (step, train) = (job.capture.train.step, job.capture.train.clone());
            let (began, waiting) = (Instant::now(), job.outcome.clone());
            let outcome = self.commit(job);
            if let Err(Error::Abandoned) = &outcome {
                self.events.log(MessageLevel::Info, format!("the snapshot of step {step} is given up for a newer one"));
            } else if let Err(e) = &outcome {
                let disk_full = matches!(e, Error::NoSpace { .. });
                self.events.send(WorkerEvent::SnapshotFailed { step, what: e.to_string(), disk_full });
            }
            let mut durable = self.flight.lock();
            durable.in_flight = None;
            if outcome.is_ok() {
                durable.last_time = Some(began.elapsed());
                durable.newest = Some(train);
            }
            drop(durable);
            self.flight.landed.notify_all();
            if let Some(waiting) = waiting {
                let _ = waiting.send(outcome);
            }
        }
    }

    fn commit(&mut self, job: CommitJob) -> Result<()> {
        let CommitJob { capture, reason, pace, handle, .. } = job;
        let settings = &self.settings;
        let options = CommitOptions {
            parent: self.parent.clone(),
            level: u8::try_from(self.policy.level.load(Ordering::Relaxed)).unwrap_or(1),
            // Nothing else is to be computed beside the last one.
            threads: match pace {
                CommitPace::Background => self.policy.threads.load(Ordering::Relaxed),
                CommitPace::Alone | CommitPace::Hurried => processors(),
            },
            pace,
            handle,
            expected_bytes: self.expected_bytes,
            ..CommitOptions::new(&settings.run_id, settings.next_seq)
        };
        // A number is used once, also by a commit that fails.
        self.settings.next_seq += 1;
        let settings = &self.settings;
        let stall = capture.stall_meter();
        let capture_ms = capture.capture_time.as_secs_f64() * 1e3;
        let step = capture.train.step;
        let probe = settings.probe.as_ref().map(|prober| prober.hash(&capture.tensors)).transpose()?;
        let snapshot = Snapshot {
            tensors: capture.tensors,
            train: capture.train,
            metrics: Metrics { probe, ..capture.metrics },
            provenance: Provenance { reason, ..settings.provenance.clone() },
            files: settings.files.clone(),
        };
        let done = commit(&settings.store, &settings.lock, snapshot, &options)?;
        self.parent = Some(done.root);
        // A little more than before, so that the reservation seldom falls short.
        self.expected_bytes = done.bytes + done.bytes / 64;
        self.events.send(WorkerEvent::Committed {
            step,
            seq: options.seq,
            path: done.path,
            bytes: done.bytes,
            raw_bytes: done.raw_bytes,
            capture_ms,
            write_ms: done.write_ms,
            stall_ms: stall.stall().as_secs_f64() * 1e3,
            extra_peak_bytes: self.capturer.memory().extra_peak,
        });
        Ok(())
    }
}
