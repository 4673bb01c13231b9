//! A whole job in a folder of its own: the real ckptd, with GPT-2 or with a worker that only keeps to the protocol.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use ckptd_core::progress::NoProgress;
use ckptd_core::store::{SnapshotEntry, SnapshotState, Store};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::place;
use crate::row::CampaignTally;
use ckptd_testkit::text;

/// What takes longer never comes.
pub const PATIENCE: Duration = Duration::from_secs(180);
/// Time between two looks at a file or a process that cannot be waited for.
const LOOK: Duration = Duration::from_millis(5);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WorkerKind {
    /// Steps of a few milliseconds, real snapshots.
    Quick,
    /// The small GPT-2 through libtorch.
    Gpt2,
}

pub struct ChaosJob {
    folder: PathBuf,
    store: PathBuf,
}

/// A running `ckptd run`.
pub struct ChaosAgent {
    pub child: Child,
}

impl ChaosJob {
    /// A job of `steps` steps in `folder`; `worker` are arguments of the quick worker, `more` goes to the config's end.
    pub fn new(folder: &Path, kind: WorkerKind, steps: u64, worker: &[&str], more: &str) -> Result<ChaosJob> {
        let job = ChaosJob { folder: folder.to_path_buf(), store: folder.join("store") };
        std::fs::create_dir_all(folder)?;
        std::fs::write(folder.join("text.txt"), text::words(30_000))?;
        let own = std::env::current_exe()?;
        let mut command: Vec<&str> = vec![own.to_str().context("the path of this program is not UTF-8")?, "worker"];
        command.extend(worker);
        let (command, every, hang) = match kind {
            WorkerKind::Quick => (serde_json::to_string(&command)?, 5, "1s"),
            WorkerKind::Gpt2 => ("[]".to_owned(), 4, "20s"),
        };
        let config = format!(
            "[job]\nstore = \"store\"\nthreads = 2\n[model]\npreset = \"gpt2-mini\"\ndropout = 0.1\n\
             [data]\ntext = [\"text.txt\"]\ncache = \"cache\"\n\
             [train]\nsteps = {steps}\nbatch_size = 2\nsequence_length = 32\nwarmup_steps = 5\neval_every = 0\n\
             [snapshot]\nevery_steps = {every}\n\
             [worker]\ncommand = {command}\nmax_restarts = 1000\nhang_timeout = \"{hang}\"\n\
             [log]\nlevel = \"debug\"\n{more}\n"
        );
        std::fs::write(job.config(), config)?;
        Ok(job)
    }

    pub fn config(&self) -> PathBuf {
        self.folder.join("job.toml")
    }

    pub fn store(&self) -> &Path {
        &self.store
    }

    pub fn log_path(&self) -> PathBuf {
        self.folder.join("log")
    }

    /// `ckptd run` on this job, its log appended to the job's.
    pub fn command(&self) -> Result<Command> {
        let log = File::options().create(true).append(true).open(self.log_path())?;
        let mut command = Command::new(place::program("ckptd")?);
        command.args(["run", "--log-format", "json"]).arg(self.config());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        Ok(command)
    }

    pub fn start(&self) -> Result<ChaosAgent> {
        Ok(ChaosAgent { child: self.command()?.spawn().context("starting ckptd")? })
    }

    /// Runs to the end; the training must be complete then.
    pub fn run_to_end(&self) -> Result<String> {
        let mut agent = self.start()?;
        let mut told = 0;
        let code = loop {
            if let Some(code) = agent.ends_within(PATIENCE)? {
                break code;
            }
            // It may take any time, while it gets on.
            let now = self.log().len();
            ensure!(now > told, "an undisturbed run stands still:\n{}", self.log());
            told = now;
        };
        ensure!(code == Some(0), "an undisturbed run ended with {code:?}:\n{}", self.log());
        self.root()
    }

    /// What the newest snapshot holds.
    pub fn root(&self) -> Result<String> {
        let newest = Store::open(&self.store)?.find("latest")?;
        ensure!(newest.state == SnapshotState::Verified, "the newest snapshot is not verified");
        Ok(newest.manifest.context("it has no manifest")?.root.into())
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// What each step computed, in full: its number, and its loss and gradient norm as the log has them. A step that
    /// was computed again is there again.
    pub fn steps(&self) -> Vec<(u64, String)> {
        let step = |message: LogMessage| {
            let (number, rest) = message.text.strip_prefix("step ")?.split_once(" done: ")?;
            Some((number.parse().ok()?, rest.split_once(", learning_rate")?.0.to_owned()))
        };
        self.messages().into_iter().filter_map(step).collect()
    }

    /// Messages of the log so far; a last line that is not whole yet is left out.
    pub fn messages(&self) -> Vec<LogMessage> {
        self.log().lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()).filter_map(message).collect()
    }

