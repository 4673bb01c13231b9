//! A worker that trains nothing: it speaks the protocol, and commits real snapshots of a state that follows from the
//! step alone ([`stepped`]).
//!
//! It misbehaves as the files in its script folder say: `exit-in-7` holds how often it is to exit in step 7.

use std::io::{BufRead, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use ckptd_core::ids::RunId;
use ckptd_core::progress::NoProgress;
use ckptd_core::protocol::{self, AgentCommand, Start, WorkerEvent, WorkerFailure};
use ckptd_core::store::{CommitOptions, SnapshotReader, Store, StoreLock, commit};

use crate::{small, stepped};

const GONE: &str = "the agent is gone";
/// Values of each of its tensors.
pub const ELEMENTS: usize = 3000;
/// More than any limit under which `eat-in` is tried.
const MAX_EATEN: usize = 2 << 30;

/// How the worker behaves.
pub struct WorkerOptions {
    /// How long a step takes.
    pub step: Duration,
    /// Whether it says that it can be configured while it runs.
    pub is_configurable: bool,
    pub script: Option<PathBuf>,
}

struct QuickWorker<W> {
    options: WorkerOptions,
    events: W,
    commands: Receiver<AgentCommand>,
}

/// The snapshots of one run.
struct Saved {
    store: Store,
    run_id: RunId,
    seq: u64,
    /// The step of the newest.
    step: Option<u64>,
}

/// Works for the agent on standard input until it is told to stop or has nothing left to do; returns the exit code.
/// Events go to `events`.
pub fn run(options: WorkerOptions, events: impl Write) -> Result<i32> {
    QuickWorker { options, events, commands: commands() }.run()
}

fn commands() -> Receiver<AgentCommand> {
    let (sender, commands) = channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if let Ok(command) = protocol::parse(&line) {
                let _ = sender.send(command);
            }
        }
        // The agent is gone: save and leave.
        let _ = sender.send(AgentCommand::Stop { snapshot: true, reason: GONE.into(), within_ms: None });
    });
    commands
}

impl<W: Write> QuickWorker<W> {
    fn say(&mut self, event: &WorkerEvent) {
        // The agent may be gone.
        let _ = self.events.write_all(protocol::line(event).as_bytes()).and_then(|()| self.events.flush());
    }

    /// Whether the script asks for this now; it asks as often as the file says.
    fn asked(&self, what: &str) -> bool {
        let Some(path) = self.options.script.as_ref().map(|script| script.join(what)) else { return false };
        let times = std::fs::read_to_string(&path).ok().and_then(|times| times.trim().parse::<u32>().ok());
        let left = times.unwrap_or(0);
        if left > 0 {
            std::fs::write(&path, (left - 1).to_string()).expect("the script is writable");
        }
        left > 0
    }

    fn run(mut self) -> Result<i32> {
        if self.asked("mute") {
            std::thread::park();
        }
        let protocol = if self.asked("other-protocol") { 99 } else { protocol::VERSION };
        let accepts = if self.options.is_configurable { vec!["configure".into()] } else { Vec::new() };
        let (worker, version) = ("quick".into(), "1".into());
        self.say(&WorkerEvent::Hello { protocol, worker, version, pid: std::process::id(), accepts });
        let Ok(AgentCommand::Start(start)) = self.commands.recv() else { return Ok(0) };
        for (what, failure) in [
            ("fail-config", WorkerFailure::Config),
            ("fail-damaged", WorkerFailure::Damaged),
            ("fail-mismatch", WorkerFailure::Mismatch),
            ("fail-other", WorkerFailure::Other),
        ] {
            if self.asked(what) {
                self.say(&WorkerEvent::Failed { failure, what: format!("the script says {what}") });
                return Ok(1);
            }
        }
        self.train(&start)
    }

    fn train(&mut self, start: &Start) -> Result<i32> {
        let train = &start.config.train;
        let mut step = start.resume.as_deref().map_or(Ok(0), restore)?;
        self.say(&WorkerEvent::Ready {
            step,
            total_steps: train.steps,
            parameters: ELEMENTS as u64,
            state_bytes: ELEMENTS as u64 * 8,
            resumed: start.resume.as_ref().map(|path| path.display().to_string()),
            device: "none".into(),
            threads: 1,
            vocabulary: None,
            train_tokens: None,
            peak_bytes: None,
        });
        let store = Store::open(&start.config.job.store)?;
        let newest = start.resume.is_some().then_some(step);
        let mut saved = Saved { store, run_id: start.run_id.clone(), seq: start.next_seq, step: newest };
        let mut every_steps = start.config.snapshot.every_steps;
        while step < train.steps {
            self.misbehave(step + 1)?;
            if self.told_to_stop(step, &mut saved, &mut every_steps)? {
                self.say(&WorkerEvent::Done { step, finished: false });
                return Ok(0);
            }
            step += 1;
            let (loss, step_ms) = (10.0 / step as f64, self.options.step.as_secs_f64() * 1e3);
            self.say(&WorkerEvent::Step { step, loss, learning_rate: 1e-3, grad_norm: None, step_ms, tokens: 64 });
            if every_steps.is_some_and(|every| step.is_multiple_of(every)) {
                self.save(&mut saved, step, "interval");
            }
        }
        self.save(&mut saved, step, "final");
        self.say(&WorkerEvent::Done { step, finished: true });
        Ok(0)
    }

