//! What is said when a worker is ready for the first time in a session, and what of a training makes no sense.

use tracing::{info, warn};

use super::machine::JobMachine;
use crate::session::clock::ClockReading;
use crate::session::plan::{self, SessionDeadline};
use crate::training::opening::{KnownEnd, Opening};
use crate::training::sanity::TrainingFacts;

impl JobMachine {
    /// Says what the session will do, once; and what of it makes no sense.
    pub(super) fn open(
        &mut self,
        facts: TrainingFacts,
        step: u64,
        state_bytes: u64,
        peak_bytes: Option<u64>,
        now: ClockReading,
    ) {
        let Some(room) = self.room.take() else { return };
        let costs = &self.records.costs;
        let opening = Opening {
            config: &self.config,
            facts,
            step,
            state_bytes,
            peak_bytes,
            room,
            interval: self.interval_report().why,
            snapshot_cost: costs.snapshot_time().map(|time| (time, costs.lost())),
            end: self.known_end(now),
            left: self.outlook(&self.records, now).map(|outlook| outlook.text()),
        };
        for line in opening.lines() {
            info!("{line}");
        }
        if let (Some(peak), Some(free)) = (peak_bytes, room.memory_bytes)
            && peak > free
        {
            let size = |bytes| bytesize::ByteSize(bytes).to_string();
            let advice = if self.config.train.activation_checkpointing {
                "lower [train] batch_size and raise grad_accumulation"
            } else {
                "lower [train] batch_size and raise grad_accumulation, or set activation_checkpointing = true"
            };
            self.tell([format!("the worker may need {} of memory, and {} are free: {advice}", size(peak), size(free))]);
        }
        let found = self.sanity.begin(&self.config.train, facts);
        self.tell(found);
    }

    fn known_end(&self, now: ClockReading) -> Option<KnownEnd> {
        let SessionDeadline { at, why, .. } = self.deadline(now)?;
        let final_cost = self.final_cost();
        let reserve = plan::reserve(final_cost, self.config.session.margin, at - self.began);
        Some(KnownEnd { why, at: now.wall_at(at), reserve, final_cost })
    }

    /// Tells what makes no sense, and keeps it for those who ask.
    pub(super) fn tell(&mut self, found: impl IntoIterator<Item = String>) {
        for finding in found {
            warn!("{finding}");
            self.progress.warnings.push(finding);
            self.records.warnings.clone_from(&self.progress.warnings);
        }
    }
}
