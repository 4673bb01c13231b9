//! What a session says before its first step, in four lines: what is trained, what it needs, what is saved, when it
//! ends and why then.
//!
//! Deliberately not here: where the figures come from (job).

use std::time::Duration;

use jiff::Timestamp;

use super::sanity::{TrainingFacts, tokens_per_step};
use ckptd_core::config::{Config, TrainSection};
use ckptd_core::store::RetentionPolicy;
use ckptd_core::text::{counted, grouped, rough_duration};

/// Room that this machine has now; `None`: it does not say.
#[derive(Clone, Copy, Debug, Default)]
pub struct MachineRoom {
    pub memory_bytes: Option<u64>,
    pub disk_bytes: Option<u64>,
}

/// When a session ends.
#[derive(Clone, Debug)]
pub(super) struct KnownEnd {
    /// For people: "the session's budget ends".
    pub why: String,
    pub at: Timestamp,
    /// How long before that the last snapshot begins.
    pub reserve: Duration,
    /// What the last snapshot takes at most, as far as was measured.
    pub final_cost: Option<Duration>,
}

/// What the lines tell of.
pub(super) struct Opening<'a> {
    pub config: &'a Config,
    pub facts: TrainingFacts,
    /// Steps before this session.
    pub step: u64,
    pub state_bytes: u64,
    /// What the worker's memory holds at its peak, by its own estimate.
    pub peak_bytes: Option<u64>,
    pub room: MachineRoom,
    /// "every 5m, as configured"
    pub interval: String,
    /// What a snapshot beside the training takes, and what the training loses to it.
    pub snapshot_cost: Option<(Duration, Option<Duration>)>,
    pub end: Option<KnownEnd>,
    /// Until the last step, and how many more sessions that takes, where both are known.
    pub left: Option<String>,
}

impl Opening<'_> {
    pub(super) fn lines(&self) -> [String; 4] {
        [self.work(), self.needs(), self.saves(), self.ends()]
    }

    fn work(&self) -> String {
        if !self.config.worker.script.is_empty() {
            let from = if self.step > 0 { format!(", from step {} on", grouped(self.step)) } else { String::new() };
            return format!("to train: {}{from}", self.config.worker.script.join(" "));
        }
        let TrainSection { steps, batch_size, grad_accumulation, sequence_length, .. } = self.config.train;
        let per_step = tokens_per_step(&self.config.train);
        let all = steps.saturating_mul(per_step);
        let epochs = self.facts.train_tokens.filter(|tokens| *tokens > 0).map_or_else(String::new, |tokens| {
            format!(", {:.2} epochs of the {} that are there", all as f64 / tokens as f64, grouped(tokens))
        });
        let from = match self.step {
            0 => String::new(),
            step => format!(", {} of them left", grouped(steps.saturating_sub(step))),
        };
        format!(
            "to train: {} tokens{epochs}; {} per step ({batch_size} x {grad_accumulation} x {sequence_length}), \
             {}{from}",
            grouped(all),
            grouped(per_step),
            counted(steps, "step"),
        )
    }

    fn needs(&self) -> String {
        let size = |bytes: u64| bytesize::ByteSize(bytes).to_string();
        let free = |bytes: Option<u64>| bytes.map_or_else(String::new, |bytes| format!(", {} are free", size(bytes)));
        let memory = match self.peak_bytes {
            Some(peak) => format!("about {} of memory{}", size(peak), free(self.room.memory_bytes)),
            None => format!("more than {} of memory{}", size(self.state_bytes), free(self.room.memory_bytes)),
        };
        let files = kept_at_most(&self.config.retention) + 1;
        let most = self.state_bytes.saturating_mul(files);
        let most = self.config.retention.max_bytes.map_or(most, |limit| most.min(limit.0 + self.state_bytes));
        format!(
            "it needs: {memory}; up to {} of disk for {} of at most {}{}",
            size(most),
            counted(files, "snapshot"),
            size(self.state_bytes),
            free(self.room.disk_bytes)
        )
    }

    fn saves(&self) -> String {
        let cost = match self.snapshot_cost {
            Some((time, Some(lost))) => {
                format!("; one takes {}, and the training loses {} to it", rough_duration(time), rough_duration(lost))
            }
            Some((time, None)) => format!("; one takes {} beside the training", rough_duration(time)),
            None => "; what one costs is not measured yet".to_owned(),
        };
        format!("snapshots: {}{cost}", self.interval)
    }

    fn ends(&self) -> String {
        let clock = |at: Timestamp| at.to_zoned_datetime(jiff::tz::TimeZone::system()).strftime("%H:%M:%S").to_string();
        let left = self.left.as_ref().map_or_else(String::new, |left| format!("; {left}"));
        let Some(KnownEnd { why, at, reserve, final_cost }) = &self.end else {
            return format!("this session has no end that is known: Ctrl-C ends it with a last snapshot{left}");
        };
        let begins = *at - jiff::SignedDuration::try_from(*reserve).unwrap_or_default();
        let because = match final_cost {
            Some(cost) => format!("because saving takes up to {}", rough_duration(*cost)),
            None => "because it is not measured yet how long saving takes".to_owned(),
        };
        format!(
            "{why} at {}: the last snapshot begins at {}, {} before the end, {because}{left}",
            clock(*at),
            clock(begins),
            rough_duration(*reserve)
        )
    }
}

/// Snapshots that the policy may keep at a time, pins apart.
fn kept_at_most(policy: &RetentionPolicy) -> u64 {
    (policy.keep_last.max(2) + policy.keep_best + policy.keep_hourly + policy.keep_daily) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lines_say_what_is_done_needed_saved_and_when_it_ends_and_why() {
        let mut config = Config::default();
        (config.train.steps, config.train.grad_accumulation) = (100, 2);
        let mut opening = Opening {
            config: &config,
            facts: TrainingFacts { vocabulary: Some(50257), train_tokens: Some(1_000_000) },
            step: 40,
            state_bytes: 1 << 30,
            peak_bytes: Some(3 << 30),
            room: MachineRoom { memory_bytes: Some(16 << 30), disk_bytes: Some(50 << 30) },
            interval: "every 5m, as configured".into(),
            snapshot_cost: None,
            end: None,
            left: None,
        };
        let [work, needs, saves, ends] = opening.lines();
        let expected = "to train: 409,600 tokens, 0.41 epochs of the 1,000,000 that are there; 4,096 per step (8 x 2 x \
                        256), 100 steps, 60 of them left";
        assert_eq!(work, expected);
        let expected = "it needs: about 3.0 GiB of memory, 16.0 GiB are free; up to 5.0 GiB of disk for 5 snapshots of \
                        at most 1.0 GiB, 50.0 GiB are free";
        assert_eq!(needs, expected);
        assert_eq!(saves, "snapshots: every 5m, as configured; what one costs is not measured yet");
        assert_eq!(ends, "this session has no end that is known: Ctrl-C ends it with a last snapshot");
        opening.end = Some(KnownEnd {
            why: "the session's budget ends".into(),
            at: Timestamp::UNIX_EPOCH + jiff::SignedDuration::from_secs(90),
            reserve: Duration::from_secs(10),
            final_cost: Some(Duration::from_secs(6)),
        });
        let [.., ends] = opening.lines();
        assert!(ends.starts_with("the session's budget ends at "), "{ends}");
        assert!(ends.contains(":20, 10s before the end, because saving takes up to 6s"), "{ends}");
    }
}
