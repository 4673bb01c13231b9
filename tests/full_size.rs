//! GPT-2 in its real size: 124 M parameters from a folder that transformers wrote, 1.49 GB of training state.
//!
//! Real binaries, real SIGKILLs: what trains, is killed and resumes here is what a user fine-tunes.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::{Path, PathBuf};

use ckptd_core::ids::StateRoot;
use ckptd_testkit::job::{JobFolder, RunningAgent, signal};
use ckptd_testkit::{python, text};
use rustix::process::Signal;

/// A snapshot of this size is written and read back while about four steps are made.
/// So the kills come well before the end.
const STEPS: u64 = 16;

fn job(folder: PathBuf, model: &Path, every_steps: u64) -> JobFolder {
    let config = format!(
        "threads = 2\n[model]\nfrom = {model:?}\n[data]\ntext = [\"text.txt\"]\ncache = \"../cache\"\n\
         [snapshot]\nevery_steps = {every_steps}\n[retention]\nkeep_last = 2\nkeep_best = 0\n[log]\nlevel = \"debug\"\n\
         [train]\nsteps = {STEPS}\nbatch_size = 1\nsequence_length = 64\nwarmup_steps = 2\neval_every = 0"
    );
    let job = JobFolder::at(folder, &config);
    std::fs::write(job.path("text.txt"), text::words(5000)).unwrap();
    job
}

fn start(job: &JobFolder) -> RunningAgent {
    job.start(Path::new(env!("CARGO_BIN_EXE_ckptd")))
}

/// The step that a line of the log names.
fn step(line: &str) -> u64 {
    let number = line.split_once("step ").and_then(|(_, rest)| rest.split([' ', ':']).next());
    number.and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("no step in {line:?}"))
}

/// Waits for the end; returns the last snapshot's root and its bytes as they are in memory.
fn finish(job: &JobFolder, run: RunningAgent) -> (StateRoot, u64) {
    let ended = run.wait();
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    let manifest = job.newest().unwrap().manifest.unwrap();
    assert_eq!(manifest.train.step, STEPS);
    (job.root(), manifest.raw_bytes)
}

#[test]
fn gpt2_of_124m_parameters_is_killed_twice_and_resumes_exactly() {
    let folder = tempfile::tempdir_in(python::root().join("target")).unwrap();
    let model = folder.path().join("gpt2");
    python::run("make_gpt2.py", &[&model]);
    let undisturbed = job(folder.path().join("undisturbed"), &model, STEPS);
    let run = start(&undisturbed);
    let (root, raw_bytes) = finish(&undisturbed, run);
    assert!((1_490_000_000..1_500_000_000).contains(&raw_bytes), "{raw_bytes}");

    let job = job(folder.path().join("killed"), &model, 2);
    let mut run = start(&job);
    let verified = step(&run.wait_for("verified step "));
    signal(run.worker().expect("the worker lives"), Signal::KILL);
    assert!(step(&run.wait_for("resuming from step ")) >= verified);
    let done = step(&run.wait_for(" done: "));
    // The worker sees its agent go, saves its newest state and leaves.
    run.signal(Signal::KILL);
    run.wait();
    let mut run = start(&job);
    assert!(step(&run.wait_for("resuming from step ")) >= done);
    assert_eq!(finish(&job, run).0, root);
}
