//! What a client may order a daemon to do, and the answer.

use serde::{Deserialize, Serialize};

/// An order, as it comes over the socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DaemonOrder {
    /// End the session with a last snapshot.
    Stop,
    /// End it as it is.
    StopNow,
    /// Take a snapshot and go on.
    Snapshot,
}

/// What became of an order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OrderReply {
    /// It is being carried out.
    pub taken: bool,
    /// What is done, or why it is not; a sentence without its full stop.
    pub said: String,
}
