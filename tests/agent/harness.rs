//! A job in a folder of its own, and the agent that runs it, watched through its log.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use serde_json::Value;

use crate::worker;

/// A test that waits for longer has failed.
const PATIENCE: Duration = Duration::from_secs(120);

pub struct Job {
    folder: tempfile::TempDir,
}

impl Job {
    /// A job of `steps` steps that saves every five; `more` goes to its config's end.
    pub fn new(steps: u64, more: &str) -> Job {
        let job = Job { folder: tempfile::tempdir().unwrap() };
        std::fs::create_dir(job.script()).unwrap();
        job.configure(steps, more);
        job
    }

    pub fn configure(&self, steps: u64, more: &str) {
        let command = serde_json::to_string(&worker::command()).unwrap();
        let config = format!(
            "[model]\npreset = \"gpt2-mini\"\n[data]\ntext = [\"none\"]\n[train]\nsteps = {steps}\neval_every = 0\n\
             [snapshot]\nevery_steps = 5\n[worker]\ncommand = {command}\n{more}\n"
        );
        std::fs::write(self.config(), config).unwrap();
    }

    pub fn config(&self) -> PathBuf {
        self.folder.path().join("job.toml")
    }

    pub fn store(&self) -> PathBuf {
        self.folder.path().join("checkpoints/job")
    }

    pub fn script(&self) -> PathBuf {
        self.folder.path().join("script")
    }

    /// Has the worker do `what` so many times.
    pub fn ask(&self, what: &str, times: u32) {
        std::fs::write(self.script().join(what), times.to_string()).unwrap();
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ckptd"));
        command.args(arguments).env(worker::SCRIPT, self.script()).stdin(Stdio::null());
        command
    }

    /// Starts `ckptd run`.
    pub fn start(&self) -> Running {
        let config = self.config();
        let mut child = self
            .command(&["run", "--log-format", "json", &config.to_string_lossy()])
            .stderr(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in stderr.lines() {
                let _ = sender.send(line.unwrap());
            }
        });
        Running { child, lines, seen: Vec::new() }
    }

    /// Runs `ckptd run` to its end.
    pub fn run(&self) -> Ended {
        self.start().wait()
    }

    /// Runs another command on the store to its end.
    pub fn ckptd(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    pub fn json(&self, command: &str) -> Value {
        let output = self.ckptd(&[command, "--json", &self.store().to_string_lossy()]);
        serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&output.stderr)))
    }

    pub fn snapshot(&self, step: u64) -> PathBuf {
        self.store().join(format!("snapshots/step-{step:012}.ckpt"))
    }

    /// The root of the last snapshot of a run that nothing disturbs.
    pub fn undisturbed_root(steps: u64) -> Value {
        let job = Job::new(steps, "");
        assert_eq!(job.run().code, Some(0));
        job.json("list")[0]["root"].clone()
    }
}

pub struct Running {
    pub child: Child,
    lines: Receiver<String>,
    seen: Vec<String>,
}

pub struct Ended {
    pub code: Option<i32>,
    pub log: String,
}

impl Running {
    /// Waits for a line of the log that holds `text`.
    pub fn wait_for(&mut self, text: &str) -> String {
        loop {
            match self.lines.recv_timeout(PATIENCE) {
                Ok(line) => {
                    self.seen.push(line.clone());
                    if line.contains(text) {
                        return line;
                    }
                }
                Err(e) => panic!("{text:?} never came ({e}); the log:\n{}", self.seen.join("\n")),
            }
        }
    }

    pub fn wait(mut self) -> Ended {
        loop {
            match self.lines.recv_timeout(PATIENCE) {
                Ok(line) => self.seen.push(line),
                Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => break,
                Err(e) => panic!("the run never ended ({e}); the log:\n{}", self.seen.join("\n")),
            }
        }
        Ended { code: self.child.wait().unwrap().code(), log: self.seen.join("\n") }
    }

    pub fn signal(&self, name: &str) {
        signal(self.child.id(), name);
    }
}

impl Running {
    /// Signals again and again, as an impatient user does.
    pub fn signal_until_it_ends(&mut self, name: &str) {
        while self.child.try_wait().unwrap().is_none() {
            self.signal(name);
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn signal(pid: u32, name: &str) {
    let done = Command::new("kill").args(["-s", name, &pid.to_string()]).status().unwrap();
    assert!(done.success(), "kill -s {name} {pid}");
}

/// The process id of the worker that trains now.
pub fn worker_of(job: &Job) -> u32 {
    let status = job.json("status");
    status["worker"]["pid"].as_u64().unwrap_or_else(|| panic!("no worker: {status}")) as u32
}

/// Damages a file as a failing disk would.
pub fn flip_a_byte(path: &Path) {
    let file = std::fs::File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, 100).unwrap();
    file.write_all_at(&[byte[0] ^ 1], 100).unwrap();
}
