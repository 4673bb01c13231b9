//! The job's remote: what is sent there, and what is heard of it.

use tracing::{debug, info, warn};

use super::events::JobAction;
use super::machine::{JobMachine, StopCause};
use crate::session::clock::ClockReading;
use ckptd_core::config::DataSection;
use ckptd_core::ids::SnapshotId;
use ckptd_core::text::rough_duration;
use ckptd_history::record::HistoryEvent;
use ckptd_remote::job::replicator::ReplicaNews;

impl JobMachine {
    /// The same job, whose worker is given `data` where the job's own is not on this machine.
    #[must_use]
    pub fn trained_on(mut self, data: Option<DataSection>) -> JobMachine {
        self.data = data;
        self
    }

    /// A healthy snapshot was verified.
    pub(super) fn replicate(&mut self, id: &SnapshotId, step: u64, val_loss: Option<f64>) {
        let total = self.config.train.steps;
        let last = self.stop.is_some() || (total > 0 && step >= total);
        if self.replication.as_mut().is_some_and(|replication| replication.verified(step, val_loss, last)) {
            self.act(JobAction::Replicate { id: id.clone() });
        }
    }

    pub(super) fn replicated(&mut self, news: ReplicaNews, now: ClockReading) {
        let Some(replication) = &mut self.replication else { return };
        match news {
            // Heard before the job begins.
            ReplicaNews::Began(_) => {}
            ReplicaNews::Found(marker) => replication.found(marker.step, marker.created_at),
            ReplicaNews::Told(line) => info!("{line}"),
            ReplicaNews::Warned(line) => warn!("{line}"),
            ReplicaNews::Committed { marker, took } => {
                replication.committed(marker.step, now.wall);
                self.records.costs.uploads_ms.push(took);
                let (step, seconds, checked) = (marker.step, took.as_secs_f64(), marker.checked.name());
                let size = bytesize::ByteSize(marker.bytes);
                info!(step, seconds, "replicated step {step}: {size}, {checked} there, {}", rough_duration(took));
                self.keep(HistoryEvent::Replicated { step: marker.step, bytes: marker.bytes, seconds }, now);
                self.remember_replication();
            }
            ReplicaNews::Trouble { problem, is_news: true } => {
                warn!("not replicated for now: {problem}; the training goes on");
                replication.trouble(Some(problem));
            }
            ReplicaNews::Trouble { problem, .. } => debug!("still not replicated: {problem}"),
            ReplicaNews::Works => {
                info!("replication works again");
                replication.trouble(None);
            }
            ReplicaNews::Lost(what) => {
                self.lost = Some(what);
                let by = now.at + self.config.session.grace.0;
                self.stop("another machine took the job over", by, StopCause::Plan, now);
            }
        }
    }

    /// Has the store remember what is where, for `ckptd status` after the session.
    fn remember_replication(&mut self) {
        if let Some(record) = self.replication_record() {
            self.act(JobAction::RecordReplication(record));
        }
    }

    /// The last snapshot of the session, where it is still to be sent.
    pub fn owed_to_remote(&mut self) -> Option<SnapshotId> {
        let last = self.progress.last_verified.as_ref()?;
        let (id, step) = (last.id.clone(), last.step);
        self.replication.as_mut()?.owes(step).then_some(id)
    }

    /// What is where, as the store remembers it.
    pub fn replication_record(&self) -> Option<serde_json::Value> {
        serde_json::to_value(self.replication.as_ref()?).ok()
    }

    /// What is where, for the end of the session.
    pub fn replication_text(&self, now: ClockReading) -> Option<String> {
        let here = self.progress.last_verified.as_ref()?.step;
        Some(self.replication.as_ref()?.text(here, now.wall))
    }
}
