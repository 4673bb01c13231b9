//! What the agent and the worker say to each other: one JSON object per line, commands on the worker's stdin, events on
//! its stdout. `docs/protocol.md` is the reference for workers in other languages.
//!
//! Invariant: a message either parses as a whole or is refused; unknown fields are ignored, so that a newer peer of
//! the same version can say more. Deliberately not here: what either side does about a message.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::ids::RunId;

/// Version of the protocol; both sides refuse another one.
pub const VERSION: u32 = 1;

/// In the environment of the ranks of a training: the same random text for all of them, which nobody else knows.
pub const RANKS_SECRET: &str = "CKPTD_RANKS_SECRET";
/// In the environment of the ranks of a training: where rank 0 listens, `host:port`.
pub const RANKS_ADDRESS: &str = "CKPTD_RANKS_ADDRESS";

/// Longest line that either side accepts, in bytes.
pub const MAX_LINE: usize = 1 << 20;

/// Agent to worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case")]
pub enum AgentCommand {
    /// The first message: what to train and where to go on.
    Start(Box<Start>),
    /// Take a snapshot now and go on. One that finds another in flight is skipped.
    Snapshot {
        /// Goes into the snapshot's provenance.
        reason: String,
    },
    /// End: take a last snapshot of the newest completed step if asked, then exit with 0.
    Stop {
        /// Take that snapshot.
        snapshot: bool,
        /// Goes into its provenance.
        reason: String,
        /// Milliseconds in which it should be durable.
        #[serde(default)]
        within_ms: Option<u64>,
    },
    /// Other `[snapshot]` settings from now on. Only for a worker whose `hello` accepts it.
    Configure {
        /// Steps between snapshots; `None`: not by steps.
        every_steps: Option<u64>,
        /// `[snapshot] level`.
        level: u8,
        /// 0: one per processor.
        encode_threads: usize,
        /// Steps between evaluations, 0: none; `None`: as before. Only for a worker that accepts `evaluations`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        eval_every: Option<u64>,
        /// Micro-batches per evaluation; `None`: as before.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        eval_batches: Option<u64>,
    },
}

/// What to train, and where to go on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Start {
    /// [`VERSION`].
    pub protocol: u32,
    /// The validated job.
    pub config: Config,
    /// 128 random bits as hex: one training, however many sessions it takes.
    pub run_id: RunId,
    /// Sequence number of the next snapshot.
    pub next_seq: u64,
    /// The snapshot to go on from.
    pub resume: Option<PathBuf>,
    /// Go on although settings that change the arithmetic differ from the snapshot's.
    pub accept_changes: bool,
    /// The step after which ranks held different states: it is computed again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dispute: Option<StateDispute>,
}

/// That the ranks of a training did not hold the same state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateDispute {
    /// After so many steps.
    pub step: u64,
    /// What each rank held, in order.
    pub hashes: Vec<String>,
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

