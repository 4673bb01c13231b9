//! What the agent and the worker say to each other: one JSON object a line, commands on the worker's stdin, events on
//! its stdout. `docs/protocol.md` is the reference for workers in other languages.
//!
//! Invariant: a message either parses as a whole or is refused; unknown fields are ignored, so that a newer peer of
//! the same version can say more. Deliberately not here: what either side does about a message.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::ids::RunId;

/// Both sides refuse another one's version.
pub const VERSION: u32 = 1;

/// Longest line that either side accepts, in bytes.
pub const MAX_LINE: usize = 1 << 20;

/// Agent to worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case")]
pub enum AgentCommand {
    /// The first message: what to train and where to go on.
    Start(Box<Start>),
    /// Take a snapshot now and go on. One that finds another in flight is skipped.
    Snapshot { reason: String },
    /// End: take a last snapshot of the newest completed step if asked, then exit with 0. It should be durable within
    /// `within_ms`.
    Stop {
        snapshot: bool,
        reason: String,
        #[serde(default)]
        within_ms: Option<u64>,
    },
    /// Other settings from now on. Only for a worker whose `hello` accepts it.
    Configure { every_steps: Option<u64>, level: u8, encode_threads: usize },
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Start {
    pub protocol: u32,
    pub config: Config,
    /// 128 random bits as hex: one training, however many sessions it takes.
    pub run_id: RunId,
    /// Sequence number of the next snapshot.
    pub next_seq: u64,
    /// The snapshot to go on from.
    pub resume: Option<PathBuf>,
    /// Go on although settings that change the arithmetic differ from the snapshot's.
    pub accept_changes: bool,
}

/// Why a worker cannot go on, typed by what the agent does about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WorkerFailure {
    /// The config, the data or the model folder is wrong: no restart, exit 78.
    Config,
    /// The snapshot to resume from is damaged: quarantine it, restart from the one before.
    Damaged,
    /// The snapshot is whole but of other settings or another schema: no restart, exit 1.
    Mismatch,
    /// Anything else: restart.
    Other,
}

/// Worker to agent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum WorkerEvent {
    /// The first message, before `start` is awaited.
    Hello {
        protocol: u32,
        worker: String,
        version: String,
        pid: u32,
        /// Commands beyond the first ones of this version that it understands.
        #[serde(default)]
        accepts: Vec<String>,
    },
    /// Something that takes time before or between steps (reading text, loading, evaluating), 0 to 1 where known. It
    /// counts as a sign of life.
    Progress { stage: String, fraction: Option<f64> },
    /// Training begins after `step` completed steps.
    Ready {
        step: u64,
        total_steps: u64,
        parameters: u64,
        state_bytes: u64,
        resumed: Option<String>,
        device: String,
        threads: u64,
    },
    /// A micro-batch was computed: a sign of life within a long step.
    Alive { step: u64, micro_batch: u64 },
    /// `step` steps are completed.
    Step {
        step: u64,
        #[serde(with = "nullable")]
        loss: f64,
        learning_rate: f64,
        grad_norm: Option<f64>,
        step_ms: f64,
        tokens: u64,
    },
    /// The validation loss after `step` steps, in nats a token.
    Eval {
        step: u64,
        #[serde(with = "nullable")]
        val_loss: f64,
        best: bool,
    },
    /// A snapshot of the state after `step` steps was captured, in `capture_ms`.
    SnapshotStarted { step: u64, reason: String, capture_ms: f64 },
    /// It is durable under `path`. The training thread was held up for `stall_ms` in all.
    Committed {
        step: u64,
        seq: u64,
        path: PathBuf,
        bytes: u64,
        raw_bytes: u64,
        capture_ms: f64,
        write_ms: f64,
        stall_ms: f64,
        /// The most memory that a snapshot has held so far because the training had moved on.
        #[serde(default)]
        extra_peak_bytes: u64,
    },
    /// It is not, and training goes on.
    SnapshotFailed { step: u64, what: String, disk_full: bool },
    /// Another one was still in flight.
    SnapshotSkipped { step: u64, reason: String },
    /// A line for the log.
    Log { level: MessageLevel, message: String },
    /// The worker cannot go on and exits.
    Failed { failure: WorkerFailure, what: String },
    /// The last message of a worker that ends well. `finished`: all steps are done.
    Done { step: u64, finished: bool },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MessageLevel {
    Info,
    Warn,
}

/// A float that may be NaN or infinite: JSON has no such number, so it travels as null and arrives as NaN.
mod nullable {
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(*value)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
        Ok(Option::<f64>::deserialize(deserializer)?.unwrap_or(f64::NAN))
    }
}

/// A message as the line that carries it, with its line feed.
pub fn line<T: Serialize>(message: &T) -> String {
    // Every field of both enums is a plain value with string keys, which serde_json can always write.
    let mut line = serde_json::to_string(message).unwrap_or_default();
    line.push('\n');
    line
}

/// The message in a line, or why it is none, with the beginning of the line.
pub fn parse<'a, T: Deserialize<'a>>(line: &'a str) -> Result<T, String> {
    if line.len() > MAX_LINE {
        return Err(format!("a line of {} bytes; at most {MAX_LINE} are allowed", line.len()));
    }
    serde_json::from_str(line).map_err(|e| {
        let beginning: String = line.chars().take(80).collect();
        format!("not a message of protocol {VERSION}: {e}; the line begins {beginning:?}")
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn messages_survive_the_line_and_unknown_fields_are_ignored() {
        let event = WorkerEvent::Step {
            step: 3,
            loss: 0.1 + 0.2,
            learning_rate: 1e-4,
            grad_norm: None,
            step_ms: 1.5,
            tokens: 512,
        };
        assert_eq!(parse::<WorkerEvent>(line(&event).trim()).unwrap(), event);
        let newer = r#"{"command":"snapshot","reason":"signal","urgency":9}"#;
        assert_eq!(parse::<AgentCommand>(newer).unwrap(), AgentCommand::Snapshot { reason: "signal".into() });
    }

    #[test]
    fn a_line_that_is_no_message_is_refused_with_its_beginning() {
        for bad in ["", "{", "[1]", r#"{"command":"explode"}"#, r#"{"command":"stop","snapshot":1,"reason":""}"#] {
            assert!(parse::<AgentCommand>(bad).is_err(), "{bad}");
        }
        assert!(parse::<AgentCommand>("hello there").unwrap_err().contains("hello there"));
        assert!(parse::<AgentCommand>(&" ".repeat(MAX_LINE + 1)).unwrap_err().contains("at most"));
    }

    #[test]
    fn a_loss_that_is_not_finite_arrives_as_nan() {
        let text = line(&WorkerEvent::Eval { step: 1, val_loss: f64::INFINITY, best: false });
        assert!(matches!(parse(&text).unwrap(), WorkerEvent::Eval { val_loss, .. } if val_loss.is_nan()));
    }
}
