//! The worker under the benchmark's command: the product's own training loop and snapshots, step by step.
//!
//! `worker JOB.toml [RESUME]` prepares the job as `ckptd-gpt2` does, answers `ready`, and then obeys one line at a time
//! on stdin:
//!
//! - `train STEPS SNAPSHOT_AFTER`: so many steps; after the given one (from 1; 0: none) a snapshot is taken as the
//!   training loop takes it. Answers with wall time, CPU time of the process, and minor page faults.
//! - `last`: a last snapshot while the training rests. Answers with the time from the request until it is durable.
//! - `dump FOLDER`: parameters and moments as raw float32, with a `meta.json`, for the codecs.
//! - `memory`: what the state takes, and the most that a snapshot added to it.
//!
//! Answers are lines `{"reply": ...}` on stdout; the worker's own events stand between them.

use std::io::{BufRead, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use ckptd_core::config::Config;
use ckptd_core::protocol::{Start, VERSION};
use ckptd_core::snapshot::Role;
use ckptd_core::store::{CommitPace, Store};
use ckptd_core::{Error, Result};
use ckptd_gpt2::capture::StateCapturer;
use ckptd_gpt2::events::EventSender;
use ckptd_gpt2::process;
use ckptd_gpt2::ranks::Alone;
use ckptd_gpt2::setup::TrainingSetup;
use ckptd_gpt2::snapshots::{CommitSettings, SnapshotPolicy, SnapshotTaker};
use ckptd_gpt2::train::TrainingLoop;
use serde_json::{Value, json};

struct Bench {
    training: TrainingLoop,
    snapshots: SnapshotTaker,
    capturer: StateCapturer,
    /// Steps completed.
    step: u64,
}

fn main() -> Result<()> {
    process::settle_openmp();
    process::tune_malloc();
    let mut arguments = std::env::args().skip(1);
    let path = PathBuf::from(arguments.next().ok_or_else(|| Error::Config("usage: worker JOB.toml".into()))?);
    let events = EventSender::to_stdout().map_err(|e| Error::io("starting a thread for", "events", e))?;
    let mut bench = open(&path, arguments.next().map(PathBuf::from), &events)?;
    answer(&events, json!({ "reply": "ready", "step": bench.step }));
    for line in std::io::stdin().lock().lines() {
        let line = line.map_err(|e| Error::io("reading commands from", "stdin", e))?;
        let reply = bench.obey(&line)?;
        answer(&events, reply);
    }
    Ok(())
}

/// Events that were sent before the answer leave before it.
fn answer(events: &EventSender, reply: Value) {
    events.flush();
    let mut out = std::io::stdout();
    // A reader that is gone ends the input as well.
    let _ = writeln!(out, "{reply}").and_then(|()| out.flush());
}

fn open(path: &Path, resume: Option<PathBuf>, events: &EventSender) -> Result<Bench> {
    let config = Config::load(path)?;
    let store = Store::create(&config.job.store)?;
    let lock = store.lock("the benchmark")?;
    store.clean_staging(&lock)?;
    let run_id = store.run_id()?.unwrap_or_else(|| format!("{:032x}", std::process::id()).into());
    store.set_run_id(&lock, &run_id)?;
    let next_seq = store.next_seq()?;
    let start = Start {
        protocol: VERSION,
        config,
        run_id: run_id.clone(),
        next_seq,
        resume,
        accept_changes: true,
        dispute: None,
    };
    let job = TrainingSetup::open(start, events)?;
    let settings = CommitSettings {
        store,
        lock,
        run_id,
        next_seq,
        resumed: job.resumed.clone(),
        files: job.files.clone(),
        moments: None,
        provenance: job.provenance.clone(),
        probe: None,
    };
    let capturer = job.state.capturer();
    let step = capturer.step();
    let (policy, asked) = (Arc::<SnapshotPolicy>::default(), &job.config.snapshot);
    policy.set(asked.every_steps, asked.level, asked.encode_threads);
    let snapshots = SnapshotTaker::new(capturer.clone(), settings, policy, events.clone())?;
    let training = TrainingLoop::new(job, events.clone(), Some(snapshots.clone()), Box::new(Alone))?;
    Ok(Bench { training, snapshots, capturer, step })
}

impl Bench {
    fn obey(&mut self, line: &str) -> Result<Value> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let number = |index: usize| words.get(index).and_then(|word| word.parse::<u64>().ok()).unwrap_or(0);
        match words.first().copied() {
            Some("train") => self.train(number(1), number(2)),
            Some("last") => {
                let began = Instant::now();
                self.snapshots.take_last("benchmark", CommitPace::Hurried, None)?;
                Ok(json!({ "reply": "last", "durable_s": began.elapsed().as_secs_f64() }))
            }
            Some("dump") => self.dump(Path::new(words.get(1).copied().unwrap_or("."))),
            Some("memory") => {
                let memory = self.capturer.memory();
                Ok(json!({ "reply": "memory", "state": memory.state, "extra_peak": memory.extra_peak }))
            }
            _ => Ok(json!({ "reply": "unknown" })),
        }
    }

    fn train(&mut self, steps: u64, snapshot_after: u64) -> Result<Value> {
        let (usage, began) = (usage(), Instant::now());
        let (mut take_ms, mut step_ms) = (None, Vec::new());
        for index in 1..=steps {
            let began = Instant::now();
            self.training.advance(self.step)?;
            self.step += 1;
            step_ms.push(began.elapsed().as_secs_f64() * 1e3);
            if index == snapshot_after {
                let began = Instant::now();
                self.snapshots.take_between_steps("interval");
                take_ms = Some(began.elapsed().as_secs_f64() * 1e3);
            }
        }
        let wall_s = began.elapsed().as_secs_f64();
        let after = self::usage();
        Ok(json!({
            "reply": "train", "wall_s": wall_s, "cpu_s": after.0 - usage.0, "faults": after.1 - usage.1,
            "take_ms": take_ms, "step_ms": step_ms,
        }))
    }

    fn dump(&self, folder: &Path) -> Result<Value> {
        let io = |e| Error::io("writing the raw state to", folder, e);
        std::fs::create_dir_all(folder).map_err(io)?;
        let capture = self.capturer.capture()?.ok_or_else(|| Error::Other("a snapshot is in flight".into()))?;
        let mut listed = Vec::new();
        for role in [Role::Param, Role::ExpAvg, Role::ExpAvgSq] {
            let file = std::fs::File::create(folder.join(format!("{}.f32", role.name()))).map_err(io)?;
            let mut file = std::io::BufWriter::with_capacity(1 << 20, file);
            for tensor in capture.tensors.iter().filter(|tensor| tensor.meta.role == role) {
                file.write_all((*tensor.bytes).as_ref()).map_err(io)?;
                listed.push(tensor.meta.clone());
            }
            file.flush().map_err(io)?;
        }
        std::fs::write(folder.join("meta.json"), json!(listed).to_string()).map_err(io)?;
        Ok(json!({ "reply": "dump", "step": capture.train.step }))
    }
}

/// CPU seconds and minor page faults of the process so far.
fn usage() -> (f64, i64) {
    // SAFETY: getrusage fills the structure that it is given.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &mut usage);
        usage
    };
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    (seconds(usage.ru_utime) + seconds(usage.ru_stime), usage.ru_minflt)
}
