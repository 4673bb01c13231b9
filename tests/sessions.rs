//! Sessions end well: within their budget, at a signal in the middle of a step, two hundred times if need be; and all of
//! them together end in the bits of a training that was never interrupted. Real binaries, a real model.
//!
//! `make terms` sends 200 SIGTERMs (CKPTD_TERMS says how many) and prints how long it took until the state was durable.
#![allow(clippy::unwrap_used)]

mod support;

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use ckptd_core::progress::NoProgress;
use ckptd_core::store::{SnapshotState, Store};
use jiff::Timestamp;
use serde_json::Value;
use support::Random;

/// A test that waits for longer has failed.
const PATIENCE: Duration = Duration::from_secs(600);

struct Job {
    folder: tempfile::TempDir,
}

impl Job {
    fn new(steps: u64, more: &str) -> Job {
        let folder = tempfile::tempdir().unwrap();
        // Text that is always here, and that nobody edits meanwhile.
        std::fs::write(folder.path().join("text.txt"), include_str!("../ARCHITECTURE.md").repeat(10)).unwrap();
        let config = format!(
            "[job]\nstore = \"store\"\nthreads = 2\n[model]\npreset = \"gpt2-mini\"\ndropout = 0.1\n\
             [data]\ntext = [\"text.txt\"]\ncache = \"cache\"\n[train]\nsteps = {steps}\nwarmup_steps = 5\n{more}\n"
        );
        std::fs::write(folder.path().join("job.toml"), config).unwrap();
        Job { folder }
    }

    fn config(&self) -> PathBuf {
        self.folder.path().join("job.toml")
    }

    fn store(&self) -> Store {
        Store::open(&self.folder.path().join("store")).unwrap()
    }

    fn start(&self) -> Running {
        let began = Instant::now();
        let mut child = Command::new(env!("CARGO_BIN_EXE_ckptd"))
            .args(["run", "--log-format", "json"])
            .arg(self.config())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        Running { child, began, lines, seen: Vec::new() }
    }

    /// The root of the newest snapshot, which must be verified.
    fn root(&self) -> String {
        let newest = self.store().find("latest").unwrap();
        assert_eq!(newest.state, SnapshotState::Verified);
        newest.manifest.unwrap().root.into()
    }
}

struct Running {
    child: Child,
    began: Instant,
    lines: Receiver<String>,
    seen: Vec<Value>,
}

struct Ended {
    code: Option<i32>,
    took: Duration,
    log: Vec<Value>,
}

impl Running {
    fn take(&mut self, line: &str) -> String {
        let line: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
        let message = line["message"].as_str().unwrap_or_default().to_owned();
        self.seen.push(line);
        message
    }

    fn wait_for(&mut self, text: &str) {
        loop {
            let line = self.lines.recv_timeout(PATIENCE).unwrap_or_else(|e| panic!("{text:?} never came ({e})"));
            if self.take(&line).contains(text) {
                return;
            }
        }
    }

