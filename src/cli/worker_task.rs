//! One task of the worker `ckptd-gpt2`, run to its end: nothing here links libtorch.

use std::ffi::OsStr;
use std::process::{Command, Output, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde::de::DeserializeOwned;

use crate::training::launch::default_program;
use ckptd_core::error::{Error, Result};
use ckptd_core::progress::ProgressSink;

/// Between two signs of life on a terminal.
const TICK: Duration = Duration::from_millis(200);

/// A task, and what is said of it.
pub(super) struct WorkerTask<'a> {
    /// Its name and its arguments.
    pub(super) arguments: &'a [&'a OsStr],
    /// While it runs: "asking the worker".
    pub(super) doing: &'a str,
    /// Before what the worker says when it fails.
    pub(super) failed: &'a str,
}

impl WorkerTask<'_> {
    /// Runs it, and returns what it prints. It is killed when the work is called off.
    pub(super) fn run<T: DeserializeOwned>(&self, progress: &dyn ProgressSink) -> Result<T> {
        let program = default_program()?;
        let mut command = Command::new(&program);
        command.args(self.arguments).stdin(Stdio::null());
        let output = run(&mut command, self.doing, progress).map_err(|e| match e {
            Error::Io { source, .. } => Error::io("starting the worker", &program, source),
            other => other,
        })?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            let said = said.trim().trim_start_matches("ckptd-gpt2: ");
            return Err(Error::Other(format!("{}: {said}", self.failed)));
        }
        serde_json::from_slice(&output.stdout)
            .map_err(|e| Error::Other(format!("{} is not the worker of this version of ckptd: {e}", program.display())))
    }
}

fn run(command: &mut Command, doing: &str, progress: &dyn ProgressSink) -> Result<Output> {
    let io = |e| Error::io("running", "the worker", e);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().map_err(io)?;
    let pid = Pid::from_child(&child);
    let (done, wait) = channel();
    progress.begin(doing, 0);
    std::thread::scope(|scope| {
        scope.spawn(move || done.send(child.wait_with_output()));
        loop {
            match wait.recv_timeout(TICK) {
                Ok(output) => return output.map_err(io),
                Err(RecvTimeoutError::Timeout) => progress.advance(0).inspect_err(|_| {
                    // It has not been waited for, so the number is still its own; it may have ended by itself.
                    let _ = kill_process(pid, Signal::KILL);
                })?,
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(Error::Other("waiting for the worker failed".into()));
                }
            }
        }
    })
}
