//! The signals that a daemon answers.

use std::ops::ControlFlow;

use rustix::process::{Signal, getpid, kill_process};
use tokio::signal::unix::{SignalKind, signal};

use super::inbox::{DaemonInput, InboxSender};
use ckptd_core::error::{Error, Result};

/// A signal, by what it asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DaemonSignal {
    /// SIGINT: end the session.
    Interrupt,
    /// SIGTERM: end the session.
    Terminate,
    /// SIGUSR1: a snapshot now.
    Snapshot,
    /// SIGUSR2: end the session.
    Finish,
    /// SIGHUP: read the job file again (or the terminal is gone, which changes nothing).
    Hangup,
    /// SIGTSTP, Ctrl-Z: stand still until SIGCONT.
    Suspend,
    /// SIGCONT: go on, after whatever time.
    Continue,
}

impl DaemonSignal {
    const ALL: [DaemonSignal; 7] = [
        DaemonSignal::Interrupt,
        DaemonSignal::Terminate,
        DaemonSignal::Snapshot,
        DaemonSignal::Finish,
        DaemonSignal::Hangup,
        DaemonSignal::Suspend,
        DaemonSignal::Continue,
    ];

    /// "SIGINT".
    pub const fn name(self) -> &'static str {
        match self {
            DaemonSignal::Interrupt => "SIGINT",
            DaemonSignal::Terminate => "SIGTERM",
            DaemonSignal::Snapshot => "SIGUSR1",
            DaemonSignal::Finish => "SIGUSR2",
            DaemonSignal::Hangup => "SIGHUP",
            DaemonSignal::Suspend => "SIGTSTP",
            DaemonSignal::Continue => "SIGCONT",
        }
    }

    fn kind(self) -> SignalKind {
        match self {
            DaemonSignal::Interrupt => SignalKind::interrupt(),
            DaemonSignal::Terminate => SignalKind::terminate(),
            DaemonSignal::Snapshot => SignalKind::user_defined1(),
            DaemonSignal::Finish => SignalKind::user_defined2(),
            DaemonSignal::Hangup => SignalKind::hangup(),
            DaemonSignal::Suspend => SignalKind::from_raw(Signal::TSTP.as_raw()),
            DaemonSignal::Continue => SignalKind::from_raw(Signal::CONT.as_raw()),
        }
    }
}

/// Sends every signal to `inputs` as an `event`, on tasks of the runtime that this is called in.
pub fn listen<E: Send + 'static>(inputs: &InboxSender<E>, event: fn(DaemonSignal) -> E) -> Result<()> {
    for asked in DaemonSignal::ALL {
        let mut stream = signal(asked.kind()).map_err(|e| Error::Other(format!("listening to signals: {e}")))?;
        let inputs = inputs.clone();
        tokio::spawn(async move {
            while stream.recv().await.is_some() {
                if inputs.send(DaemonInput::Event(event(asked))).await == ControlFlow::Break(()) {
                    return;
                }
            }
        });
    }
    Ok(())
}

/// Stops this process, all of its threads, until somebody sends SIGCONT: what SIGTSTP does where nobody listens to it.
pub fn stand_still() {
    // It cannot fail: the process is our own.
    let _ = kill_process(getpid(), Signal::STOP);
}
