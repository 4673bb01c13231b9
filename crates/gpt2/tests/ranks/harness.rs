//! Ranks as plain processes, which find one another through the environment, as any launcher sets it.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::time::{Duration, Instant};

use ckptd_core::ids::StateRoot;
use ckptd_core::protocol::{self, WorkerEvent, WorkerFailure};
use ckptd_core::store::Store;
use ckptd_testkit::servers::free_port;
use rustix::process::{Pid, Signal, kill_process};

pub const SECRET: &str = "a secret of this test alone";

/// A test that waits for longer has failed.
pub const PATIENCE: Duration = Duration::from_secs(120);

pub struct RankJob {
    folder: tempfile::TempDir,
}

impl RankJob {
    /// Dropout, AdamW, clipping, evaluations, and the lines of `more`: sections whose keys are not there yet.
    pub fn new(accumulation: u64, steps: u64, more: &str) -> RankJob {
        let folder = tempfile::tempdir().unwrap();
        let tokens: Vec<u8> =
            (0..30_000u32).flat_map(|n| ((n.wrapping_mul(2_654_435_761) >> 20) as u16).to_le_bytes()).collect();
        std::fs::write(folder.path().join("tokens.bin"), tokens).unwrap();
        let text = format!(
            "[job]\nstore = \"store\"\nthreads = 1\n[model]\npreset = \"gpt2-mini\"\ndropout = 0.1\n\
             [data]\ntokens = \"tokens.bin\"\n[snapshot]\nevery_steps = 1\n[retention]\nkeep_last = 100\n\
             [train]\nsteps = {steps}\nbatch_size = 2\nsequence_length = 32\ngrad_accumulation = {accumulation}\n\
             warmup_steps = 1\ngrad_clip = 0.5\neval_every = 2\neval_batches = 5\n{more}"
        );
        std::fs::write(folder.path().join("job.toml"), text).unwrap();
        RankJob { folder }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Starts rank 0 to `size` - 1; each but the first may get another job file.
    pub fn start(&self, size: usize) -> Ranks {
        let port = free_port();
        let children = (0..size).map(|rank| spawn(&self.path("job.toml"), rank, size, port, SECRET)).collect();
        Ranks::of(children)
    }

    pub fn run(&self, size: usize) -> StateRoot {
        let mut ranks = self.start(size);
        let last = ranks.events_until(|event| matches!(event, WorkerEvent::Done { finished: true, .. }));
        assert!(last.is_some(), "{:?}", ranks.end());
        let ended = ranks.end();
        assert!(ended.iter().all(|output| output.status.success()), "{ended:?}");
        self.newest().1
    }

    /// Steps and root of the newest snapshot, verified or not: there is no daemon.
    pub fn newest(&self) -> (u64, StateRoot) {
        let entries = Store::open(&self.path("store")).unwrap().entries().unwrap();
        let manifests = entries.into_iter().map(|entry| entry.manifest.unwrap());
        let newest = manifests.max_by_key(|manifest| manifest.seq).unwrap();
        (newest.train.step, newest.root)
    }

    /// What each snapshot holds, by step.
    pub fn roots(&self) -> BTreeMap<u64, StateRoot> {
        let entries = Store::open(&self.path("store")).unwrap().entries().unwrap();
        let manifests = entries.into_iter().map(|entry| entry.manifest.unwrap());
        manifests.map(|manifest| (manifest.train.step, manifest.root)).collect()
    }
}

/// Processes of one job; what is left of them is killed.
pub struct Ranks {
    pub children: Vec<Child>,
    said: BufReader<ChildStdout>,
    pub log: String,
}

impl Ranks {
    pub fn of(mut children: Vec<Child>) -> Ranks {
        let said = BufReader::new(children[0].stdout.take().unwrap());
        Ranks { children, said, log: String::new() }
    }

    /// The first event of rank 0 that `wanted` wants; `None` at the end of what it says.
    pub fn events_until(&mut self, wanted: impl Fn(&WorkerEvent) -> bool) -> Option<WorkerEvent> {
        loop {
            let mut line = String::new();
            if self.said.read_line(&mut line).unwrap() == 0 {
                return None;
            }
            self.log.push_str(&line);
            let event: WorkerEvent = protocol::parse(line.trim()).unwrap();
            if wanted(&event) {
                return Some(event);
            }
        }
    }

    pub fn committed(&mut self, least: u64) {
        let event = self.events_until(|event| matches!(event, WorkerEvent::Committed { step, .. } if *step >= least));
        assert!(event.is_some(), "{}", self.log);
    }

    /// Those that rank 0 has told so far.
    pub fn steps(&self) -> impl Iterator<Item = u64> {
        let events = self.log.lines().filter_map(|line| protocol::parse::<WorkerEvent>(line).ok());
        events.filter_map(|event| match event {
            WorkerEvent::Step { step, .. } => Some(step),
            _ => None,
        })
    }

    pub fn signal(&self, rank: usize, signal: Signal) {
        kill_process(Pid::from_child(&self.children[rank]), signal).unwrap();
    }

    /// Waits for all of them.
    pub fn end(&mut self) -> Vec<Output> {
        let by = Instant::now() + PATIENCE;
        for child in &mut self.children {
            while child.try_wait().unwrap().is_none() {
                assert!(Instant::now() < by, "a rank does not leave; {}", self.log);
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        let children = std::mem::take(&mut self.children);
        children.into_iter().map(|child| child.wait_with_output().unwrap()).collect()
    }
}

impl Drop for Ranks {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

pub fn spawn(job: &Path, rank: usize, size: usize, port: u16, secret: &str) -> Child {
    command(job, rank, size, port, secret).spawn().unwrap()
}

pub fn command(job: &Path, rank: usize, size: usize, port: u16, secret: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ckptd-gpt2"));
    command.arg("--config").arg(job).stdin(Stdio::null()).stderr(Stdio::piped());
    command.stdout(if rank == 0 { Stdio::piped() } else { Stdio::null() });
    // As the agent starts a worker: without it, a worker loads libtorch twice.
    command.env("OMP_WAIT_POLICY", "passive");
    if size > 1 {
        command.env("RANK", rank.to_string()).env("WORLD_SIZE", size.to_string());
        command.env("MASTER_ADDR", "127.0.0.1").env("MASTER_PORT", port.to_string());
        command.env("CKPTD_RANKS_SECRET", secret);
    }
    command
}

pub fn failure(event: Option<WorkerEvent>) -> (WorkerFailure, String) {
    match event {
        Some(WorkerEvent::Failed { failure, what }) => (failure, what),
        other => panic!("{other:?}"),
    }
}

pub fn is_failed(event: &WorkerEvent) -> bool {
    matches!(event, WorkerEvent::Failed { .. })
}

/// What each of these processes has written on its standard error.
pub fn told(ended: &[Output]) -> Vec<String> {
    ended.iter().map(|output| String::from_utf8_lossy(&output.stderr).into_owned()).collect()
}
pub const SHARDED: &str = "[ranks]\nshard_optimizer = true\n";
pub const MOMENTUM: &str = "optimizer = \"sgd\"\nmomentum = 0.9\n";
