//! The worker's part of `ckptd check`: what the model answers, computed by `ckptd-gpt2 probe`, since nothing here links
//! libtorch.

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::training::worker::default_program;
use ckptd_core::error::{Error, Result};
use ckptd_core::progress::ProgressSink;
use ckptd_interop::check::ProbeReport;

/// Between two signs of life on a terminal.
const TICK: Duration = Duration::from_millis(200);

/// Asks the worker for the answers of the snapshot at `path`, and how far they are from those of `against`.
pub(super) fn ask(path: &Path, against: Option<&Path>, progress: &dyn ProgressSink) -> Result<ProbeReport> {
    let program = default_program()?;
    let mut command = Command::new(&program);
    command.arg("probe").arg("--model").arg(path);
    if let Some(against) = against {
        command.arg("--against").arg(against);
    }
    let output = run(command.stdin(Stdio::null()), progress).map_err(|e| match e {
        Error::Io { source, .. } => Error::io("starting the worker", &program, source),
        other => other,
    })?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(Error::Other(format!("the worker cannot say what the model answers: {said}")));
    }
    serde_json::from_slice(&output.stdout)
        .map_err(|e| Error::Other(format!("{} is not the worker of this version of ckptd: {e}", program.display())))
}

/// Runs `command` to its end, or kills it when the work is called off.
fn run(command: &mut Command, progress: &dyn ProgressSink) -> Result<Output> {
    let io = |e| Error::io("running", "the worker", e);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().map_err(io)?;
    let pid = Pid::from_child(&child);
    let (done, wait) = channel();
    progress.begin("asking the worker", 0);
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
