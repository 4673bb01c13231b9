//! A worker that trains nothing: it speaks the protocol, and commits real snapshots of a state that follows from the
//! step alone. It misbehaves as the files in its script folder say: `exit-in-7` holds how often it is to exit in step 7.

use std::fs::File;
use std::io::{BufRead, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use ckptd_core::dtype::DType;
use ckptd_core::protocol::{self, AgentCommand, Start, WorkerEvent, WorkerFailure};
use ckptd_core::snapshot::{Metrics, Provenance, Role, Snapshot, Tensor, TensorMeta, TrainState};
use ckptd_core::store::{CommitOptions, SnapshotReader, Store, StoreLock, commit};

pub const SCRIPT: &str = "FAKE_WORKER_SCRIPT";
const GONE: &str = "the agent is gone";
const ELEMENTS: usize = 3000;

/// The command line that makes this test program the worker. The test harness writes on stdout, so that the worker's
/// own stdout is handed over as descriptor 3.
pub fn command() -> Vec<String> {
    let exe = std::env::current_exe().unwrap().to_string_lossy().into_owned();
    let shell = r#"exec "$0" "$@" 3>&1 >/dev/null"#;
    ["/bin/sh", "-c", shell, &exe, "--exact", "worker::worker", "--nocapture"].map(str::to_owned).to_vec()
}

#[test]
fn worker() {
    if let Some(script) = std::env::var_os(SCRIPT) {
        std::process::exit(Worker::new(script.into()).run());
    }
}

struct Worker {
    script: PathBuf,
    events: File,
    commands: Receiver<AgentCommand>,
}

struct State {
    step: u64,
    weights: Vec<f32>,
}

impl Worker {
    fn new(script: PathBuf) -> Worker {
        let events = File::options().write(true).open("/proc/self/fd/3").unwrap();
        let (sender, commands) = channel();
        std::thread::spawn(move || {
            for line in std::io::stdin().lock().lines() {
                let Ok(line) = line else { break };
                if sender.send(protocol::parse(&line).unwrap()).is_err() {
                    return;
                }
            }
            // The agent is gone: save and leave.
            let _ = sender.send(AgentCommand::Stop { snapshot: true, reason: GONE.into(), within_ms: None });
        });
        Worker { script, events, commands }
    }

    fn say(&mut self, event: &WorkerEvent) {
        // Nobody may be there to hear it.
        let _ = self.events.write_all(protocol::line(event).as_bytes());
    }

    /// Whether the script asks for this now; it asks as often as the file says.
    fn asked(&self, what: &str) -> bool {
        let path = self.script.join(what);
        let Ok(times) = std::fs::read_to_string(&path) else { return false };
        let left: u32 = times.trim().parse().unwrap();
        if left > 0 {
            std::fs::write(&path, (left - 1).to_string()).unwrap();
        }
        left > 0
    }

    fn run(mut self) -> i32 {
        if self.asked("mute") {
            std::thread::park();
        }
        let protocol = if self.asked("other-protocol") { 99 } else { protocol::VERSION };
        self.say(&WorkerEvent::Hello {
            protocol,
            worker: "fake".into(),
            version: "1".into(),
            pid: std::process::id(),
            accepts: vec!["configure".into()],
        });
        let Ok(AgentCommand::Start(start)) = self.commands.recv() else { return 0 };
        for (what, failure) in [
            ("fail-config", WorkerFailure::Config),
            ("fail-damaged", WorkerFailure::Damaged),
            ("fail-mismatch", WorkerFailure::Mismatch),
            ("fail-other", WorkerFailure::Other),
        ] {
            if self.asked(what) {
                self.say(&WorkerEvent::Failed { failure, what: format!("the script says {what}") });
                return 1;
            }
        }
        self.train(&start)
    }

    fn train(&mut self, start: &Start) -> i32 {
        let config = &start.config;
        let store = Store::open(&config.job.store).unwrap();
        let mut state = match &start.resume {
            Some(path) => load(path),
            None => State { step: 0, weights: vec![0.0; ELEMENTS] },
        };
        self.say(&WorkerEvent::Ready {
            step: state.step,
            total_steps: config.train.steps,
            parameters: ELEMENTS as u64,
            state_bytes: ELEMENTS as u64 * 4,
            resumed: start.resume.as_ref().map(|path| path.display().to_string()),
            device: "fake".into(),
            threads: 1,
        });
        let mut seq = start.next_seq;
        let mut saved = state.step;
        let mut every_steps = config.snapshot.every_steps;
        while state.step < config.train.steps {
            let in_step = state.step + 1;
            self.misbehave(in_step);
            // Commands come at any moment of a step.
            let until = Instant::now() + Duration::from_millis(15);
            loop {
                match self.commands.recv_timeout(until.saturating_duration_since(Instant::now())) {
                    Ok(AgentCommand::Snapshot { reason }) => {
                        self.save(&store, start, &state, &mut seq, &mut saved, &reason)
                    }
                    Ok(AgentCommand::Stop { .. }) if self.asked("deaf") => {}
                    Ok(AgentCommand::Stop { snapshot, reason, .. }) => {
                        if reason == GONE {
                            self.linger();
                        }
                        if snapshot && saved < state.step {
                            self.save(&store, start, &state, &mut seq, &mut saved, &reason);
                        }
                        self.say(&WorkerEvent::Done { step: state.step, finished: false });
                        return 0;
                    }
                    Ok(AgentCommand::Configure { every_steps: asked, .. }) => every_steps = asked,
                    Ok(AgentCommand::Start(_)) => panic!("start came twice"),
                    Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break,
                }
            }
            state.step = in_step;
            for (i, weight) in state.weights.iter_mut().enumerate() {
                *weight = *weight * 0.9 + ((i as u64 * 31 + in_step * 17) % 101) as f32;
            }
            self.say(&WorkerEvent::Step {
                step: in_step,
                loss: 10.0 / in_step as f64,
                learning_rate: 1e-3,
                grad_norm: None,
                step_ms: 15.0,
                tokens: 64,
            });
            if every_steps.is_some_and(|every| in_step.is_multiple_of(every)) {
                self.save(&store, start, &state, &mut seq, &mut saved, "interval");
            }
        }
        if saved < state.step {
            self.save(&store, start, &state, &mut seq, &mut saved, "final");
        }
        self.say(&WorkerEvent::Done { step: state.step, finished: true });
        0
    }

    /// Writes as slowly as the script says: until its file is gone.
    fn linger(&self) {
        while self.script.join("linger").exists() {
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn misbehave(&mut self, in_step: u64) {
        if self.asked(&format!("exit-in-{in_step}")) {
            eprintln!("boom in step {in_step}");
            std::process::exit(3);
        }
        if self.asked(&format!("hang-in-{in_step}")) {
            std::thread::park();
        }
        if self.asked(&format!("garbage-in-{in_step}")) {
            let _ = self.events.write_all(b"Epoch 1: loss is fine, thanks\n");
        }
    }

    fn save(&mut self, store: &Store, start: &Start, state: &State, seq: &mut u64, saved: &mut u64, reason: &str) {
        let step = state.step;
        self.say(&WorkerEvent::SnapshotStarted { step, reason: reason.into(), capture_ms: 0.5 });
        if self.asked("disk-full") {
            let what = "no space left while writing a snapshot".into();
            return self.say(&WorkerEvent::SnapshotFailed { step, what, disk_full: true });
        }
        let snapshot = snapshot(state, reason);
        let committed =
            commit(store, &StoreLock::inherited(), snapshot, &CommitOptions::new(&start.run_id, *seq)).unwrap();
        *saved = step;
        if self.asked("flip") || self.asked(&format!("flip-{step}")) {
            crate::harness::flip_a_byte(&committed.path);
        }
        self.say(&WorkerEvent::Committed {
            step,
            seq: *seq,
            path: committed.path,
            bytes: committed.bytes,
            raw_bytes: committed.raw_bytes,
            capture_ms: 0.5,
            write_ms: committed.write_ms,
            stall_ms: 0.5,
            extra_peak_bytes: 0,
        });
        *seq += 1;
    }
}

fn load(path: &Path) -> State {
    let snapshot = SnapshotReader::open(path).unwrap().read_snapshot().unwrap();
    let bytes = (*snapshot.tensors[0].bytes).as_ref();
    let weights = bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    State { step: snapshot.train.step, weights }
}

fn snapshot(state: &State, reason: &str) -> Snapshot {
    let meta =
        TensorMeta { role: Role::Param, name: "w".into(), dtype: DType::F32, shape: vec![state.weights.len() as u64] };
    let bytes = state.weights.iter().flat_map(|w| w.to_le_bytes()).collect();
    Snapshot {
        tensors: vec![Tensor::new(meta, bytes)],
        train: TrainState {
            step: state.step,
            tokens_seen: state.step * 64,
            position: state.step,
            ..TrainState::default()
        },
        metrics: Metrics { train_loss: Some(10.0 / state.step.max(1) as f64), ..Metrics::default() },
        provenance: Provenance { reason: reason.into(), ..Provenance::default() },
        files: Vec::new(),
    }
}
