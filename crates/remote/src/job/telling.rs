//! What the replicating thread makes of the lease's news, and what people hear of it and of troubles.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::error::JobError;
use super::prepare::lost_to;
use super::replica::ReplicaNews;
use super::replication::Replication;
use super::sent_once::SentOnce;
use super::troubles::Concern;
use crate::protocol::LeaseNews;

impl Replication<'_> {
    /// Whether retention is due.
    pub(super) fn heard(&mut self, news: Vec<LeaseNews>, took: Duration) -> bool {
        let until = self.owner.write_until().map_or(0, |until| until.as_millis() as u64);
        self.write_until.store(until, Ordering::Relaxed);
        let mut retain = false;
        for what in news {
            let report = match what {
                LeaseNews::Committed(name) => {
                    retain = true;
                    self.history.is_due = true;
                    self.works(Concern::Sending);
                    let Some(marker) = self.known.get(&name).cloned() else { continue };
                    ReplicaNews::Committed { marker: Box::new(marker), took }
                }
                LeaseNews::NotCommitted(name) => ReplicaNews::Warned(format!(
                    "{name} was not committed at {}: another process owns the job, or owned it meanwhile",
                    self.owner.job().place()
                )),
                LeaseNews::Owned { epoch } => {
                    // What was there before may have gone with the lease.
                    self.once = SentOnce::default();
                    self.looks = true;
                    if let Err(error) = self.owns() {
                        self.tell_trouble(Concern::Sending, &error);
                    }
                    ReplicaNews::Told(format!("this process owns {} (epoch {epoch})", self.owner.job().place()))
                }
                LeaseNews::Waiting(holder, _) => ReplicaNews::Warned(format!("{} owns the job", holder.text())),
                LeaseNews::Suspended => {
                    self.tell_suspended();
                    continue;
                }
                LeaseNews::Gone => ReplicaNews::Warned(format!(
                    "{} was emptied, or its lease removed: this process takes the job anew, and sends its newest \
                     snapshot again; see who removes objects there, and whether a lifecycle rule does",
                    self.owner.job().place()
                )),
                LeaseNews::Resumed => continue,
                LeaseNews::Lost(holder) => ReplicaNews::Lost(lost_to(&holder.text(), self.owner.job().place())),
                LeaseNews::Left => continue,
            };
            let _ = (self.report)(report);
        }
        retain
    }

    /// Whether the way to the store works, as the lease shows.
    pub(super) fn note_lease(&mut self) {
        if let Some((concern, error)) = self.owner.take_trouble() {
            self.tell_trouble(concern, &error);
        } else if self.troubles.lease_is_back(self.owner.write_until()) {
            // What failed meanwhile need not wait any longer.
            (self.failures, self.not_before) = (0, Duration::ZERO);
            self.works(Concern::Lease);
        }
    }

    /// Nothing is committed until the lease is renewed.
    pub(super) fn tell_suspended(&mut self) {
        let until = self.owner.write_until();
        let Some(error) = self.owner.take_unwritten() else {
            let (place, is_news) = (self.owner.job().place(), self.troubles.suspended(until));
            let problem = format!(
                "the lease of {place} could not be renewed in time, and nothing is committed there until it is"
            );
            let _ = (self.report)(ReplicaNews::Trouble { problem, is_news });
            return;
        };
        self.tell_trouble(Concern::Lease, &error);
    }

    pub(super) fn tell_trouble(&mut self, concern: Concern, error: &JobError) {
        let is_news = self.troubles.failed(concern, error, self.owner.write_until());
        let _ = (self.report)(ReplicaNews::Trouble { problem: error.to_string(), is_news });
    }

    pub(super) fn works(&mut self, concern: Concern) {
        if self.troubles.works(concern) {
            let _ = (self.report)(ReplicaNews::Works);
        }
    }
}
