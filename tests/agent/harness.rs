//! A job of the worker that trains nothing, in a folder of its own.

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

pub use ckptd_testkit::job::{EndedRun, RunningAgent, signal};
pub use ckptd_testkit::small::flip_a_byte;
use serde_json::Value;

use crate::worker;

/// A PID namespace of its own.
const APART: [&str; 3] = ["--pid", "--fork", "--mount-proc"];

pub struct AgentJob {
    folder: tempfile::TempDir,
}

impl AgentJob {
    /// A job of `steps` steps that saves every five; `more` goes to its config's end.
    pub fn new(steps: u64, more: &str) -> AgentJob {
        let job = AgentJob { folder: tempfile::tempdir().unwrap() };
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

    /// With `old` replaced by `new` in its config.
    pub fn with(self, old: &str, new: &str) -> AgentJob {
        let text = std::fs::read_to_string(self.config()).unwrap();
        assert!(text.contains(old), "{text}");
        std::fs::write(self.config(), text.replace(old, new)).unwrap();
        self
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

    /// The same on a machine of its own, as far as this user may make one: neither of two sees the other's processes.
    pub fn apart(&self, arguments: &[&str]) -> Command {
        if !AgentJob::can_be_apart() {
            return self.command(arguments);
        }
        let mut command = Command::new("unshare");
        command.args(APART).arg("--kill-child=KILL").arg(env!("CARGO_BIN_EXE_ckptd")).args(arguments);
        command.env(worker::SCRIPT, self.script()).stdin(Stdio::null());
        command
    }

    pub fn can_be_apart() -> bool {
        Command::new("unshare").args(APART).arg("true").output().is_ok_and(|ended| ended.status.success())
    }

    /// Starts `ckptd run`.
    pub fn start(&self) -> RunningAgent {
        self.start_with(&[])
    }

    /// Starts `ckptd run` with more in its environment.
    pub fn start_with(&self, environment: &[(&str, &str)]) -> RunningAgent {
        let mut command = self.command(&["run", "--log-format", "json", &self.config().to_string_lossy()]);
        command.envs(environment.iter().copied());
        RunningAgent::start(command)
    }

    /// Runs `ckptd run` to its end.
    pub fn run(&self) -> EndedRun {
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
        let job = AgentJob::new(steps, "");
        assert_eq!(job.run().code, Some(0));
        job.json("list")[0]["root"].clone()
    }
}

/// The process id of the worker that trains now.
pub fn worker_of(job: &AgentJob) -> u32 {
    let status = job.json("status");
    status["worker"]["pid"].as_u64().unwrap_or_else(|| panic!("no worker: {status}")) as u32
}
