//! The headline promise: a training that is killed again and again ends in the bits of one that never was.
//!
//! Real binaries, real SIGKILLs: of the agent, of the worker, of both at once, at random moments: during start-up,
//! steps, evaluations and commits.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use ckptd_core::store::{SnapshotReader, SnapshotState, Store};
use support::Random;

/// Kills that a run must survive; after them it may finish.
const KILLS: usize = 24;

struct Job {
    folder: tempfile::TempDir,
}

impl Job {
    fn new(train: &str) -> Job {
        let folder = tempfile::tempdir().unwrap();
        // Text that is always here: this project's own sources.
        let text = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let config = format!(
            "[job]\nstore = \"store\"\nthreads = 2\n\
             [model]\npreset = \"gpt2-mini\"\ndropout = 0.1\n\
             [data]\ntext = [{:?}]\ncache = \"cache\"\n\
             [snapshot]\nevery_steps = 9\n\
             [worker]\nmax_restarts = 1000\n\
             [log]\nlevel = \"debug\"\n\
             [retention]\nkeep_last = 1000\n\
             [train]\nbatch_size = 2\nsequence_length = 48\nwarmup_steps = 5\n\
             eval_every = 20\neval_batches = 30\n{train}\n",
            text.join("**/*.rs"),
        );
        std::fs::write(folder.path().join("job.toml"), config).unwrap();
        Job { folder }
    }

    fn store(&self) -> PathBuf {
        self.folder.path().join("store")
    }

    fn log(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    fn start(&self) -> Child {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.log()).unwrap();
        Command::new(env!("CARGO_BIN_EXE_ckptd"))
            .arg("run")
            .arg(self.folder.path().join("job.toml"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap()
    }

    /// Process ids of the workers whose parent is `agent`.
    fn workers(agent: u32) -> Vec<u32> {
        let children = std::fs::read_to_string(format!("/proc/{agent}/task/{agent}/children")).unwrap_or_default();
        children.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
    }

    fn newest(&self) -> Option<ckptd_core::store::SnapshotEntry> {
        Store::open(&self.store()).ok()?.find("latest").ok()
    }

    fn root(&self) -> String {
        let newest = self.newest().unwrap_or_else(|| panic!("no snapshot; the log says:\n{}", self.read_log()));
        assert_eq!(newest.state, SnapshotState::Verified, "the last snapshot is verified");
        newest.manifest.unwrap().root.into()
    }

    fn read_log(&self) -> String {
        std::fs::read_to_string(self.log()).unwrap_or_default()
    }

    /// What each step computed, in full: its number, and its loss and gradient norm as the log has them. A step that
    /// was computed again is there again.
    fn steps(&self) -> Vec<(u64, String)> {
        let log = self.read_log();
        let step = |line: &str| {
            let (number, rest) = line.split_once("step ")?.1.split_once(" done: ")?;
            Some((number.parse().ok()?, rest.split_once(", learning_rate")?.0.to_owned()))
        };
        log.lines().filter_map(step).collect()
    }

    /// Trains in one go.
    fn run(&self) -> String {
        let status = self.start().wait().unwrap();
        assert_eq!(status.code(), Some(0), "{}", self.read_log());
        self.root()
    }

    /// Trains under fire. Returns the root, and how many kills there were.
    fn run_under_fire(&self, seed: u64) -> (String, usize) {
        let mut random = Random::new(seed);
        let mut kills = 0;
        let mut agent = self.start();
        loop {
            let wait = if kills < KILLS { Duration::from_millis(random.below(1500)) } else { Duration::MAX };
            if let Some(code) = exit_within(&mut agent, wait) {
                assert_eq!(code, 0, "{}", self.read_log());
                return (self.root(), kills);
            }
            kills += 1;
            let workers = Job::workers(agent.id());
            match kills % 3 {
                0 => workers.iter().for_each(|&pid| kill(pid)),
                1 => kill(agent.id()),
                _ => {
                    kill(agent.id());
                    workers.iter().for_each(|&pid| kill(pid));
                }
            }
            if kills % 3 != 0 {
                agent.wait().unwrap();
                // An orphaned worker may still be committing: the next agent waits for it.
                agent = self.start();
            }
        }
    }
}

fn kill(pid: u32) {
    let pid = rustix::process::Pid::from_raw(pid as i32).unwrap();
    // It may have ended by itself meanwhile.
    let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
}

/// The exit code, if the process ends within `wait`.
fn exit_within(child: &mut Child, wait: Duration) -> Option<i32> {
    let began = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return Some(status.code().unwrap_or(-1));
        }
        if began.elapsed() >= wait {
            return None;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn survives(train: &str, seed: u64) {
    let untouched = Job::new(train);
    let expected = untouched.run();
    let job = Job::new(train);
    let (root, kills) = job.run_under_fire(seed);
    assert!(kills >= 20, "only {kills} kills: the training is too short for this machine");
    let report = || format!("{}\nthe log says:\n{}", parting(&untouched, &job), job.read_log());
    assert_eq!(root, expected, "after {kills} kills; {}", report());
    let computed: BTreeMap<u64, String> = untouched.steps().into_iter().collect();
    assert!(computed.len() > 100 && job.steps().len() > 100, "the logs have the steps");
    for (step, what) in job.steps() {
        // A log drops lines rather than wait for a slow reader.
        let expected = computed.get(&step).unwrap_or(&what);
        assert_eq!(&what, expected, "step {step} after {kills} kills; {}", report());
    }
    println!("{kills} kills, root {root}");
}

/// Where two runs part: the first steps that were computed differently, and the first snapshot that both have and that
/// differs, with the tensors that do.
fn parting(expected: &Job, found: &Job) -> String {
    let computed: BTreeMap<u64, String> = expected.steps().into_iter().collect();
    let differently =
        found.steps().into_iter().filter(|(step, what)| computed.get(step).is_some_and(|was| was != what));
    let steps: Vec<String> = differently
        .take(5)
        .map(|(step, what)| format!("step {step}: {what}, undisturbed {}", computed[&step]))
        .collect();
    format!("steps that differ:\n{}\n{}", steps.join("\n"), first_snapshot_that_differs(expected, found))
}

fn first_snapshot_that_differs(expected: &Job, found: &Job) -> String {
    let (expected, found) = (Store::open(&expected.store()).unwrap(), Store::open(&found.store()).unwrap());
    let mut common: Vec<_> = expected.entries().unwrap().into_iter().map(|entry| (entry.step(), entry.path)).collect();
    common.sort();
    let mut same = 0;
    for (step, path) in common {
        let Ok(entry) = found.find(&step.to_string()) else { continue };
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
fn adamw_with_accumulation_and_dropout_survives_20_kills_to_the_bit() {
    survives("steps = 300\noptimizer = \"adamw\"\ngrad_accumulation = 2\nlearning_rate = 1e-3", 11);
}

#[test]
fn sgd_with_momentum_survives_20_kills_to_the_bit() {
    survives("steps = 500\noptimizer = \"sgd\"\nmomentum = 0.9\nlearning_rate = 0.05", 12);
}
