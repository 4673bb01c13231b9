//! A job in a folder of its own, and the programs that run it, watched through their logs.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use ckptd_core::ids::StateRoot;
use ckptd_core::store::{SnapshotEntry, SnapshotState, Store};
use rustix::process::{Pid, Signal, kill_process};

/// A test that waits for longer has failed.
pub const PATIENCE: Duration = Duration::from_secs(300);
/// What a whole run may take.
const RUN_PATIENCE: Duration = Duration::from_secs(1200);

/// A folder with a job file, `job.toml`, whose store is `store`.
pub struct JobFolder {
    path: PathBuf,
    /// Removes the folder, where it is the job's own.
    _own: Option<tempfile::TempDir>,
}

impl JobFolder {
    /// A job in a temporary folder, which goes with it. `config` follows on `[job] store`.
    pub fn new(config: &str) -> JobFolder {
        let folder = tempfile::tempdir().unwrap();
        let job = JobFolder::at(folder.path().to_path_buf(), config);
        JobFolder { _own: Some(folder), ..job }
    }

    /// A job in the folder `path`, which is made and stays.
    pub fn at(path: PathBuf, config: &str) -> JobFolder {
        std::fs::create_dir_all(&path).unwrap();
        let job = JobFolder { path, _own: None };
        job.configure(config);
        job
    }

    /// Writes the job file anew.
    pub fn configure(&self, config: &str) {
        std::fs::write(self.config(), format!("[job]\nstore = \"store\"\n{config}\n")).unwrap();
    }

    /// What is called `name` in the folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    pub fn config(&self) -> PathBuf {
        self.path("job.toml")
    }

    pub fn store(&self) -> Store {
        Store::open(&self.path("store")).unwrap()
    }

    /// The newest snapshot, if there is one.
    pub fn newest(&self) -> Option<SnapshotEntry> {
        Store::open(&self.path("store")).ok()?.find("latest").ok()
    }

    /// The root of the newest snapshot, which must be verified.
    pub fn root(&self) -> StateRoot {
        let newest = self.newest().expect("there is a snapshot");
        assert_eq!(newest.state, SnapshotState::Verified);
        newest.manifest.unwrap().root
    }

    /// Starts `ckptd run` on this job, its log in JSON.
    pub fn start(&self, ckptd: &Path) -> RunningAgent {
        let mut command = Command::new(ckptd);
        command.args(["run", "--log-format", "json"]).arg(self.config());
        RunningAgent::start(command)
    }
}

/// A running `ckptd run`; it is killed where the test ends before it.
pub struct RunningAgent {
    child: Child,
    began: Instant,
    lines: Receiver<String>,
    seen: Vec<String>,
}

/// How a run ended.
pub struct EndedRun {
    /// The exit code; `None` after a signal.
    pub code: Option<i32>,
    pub took: Duration,
    /// Its standard error.
    pub log: String,
}

impl RunningAgent {
    pub fn start(mut command: Command) -> RunningAgent {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let began = Instant::now();
        let mut child = command.spawn().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        RunningAgent { child, began, lines, seen: Vec::new() }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The worker that runs now.
    pub fn worker(&self) -> Option<u32> {
        let pid = self.pid();
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
        children.split_whitespace().next()?.parse().ok()
    }

    /// The log so far.
    pub fn log(&self) -> String {
        self.seen.join("\n")
    }

    /// Waits for a line of the log that holds `text`.
    pub fn wait_for(&mut self, text: &str) -> String {
        self.wait_until(text, |line| line.contains(text).then(|| line.to_owned()))
    }

    /// Waits for a line of the log in which `text` is followed by a step of at least `least`; returns that step.
    pub fn wait_for_step(&mut self, text: &str, least: u64) -> u64 {
        self.wait_until(text, |line| step_after(line, text).filter(|step| *step >= least))
    }

    /// Whether a line of the log that holds `text` comes before the run ends.
    pub fn comes(&mut self, text: &str) -> bool {
        let until = Instant::now() + PATIENCE;
        loop {
            match self.lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    let is_there = line.contains(text);
                    self.seen.push(line);
                    if is_there {
                        return true;
                    }
                }
                Err(RecvTimeoutError::Disconnected) => return false,
                Err(e) => panic!("neither {text:?} nor the end came ({e}); the log:\n{}", self.log()),
            }
        }
    }

    fn wait_until<T>(&mut self, text: &str, wanted: impl Fn(&str) -> Option<T>) -> T {
        let until = Instant::now() + PATIENCE;
        loop {
            match self.lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    let found = wanted(&line);
                    self.seen.push(line);
                    if let Some(found) = found {
                        return found;
                    }
                }
                Err(e) => panic!("{text:?} never came ({e}); the log:\n{}", self.log()),
            }
        }
    }

    /// Lets `duration` pass; whether the run has ended meanwhile.
    pub fn pass(&mut self, duration: Duration) -> bool {
        let until = Instant::now() + duration;
        loop {
            match self.lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(line) => self.seen.push(line),
                Err(RecvTimeoutError::Timeout) => return false,
                Err(RecvTimeoutError::Disconnected) => return true,
            }
        }
    }

    pub fn signal(&self, with: Signal) {
        signal(self.pid(), with);
    }

    /// Signals again and again, as an impatient user does.
    pub fn signal_until_it_ends(&mut self, with: Signal) {
        while self.child.try_wait().unwrap().is_none() {
            self.signal(with);
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn wait(mut self) -> EndedRun {
        // A run that goes on for ever writes lines for ever.
        let until = Instant::now() + RUN_PATIENCE;
        loop {
            match self.lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(line) => self.seen.push(line),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(e) => panic!("the run never ended ({e}); the log:\n{}", self.log()),
            }
        }
        let code = self.child.wait().unwrap().code();
        EndedRun { code, took: self.began.elapsed(), log: self.log() }
    }
}

impl Drop for RunningAgent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The number that follows on `text`.
fn step_after(line: &str, text: &str) -> Option<u64> {
    let (_, rest) = line.split_once(text)?;
    let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    rest[..end].parse().ok()
}

/// Signals a process, which may have ended by itself meanwhile.
pub fn signal(pid: u32, with: Signal) {
    if let Some(pid) = Pid::from_raw(pid as i32) {
        let _ = kill_process(pid, with);
    }
}
