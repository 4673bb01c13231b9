//! A snapshot's way from its request to its verification, as the job sees it.

use std::time::Duration;

use tracing::{debug, info, warn};

use super::committed::CommittedSnapshot;
use super::machine::{JobMachine, RecordTiming};
use crate::daemon::report::SnapshotStage;
use crate::daemon::verifier::ReadBack;
use crate::session::clock::ClockReading;
use crate::training::restarts::FailureCause;
use ckptd_core::config::HookMoment;
use ckptd_core::ids::SnapshotId;
use ckptd_core::protocol::WorkerEvent;
use ckptd_history::record::HistoryEvent;
use serde_json::json;

/// One complaint, and what to do.
const DISK_FULL: &str = "disk full: free some space or lower [retention] keep_last, then run again";

impl JobMachine {
    pub(super) fn said_of_snapshot(&mut self, message: WorkerEvent, now: ClockReading) {
        match message {
            WorkerEvent::SnapshotStarted { step, reason, .. } => {
                debug!(step, reason, "snapshot of step {step} ({reason})");
                self.last_snapshot = now.at;
                self.in_flight = Some(now.at);
                self.meter.snapshot_began();
            }
            WorkerEvent::SnapshotSkipped { step, reason } => {
                debug!(step, reason, "no snapshot of step {step} ({reason}): another one is still being written");
                self.progress.counts.skipped += 1;
            }
            WorkerEvent::SnapshotFailed { step, what, disk_full } => {
                self.progress.counts.failed += 1;
                self.in_flight = None;
                self.meter.snapshot_ended(Duration::ZERO);
                // A full disk is one complaint, in any file that met it.
                let complaint = if disk_full { DISK_FULL.to_owned() } else { what.clone() };
                if self.complaint.as_ref() == Some(&complaint) {
                    debug!(step, disk_full, "no snapshot of step {step} either: {what}");
                } else {
                    let told = format!("no snapshot of step {step}: {what}; training goes on and tries again");
                    warn!(step, disk_full, "{told}");
                    self.progress.problem = Some(told);
                    self.complaint = Some(complaint);
                }
            }
            WorkerEvent::Committed { step, path, write_ms, stall_ms, extra_peak_bytes, waited_ms, .. } => {
                // Only the name counts: a file elsewhere is not found in this store.
                let Some(id) = path.file_stem().map(|stem| SnapshotId::from(stem.to_string_lossy().into_owned()))
                else {
                    return self
                        .kill_for(FailureCause::ProtocolError(format!("{} is no snapshot", path.display())), now);
                };
                if self.complaint.take().is_some() {
                    info!(step, "snapshots work again: step {step} is written");
                }
                debug!(step, stall_ms, extra_peak_bytes, waited_ms, "step {step} is written");
                self.progress.counts.committed += 1;
                self.progress.counts.waited += u64::from(waited_ms > 0.0);
                self.progress.stalled(stall_ms);
                self.progress.snapshot(&id, step, SnapshotStage::Committed, now.wall);
                let write = Duration::try_from_secs_f64(write_ms / 1e3).unwrap_or_default();
                let stall = Duration::try_from_secs_f64(stall_ms / 1e3).unwrap_or_default();
                let began = self.in_flight.take().unwrap_or(now.at - write);
                if let Some(stop) = &mut self.stop {
                    stop.saved = true;
                    let seconds = (now.at - stop.began).as_secs_f64();
                    info!(step, seconds, "step {step} is durable, {seconds:.2} s after the stop");
                }
                self.judge(CommittedSnapshot { id, step, write, began, stall });
            }
            _ => {}
        }
    }

    pub(super) fn read_back(&mut self, id: &SnapshotId, result: ReadBack, now: ClockReading) {
        let Some(at) = self.unverified.iter().position(|u| u.id == *id) else { return };
        let CommittedSnapshot { step, write, began, stall, .. } = self.unverified.swap_remove(at);
        match result {
            ReadBack::Verified { step: found, .. } if found != step => {
                self.kill_for(
                    FailureCause::ProtocolError(format!("it announced {id} as step {step}, and it is step {found}")),
                    now,
                );
            }
            ReadBack::Verified { bytes, raw_bytes, healthy, val_loss, created_at, took, .. } => {
                let ratio = raw_bytes as f64 / bytes.max(1) as f64;
                let percent = 100.0 * bytes as f64 / raw_bytes.max(1) as f64;
                let seconds = (write + took).as_secs_f64();
                let size = bytesize::ByteSize(bytes);
                info!(
                    step,
                    %id, bytes, ratio, seconds, "verified step {step}: {size}, {percent:.0} % of raw, {seconds:.1} s"
                );
                if !healthy {
                    warn!(step, "step {step} holds values that are not finite; a resume passes over it");
                }
                self.refuted_in_a_row = 0;
                self.keep(HistoryEvent::SnapshotVerified { step, id: id.to_string(), healthy, val_loss }, now);
                self.progress.counts.verified += 1;
                // What is verified now may be older than what could not be written since.
                if self.complaint.is_none() {
                    self.progress.problem = None;
                }
                self.progress.snapshot(id, step, SnapshotStage::Verified, created_at);
                self.learn_snapshot(began, stall, now);
                self.tell_hook(HookMoment::Verified, json!({ "snapshot": id, "val_loss": val_loss }), now);
                if healthy {
                    self.replicate(id, step, val_loss);
                }
                self.record(RecordTiming::WhenDue, now);
            }
            ReadBack::Quarantined { reason } => {
                let told = format!("step {step} is not what was written and went to quarantine: {reason}");
                warn!(step, %id, "{told}");
                self.keep_quarantined(id, &reason, now);
                self.progress.problem = Some(told);
                self.progress.counts.quarantined += 1;
                self.progress.snapshot(id, step, SnapshotStage::Quarantined, now.wall);
                self.refuted(now);
            }
            ReadBack::Unknown { reason } => {
                let told = format!("step {step} could not be verified: {reason}");
                warn!(step, %id, "{told}");
                self.progress.problem = Some(told);
                self.refuted(now);
            }
            // Rotation may have taken it after a newer one was verified: that asks nothing of anybody.
            ReadBack::Gone if self.progress.last_verified.as_ref().is_some_and(|last| last.step > step) => {
                debug!(step, %id, "step {step} was rotated out before it was read back");
            }
            ReadBack::Gone => warn!(step, %id, "step {step} is not in the store any more"),
        }
        self.conclude_if_settled(now);
    }

    /// Takes another snapshot at once, unless that one was just taken for the same reason.
    fn refuted(&mut self, now: ClockReading) {
        self.refuted_in_a_row += 1;
        if self.refuted_in_a_row == 1 && self.stop.is_none() {
            self.request_snapshot("the last one failed its verification", now);
        }
    }
}
