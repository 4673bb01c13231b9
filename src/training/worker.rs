//! The worker process: started in a process group of its own, spoken to in lines, watched until it is gone.
//!
//! Invariant: only this module knows its process id while it may be signalled, so that no signal ever reaches a
//! stranger; [`JobEvent::Exited`] comes once, after everything that the worker said. The worker is not tied to the
//! agent's death: it sees its stdin close, commits a last snapshot and leaves. Deliberately not here: what its
//! messages mean (job).

use std::collections::VecDeque;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, kill_process_group};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tracing::debug;

use super::Input;
use super::job::{JobEvent, WorkerExit};
use ckptd_core::error::{Error, Result};
use ckptd_core::protocol::{self, AgentCommand};

const PROGRAM: &str = "ckptd-gpt2";
/// Lines of stderr that are shown after a crash.
const LAST_WORDS: usize = 20;
/// What is in the pipes of a dead worker is read at once; only a grandchild that holds them open makes this wait.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);

pub struct Worker {
    pub pid: u32,
    commands: mpsc::UnboundedSender<AgentCommand>,
    kills: mpsc::UnboundedSender<()>,
    watcher: JoinHandle<()>,
}

impl Worker {
    pub fn spawn(command: &[String], inputs: mpsc::Sender<Input>) -> Result<Worker> {
        let command = match command {
            [] => vec![default_program()?.to_string_lossy().into_owned()],
            given => given.to_vec(),
        };
        let mut process = tokio::process::Command::new(&command[0]);
        process.args(&command[1..]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        for_the_agent_alone(&mut process);
        for variable in ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"] {
            // The service manager hears from the agent only.
            process.env_remove(variable);
        }
        if std::env::var_os("OMP_WAIT_POLICY").is_none() {
            // Threads that spin while they wait would fight with those that encode and verify snapshots.
            process.env("OMP_WAIT_POLICY", "passive");
        }
        let mut child = process
            .spawn()
            .map_err(|e| Error::Other(format!("starting the worker {}: {e}; see [worker] command", command[0])))?;
        let pid = child.id().unwrap_or_default();
        let (commands, queue) = mpsc::unbounded_channel();
        let (kills, orders) = mpsc::unbounded_channel();
        if let Some(stdin) = child.stdin.take() {
            tokio::spawn(write_commands(stdin, queue));
        }
        let watcher = tokio::spawn(watch(child, orders, inputs));
        Ok(Worker { pid, commands, kills, watcher })
    }

    /// Queues a command; a worker that reads nothing holds up nobody.
    pub fn send(&self, command: AgentCommand) {
        let _ = self.commands.send(command);
    }

    /// SIGKILL to the worker and what it has started.
    pub fn kill(&self) {
        let _ = self.kills.send(());
    }

    /// Waits until it is gone and everything that it said is on its way.
    pub async fn gone(self) {
        let _ = self.watcher.await;
    }
}

/// Ctrl-C in a terminal, and what Slurm or a service manager send to every process of a job, is for the agent, which
/// ends the worker in good order. A worker that has handlers of its own for them still may.
fn for_the_agent_alone(process: &mut tokio::process::Command) {
    process.process_group(0);
    let ignore = || {
        for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGTERM, libc::SIGUSR1, libc::SIGUSR2] {
            // SAFETY: signal(2) is async-signal-safe, and SIG_IGN is no handler that could run.
            unsafe { libc::signal(signal, libc::SIG_IGN) };
        }
        Ok(())
    };
    // SAFETY: between fork and exec `ignore` only calls signal(2); it allocates and locks nothing.
    unsafe { process.pre_exec(ignore) };
}

/// `ckptd-gpt2` beside this program, else in PATH.
pub fn default_program() -> Result<PathBuf> {
    let beside = std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.join(PROGRAM)));
    let in_path = std::env::var_os("PATH").unwrap_or_default();
    let candidates = beside.iter().cloned().chain(std::env::split_paths(&in_path).map(|folder| folder.join(PROGRAM)));
    candidates.into_iter().find(|path| is_program(path)).ok_or_else(|| {
        Error::Other(format!(
            "the worker {PROGRAM} is neither beside ckptd nor in PATH; build it with `make build` or name one in [worker] command"
        ))
    })
}

