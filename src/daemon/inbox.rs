//! The inbox: one queue for everything that a daemon's loop takes in, of any type of event.
//!
//! Invariant: the queue is bounded; a sender that is faster than the loop waits.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use super::order::{DaemonOrder, OrderReply};
use super::report::StatusReport;
use crate::session::clock::BootInstant;

/// Inputs that wait.
const CAPACITY: usize = 1024;
/// The timer stands still while the machine sleeps, and the wall clock may be set: both are read this often.
const LONGEST_SLEEP: Duration = Duration::from_secs(1);

/// What the loop takes in.
pub enum DaemonInput<E> {
    Event(E),
    /// A client asks for the status.
    Status(oneshot::Sender<StatusReport>),
    /// A client orders something.
    Order(DaemonOrder, oneshot::Sender<OrderReply>),
}

/// The sending end; clones share it.
pub struct InboxSender<E>(mpsc::Sender<DaemonInput<E>>);

/// The receiving end.
pub struct Inbox<E> {
    inputs: mpsc::Receiver<DaemonInput<E>>,
    /// What came before it could be handled.
    held: VecDeque<DaemonInput<E>>,
}

impl<E> Inbox<E> {
    /// An empty queue.
    pub fn new() -> (InboxSender<E>, Inbox<E>) {
        let (sender, inputs) = mpsc::channel(CAPACITY);
        (InboxSender(sender), Inbox { inputs, held: VecDeque::new() })
    }

    /// The next input. `None`: `wake_at` has come, or it is time to read the clocks again.
    pub async fn next(&mut self, wake_at: Option<BootInstant>) -> Option<DaemonInput<E>> {
        if let Some(input) = self.held.pop_front() {
            return Some(input);
        }
        let wait = wake_at.map_or(LONGEST_SLEEP, |at| (at - BootInstant::now()).min(LONGEST_SLEEP));
        tokio::time::timeout(wait, self.inputs.recv()).await.ok().flatten()
    }

    /// Puts `inputs` back, behind what was put back before and before all that is new.
    pub fn hold(&mut self, inputs: impl IntoIterator<Item = DaemonInput<E>>) {
        self.held.extend(inputs);
    }

    /// Takes the next new input out and drops it.
    pub async fn discard_next(&mut self) {
        let _ = self.inputs.recv().await;
    }
}

impl<E> Clone for InboxSender<E> {
    fn clone(&self) -> InboxSender<E> {
        InboxSender(self.0.clone())
    }
}

impl<E> InboxSender<E> {
    /// Sends from a task. `Break`: the loop is over.
    pub async fn send(&self, input: DaemonInput<E>) -> ControlFlow<()> {
        flow(self.0.send(input).await.is_ok())
    }

    /// The status, for a thread. `None`: the loop is over.
    pub fn status_from_thread(&self) -> Option<StatusReport> {
        let (reply, report) = oneshot::channel();
        self.0.blocking_send(DaemonInput::Status(reply)).ok()?;
        report.blocking_recv().ok()
    }

    /// Sends an event from a thread. `Break`: the loop is over.
    pub fn send_from_thread(&self, event: E) -> ControlFlow<()> {
        flow(self.0.blocking_send(DaemonInput::Event(event)).is_ok())
    }
}

fn flow(is_taken: bool) -> ControlFlow<()> {
    if is_taken { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
}
