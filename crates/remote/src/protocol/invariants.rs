//! What must hold in a [`World`] at every moment, and of what its processes say and want.

use super::LeaseAction;
use super::SeenLease;
use super::model::{Process, TTL, World, data_of, nonce};
use crate::layout::MarkerName;

impl Process {
    /// Notes what it has seen of the lease.
    pub(super) fn watches(&mut self, found: Option<&SeenLease<u64>>) {
        match (found, &self.watched) {
            (Some(seen), Some((before, _))) if seen.record == *before => {}
            _ => self.watched = found.map(|seen| (seen.record.clone(), self.now)),
        }
    }
}

impl World {
    /// Who takes the lease of another that did not leave has seen it unchanged for its time, by its own clock.
    pub(super) fn check_claim(&self, process: usize, wanted: &LeaseAction<u64>) -> Result<(), String> {
        let LeaseAction::Claim(..) = wanted else { return Ok(()) };
        let state = &self.processes[process];
        match &state.watched {
            Some((lease, since)) if !lease.released && lease.nonce != nonce(process) && state.now < *since + TTL => {
                Err(format!(
                    "process {process} takes epoch {} away after {:?}",
                    lease.epoch,
                    state.now.saturating_sub(*since)
                ))
            }
            _ => Ok(()),
        }
    }

    /// A process says that it owns an epoch.
    pub(super) fn owns(&mut self, process: usize, epoch: u64) -> Result<(), String> {
        if let Some(other) = self.owners.insert(epoch, process).filter(|other| *other != process) {
            return Err(format!("processes {other} and {process} both own epoch {epoch}"));
        }
        let (from, seq) = self.processes[process].at;
        match self.fence().overtaken_by(from, seq) {
            Some(later) => Err(format!("epoch {epoch} goes on from {from}.{seq}, which epoch {later} left behind")),
            None => Ok(()),
        }
    }

    /// What must hold at every moment.
    pub(super) fn check(&self) -> Result<(), String> {
        for marker in self.store.markers.keys() {
            if !self.store.data.contains(&data_of(marker)) {
                return Err(format!("{marker} has no data"));
            }
            if !self.owners.contains_key(&marker.epoch) {
                return Err(format!("{marker} is of an epoch that nobody owned"));
            }
        }
        let place = |marker: &&MarkerName| (marker.epoch, marker.seq);
        if let Some(chosen) = self.fence().in_order(self.store.markers.keys(), place).first() {
            // Held against the records one by one, without the fence.
            let records = self.store.epochs.values().chain(self.store.lease.iter().map(|(record, _)| record));
            for later in records.filter(|record| record.epoch > chosen.epoch) {
                if later.base < chosen.seq {
                    return Err(format!("{chosen} is chosen, and epoch {} went on from {}", later.epoch, later.base));
                }
            }
        }
        Ok(())
    }
}