    /// Lets `duration` pass, or the run end.
    fn pass(&mut self, duration: Duration) {
        let until = Instant::now() + duration;
        loop {
            match self.lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(line) => drop(self.take(&line)),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn terminate(&self) {
        let pid = rustix::process::Pid::from_raw(self.child.id() as i32).unwrap();
        // It may have ended by itself meanwhile.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
    }

    fn wait(mut self) -> Ended {
        while let Ok(line) = self.lines.recv_timeout(PATIENCE) {
            self.take(&line);
        }
        let code = self.child.wait().unwrap().code();
        Ended { code, took: self.began.elapsed(), log: std::mem::take(&mut self.seen) }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Ended {
    /// The last line with `text`.
    fn line(&self, text: &str) -> Option<&Value> {
        self.log.iter().rev().find(|line| line["message"].as_str().is_some_and(|message| message.contains(text)))
    }

    fn text(&self) -> String {
        self.log.iter().map(|line| format!("{line}\n")).collect()
    }
}

fn seconds(line: &Value, since: Timestamp) -> f64 {
    let at: Timestamp = line["timestamp"].as_str().unwrap().parse().unwrap();
    at.duration_since(since).as_secs_f64()
}

#[test]
fn sessions_on_a_budget_end_in_time_with_their_last_state_verified_and_together_in_the_bits_of_one() {
    let train = "batch_size = 2\nsequence_length = 64\neval_every = 50\neval_batches = 8";
    let untouched = Job::new(300, train);
    let ended = untouched.start().wait();
    assert_eq!(ended.code, Some(0), "{}", ended.text());
    // About five sessions, however fast this machine is.
    let budget = (ended.took / 5).max(Duration::from_secs(4));
    let more = format!("{train}\n[snapshot]\nevery = \"2s\"\n[session]\nbudget = \"{}ms\"", budget.as_millis());
    let job = Job::new(300, &more);
    let mut sessions = 0;
    loop {
        let ended = job.start().wait();
        sessions += 1;
        if ended.code == Some(0) {
            break;
        }
        assert_eq!(ended.code, Some(75), "{}", ended.text());
        assert!(ended.took < budget, "{:?} of {budget:?}; {}", ended.took, ended.text());
        assert!(ended.line("nothing was trained yet").is_some() || job.root().len() == 64);
        assert!(sessions < 100, "{}", ended.text());
        let stop = ended.line("stopping: the session's budget ends");
        let ready = ended.line("training 2615424 parameters");
        if let (Some(stop), Some(ready)) = (stop, ready) {
            let ready = ready["timestamp"].as_str().unwrap().parse().unwrap();
            let share = 100.0 * seconds(stop, ready) / budget.as_secs_f64();
            println!("session {sessions}: {:.2} s of {budget:?}, {share:.1} % trained", ended.took.as_secs_f64());
        }
    }
    assert!(sessions >= 3, "{sessions}");
    assert_eq!(job.root(), untouched.root(), "after {sessions} sessions");
}

#[test]
fn a_stop_does_not_wait_for_a_step_that_takes_long() {
    // Nobody waits for this step.
    let job = Job::new(10, "batch_size = 256\nsequence_length = 128\neval_every = 0\n[snapshot]\nevery = \"1h\"");
    let mut run = job.start();
    run.wait_for("training 2615424 parameters");
    run.pass(Duration::from_secs(1));
    let sent = Timestamp::now();
    run.terminate();
    let ended = run.wait();
    assert_eq!(ended.code, Some(75), "{}", ended.text());
    let durable = ended.line("is durable").unwrap_or_else(|| panic!("{}", ended.text()));
    assert_eq!(durable["step"], 0);
    println!("durable {:.3} s after SIGTERM in the middle of a long step", seconds(durable, sent));
    assert_eq!(job.store().find("latest").unwrap().step(), 0);
}

#[test]
fn sigterms_at_random_moments_lose_nothing_that_was_announced_and_leave_nothing_half_written() {
    let terms = std::env::var("CKPTD_TERMS").ok().and_then(|n| n.parse().ok()).unwrap_or(20);
    let batch = std::env::var("CKPTD_TERMS_BATCH").ok().and_then(|n| n.parse().ok()).unwrap_or(4);
    let more = format!(
        "batch_size = {batch}\nsequence_length = 64\neval_every = 7\neval_batches = 8\n\
         [snapshot]\nevery = \"300ms\"\n[session]\ngrace = \"10s\""
    );
    let job = Job::new(1_000_000, &more);
    // Text is tokenized once; most of the signals are to come later.
    let mut run = job.start();
    run.wait_for("verified step");
    run.terminate();
    assert_eq!(run.wait().code, Some(75));
    let mut random = Random::new(21);
    let (mut durable_after, mut exit_after) = (Vec::new(), Vec::new());
    let mut announced = 0;
    for _ in 0..terms {
        let mut run = job.start();
        run.pass(Duration::from_millis(random.below(4000)));
        let (sent, at) = (Timestamp::now(), Instant::now());
        run.terminate();
        let ended = run.wait();
        exit_after.push(at.elapsed().as_secs_f64());
        // A signal before its handler is there ends the program as any other: nothing was begun.
        assert!(matches!(ended.code, Some(75) | None), "{:?} {}", ended.code, ended.text());
        assert!(ended.line("the time to stop is over").is_none(), "{}", ended.text());
        let steps = ended.log.iter().filter(|line| {
            line["message"]
                .as_str()
                .is_some_and(|text| text.contains("is durable") || text.starts_with("verified step"))
        });
        announced = steps.filter_map(|line| line["step"].as_u64()).fold(announced, u64::max);
        durable_after.extend(ended.line("is durable").map(|line| seconds(line, sent)));
        if !job.folder.path().join("store/snapshots").is_dir() {
            continue;
        }
        let entries = job.store().entries().unwrap();
        let whole =
            entries.iter().all(|entry| matches!(entry.state, SnapshotState::Verified | SnapshotState::Committed));
        assert!(whole, "{entries:?}");
        let newest = entries.iter().map(ckptd_core::store::SnapshotEntry::step).max().unwrap_or(0);
        assert!(newest >= announced, "step {announced} was announced, {newest} is there; {}", ended.text());
        // Read back every byte now and then.
        if let Some(latest) = entries.first().filter(|_| random.below(4) == 0) {
            job.store().verify(latest, 2, &NoProgress).unwrap();
        }
    }
    println!("{terms} SIGTERMs, batches of {batch}; {} with a state to save", durable_after.len());
    println!("from SIGTERM to durable: {}", percentiles(&mut durable_after));
    println!("from SIGTERM to exit:    {}", percentiles(&mut exit_after));
}

fn percentiles(values: &mut [f64]) -> String {
    values.sort_by(f64::total_cmp);
    let at = |share: f64| values.get(((share * values.len() as f64).ceil() as usize).saturating_sub(1));
    let text = |share: f64| at(share).map_or_else(|| "-".to_owned(), |value| format!("{value:.3} s"));
    format!("p50 {}, p90 {}, p99 {}, worst {}", text(0.5), text(0.9), text(0.99), text(1.0))
}
