//! The thread that encodes and commits captured snapshots, one at a time.
//!
//! Invariant: a commit that fails costs that snapshot and nothing else; a sequence number is used once. Deliberately
//! not here: how a commit works (`store`).

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use ckptd_core::ids::{RunId, StateRoot};
use ckptd_core::os::process::processors;
use ckptd_core::protocol::{MessageLevel, WorkerEvent};
use ckptd_core::snapshot::{CarriedFile, Metrics, Provenance, Snapshot};
use ckptd_core::store::{CommitOptions, CommitPace, Store, StoreLock, commit_with};
use ckptd_core::{Error, Result};

use super::flight::{CommitJob, SnapshotFlight};
use super::policy::SnapshotPolicy;
use super::sharded::ShardedMoments;
use crate::capture::StateCapturer;
use crate::events::EventSender;
use crate::probe::LogitsProbe;
use crate::setup::ResumedFrom;

/// The thread that commits, and those that encode for it.
pub(super) const THREAD: &str = "snapshots";

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
    /// Where ranks hold the moments in parts.
    pub moments: Option<ShardedMoments>,
    /// What computes the fingerprint of the model's logits, where snapshots are to hold one.
    pub probe: Option<LogitsProbe>,
}

/// Starts the thread, which ends when `jobs` does.
pub(super) fn spawn(
    jobs: Receiver<CommitJob>,
    settings: CommitSettings,
    flight: Arc<SnapshotFlight>,
    policy: Arc<SnapshotPolicy>,
    capturer: StateCapturer,
    events: EventSender,
) -> Result<()> {
    let parent = settings.resumed.as_ref().map(|resumed| resumed.root.clone());
    let committer = SnapshotCommitter {
        settings,
        parent,
        flight,
        policy,
        capturer,
        events,
        expected_bytes: 0,
        waited: Duration::ZERO,
    };
    let spawned = std::thread::Builder::new().name(THREAD.into()).spawn(move || committer.run(jobs));
    spawned.map(drop).map_err(|e| Error::io("starting a thread for", PathBuf::from(THREAD), e))
}

struct SnapshotCommitter {
    settings: CommitSettings,
    parent: Option<StateRoot>,
    flight: Arc<SnapshotFlight>,
    policy: Arc<SnapshotPolicy>,
    capturer: StateCapturer,
    events: EventSender,
    expected_bytes: u64,
    /// How long updates had waited when the last one was committed.
    waited: Duration,
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
        let CommitJob { capture, sharded, reason, pace, handle, .. } = job;
        let settings = &self.settings;
        let options = CommitOptions {
            parent: self.parent.clone(),
            level: self.policy.level(),
            // Nothing else is to be computed beside the last one.
            threads: match pace {
                CommitPace::Background => self.policy.threads(),
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
        let probe = settings.probe.as_ref().map(|probe| probe.hash(&capture.tensors)).transpose()?;
        let snapshot = Snapshot {
            tensors: capture.tensors,
            train: capture.train,
            metrics: Metrics { probe, ..capture.metrics },
            provenance: Provenance { reason, ..settings.provenance.clone() },
            files: settings.files.clone(),
        };
        let done = commit_with(&settings.store, &settings.lock, snapshot, sharded, &options)?;
        self.parent = Some(done.root);
        // A little more than before, so that the reservation seldom falls short.
        self.expected_bytes = done.bytes + done.bytes / 64;
        let memory = self.capturer.memory();
        let waited = memory.waited - std::mem::replace(&mut self.waited, memory.waited);
        self.events.send(WorkerEvent::Committed {
            step,
            seq: options.seq,
            path: done.path,
            bytes: done.bytes,
            raw_bytes: done.raw_bytes,
            capture_ms,
            write_ms: done.write_ms,
            stall_ms: stall.stall().as_secs_f64() * 1e3,
            extra_peak_bytes: memory.extra_peak,
            waited_ms: waited.as_secs_f64() * 1e3,
        });
        Ok(())
    }
}
