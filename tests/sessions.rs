//! Sessions end well: within their budget, at a signal in the middle of a step, two hundred times if need be; and all
//! of them together end in the bits of a training that was never interrupted. Real binaries, a real model.
//!
//! `make terms` sends 200 SIGTERMs (CKPTD_TERMS says how many) and prints how long it took until the state was durable.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::time::{Duration, Instant};

use ckptd_core::progress::NoProgress;
use ckptd_core::store::SnapshotState;
use ckptd_testkit::job::{EndedRun, JobFolder, RunningAgent};
use ckptd_testkit::random::SeededRandom;
use ckptd_testkit::text;
use jiff::Timestamp;
use rustix::process::Signal;
use serde_json::Value;

const TRAIN: &str = "batch_size = 2\nsequence_length = 64\neval_every = 50\neval_batches = 8";

fn job(steps: u64, more: &str) -> JobFolder {
    let job = JobFolder::new(&format!(
        "threads = 2\n[model]\npreset = \"gpt2-mini\"\ndropout = 0.1\n\
         [data]\ntext = [\"text.txt\"]\ncache = \"cache\"\n[train]\nsteps = {steps}\nwarmup_steps = 5\n{more}"
    ));
    std::fs::write(job.path("text.txt"), text::words(40_000)).unwrap();
    job
}

fn start(job: &JobFolder) -> RunningAgent {
    job.start(Path::new(env!("CARGO_BIN_EXE_ckptd")))
}

/// The lines of a run's log.
struct Log(Vec<Value>);

impl Log {
    fn of(run: &EndedRun) -> Log {
        Log(run.log.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"))).collect())
    }

    /// The last line with `text`.
    fn line(&self, text: &str) -> Option<&Value> {
        self.0.iter().rev().find(|line| line["message"].as_str().is_some_and(|message| message.contains(text)))
    }
}

fn seconds(line: &Value, since: Timestamp) -> f64 {
    let at: Timestamp = line["timestamp"].as_str().unwrap().parse().unwrap();
    at.duration_since(since).as_secs_f64()
}

/// A job that is trained in sessions of `budget`.
fn in_sessions(steps: u64, budget: Duration) -> JobFolder {
    job(steps, &format!("{TRAIN}\n[snapshot]\nevery = \"2s\"\n[session]\nbudget = \"{}s\"", budget.as_secs()))
}

/// A budget of some seconds, and the steps of this machine in one session of it.
fn probe() -> (Duration, u64) {
    let mut budget = Duration::from_secs(4);
    loop {
        let job = in_sessions(1_000_000, budget);
        let ended = start(&job).wait();
        assert_eq!(ended.code, Some(75), "{}", ended.log);
        let steps = job.newest().map_or(0, |newest| newest.step());
        if steps >= 20 {
            return (budget, steps);
        }
        budget *= 2;
        assert!(budget < Duration::from_secs(300), "{}", ended.log);
    }
}

#[test]
fn sessions_on_a_budget_end_in_time_and_together_in_the_bits_of_one() {
    // About five sessions, however fast this machine is.
    let (budget, steps) = probe();
    let steps = 5 * steps;
    let untouched = job(steps, TRAIN);
    let ended = start(&untouched).wait();
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    let job = in_sessions(steps, budget);
    let mut sessions = 0;
    loop {
        let ended = start(&job).wait();
        sessions += 1;
        let log = Log::of(&ended);
        if ended.code == Some(0) {
            break;
        }
        assert_eq!(ended.code, Some(75), "{}", ended.log);
        assert!(ended.took < budget, "{:?} of {budget:?}; {}", ended.took, ended.log);
        assert!(log.line("nothing was trained yet").is_some() || job.root().as_str().len() == 64);
        assert!(sessions < 100, "{}", ended.log);
        let stop = log.line("stopping: the session's budget ends");
        let ready = log.line("training 2615424 parameters");
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
    let long = "batch_size = 256\nsequence_length = 128\ngrad_accumulation = 4\neval_every = 0";
    let job = job(10, &format!("{long}\n[snapshot]\nevery = \"1h\""));
    let mut run = start(&job);
    run.wait_for("training 2615424 parameters");
    run.pass(Duration::from_millis(200));
    let sent = Timestamp::now();
    run.signal(Signal::TERM);
    let ended = run.wait();
    assert_eq!(ended.code, Some(75), "{}", ended.log);
    let log = Log::of(&ended);
    let durable = log.line("is durable").unwrap_or_else(|| panic!("{}", ended.log));
    assert_eq!(durable["step"], 0);
    println!("durable {:.3} s after SIGTERM in the middle of a long step", seconds(durable, sent));
    assert_eq!(job.store().find("latest").unwrap().step(), 0);
}

#[test]
fn sigterms_at_any_moment_lose_nothing_announced_and_leave_nothing_partial() {
    let terms = std::env::var("CKPTD_TERMS").ok().and_then(|n| n.parse().ok()).unwrap_or(12);
    let batch = std::env::var("CKPTD_TERMS_BATCH").ok().and_then(|n| n.parse().ok()).unwrap_or(4);
    let more = format!(
        "batch_size = {batch}\nsequence_length = 64\neval_every = 7\neval_batches = 8\n\
         [snapshot]\nevery = \"300ms\"\n[session]\ngrace = \"10s\""
    );
    let job = job(1_000_000, &more);
    // Text is tokenized once; most of the signals are to come later.
    let mut run = start(&job);
    run.wait_for("verified step");
    run.signal(Signal::TERM);
    assert_eq!(run.wait().code, Some(75));
    let mut random = SeededRandom::new(21);
    let (mut durable_after, mut exit_after) = (Vec::new(), Vec::new());
    let mut announced = 0;
    for i in 0..terms {
        let mut run = start(&job);
        // One in each part of a session's first seconds: start-up, loading, steps, evaluations, commits.
        let part_ms = 4000 / terms.max(1);
        run.pass(Duration::from_millis(i % terms * part_ms + random.below(part_ms.max(1))));
        let (sent, at) = (Timestamp::now(), Instant::now());
        run.signal(Signal::TERM);
        let ended = run.wait();
        exit_after.push(at.elapsed().as_secs_f64());
        let log = Log::of(&ended);
        // A signal before its handler is there ends the program as any other: nothing was begun.
        assert!(matches!(ended.code, Some(75) | None), "{:?} {}", ended.code, ended.log);
        assert!(log.line("the time to stop is over").is_none(), "{}", ended.log);
        let steps = log.0.iter().filter(|line| {
            line["message"]
                .as_str()
                .is_some_and(|text| text.contains("is durable") || text.starts_with("verified step"))
        });
        announced = steps.filter_map(|line| line["step"].as_u64()).fold(announced, u64::max);
        durable_after.extend(log.line("is durable").map(|line| seconds(line, sent)));
        if !job.path("store/snapshots").is_dir() {
            continue;
        }
        let entries = job.store().entries().unwrap();
        let whole =
            entries.iter().all(|entry| matches!(entry.state, SnapshotState::Verified | SnapshotState::Committed));
        assert!(whole, "{entries:?}");
        let newest = entries.iter().map(ckptd_core::store::SnapshotEntry::step).max().unwrap_or(0);
        assert!(newest >= announced, "step {announced} was announced, {newest} is there; {}", ended.log);
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
