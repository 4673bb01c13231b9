//! What is at a remote: the markers, and which of them count.
//!
//! Invariant: a survey is made of whole lists only. Deliberately not here: whether the data is whole (`remote_file`).

use super::error::Result;
use super::place::RemoteJob;
use crate::fence::Fence;
use crate::layout::{JobObject, MarkerName, Prefix};
use crate::records::{LeaseRecord, Marker};

/// What the lists of a job say.
#[derive(Clone, Debug)]
pub struct Survey {
    /// All markers, orphans included, the oldest first.
    pub markers: Vec<MarkerName>,
    /// Markers that retention took away, whose data may be there still.
    pub trashed: Vec<MarkerName>,
    /// Which markers count.
    pub fence: Fence,
    /// The newest epoch that any object names.
    pub newest_epoch: u64,
    /// Who owns the job, or owned it last.
    pub owner: Option<LeaseRecord>,
}

impl Survey {
    /// Asks for the lists, and for the records of the epochs.
    pub async fn of(job: &RemoteJob) -> Result<Survey> {
        let owner = super::lease_io::read_lease(job).await?.map(|(record, _)| record);
        let mut epochs: Vec<LeaseRecord> = owner.clone().into_iter().collect();
        let mut named = Vec::new();
        for (object, _) in job.list(Prefix::Epochs).await? {
            let JobObject::Epoch(epoch) = object else { continue };
            named.push(epoch);
            epochs.extend(job.read::<LeaseRecord>(&object).await?.map(|(record, _)| record));
        }
        let markers = names(job.list(Prefix::Commits).await?);
        let trashed = names(job.list(Prefix::Trash).await?);
        let of_markers = markers.iter().chain(&trashed).map(|marker| marker.epoch);
        let newest_epoch = named.into_iter().chain(epochs.iter().map(|e| e.epoch)).chain(of_markers).max().unwrap_or(0);
        let fence = Fence::new(epochs.into_iter().map(|record| (record.epoch, record.base)));
        Ok(Survey { markers, trashed, fence, newest_epoch, owner })
    }

    /// Whether another machine went on from before this snapshot.
    pub fn is_orphan(&self, marker: &MarkerName) -> bool {
        self.fence.is_orphan(marker.epoch, marker.seq)
    }

    /// The markers that count, the newest first. One that retention took away counts only where it is newer than all
    /// that are left: then an owner that had lost the job took it, and its data is still there.
    pub fn in_order(&self) -> Vec<MarkerName> {
        let place = |marker: &MarkerName| (marker.epoch, marker.seq);
        let mut order = self.fence.in_order(self.markers.clone(), place);
        let newest = order.first().map(place);
        let mut taken = self.fence.in_order(self.trashed.clone(), place);
        taken.retain(|marker| Some(place(marker)) > newest);
        taken.append(&mut order);
        taken
    }

    /// The marker or, where retention took it away, what is left of it.
    pub async fn marker(&self, job: &RemoteJob, name: &MarkerName) -> Result<Option<Marker>> {
        match job.marker(name).await? {
            Some(marker) => Ok(Some(marker)),
            None => Ok(job.trashed(name).await?.map(|record| record.marker)),
        }
    }
}

fn names(objects: Vec<(JobObject, u64)>) -> Vec<MarkerName> {
    let name = |(object, _)| match object {
        JobObject::Commit(name) | JobObject::Trash(name) => Some(name),
        _ => None,
    };
    let mut names: Vec<MarkerName> = objects.into_iter().filter_map(name).collect();
    names.sort();
    names
}