fn is_program(path: &Path) -> bool {
    rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok() && path.is_file()
}

async fn write_commands(mut stdin: ChildStdin, mut queue: mpsc::UnboundedReceiver<AgentCommand>) {
    while let Some(command) = queue.recv().await {
        // A worker that closed its stdin is about to be noticed by its exit or its silence.
        if stdin.write_all(protocol::line(&command).as_bytes()).await.is_err() {
            return;
        }
    }
}

async fn watch(mut child: Child, mut orders: mpsc::UnboundedReceiver<()>, inputs: mpsc::Sender<Input>) {
    let kills_before = out_of_memory_kills();
    let pid = child.id().and_then(|pid| Pid::from_raw(pid as i32));
    let last_words = Arc::new(Mutex::new(VecDeque::new()));
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let listener = tokio::spawn({
        let inputs = inputs.clone();
        async move {
            if let Some(stdout) = stdout {
                listen(stdout, &inputs).await;
            }
        }
    });
    let collector = tokio::spawn({
        let last_words = Arc::clone(&last_words);
        async move {
            if let Some(stderr) = stderr {
                collect(stderr, &last_words).await;
            }
        }
    });
    let status = loop {
        tokio::select! {
            status = child.wait() => break status.ok(),
            // The child is not reaped yet, so that its group is still its own.
            Some(()) = orders.recv() => if let Some(pid) = pid {
                let _ = kill_process_group(pid, rustix::process::Signal::KILL);
            },
        }
    };
    for mut task in [listener, collector] {
        if tokio::time::timeout(DRAIN_TIMEOUT, &mut task).await.is_err() {
            task.abort();
        }
    }
    let out_of_memory = out_of_memory_kills() > kills_before;
    let last_words = last_words.lock().unwrap_or_else(PoisonError::into_inner).drain(..).collect();
    let (code, signal) = status.map_or((None, None), |status| (status.code(), status.signal()));
    let exit = WorkerExit { code, signal, out_of_memory, last_words };
    let _ = inputs.send(Input::Job(JobEvent::Exited(exit))).await;
}

/// Passes the worker's messages on, up to its end or the first line that is none.
async fn listen(stdout: impl AsyncRead + Unpin, inputs: &mpsc::Sender<Input>) {
    let mut reader = BufReader::new(stdout);
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = (&mut reader).take(protocol::MAX_LINE as u64 + 1).read_until(b'\n', &mut line).await;
        if read.is_err() || (line.last() != Some(&b'\n') && line.len() <= protocol::MAX_LINE) {
            return; // Its end, perhaps in the middle of a line.
        }
        let parsed = match std::str::from_utf8(line.trim_ascii_end()) {
            Ok(text) => protocol::parse(text),
            Err(_) => Err("a line that is not UTF-8".to_owned()),
        };
        let (event, last) = match parsed {
            Ok(message) => (JobEvent::Said(Box::new(message)), false),
            Err(what) => (JobEvent::Garbage(what), true),
        };
        if inputs.send(Input::Job(event)).await.is_err() || last {
            return;
        }
    }
}

/// Keeps the last lines of stderr, so that the worker never waits for a reader.
async fn collect(stderr: impl AsyncRead + Unpin, last_words: &Mutex<VecDeque<String>>) {
    const LONGEST: u64 = 1 << 12;
    let mut reader = BufReader::new(stderr);
    let mut line = Vec::new();
    loop {
        line.clear();
        match (&mut reader).take(LONGEST).read_until(b'\n', &mut line).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        let text = String::from_utf8_lossy(line.trim_ascii_end()).into_owned();
        debug!("worker: {text}");
        let mut last_words = last_words.lock().unwrap_or_else(PoisonError::into_inner);
        last_words.push_back(text);
        if last_words.len() > LAST_WORDS {
            last_words.pop_front();
        }
    }
}

/// How many processes this machine's kernel has killed for lack of memory, in any memory group; 0 where it does not say.
fn out_of_memory_kills() -> u64 {
    let text = std::fs::read_to_string("/proc/vmstat").unwrap_or_default();
    text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok()).unwrap_or(0)
}
