//! The worker process: started in a process group of its own, spoken to in lines, watched until it is gone.
//!
//! Invariant: it is signalled by this module alone and only before it is reaped, so that no signal reaches a stranger;
//! [`JobEvent::Exited`] comes once, after everything that the worker said. The worker outlives the daemon's death: it
//! sees its stdin close, commits a last snapshot and exits. Deliberately not here: what its messages mean (job).

use std::collections::VecDeque;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader};
use tokio::process::Child;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tracing::debug;

use super::descendants::Descendants;
use super::job::events::{JobEvent, WorkerExit};
use super::launch::WorkerLaunch;
use super::messages::{listen, write_commands};
use super::script::{SOCKET_VARIABLE, ScriptListener, ScriptSocket, ScriptWords, script_stdin};
use crate::daemon::inbox::{DaemonInput, InboxSender};
use crate::daemon::signals;
use ckptd_core::error::{Error, Result};
use ckptd_core::protocol::AgentCommand;
use ckptd_remote::secrets::is_credential;

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

/// A worker that was started, and that nobody listens to yet.
pub struct WaitingWorker(Child);

impl WaitingWorker {
    /// Starts what `launch` says, which inherits `lock`, the store's.
    pub fn spawn(launch: &WorkerLaunch, lock: Option<BorrowedFd<'_>>) -> Result<WaitingWorker> {
        let Some((program, arguments)) = launch.command.split_first() else {
            return Err(Error::Config("[worker] command is empty".into()));
        };
        let mut process = tokio::process::Command::new(program);
        if launch.is_ours {
            // It speaks to no remote. A command of the user's own keeps its environment.
            for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(is_credential)) {
                process.env_remove(name);
            }
        }
        for name in &launch.withheld {
            process.env_remove(name);
        }
        process.envs(launch.given.iter().map(|(name, value)| (name, value)));
        process.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        shield_from_signals(&mut process, lock.map(|lock| lock.as_raw_fd()));
        settle_environment(&mut process);
        let started = process.spawn();
        started
            .map(WaitingWorker)
            .map_err(|e| Error::Other(format!("starting {program}: {e}; see [worker] command and [ranks] launcher")))
    }

    /// Whether it has not ended yet.
    pub fn is_there(&mut self) -> bool {
        matches!(self.0.try_wait(), Ok(None))
    }

    /// SIGKILL, and waits until it is gone.
    pub async fn end(mut self) {
        let _ = self.0.kill().await;
    }

    /// From now on what it says and its exit go to `inputs`, from its first word on.
    pub fn attend(self, inputs: InboxSender<JobEvent>) -> WorkerProcess {
        let WaitingWorker(mut child) = self;
        let pid = child.id().unwrap_or_default();
        let (commands, queue) = mpsc::unbounded_channel();
        let (orders, queued) = mpsc::unbounded_channel();
        if let Some(stdin) = child.stdin.take() {
            tokio::spawn(write_commands(stdin, queue));
        }
        let watcher = tokio::spawn(watch(child, None, queued, inputs));
        WorkerProcess { pid, commands, orders, watcher }
    }
}

