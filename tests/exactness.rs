//! The headline promise: a training that is killed again and again ends in the bits of one that never was.
//!
//! Real binaries, real SIGKILLs: of the agent, of the worker, of both at once, each of them at a random moment of a
//! start-up, of a step, of a commit and of an evaluation.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use ckptd_core::ids::StateRoot;
use ckptd_core::store::SnapshotReader;
use ckptd_testkit::job::{JobFolder, RunningAgent, signal};
use ckptd_testkit::random::SeededRandom;
use ckptd_testkit::text;
use rustix::process::Signal;

/// Kills that a run must survive: of each target in each phase.
const KILLS: usize = TARGETS.len() * PHASES.len();
const EVAL_EVERY: u64 = 20;

/// A job, and the logs of its agents one behind the other.
struct LoggedJob {
    folder: JobFolder,
    log: String,
}

impl LoggedJob {
    fn new(train: &str) -> LoggedJob {
        let folder = JobFolder::new(&config(train));
        std::fs::write(folder.path("text.txt"), text::words(40_000)).unwrap();
        LoggedJob { folder, log: String::new() }
    }

    fn start(&self) -> RunningAgent {
        self.folder.start(Path::new(env!("CARGO_BIN_EXE_ckptd")))
    }

    /// Waits for the agent's end; returns its exit code.
    fn end(&mut self, agent: RunningAgent) -> Option<i32> {
        let ended = agent.wait();
        self.log.push_str(&ended.log);
        self.log.push('\n');
        ended.code
    }

    /// What each step computed, in full: its number, and its loss and gradient norm as the log has them. A step that
    /// was computed again is there again.
    fn steps(&self) -> Vec<(u64, String)> {
        let step = |line: &str| {
            Some((step_of(line)?, line.split_once(" done: ")?.1.split_once(", learning_rate")?.0.to_owned()))
        };
        self.log.lines().filter_map(step).collect()
    }

    /// Trains in one go; returns the root.
    fn run(&mut self) -> StateRoot {
        let agent = self.start();
        assert_eq!(self.end(agent), Some(0), "{}", self.log);
        self.folder.root()
    }

    /// Trains under fire: each of [`TARGETS`] is killed in each of [`PHASES`]. Returns the root.
    fn run_under_fire(&mut self, seed: u64) -> StateRoot {
        let mut random = SeededRandom::new(seed);
        let mut agent = self.start();
        for kill in 0..KILLS {
            let (phase, round) = (PHASES[kill % PHASES.len()], kill / PHASES.len());
            let target = TARGETS[(round + kill) % TARGETS.len()];
            reach(&mut agent, phase, &mut random);
            let (pid, worker) = (agent.pid(), worker_of(&mut agent));
            if target != Target::Worker {
                signal(pid, Signal::KILL);
            }
            if target != Target::Agent {
                signal(worker, Signal::KILL);
            }
            if target == Target::Worker {
                agent.wait_for("restarting it at once");
            } else {
                assert_eq!(self.end(agent), None, "kill {kill}: it ended before; {}", self.log);
                // An orphaned worker may still be committing: the next agent waits for it.
                agent = self.start();
            }
        }
        assert_eq!(self.end(agent), Some(0), "{}", self.log);
        self.folder.root()
    }
}

/// What follows on `[job] store`; `train` may have further sections at its end.
fn config(train: &str) -> String {
    format!(
        "threads = 2\n[model]\npreset = \"gpt2-mini\"\ndropout = 0.1\n\
         [data]\ntext = [\"text.txt\"]\ncache = \"cache\"\n[snapshot]\nevery_steps = 9\n\
         [worker]\nmax_restarts = 1000\n[log]\nlevel = \"debug\"\n[retention]\nkeep_last = 1000\n\
         [train]\nbatch_size = 2\nsequence_length = 48\nwarmup_steps = 5\n\
         eval_every = {EVAL_EVERY}\neval_batches = 15\n{train}"
    )
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    Agent,
    Worker,
    Both,
}

const TARGETS: [Target; 3] = [Target::Agent, Target::Worker, Target::Both];

/// What the worker does when the kill comes.
#[derive(Clone, Copy, Debug)]
enum Phase {
    StartUp,
    Step,
    Commit,
    Evaluation,
}

const PHASES: [Phase; 4] = [Phase::StartUp, Phase::Step, Phase::Commit, Phase::Evaluation];

/// Waits until the worker is in the phase, and then for a random moment within it.
fn reach(agent: &mut RunningAgent, phase: Phase, random: &mut SeededRandom) {
    let within_ms = match phase {
        Phase::StartUp => {
            worker_of(agent);
            800
        }
        Phase::Step => {
            agent.wait_for(" done: loss");
            40
        }
        Phase::Commit => {
            agent.wait_for("(interval)");
            60
        }
        Phase::Evaluation => {
            while !step_of(&agent.wait_for(" done: loss")).is_some_and(|step| step.is_multiple_of(EVAL_EVERY)) {}
            80
        }
    };
    agent.pass(random.up_to(Duration::from_millis(within_ms)));
}

/// The worker, as soon as there is one.
fn worker_of(agent: &mut RunningAgent) -> u32 {
    loop {
        match agent.worker() {
            Some(worker) => return worker,
            None => assert!(!agent.pass(Duration::from_millis(5)), "it ended before: {}", agent.log()),
        }
    }
}

