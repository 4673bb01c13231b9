//! The signals that a daemon answers.

use std::ops::ControlFlow;

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
}

impl DaemonSignal {
    const ALL: [DaemonSignal; 5] = [
        DaemonSignal::Interrupt,
        DaemonSignal::Terminate,
        DaemonSignal::Snapshot,
        DaemonSignal::Finish,
        DaemonSignal::Hangup,
    ];

    /// "SIGINT".
    pub const fn name(self) -> &'static str {
        match self {
            DaemonSignal::Interrupt => "SIGINT",
            DaemonSignal::Terminate => "SIGTERM",
            DaemonSignal::Snapshot => "SIGUSR1",
            DaemonSignal::Finish => "SIGUSR2",
            DaemonSignal::Hangup => "SIGHUP",
        }
    }

    fn kind(self) -> SignalKind {
        match self {
            DaemonSignal::Interrupt => SignalKind::interrupt(),
            DaemonSignal::Terminate => SignalKind::terminate(),
            DaemonSignal::Snapshot => SignalKind::user_defined1(),
            DaemonSignal::Finish => SignalKind::user_defined2(),
            DaemonSignal::Hangup => SignalKind::hangup(),
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
