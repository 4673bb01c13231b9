//! GPT-2 in its real size: 124 M parameters from a folder that transformers wrote, 1.49 GB of training state.
//!
//! Real binaries, real SIGKILLs: what trains, is killed and resumes here is what a user fine-tunes.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "support/python.rs"]
mod python;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use ckptd_core::store::{SnapshotEntry, SnapshotState, Store};

const STEPS: u64 = 6;
const PATIENCE: Duration = Duration::from_secs(600);

struct Job {
    folder: PathBuf,
}

impl Job {
    fn new(folder: PathBuf, model: &Path) -> Job {
        std::fs::create_dir_all(&folder).unwrap();
        // Text that is always here, and that nobody edits meanwhile.
        std::fs::write(folder.join("text.txt"), include_str!("../ARCHITECTURE.md")).unwrap();
        let config = format!(
            "[job]\nstore = \"store\"\nthreads = 2\n[model]\nfrom = {model:?}\n\
             [data]\ntext = [\"text.txt\"]\ncache = \"../cache\"\n\
             [snapshot]\nevery_steps = 2\n[retention]\nkeep_last = 2\nkeep_best = 0\n\
             [train]\nsteps = {STEPS}\nbatch_size = 1\nsequence_length = 64\nwarmup_steps = 2\neval_every = 0\n"
        );
        std::fs::write(folder.join("job.toml"), config).unwrap();
        Job { folder }
    }

    fn start(&self) -> Child {
        let log = std::fs::File::options().create(true).append(true).open(self.folder.join("log")).unwrap();
        Command::new(env!("CARGO_BIN_EXE_ckptd"))
            .arg("run")
            .arg(self.folder.join("job.toml"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap()
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }

    fn newest(&self) -> Option<SnapshotEntry> {
        Store::open(&self.folder.join("store")).ok()?.find("latest").ok()
    }

    /// Waits until a snapshot of `step` or a later one is verified.
    fn wait_for_verified(&self, step: u64) {
        let began = Instant::now();
        let there = |e: &SnapshotEntry| {
            e.state == SnapshotState::Verified && e.manifest.as_ref().is_some_and(|m| m.train.step >= step)
        };
        while !self.newest().as_ref().is_some_and(there) {
            assert!(began.elapsed() < PATIENCE, "step {step} was never verified; the log:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits for the end, and returns the last snapshot's root and its bytes as they are in memory.
    fn finish(&self, mut agent: Child) -> (String, u64) {
        assert_eq!(agent.wait().unwrap().code(), Some(0), "{}", self.log());
        let manifest = self.newest().unwrap().manifest.unwrap();
        assert_eq!(manifest.train.step, STEPS);
        (manifest.root.into(), manifest.raw_bytes)
    }
}

#[test]
fn gpt2_of_124m_parameters_from_transformers_is_killed_and_resumes_exactly() {
    let folder = tempfile::tempdir_in(python::root().join("target")).unwrap();
    let model = folder.path().join("gpt2");
    python::run("make_gpt2.py", &[&model]);
    let job = Job::new(folder.path().join("undisturbed"), &model);
    let (root, raw_bytes) = job.finish(job.start());
    assert!((1_490_000_000..1_500_000_000).contains(&raw_bytes), "{raw_bytes}");

    let job = Job::new(folder.path().join("killed"), &model);
    let mut agent = job.start();
    job.wait_for_verified(2);
    let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", agent.id())).unwrap();
    let worker = children.split_whitespace().next().expect("the worker lives").parse().unwrap();
    let worker = rustix::process::Pid::from_raw(worker).unwrap();
    rustix::process::kill_process(worker, rustix::process::Signal::KILL).unwrap();
    job.wait_for_verified(4);
    agent.kill().unwrap();
    agent.wait().unwrap();
    assert_eq!(job.finish(job.start()).0, root, "the log:\n{}", job.log());
    assert!(job.log().contains("resuming from step"), "{}", job.log());
}