impl WorkerProcess {
    /// Starts a training script, which has its stdin, stdout and stderr to itself and speaks over a socket.
    pub fn spawn_script(script: &[String], inputs: InboxSender<JobEvent>) -> Result<WorkerProcess> {
        let socket = ScriptSocket::bind()?;
        let mut process = tokio::process::Command::new(&script[0]);
        process.args(&script[1..]).env(SOCKET_VARIABLE, socket.path()).stdin(script_stdin());
        shield_from_signals(&mut process, None);
        settle_environment(&mut process);
        let child = process
            .spawn()
            .map_err(|e| Error::Config(format!("starting the script {}: {e}; see [worker] script", script[0])))?;
        let pid = child.id().unwrap_or_default();
        let (commands, queue) = mpsc::unbounded_channel();
        let (orders, queued) = mpsc::unbounded_channel();
        let heard = Arc::new(Mutex::new(ScriptWords::default()));
        let listener = tokio::spawn(socket.serve(pid, queue, Arc::clone(&heard), inputs.clone()));
        let watcher = tokio::spawn(watch(child, Some(ScriptListener { listener, heard }), queued, inputs));
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
/// `left_open` is a file that the worker inherits.
fn shield_from_signals(process: &mut tokio::process::Command, left_open: Option<RawFd>) {
    process.process_group(0);
    let ignore = move || {
        if let Some(file) = left_open {
            // SAFETY: fcntl(2) is async-signal-safe, and changes nothing but this process's copy of the descriptor.
            unsafe { libc::fcntl(file, libc::F_SETFD, 0) };
        }
        for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGTERM, libc::SIGUSR1, libc::SIGUSR2] {
            // SAFETY: signal(2) is async-signal-safe, and SIG_IGN is no handler that could run.
            unsafe { libc::signal(signal, libc::SIG_IGN) };
        }
        Ok(())
    };
    // SAFETY: between fork and exec `ignore` only calls fcntl(2) and signal(2); it allocates and locks nothing.
    unsafe { process.pre_exec(ignore) };
}

/// What every worker finds in its environment, and what it does not.
fn settle_environment(process: &mut tokio::process::Command) {
    for variable in ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"] {
        // The service manager hears from the daemon only.
        process.env_remove(variable);
    }
    if std::env::var_os("OMP_WAIT_POLICY").is_none() {
        // Threads that spin while they wait would fight with those that encode and verify snapshots.
        process.env("OMP_WAIT_POLICY", "passive");
    }
}

/// Waits for the worker's end. A script's words come over its own socket, and its exit code is one of them.
async fn watch(
    mut child: Child,
    script: Option<ScriptListener>,
    mut orders: mpsc::UnboundedReceiver<WorkerOrder>,
    inputs: InboxSender<JobEvent>,
) {
    let kills_before = out_of_memory_kills();
    let pid = child.id().and_then(|pid| Pid::from_raw(pid as i32));
    let stderr_tail = Arc::new(Mutex::new(VecDeque::new()));
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let listener = tokio::spawn({
        let inputs = inputs.clone();
        async move {
            if let Some(stdout) = stdout {
                listen(stdout, |_| (), &inputs).await;
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
                    WorkerOrder::Kill => {
                        // Ranks that train save and leave by themselves when they are left alone; others do not.
                        let is_idle = script.as_ref().is_some_and(|script| !script.has_begun());
                        let started = is_idle.then(|| Descendants::of(pid));
                        let _ = kill_process_group(pid, Signal::KILL);
                        started.into_iter().for_each(Descendants::kill);
                    }
                    WorkerOrder::StandStill => {
                        let _ = kill_process_group(pid, Signal::STOP);
                        signals::stand_still();
                        let _ = kill_process_group(pid, Signal::CONT);
                    }
                }
            },
        }
    };
    let (spoken, words) = script.map_or((None, None), |script| (Some(script.listener), Some(script.heard)));
    for mut task in [Some(listener), Some(collector), spoken].into_iter().flatten() {
        if tokio::time::timeout(DRAIN_TIMEOUT, &mut task).await.is_err() {
            task.abort();
        }
    }
    let out_of_memory = out_of_memory_kills() > kills_before;
    let stderr_tail = stderr_tail.lock().unwrap_or_else(PoisonError::into_inner).drain(..).collect();
    let (code, signal) = status.map_or((None, None), |status| (status.code(), status.signal()));
    let last_word = words.and_then(|words| words.lock().unwrap_or_else(PoisonError::into_inner).at_exit(code));
    if let Some(last_word) = last_word {
        let _ = inputs.send(DaemonInput::Event(JobEvent::Said(Box::new(last_word)))).await;
    }
    let exit = WorkerExit { code, signal, out_of_memory, stderr_tail };
    let _ = inputs.send(DaemonInput::Event(JobEvent::Exited(exit))).await;
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
