//! A job's machine for tests: its clock is a number, its worker and its verifier are what a test says.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use jiff::Timestamp;

use super::events::{JobAction, JobEvent, WorkerExit};
use super::machine::JobMachine;
use crate::daemon::report::SnapshotStage;
use crate::daemon::verifier::{ReadBack, ResumeDecision, ResumePoint};
use crate::session::clock::{BootInstant, ClockReading};
use crate::session::records::SessionRecords;
use crate::training::progress::KeptSnapshot;
use ckptd_core::config::Config;
use ckptd_core::protocol::{self, AgentCommand, WorkerEvent};
use ckptd_core::snapshot::TrainState;

/// A job with a clock that a test turns.
pub(super) struct Bench {
    pub(super) job: JobMachine,
    began: BootInstant,
    pub(super) now: ClockReading,
    pub(super) actions: Vec<JobAction>,
}

impl Bench {
    pub(super) fn new(toml: &str) -> Bench {
        let toml = format!("[model]\npreset = \"gpt2-mini\"\n[data]\ntext = [\"a\"]\n[train]\nsteps = 20\n{toml}");
        let config = Config::parse(&toml, "/job.toml".as_ref()).unwrap();
        let now = ClockReading::now();
        let (job, actions) = JobMachine::new(config, "run".into(), false, SessionRecords::default(), now);
        Bench { job, began: now.at, now, actions }
    }

    /// One whose worker trains after `step` steps.
    pub(super) fn training(toml: &str, step: u64) -> Bench {
        let mut bench = Bench::new(toml);
        bench.on(JobEvent::Chosen(Ok(choice(step))));
        bench.greet(step);
        bench
    }

    /// What the next worker is told when it goes on after `step` steps.
    pub(super) fn restarted(&mut self, step: u64) -> AgentCommand {
        self.on(JobEvent::Chosen(Ok(choice(step))));
        self.on(JobEvent::Started { pid: 8, ranks: 2 });
        let told = self.drive(JobEvent::Said(Box::new(hello(protocol::VERSION))));
        let command = told.into_iter().find_map(|action| match action {
            JobAction::Send(command) => Some(command),
            _ => None,
        });
        command.unwrap()
    }

    pub(super) fn greet(&mut self, step: u64) {
        self.on(JobEvent::Started { pid: 7, ranks: 1 });
        self.say(hello(protocol::VERSION));
        self.say(ready(step));
    }

    pub(super) fn on(&mut self, event: JobEvent) -> &[JobAction] {
        self.actions = self.drive(event);
        // The records are written beside everything else.
        self.actions.retain(|action| !matches!(action, JobAction::Record(_) | JobAction::Mark(_) | JobAction::Keep(_)));
        &self.actions
    }

    /// All that is to be done about `event`. A look into the store finds what was saved last.
    pub(super) fn drive(&mut self, event: JobEvent) -> Vec<JobAction> {
        let mut actions = self.job.on(event, self.now);
        if let Some(at) = actions.iter().position(|action| matches!(action, JobAction::LookAtStore)) {
            actions.remove(at);
            let kept = self.job.progress().last_durable().map(|last| KeptSnapshot {
                id: last.id.clone(),
                step: last.step,
                is_verified: last.state == SnapshotStage::Verified,
                created_at: last.at,
            });
            actions.extend(self.job.on(JobEvent::Kept(Ok(kept)), self.now));
        }
        actions
    }

    pub(super) fn say(&mut self, message: WorkerEvent) -> &[JobAction] {
        self.on(JobEvent::Said(Box::new(message)))
    }

    /// Lets time pass, in which the loop looks at the clock every second.
    pub(super) fn pass(&mut self, duration: Duration) {
        self.sleep(duration);
        self.job.awake_at = Some(self.now.at);
    }

    /// Lets time pass in which nothing runs: the machine sleeps, or the process is stopped.
    pub(super) fn sleep(&mut self, duration: Duration) {
        self.now.at += duration;
        self.now.wall = self.now.wall.checked_add(jiff::SignedDuration::try_from(duration).unwrap()).unwrap();
    }

    /// Lets the time pass that the job wants to sleep, and wakes it.
    pub(super) fn wake(&mut self) -> &[JobAction] {
        let at = self.job.wake_at(self.now).unwrap();
        self.pass(at.saturating_duration_since(self.now.at));
        self.on(JobEvent::Tick)
    }

    pub(super) fn elapsed(&self) -> Duration {
        self.now.at - self.began
    }
}

pub(super) fn choice(step: u64) -> ResumeDecision {
    let resume = (step > 0).then(|| ResumePoint {
        id: format!("step-{step}").into(),
        path: format!("/store/step-{step}.ckpt").into(),
        step,
        created_at: Timestamp::now(),
        why: "the newest".into(),
        train: TrainState { step, last_eval_step: step, ..TrainState::default() },
    });
    ResumeDecision { resume, next_seq: step + 1, quarantined: Vec::new() }
}

pub(super) fn hello(version: u32) -> WorkerEvent {
    WorkerEvent::Hello {
        protocol: version,
        worker: "fake".into(),
        version: "1".into(),
        pid: 7,
        accepts: vec!["configure".into()],
    }
}

pub(super) fn ready(step: u64) -> WorkerEvent {
    let (device, resumed) = ("cpu".to_owned(), None);
    WorkerEvent::Ready {
        step,
        total_steps: 20,
        parameters: 1,
        state_bytes: 4,
        resumed,
        device,
        threads: 1,
        vocabulary: None,
        train_tokens: None,
        peak_bytes: None,
    }
}

pub(super) fn step(step: u64) -> WorkerEvent {
    WorkerEvent::Step { step, loss: 1.0, learning_rate: 1e-3, grad_norm: None, step_ms: 1.0, tokens: 8 }
}

pub(super) fn committed(step: u64) -> WorkerEvent {
    let path = format!("/store/snapshots/step-{step}.ckpt").into();
    WorkerEvent::Committed {
        step,
        seq: step,
        path,
        bytes: 4,
        raw_bytes: 8,
        capture_ms: 0.1,
        write_ms: 1.0,
        stall_ms: 0.1,
        extra_peak_bytes: 0,
        waited_ms: 0.0,
    }
}

pub(super) fn verified(step: u64) -> JobEvent {
    let took = Duration::from_millis(5);
    let created_at = Timestamp::now();
    let result = ReadBack::Verified { step, bytes: 4, raw_bytes: 8, healthy: true, val_loss: None, created_at, took };
    JobEvent::ReadBack { id: format!("step-{step}").into(), result }
}

pub(super) fn exited(code: i32) -> JobEvent {
    JobEvent::Exited(WorkerExit { code: Some(code), signal: None, out_of_memory: false, stderr_tail: Vec::new() })
}

pub(super) fn is_kill(actions: &[JobAction]) -> bool {
    matches!(actions, [JobAction::Kill])
}
