//! The store on this machine beside a job at a remote: which of the two is newer, and what of the store another machine
//! has left behind.
//!
//! Invariant: newer is decided by epoch, then by sequence number, never by a time. A snapshot here that another machine
//! went on from before is moved to quarantine, never deleted.

use serde::{Deserialize, Serialize};

use ckptd_core::progress::ProgressSink;
use ckptd_core::store::format::Hash;
use ckptd_core::store::peek::peek;
use ckptd_core::store::{Record, SnapshotEntry, SnapshotState, Store, StoreLock};

use super::error::Result;
use super::fetch::{Fetched, fetch_newest};
use super::place::RemoteJob;
use super::survey::Survey;
use crate::fence::Fence;
use crate::layout::ContentHash;

/// What a store remembers of its place in the history.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocalHistory {
    /// (epoch, base) of each ownership of this store's sessions, the oldest first.
    pub owned: Vec<(u64, u64)>,
    /// (epoch, sequence number) of each snapshot that was fetched.
    pub fetched: Vec<(u64, u64)>,
}

impl LocalHistory {
    /// Of a store; empty where it never met a remote.
    pub fn read(store: &Store) -> Result<LocalHistory> {
        Ok(store.read_record(Record::Remote)?.unwrap_or_default())
    }

    /// Remembers it durably.
    pub fn write(&self, store: &Store, lock: &StoreLock) -> Result<()> {
        Ok(store.write_record(lock, Record::Remote, self)?)
    }

    /// The epoch under which the snapshot with this number was taken.
    pub fn epoch_of(&self, seq: u64) -> u64 {
        let fetched = self.fetched.iter().filter(|(_, at)| *at == seq).map(|(epoch, _)| *epoch).max();
        let owned = || self.owned.iter().rev().find(|(_, base)| *base < seq).map(|(epoch, _)| *epoch);
        fetched.or_else(owned).unwrap_or(0)
    }
}

/// What a store and a remote have come to.
#[derive(Debug)]
pub struct Agreement {
    /// The sequence number that the training goes on from; 0: from the beginning.
    pub base: u64,
    /// The newest epoch that any object names.
    pub newest_epoch: u64,
    /// What was fetched, where the remote was newer.
    pub fetched: Option<Fetched>,
}

/// Brings the store to the newest snapshot that counts, here or there. The store's run must be that of the job. `told`
/// hears what is passed over, moved aside or fetched.
pub async fn agree(
    job: &RemoteJob,
    (store, lock): (&Store, &StoreLock),
    threads: usize,
    progress: &dyn ProgressSink,
    told: &mut (dyn FnMut(String) + Send),
) -> Result<Agreement> {
    let survey = Survey::of(job).await?;
    let mut history = LocalHistory::read(store)?;
    set_orphans_aside(&survey.fence, &history, (store, lock), told)?;
    let here = store.choose_resume(lock, threads, told)?.map(|choice| choice.entry);
    let place_here = here.as_ref().map(|entry| place_of(entry, &history, &survey)).transpose()?;
    let newer = |name: &crate::layout::MarkerName| place_here.is_none_or(|place| (name.epoch, name.seq) > place);
    let fetched = fetch_newest(job, &survey, (store, lock), newer, progress, told).await;
    let fetched = match fetched {
        // What is here is whole, and what is there is not: go on from here.
        Err(error) if here.is_some() && error.is_of_the_file() => {
            told(error.to_string());
            None
        }
        fetched => fetched?,
    };
    if let Some(Fetched { marker, .. }) = &fetched {
        history.fetched.push((marker.epoch, marker.seq));
        history.write(store, lock)?;
    }
    let base = fetched.as_ref().map(|f| f.marker.seq).or(place_here.map(|(_, seq)| seq)).unwrap_or(0);
    Ok(Agreement { base, newest_epoch: survey.newest_epoch, fetched })
}

/// Moves aside what another machine went on from before.
fn set_orphans_aside(
    fence: &Fence,
    history: &LocalHistory,
    (store, lock): (&Store, &StoreLock),
    told: &mut (dyn FnMut(String) + Send),
) -> Result<()> {
    for entry in store.entries()?.into_iter().filter(|entry| entry.own && entry.manifest.is_some()) {
        let Some(later) = fence.overtaken_by(history.epoch_of(entry.seq()), entry.seq()) else { continue };
        let reason = format!("another machine went on from before it (epoch {later} of the remote)");
        let aside = store.quarantine(lock, &entry, &reason)?;
        told(format!("{}: {reason}: moved to {}", entry.id, aside.display()));
    }
    Ok(())
}

/// (epoch, sequence number) of a snapshot here: that of its very file at the remote, if that is there, since a file
/// that is sent later has its marker under a later ownership.
pub fn place_of(entry: &SnapshotEntry, history: &LocalHistory, survey: &Survey) -> Result<(u64, u64)> {
    let (seq, hash) = (entry.seq(), file_hash(entry)?);
    let same = survey.in_order().into_iter().filter(|name| name.seq == seq && name.short_hash() == hash.short());
    let epochs = same.map(|name| name.epoch).chain([history.epoch_of(seq)]);
    Ok((epochs.max().unwrap_or(0), seq))
}

/// The newest verified snapshot here, where it is not at the remote.
pub fn newest_unsent(store: &Store, survey: &Survey) -> Result<Option<SnapshotEntry>> {
    let entries = store.entries()?;
    let newest = entries.into_iter().find(|entry| entry.own && entry.healthy());
    let Some(newest) = newest.filter(|entry| entry.state == SnapshotState::Verified) else { return Ok(None) };
    let hash = file_hash(&newest)?;
    Ok(survey.markers.iter().all(|name| name.short_hash() != hash.short()).then_some(newest))
}

/// The hash of the file of a snapshot here.
pub fn file_hash(entry: &SnapshotEntry) -> Result<ContentHash> {
    let (_, hash): (_, Hash) = peek(&entry.path)?;
    Ok(ContentHash::from(hash))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_belongs_to_the_ownership_that_took_it_or_to_the_one_that_it_was_fetched_from() {
        let history = LocalHistory { owned: vec![(1, 0), (3, 14)], fetched: vec![(2, 13), (2, 14)] };
        assert_eq!([1, 12, 13, 14, 15, 99].map(|seq| history.epoch_of(seq)), [1, 1, 2, 2, 3, 3]);
        assert_eq!(LocalHistory::default().epoch_of(7), 0);
    }
}