    /// Waits until the log so far is as `wanted` likes it, while the agent runs.
    pub fn wait_for(&self, agent: &mut ChaosAgent, what: &str, wanted: impl Fn(&[LogMessage]) -> bool) -> Result<()> {
        let began = Instant::now();
        loop {
            // Looked at before the log: what an agent says before it ends is in the log then.
            let ended = agent.child.try_wait()?;
            if wanted(&self.messages()) {
                return Ok(());
            }
            if let Some(status) = ended {
                bail!("ckptd ended ({status}) before {what}:\n{}", self.log());
            }
            ensure!(began.elapsed() < PATIENCE, "{what} never came:\n{}", self.log());
            std::thread::sleep(LOOK);
        }
    }

    /// `ckptd COMMAND --json` on the store.
    pub fn json(&self, command: &str) -> Result<Value> {
        let output = Command::new(place::program("ckptd")?).args([command, "--json"]).arg(&self.store).output()?;
        serde_json::from_slice(&output.stdout)
            .with_context(|| format!("ckptd {command}: {}", String::from_utf8_lossy(&output.stderr)))
    }

    /// Holds the store to the promises, at any moment, whoever is at work in it: everything visible is whole, and what
    /// was announced as verified is there or has two newer verified ones in its place.
    pub fn check(&self, tally: &mut CampaignTally) -> Result<()> {
        self.check_with(tally, true)
    }

    /// As [`ChaosJob::check`], while the disk is full: what was announced may have found no room for its receipt. It is
    /// read back here, and then counts.
    pub fn check_on_full_disk(&self, tally: &mut CampaignTally) -> Result<()> {
        self.check_with(tally, false)
    }

    fn check_with(&self, tally: &mut CampaignTally, receipts: bool) -> Result<()> {
        let Ok(store) = Store::open(&self.store) else { return Ok(()) };
        let announced: Vec<(String, u64)> = self.messages().into_iter().filter_map(|m| m.verified).collect();
        let entries = store.entries()?;
        for entry in &entries {
            // A rotation under way may be faster than this look.
            match ckptd_core::store::verify::read_back(&entry.path, 1, &NoProgress) {
                Err(e) if entry.path.exists() => tally.violation(format!("visible and not whole: {e}")),
                _ => {}
            }
        }
        let newest = entries.iter().map(SnapshotEntry::step).max().unwrap_or(0);
        let told = announced.iter().map(|(_, step)| *step).max().unwrap_or(0);
        tally.require(newest >= told, || format!("step {told} was announced as verified, {newest} is the newest"));
        let distinct: std::collections::HashSet<&str> = announced.iter().map(|(id, _)| id.as_str()).collect();
        let entries = store.entries()?;
        let known =
            |e: &&SnapshotEntry| e.state == SnapshotState::Verified || (!receipts && distinct.contains(e.id.as_str()));
        let verified = entries.iter().filter(known).count();
        let owed = distinct.len().min(2);
        tally.require(verified >= owed, || {
            let there: Vec<String> = entries.iter().map(|e| format!("{} ({:?})", e.id, e.state)).collect();
            format!("{verified} verified snapshots are left, where {owed} must be: {}", there.join(", "))
        });
        Ok(())
    }
}

/// A line of the log.
pub struct LogMessage {
    pub level: String,
    pub text: String,
    /// Id and step, where it announces a verified snapshot.
    pub verified: Option<(String, u64)>,
}

fn message(line: Value) -> Option<LogMessage> {
    let text = line["message"].as_str()?.to_owned();
    let announced = || Some((line["id"].as_str()?.to_owned(), line["step"].as_u64()?));
    let verified = text.starts_with("verified step").then(announced).flatten();
    Some(LogMessage { level: line["level"].as_str()?.to_owned(), text, verified })
}

impl ChaosAgent {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The worker that runs now.
    pub fn worker(&self) -> Option<u32> {
        let pid = self.pid();
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
        children.split_whitespace().next()?.parse().ok()
    }

    /// The exit code; `None` after a signal.
    pub fn wait(mut self) -> Result<Option<i32>> {
        let began = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status.code());
            }
            ensure!(began.elapsed() < PATIENCE, "ckptd never ended");
            std::thread::sleep(LOOK);
        }
    }

    /// The exit code if it ends within `time`.
    pub fn ends_within(&mut self, time: Duration) -> Result<Option<Option<i32>>> {
        let began = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(Some(status.code()));
            }
            if began.elapsed() >= time {
                return Ok(None);
            }
            std::thread::sleep(LOOK.min(time));
        }
    }
}

impl Drop for ChaosAgent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Signals a process that may be gone by now.
pub fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = Pid::from_raw(pid as i32) {
        let _ = kill_process(pid, signal);
    }
}

/// Whether a process is there and no zombie.
pub fn runs(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}