/// Worker to agent. Milliseconds are fractional, losses are in nats per token, steps are completed optimiser steps.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum WorkerEvent {
    /// The first message, before `start` is awaited.
    Hello {
        /// [`VERSION`].
        protocol: u32,
        /// Name of the program.
        worker: String,
        /// Its version.
        version: String,
        /// Its process.
        pid: u32,
        /// Commands beyond the first ones of this version that it understands.
        #[serde(default)]
        accepts: Vec<String>,
    },
    /// Something that takes time before or between steps (reading text, loading, evaluating). It counts as a sign of
    /// life.
    Progress {
        /// What it is, as "reading text".
        stage: String,
        /// How much of it is done, 0 to 1; `None`: unknown.
        fraction: Option<f64>,
    },
    /// Training begins.
    Ready {
        /// Steps before this session.
        step: u64,
        /// Steps of the whole training.
        total_steps: u64,
        /// Number of parameters.
        parameters: u64,
        /// Bytes of parameters and moments.
        state_bytes: u64,
        /// "step N" where it goes on from a snapshot.
        resumed: Option<String>,
        /// "cpu" or "cuda:N".
        device: String,
        /// Threads of one operation.
        threads: u64,
        /// Tokens that the model knows.
        #[serde(default)]
        vocabulary: Option<u64>,
        /// Tokens that are trained on, without those that are held back.
        #[serde(default)]
        train_tokens: Option<u64>,
        /// What the worker's memory will hold at its peak, by its own estimate.
        #[serde(default)]
        peak_bytes: Option<u64>,
    },
    /// A micro-batch was computed: a sign of life within a long step.
    Alive {
        /// Steps before the one that is computed.
        step: u64,
        /// Its micro-batches before this one.
        micro_batch: u64,
    },
    /// How far the ranks of a training are. It comes beside the training, and is no sign of life.
    Ranks {
        /// All of them, from rank 0.
        ranks: Vec<RankProgress>,
    },
    /// All ranks hold the same state. Said for the first time before `ready`, where there are many: from then on a
    /// snapshot counts when a later one of these has come.
    Agreed {
        /// After so many steps.
        step: u64,
    },
    /// They do not. The worker fails; what it has saved since they agreed last may be wrong.
    Disagreed {
        /// When, and what each of them held.
        dispute: StateDispute,
        /// Who holds what, in words.
        what: String,
        /// Most of them hold what rank 0 holds, and so what it has saved is right.
        is_rank_zero_right: bool,
    },
    /// A step was completed.
    Step {
        /// Steps completed with this one.
        step: u64,
        /// Mean loss over the step's tokens.
        #[serde(with = "nullable")]
        loss: f64,
        /// Learning rate of its update.
        learning_rate: f64,
        /// Global norm of the gradient before clipping, NaN where it is not finite; `None` where the worker does not
        /// say.
        #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "nullable::deserialize_said")]
        grad_norm: Option<f64>,
        /// Time that it took.
        step_ms: f64,
        /// Tokens whose loss entered it.
        tokens: u64,
    },
    /// An evaluation was completed.
    Eval {
        /// Steps before it.
        step: u64,
        /// Mean loss on the validation share.
        #[serde(with = "nullable")]
        val_loss: f64,
        /// It is the lowest so far.
        best: bool,
    },
    /// A snapshot was captured; it is on its way to the disk.
    SnapshotStarted {
        /// Steps that its state has.
        step: u64,
        /// Why it was taken.
        reason: String,
        /// Time that the capture took.
        capture_ms: f64,
    },
    /// It is durable.
    Committed {
        /// Steps that its state has.
        step: u64,
        /// Its sequence number.
        seq: u64,
        /// Its file.
        path: PathBuf,
        /// Bytes of the file.
        bytes: u64,
        /// Bytes of its tensors.
        raw_bytes: u64,
        /// Time that the capture took.
        capture_ms: f64,
        /// From the first chunk to the last folder's sync.
        write_ms: f64,
        /// How long the training thread was held up in all.
        stall_ms: f64,
        /// The most memory that a snapshot has held so far because the training had moved on.
        #[serde(default)]
        extra_peak_bytes: u64,
        /// How much of `stall_ms` the training waited because memory for the snapshot is bounded.
        #[serde(default)]
        waited_ms: f64,
    },
    /// It is not durable, and training goes on.
    SnapshotFailed {
        /// Steps that its state had.
        step: u64,
        /// The error.
        what: String,
        /// The disk is full, or a quota is reached.
        disk_full: bool,
    },
    /// Another one was still in flight.
    SnapshotSkipped {
        /// Steps completed.
        step: u64,
        /// Why it was asked for.
        reason: String,
    },
    /// A line for the log.
    Log {
        /// How urgent it is.
        level: MessageLevel,
        /// The line.
        message: String,
    },
    /// The worker cannot go on and exits.
    Failed {
        /// What the agent is to do about it.
        failure: WorkerFailure,
        /// The error.
        what: String,
    },
    /// The last message of a worker that ends well.
    Done {
        /// Steps completed.
        step: u64,
        /// All steps are done.
        finished: bool,
    },
}

/// How far a rank is.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct RankProgress {
    /// Its number, from 0.
    pub rank: u64,
    /// Steps completed.
    pub step: u64,
    /// Micro-batches of the next step that are computed.
    pub micro_batch: u64,
    /// Since it was heard last.
    pub silent_ms: f64,
    /// How long the first rank waits for it per step; `None`: not known yet.
    #[serde(default)]
    pub lag_ms: Option<f64>,
}

/// How urgent a line for the log is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MessageLevel {
    /// What was done.
    Info,
    /// What went wrong.
    Warn,
}

/// A float that may be NaN or infinite: JSON has no such number, so it travels as null and arrives as NaN.
mod nullable {
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(*value)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
        Ok(Option::<f64>::deserialize(deserializer)?.unwrap_or(f64::NAN))
    }

    /// Of a field that may be left out, which is not the same as null.
    pub(super) fn deserialize_said<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<f64>, D::Error> {
        deserialize(deserializer).map(Some)
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

    #[test]
    fn a_gradient_norm_that_is_left_out_is_not_one_that_is_not_finite() {
        let step = |norm: &str| {
            let line =
                format!(r#"{{"event":"step","step":1,"loss":1,"learning_rate":1{norm},"step_ms":1,"tokens":1}}"#);
            let WorkerEvent::Step { grad_norm, .. } = parse(&line).unwrap() else { panic!("{line}") };
            grad_norm
        };
        assert_eq!(step(""), None);
        assert!(step(r#","grad_norm":null"#).unwrap().is_nan());
        assert_eq!(step(r#","grad_norm":0.5"#), Some(0.5));
    }
}