    /// Lets a step pass, in which commands come at any moment; whether one of them was to stop.
    fn told_to_stop(&mut self, step: u64, saved: &mut Saved, every_steps: &mut Option<u64>) -> Result<bool> {
        let until = Instant::now() + self.options.step;
        loop {
            match self.commands.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(AgentCommand::Snapshot { reason }) => self.save(saved, step, &reason),
                Ok(AgentCommand::Stop { .. }) if self.asked("deaf") => {}
                Ok(AgentCommand::Stop { snapshot, reason, .. }) => {
                    if reason == GONE {
                        self.linger();
                    }
                    if snapshot && step > 0 {
                        self.save(saved, step, &reason);
                    }
                    return Ok(true);
                }
                Ok(AgentCommand::Configure { every_steps: asked, .. }) => {
                    ensure!(self.options.is_configurable, "configure came unasked");
                    *every_steps = asked;
                }
                Ok(AgentCommand::Start(_)) => bail!("start came twice"),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return Ok(false),
            }
        }
    }

    /// Writes as slowly as the script says: until its file is gone.
    fn linger(&self) {
        while self.options.script.as_ref().is_some_and(|script| script.join("linger").exists()) {
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn misbehave(&mut self, in_step: u64) -> Result<()> {
        if self.asked(&format!("exit-in-{in_step}")) {
            eprintln!("boom in step {in_step}");
            std::process::exit(3);
        }
        if self.asked(&format!("hang-in-{in_step}")) {
            std::thread::park();
        }
        if self.asked(&format!("eat-in-{in_step}")) {
            eat()?;
        }
        if self.asked(&format!("garbage-in-{in_step}")) {
            let _ = self.events.write_all(b"Epoch 1: loss is fine, thanks\n");
        }
        Ok(())
    }

    fn save(&mut self, saved: &mut Saved, step: u64, reason: &str) {
        if saved.step >= Some(step) {
            return;
        }
        self.say(&WorkerEvent::SnapshotStarted { step, reason: reason.into(), capture_ms: 0.5 });
        if self.asked("disk-full") {
            let what = "no space left while writing a snapshot".into();
            return self.say(&WorkerEvent::SnapshotFailed { step, what, disk_full: true });
        }
        let seq = saved.seq;
        saved.seq += 1;
        match commit(
            &saved.store,
            &StoreLock::inherited(),
            stepped::snapshot(step, ELEMENTS),
            &CommitOptions::new(saved.run_id.clone(), seq),
        ) {
            Ok(done) => {
                saved.step = Some(step);
                if self.asked("flip") || self.asked(&format!("flip-{step}")) {
                    small::flip_a_byte(&done.path);
                }
                self.say(&WorkerEvent::Committed {
                    step,
                    seq,
                    path: done.path,
                    bytes: done.bytes,
                    raw_bytes: done.raw_bytes,
                    capture_ms: 0.5,
                    write_ms: done.write_ms,
                    stall_ms: 0.5,
                    extra_peak_bytes: 0,
                    waited_ms: 0.0,
                });
            }
            Err(e) => {
                let disk_full = matches!(e, ckptd_core::Error::NoSpace { .. });
                self.say(&WorkerEvent::SnapshotFailed { step, what: e.to_string(), disk_full });
            }
        }
    }
}

/// The step of a snapshot whose every byte is what it must be.
fn restore(path: &Path) -> Result<u64> {
    let reader = SnapshotReader::open(path)?;
    reader.check_all(1, &NoProgress)?;
    let manifest = reader.manifest();
    ensure!(
        manifest.root == stepped::root(manifest.train.step, ELEMENTS),
        "{} is not its step's state",
        path.display()
    );
    Ok(manifest.train.step)
}

fn eat() -> Result<()> {
    let mut eaten: Vec<Vec<u8>> = Vec::new();
    while eaten.len() * (8 << 20) < MAX_EATEN {
        eaten.push(vec![1; 8 << 20]);
    }
    bail!("{MAX_EATEN} bytes were taken, and nothing happened")
}
