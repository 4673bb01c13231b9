//! A worker that trains nothing: it speaks the protocol and commits real snapshots of a state that follows from the
//! step alone, in steps of a few milliseconds.

use std::io::{BufRead, Write};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use ckptd_core::progress::NoProgress;
use ckptd_core::protocol::{self, AgentCommand, Start, WorkerEvent};
use ckptd_core::store::{CommitOptions, SnapshotReader, Store, StoreLock, commit};

use crate::state;

const ELEMENTS: usize = 3000;
/// More than any limit under which this is tried.
const MAX_EATEN: usize = 2 << 30;

#[derive(clap::Args)]
pub struct Arguments {
    #[arg(long, default_value_t = 4)]
    step_ms: u64,
    /// Take memory without end in this step, as often as the file of --appetite says.
    #[arg(long)]
    eat_in: Option<u64>,
    #[arg(long)]
    appetite: Option<PathBuf>,
}

pub fn run(arguments: &Arguments) -> Result<()> {
    let commands = commands();
    say(&WorkerEvent::Hello {
        protocol: protocol::VERSION,
        worker: "quick".into(),
        version: "1".into(),
        pid: std::process::id(),
        accepts: Vec::new(),
    });
    match commands.recv() {
        Ok(AgentCommand::Start(start)) => train(arguments, &start, &commands),
        _ => Ok(()),
    }
}

fn commands() -> Receiver<AgentCommand> {
    let (sender, commands) = channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if let Ok(command) = protocol::parse(&line) {
                let _ = sender.send(command);
            }
        }
        let _ = sender.send(AgentCommand::Stop { snapshot: true, reason: "the agent is gone".into(), within_ms: None });
    });
    commands
}

/// Nobody may be there to hear it.
fn say(event: &WorkerEvent) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(protocol::line(event).as_bytes()).and_then(|()| out.flush());
}

struct Saver<'a> {
    store: Store,
    start: &'a Start,
    seq: u64,
    saved: u64,
}

fn train(arguments: &Arguments, start: &Start, commands: &Receiver<AgentCommand>) -> Result<()> {
    let config = &start.config;
    let mut step = match &start.resume {
        Some(path) => restore(path)?,
        None => 0,
    };
    let mut saver = Saver { store: Store::open(&config.job.store)?, start, seq: start.next_seq, saved: step };
    say(&WorkerEvent::Ready {
        step,
        total_steps: config.train.steps,
        parameters: ELEMENTS as u64,
        state_bytes: ELEMENTS as u64 * 8,
        resumed: start.resume.as_ref().map(|path| path.display().to_string()),
        device: "none".into(),
        threads: 1,
    });
    while step < config.train.steps {
        if arguments.eat_in == Some(step + 1) && arguments.hungry()? {
            eat()?;
        }
        let until = Instant::now() + Duration::from_millis(arguments.step_ms);
        loop {
            match commands.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(AgentCommand::Snapshot { reason }) => saver.save(step, &reason),
                Ok(AgentCommand::Stop { snapshot, reason, .. }) => {
                    if snapshot {
                        saver.save(step, &reason);
                    }
                    say(&WorkerEvent::Done { step, finished: false });
                    return Ok(());
                }
                // Nobody was told that it is understood.
                Ok(AgentCommand::Configure { .. }) => bail!("configure came unasked"),
                Ok(AgentCommand::Start(_)) => bail!("start came twice"),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break,
            }
        }
        step += 1;
        let (loss, tokens) = (10.0 / step as f64, 64);
        say(&WorkerEvent::Step { step, loss, learning_rate: 1e-3, grad_norm: None, step_ms: 4.0, tokens });
        if config.snapshot.every_steps.is_some_and(|every| step.is_multiple_of(every)) {
            saver.save(step, "interval");
        }
    }
    saver.save(step, "final");
    say(&WorkerEvent::Done { step, finished: true });
    Ok(())
}

/// The step of a snapshot whose every byte is what it must be.
fn restore(path: &std::path::Path) -> Result<u64> {
    let reader = SnapshotReader::open(path)?;
    reader.check_all(1, &NoProgress)?;
    let manifest = reader.manifest();
    ensure!(manifest.root == state::root(manifest.train.step, ELEMENTS), "{} is not its step's state", path.display());
    Ok(manifest.train.step)
}

impl Saver<'_> {
    fn save(&mut self, step: u64, reason: &str) {
        if self.saved >= step {
            return;
        }
        say(&WorkerEvent::SnapshotStarted { step, reason: reason.into(), capture_ms: 0.5 });
        let options = CommitOptions::new(&self.start.run_id, self.seq);
        self.seq += 1;
        match commit(&self.store, &StoreLock::inherited(), state::snapshot(step, ELEMENTS), &options) {
            Ok(done) => {
                self.saved = step;
                say(&WorkerEvent::Committed {
                    step,
                    seq: options.seq,
                    path: done.path,
                    bytes: done.bytes,
                    raw_bytes: done.raw_bytes,
                    capture_ms: 0.5,
                    write_ms: done.write_ms,
                    stall_ms: 0.5,
                    extra_peak_bytes: 0,
                });
            }
            Err(e) => {
                let disk_full = matches!(e, ckptd_core::Error::NoSpace { .. });
                say(&WorkerEvent::SnapshotFailed { step, what: e.to_string(), disk_full });
            }
        }
    }
}

impl Arguments {
    fn hungry(&self) -> Result<bool> {
        let Some(appetite) = &self.appetite else { return Ok(false) };
        let times: u64 = std::fs::read_to_string(appetite)?.trim().parse()?;
        if times > 0 {
            std::fs::write(appetite, (times - 1).to_string())?;
        }
        Ok(times > 0)
    }
}

fn eat() -> Result<()> {
    let mut eaten: Vec<Vec<u8>> = Vec::new();
    while eaten.len() * (8 << 20) < MAX_EATEN {
        eaten.push(vec![1; 8 << 20]);
    }
    bail!("{MAX_EATEN} bytes were taken, and nothing happened")
}