/// The step whose line of the log this is.
fn step_of(line: &str) -> Option<u64> {
    line.split_once("step ")?.1.split_once(" done: ")?.0.parse().ok()
}

fn survives(train: &str, seed: u64) {
    let mut untouched = LoggedJob::new(train);
    let expected = untouched.run();
    let mut job = LoggedJob::new(train);
    let root = job.run_under_fire(seed);
    let report = || format!("{}\nthe log says:\n{}", parting(&untouched, &job), job.log);
    assert_eq!(root, expected, "after {KILLS} kills; {}", report());
    let computed: BTreeMap<u64, String> = untouched.steps().into_iter().collect();
    assert!(computed.len() > 100 && job.steps().len() > 100, "the logs have the steps");
    for (step, what) in job.steps() {
        // A log drops lines rather than wait for a slow reader.
        let expected = computed.get(&step).unwrap_or(&what);
        assert_eq!(&what, expected, "step {step} after {KILLS} kills; {}", report());
    }
    println!("{KILLS} kills, root {root}");
}

/// Where two runs part: the first steps that were computed differently, and the first snapshot that both have and that
/// differs, with the tensors that do.
fn parting(expected: &LoggedJob, found: &LoggedJob) -> String {
    let computed: BTreeMap<u64, String> = expected.steps().into_iter().collect();
    let differently =
        found.steps().into_iter().filter(|(step, what)| computed.get(step).is_some_and(|was| was != what));
    let steps: Vec<String> = differently
        .take(5)
        .map(|(step, what)| format!("step {step}: {what}, undisturbed {}", computed[&step]))
        .collect();
    format!("steps that differ:\n{}\n{}", steps.join("\n"), first_snapshot_that_differs(expected, found))
}

fn first_snapshot_that_differs(expected: &LoggedJob, found: &LoggedJob) -> String {
    let (expected, found) = (expected.folder.store(), found.folder.store());
    let mut common: Vec<_> = expected.entries().unwrap().into_iter().map(|entry| (entry.step(), entry.path)).collect();
    common.sort();
    let mut same = 0;
    for (step, path) in common {
        let Ok(entry) = found.find(step.to_string()) else { continue };
        let (left, right) = (SnapshotReader::open(&path).unwrap(), SnapshotReader::open(&entry.path).unwrap());
        let manifests = left.manifest().tensors.iter().zip(&right.manifest().tensors).enumerate();
        let differ: Vec<String> = manifests
            .filter(|(_, (a, b))| a.hash != b.hash)
            .map(|(i, (a, _))| {
                let (a_bytes, b_bytes) = (left.read_tensor(i).unwrap(), right.read_tensor(i).unwrap());
                let floats = |b: &[u8]| b.as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b)).collect::<Vec<_>>();
                let (a_values, b_values) = (floats(&a_bytes), floats(&b_bytes));
                let pairs =
                    || a_values.iter().zip(&b_values).enumerate().filter(|(_, (a, b))| a.to_bits() != b.to_bits());
                let largest = pairs().map(|(_, (a, b))| (a - b).abs()).fold(0f32, f32::max);
                let ends = (pairs().next().map(|p| p.0), pairs().next_back().map(|p| p.0));
                format!("{}: {} of {} from {ends:?}, by {largest:e}", a.meta.label(), pairs().count(), a_values.len())
            })
            .collect();
        if !differ.is_empty() {
            return format!("the same up to step {same}, at step {step} these differ:\n{}", differ.join("\n"));
        }
        same = step;
    }
    format!("the same tensors up to step {same}")
}

#[test]
fn adamw_with_accumulation_and_dropout_is_exact_after_12_kills() {
    survives("steps = 180\noptimizer = \"adamw\"\ngrad_accumulation = 2\nlearning_rate = 1e-3", 11);
}

#[test]
fn sgd_with_momentum_is_exact_after_12_kills() {
    survives("steps = 180\noptimizer = \"sgd\"\nmomentum = 0.9\nlearning_rate = 0.05", 12);
}

#[test]
fn bf16_is_exact_after_12_kills() {
    survives("steps = 180\nprecision = \"bf16\"\ngrad_accumulation = 2\nlearning_rate = 1e-3", 13);
}

#[test]
fn a_job_on_three_ranks_one_of_which_dies_goes_on_alone_to_the_same_root() {
    const TRAIN: &str = "steps = 60\ngrad_accumulation = 4\nlearning_rate = 1e-3\n";
    let expected = LoggedJob::new(TRAIN).run();
    let mut job = LoggedJob::new(&format!("{TRAIN}[ranks]\ncount = 3\n"));
    let mut agent = job.start();
    agent.wait_for("3 ranks compute this training together");
    agent.wait_for(" done: loss");
    let rank = child_of(worker_of(&mut agent));
    signal(rank, Signal::KILL);
    agent.wait_for(" is gone, after step ");
    agent.wait_for(" done: loss");
    signal(agent.pid(), Signal::TERM);
    assert_eq!(job.end(agent), Some(75), "{}", job.log);
    assert!(job.folder.newest().unwrap().step() < 60);
    job.folder.configure(&config(TRAIN));
    assert_eq!(job.run(), expected, "{}", job.log);
}

/// A process that `parent` has started.
fn child_of(parent: u32) -> u32 {
    let children = std::fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).unwrap();
    children.split_whitespace().next().unwrap().parse().unwrap()
}
