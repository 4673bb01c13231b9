//! The worker process: started in a process group of its own, spoken to in lines, watched until it is gone.
//!
//! Invariant: it is signalled by this module alone and only before it is reaped, so that no signal reaches a stranger;
//! [`JobEvent::Exited`] comes once, after everything that the worker said. The worker outlives the daemon's death: it
//! sees its stdin close, commits a last snapshot and exits. Deliberately not here: what its messages mean (job).

use std::collections::VecDeque;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tracing::debug;

use super::job::events::{JobEvent, WorkerExit};
use crate::daemon::inbox::{DaemonInput, InboxSender};
use crate::daemon::signals;
use ckptd_core::error::{Error, Result};
use ckptd_core::protocol::{self, AgentCommand};
use ckptd_remote::secrets::is_credential;

const PROGRAM: &str = "ckptd-gpt2";
/// Lines of stderr that are shown after a crash.
const STDERR_TAIL: usize = 20;
/// What is in the pipes of a dead worker is read at once; only a grandchild that holds them open makes this wait.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);

/// What its watcher is to do with a worker, as long as it is there.
enum WorkerOrder {
    /// SIGKILL to the worker and what it has started.
    Kill,
    /// Stop it, then this process; when that goes on, let the worker go on.
    StandStill,
}

/// A running worker.
pub struct WorkerProcess {
    pub pid: u32,
    commands: mpsc::UnboundedSender<AgentCommand>,
    orders: mpsc::UnboundedSender<WorkerOrder>,
    watcher: JoinHandle<()>,
}

impl WorkerProcess {
    /// Starts `command`, or where that is empty the default worker; what it says and its exit go to `inputs`.
    pub fn spawn(command: &[String], inputs: InboxSender<JobEvent>) -> Result<WorkerProcess> {
        let is_ours = command.is_empty();
        let command = match command {
            [] => vec![default_program()?.to_string_lossy().into_owned()],
            given => given.to_vec(),
        };
        let mut process = tokio::process::Command::new(&command[0]);
        if is_ours {
            // It speaks to no remote. A command of the user's own keeps its environment.
            for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(is_credential)) {
                process.env_remove(name);
            }
        }
        process.args(&command[1..]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        shield_from_signals(&mut process);
        for variable in ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"] {
            // The service manager hears from the daemon only.
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
        let (orders, queued) = mpsc::unbounded_channel();
        if let Some(stdin) = child.stdin.take() {
            tokio::spawn(write_commands(stdin, queue));
        }
        let watcher = tokio::spawn(watch(child, queued, inputs));
        Ok(WorkerProcess { pid, commands, orders, watcher })
    }

    /// Queues a command; a worker that reads nothing does not hold up the daemon.
    pub fn send(&self, command: AgentCommand) {
        let _ = self.commands.send(command);
    }

    /// SIGKILL to the worker and what it has started.
    pub fn kill(&self) {
        let _ = self.orders.send(WorkerOrder::Kill);
    }

    /// Ctrl-Z: the worker, which has a process group of its own, stands still with this process, and goes on with it.
    pub fn stand_still(&self) {
        let _ = self.orders.send(WorkerOrder::StandStill);
    }

    /// Waits until it is gone and everything that it said is on its way.
    pub async fn gone(self) {
        let _ = self.watcher.await;
    }
}

/// Ctrl-C in a terminal, and what Slurm or a service manager send to every process of a job, is for the daemon, which
/// ends the worker in good order. A worker may still install handlers of its own.
fn shield_from_signals(process: &mut tokio::process::Command) {
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
            "the worker {PROGRAM} is neither beside ckptd nor in PATH; build it with `make build` \
             or name one in [worker] command"
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

async fn watch(mut child: Child, mut orders: mpsc::UnboundedReceiver<WorkerOrder>, inputs: InboxSender<JobEvent>) {
    let kills_before = out_of_memory_kills();
    let pid = child.id().and_then(|pid| Pid::from_raw(pid as i32));
    let stderr_tail = Arc::new(Mutex::new(VecDeque::new()));
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
        let stderr_tail = Arc::clone(&stderr_tail);
        async move {
            if let Some(stderr) = stderr {
                collect(stderr, &stderr_tail).await;
            }
        }
    });
    let status = loop {
        tokio::select! {
            status = child.wait() => break status.ok(),
            // The child is not reaped yet, so that its group is still its own.
            Some(order) = orders.recv() => if let Some(pid) = pid {
                match order {
                    WorkerOrder::Kill => drop(kill_process_group(pid, Signal::KILL)),
                    WorkerOrder::StandStill => {
                        let _ = kill_process_group(pid, Signal::STOP);
                        signals::stand_still();
                        let _ = kill_process_group(pid, Signal::CONT);
                    }
                }
            },
        }
    };
    for mut task in [listener, collector] {
        if tokio::time::timeout(DRAIN_TIMEOUT, &mut task).await.is_err() {
            task.abort();
        }
    }
    let out_of_memory = out_of_memory_kills() > kills_before;
    let stderr_tail = stderr_tail.lock().unwrap_or_else(PoisonError::into_inner).drain(..).collect();
    let (code, signal) = status.map_or((None, None), |status| (status.code(), status.signal()));
    let exit = WorkerExit { code, signal, out_of_memory, stderr_tail };
    let _ = inputs.send(DaemonInput::Event(JobEvent::Exited(exit))).await;
}

/// Passes the worker's messages on, up to its end or the first line that is no message.
async fn listen(stdout: impl AsyncRead + Unpin, inputs: &InboxSender<JobEvent>) {
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
            Err(what) => (JobEvent::ProtocolError(what), true),
        };
        if inputs.send(DaemonInput::Event(event)).await.is_break() || last {
            return;
        }
    }
}

/// Keeps the last lines of stderr, so that the worker never waits for a reader.
async fn collect(stderr: impl AsyncRead + Unpin, stderr_tail: &Mutex<VecDeque<String>>) {
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
        let mut stderr_tail = stderr_tail.lock().unwrap_or_else(PoisonError::into_inner);
        stderr_tail.push_back(text);
        if stderr_tail.len() > STDERR_TAIL {
            stderr_tail.pop_front();
        }
    }
}

/// How many processes the kernel has killed for lack of memory, in any memory group; 0 where it does not say.
fn out_of_memory_kills() -> u64 {
    let text = std::fs::read_to_string("/proc/vmstat").unwrap_or_default();
    text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok()).unwrap_or(0)
}
