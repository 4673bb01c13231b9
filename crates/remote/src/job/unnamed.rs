//! Files that snapshots share, such as tokens, and that no marker names any longer.
//!
//! They go in two phases, as snapshots do: a record in `trash/`, and at least an hour later the file, if no marker
//! names it by then. A marker that retention took away counts as long as its own data may be chosen.
//!
//! Invariant: nothing goes on a list or a marker that could not be read. Whoever is about to name a condemned file
//! takes the record away first and reads the file back: the second phase looks for both right before it deletes.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::error::Result;
use super::place::RemoteJob;
use crate::layout::{ContentHash, JobObject, Prefix};
use crate::records::{Marker, TRASH_TIME, UnnamedRecord};

/// Both phases: condemns what no marker names, and removes what was condemned an hour before `now` and is still not
/// named. `may_write` is asked before each change. Returns how many bytes went.
pub async fn clear(job: &RemoteJob, now: Timestamp, may_write: impl Fn() -> bool) -> Result<u64> {
    let condemned = records(job).await?;
    let unnamed = unnamed(job).await?;
    let mut removed = 0;
    for (hash, bytes) in &unnamed {
        let record = JobObject::Unnamed(hash.clone());
        if !may_write() {
            return Ok(removed);
        }
        match condemned.get(hash) {
            None => {
                job.create(&record, &UnnamedRecord { hash: hash.clone(), bytes: *bytes, at: now }).await?;
            }
            Some(condemned) if now.duration_since(condemned.at) < TRASH_TIME => {}
            // Asked anew: whoever names it again has taken the record away before.
            Some(_) if is_named(job, hash).await? || job.read::<UnnamedRecord>(&record).await?.is_none() => {}
            Some(_) => {
                if !may_write() {
                    return Ok(removed);
                }
                job.delete(&JobObject::Blob(hash.clone())).await?;
                removed += bytes;
                job.delete(&record).await?;
            }
        }
    }
    // What is named again, and what is gone already.
    for hash in condemned.keys().filter(|hash| !unnamed.contains_key(*hash)) {
        if may_write() {
            job.delete(&JobObject::Unnamed(hash.clone())).await?;
        }
    }
    Ok(removed)
}

/// Takes away the record that condemns a file. Whether there was one.
pub async fn reprieve(job: &RemoteJob, hash: &ContentHash) -> Result<bool> {
    let record = JobObject::Unnamed(hash.clone());
    let is_condemned = job.storage().head(&record.name()).await?.is_some();
    if is_condemned {
        job.delete(&record).await?;
    }
    Ok(is_condemned)
}

async fn records(job: &RemoteJob) -> Result<BTreeMap<ContentHash, UnnamedRecord>> {
    let mut records = BTreeMap::new();
    for (object, _) in job.list(Prefix::Trash).await? {
        let JobObject::Unnamed(hash) = &object else { continue };
        if let Some((record, _)) = job.read::<UnnamedRecord>(&object).await? {
            records.insert(hash.clone(), record);
        }
    }
    Ok(records)
}

/// The files that no marker names, with their lengths.
async fn unnamed(job: &RemoteJob) -> Result<BTreeMap<ContentHash, u64>> {
    let mut left: BTreeMap<ContentHash, u64> = BTreeMap::new();
    for (object, bytes) in job.list(Prefix::Blobs).await? {
        if let JobObject::Blob(hash) = object {
            left.insert(hash, bytes);
        }
    }
    visit(job, |marker| {
        for blob in &marker.blobs {
            left.remove(&blob.hash);
        }
        left.is_empty()
    })
    .await?;
    Ok(left)
}

async fn is_named(job: &RemoteJob, hash: &ContentHash) -> Result<bool> {
    let mut found = false;
    visit(job, |marker| {
        found |= marker.blobs.iter().any(|blob| blob.hash == *hash);
        found
    })
    .await?;
    Ok(found)
}

/// Shows all markers to `is_enough`, the newest first, until it has seen enough. A marker that goes to the trash
/// meanwhile is there before it leaves its old place, so that it is seen.
async fn visit(job: &RemoteJob, mut is_enough: impl FnMut(&Marker) -> bool) -> Result<()> {
    for (object, _) in job.list(Prefix::Commits).await?.into_iter().rev() {
        let JobObject::Commit(name) = object else { continue };
        if job.marker(&name).await?.is_some_and(|marker| is_enough(&marker)) {
            return Ok(());
        }
    }
    for (object, _) in job.list(Prefix::Trash).await?.into_iter().rev() {
        let JobObject::Trash(name) = object else { continue };
        if job.trashed(&name).await?.is_some_and(|record| is_enough(&record.marker)) {
            return Ok(());
        }
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;
    use jiff::SignedDuration;

    use super::super::companions::{Companion, CompanionBody, send_companions};
    use super::super::rate::RateLimit;
    use super::super::retention::remove_data;
    use super::super::send::{CheckDepth, KeepNothing, SendOptions};
    use super::*;
    use crate::memory::MemoryStorage;
    use crate::objects::ObjectStorage;
    use crate::records::{BlobRecord, Checked, Nonce, TrashRecord, VERSION};

    /// A job that keeps two files and a marker of the first.
    struct Bench {
        storage: MemoryStorage,
        job: RemoteJob,
        named: BlobRecord,
        other: BlobRecord,
        began: Timestamp,
    }

    impl Bench {
        async fn new() -> Bench {
            let storage = MemoryStorage::new();
            let job = RemoteJob::new(Arc::new(storage.clone()));
            let mut blobs = Vec::new();
            for text in ["tokens", "tokens of before"] {
                let hash = ContentHash::from(*blake3::hash(text.as_bytes()).as_bytes());
                storage.put(&JobObject::Blob(hash.clone()).name(), Bytes::from_static(text.as_bytes())).await.unwrap();
                blobs.push(BlobRecord { name: text.into(), hash, bytes: text.len() as u64 });
            }
            let (other, named) = (blobs.remove(1), blobs.remove(0));
            let bench = Bench { storage, job, named, other, began: Timestamp::now() };
            bench.put(&marker(1, &bench.named)).await;
            bench
        }

        async fn put(&self, marker: &Marker) {
            self.job.put(&JobObject::Commit(marker.name()), marker).await.unwrap();
        }

        /// Retention, so many minutes after the beginning.
        async fn retention_at(&self, minutes: i64) -> u64 {
            let now = self.began + SignedDuration::from_mins(minutes);
            remove_data(&self.job, now, || true).await.unwrap()
        }

        async fn has(&self, object: JobObject) -> bool {
            self.storage.head(&object.name()).await.unwrap().is_some()
        }

        async fn has_both(&self) -> [bool; 2] {
            let [named, other] = [&self.named, &self.other].map(|blob| JobObject::Blob(blob.hash.clone()));
            [self.has(named).await, self.has(other).await]
        }
    }

    fn marker(seq: u64, blob: &BlobRecord) -> Marker {
        Marker {
            version: VERSION,
            nonce: Nonce("n".into()),
            run_id: "run".into(),
            epoch: 1,
            seq,
            step: seq,
            root: "root".into(),
            file_hash: ContentHash::from([seq as u8; 32]),
            bytes: 1,
            raw_bytes: 1,
            created_at: Timestamp::UNIX_EPOCH,
            healthy: true,
            val_loss: None,
            checked: Checked::Whole,
            blobs: vec![blob.clone()],
        }
    }

    #[tokio::test]
    async fn what_no_marker_names_goes_an_hour_after_that_was_seen_and_what_one_names_never() {
        let bench = Bench::new().await;
        for minutes in [0, 1, 59] {
            assert_eq!(bench.retention_at(minutes).await, 0);
            assert_eq!(bench.has_both().await, [true, true]);
            assert!(bench.has(JobObject::Unnamed(bench.other.hash.clone())).await);
        }
        assert_eq!(bench.retention_at(61).await, bench.other.bytes);
        assert_eq!(bench.has_both().await, [true, false]);
        bench.retention_at(500).await;
        assert_eq!(bench.has_both().await, [true, false]);
        assert!(bench.job.list(Prefix::Trash).await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn a_file_that_is_named_again_stays() {
        let bench = Bench::new().await;
        bench.retention_at(0).await;
        // By another owner, who has not seen the record.
        bench.put(&marker(2, &bench.other)).await;
        assert_eq!(bench.retention_at(61).await, 0);
        assert_eq!(bench.has_both().await, [true, true]);
        assert!(!bench.has(JobObject::Unnamed(bench.other.hash.clone())).await, "its time begins anew");
        // A marker that is in the trash may still be chosen.
        let taken = marker(2, &bench.other);
        let record =
            TrashRecord { marker: taken.clone(), by_epoch: 1, at: bench.began + SignedDuration::from_hours(9) };
        bench.job.put(&JobObject::Trash(taken.name()), &record).await.unwrap();
        bench.job.delete(&JobObject::Commit(taken.name())).await.unwrap();
        for minutes in [70, 200] {
            bench.retention_at(minutes).await;
        }
        assert_eq!(bench.has_both().await, [true, true]);
    }

    #[tokio::test]
    async fn whoever_is_about_to_name_a_condemned_file_reprieves_it_and_reads_it_back() {
        let bench = Bench::new().await;
        bench.retention_at(0).await;
        let rate = RateLimit::new(None);
        let options = SendOptions { rate: &rate, keeper: &KeepNothing, depth: CheckDepth::Auto, sent: &|_| {} };
        let body = CompanionBody::Text("tokens of before".into());
        let companion = Companion { name: "tokens.bin".into(), body };
        let sent = send_companions(&bench.job, vec![companion.clone()], &options).await.unwrap();
        assert_eq!(sent[0].hash, bench.other.hash);
        assert!(!bench.has(JobObject::Unnamed(bench.other.hash.clone())).await);
        // Its marker takes its time: the second phase begins anew.
        assert_eq!(bench.retention_at(61).await, 0);
        assert_eq!(bench.has_both().await, [true, true]);
        // One that is damaged there is found, although it has the right length, and sent again.
        let name = JobObject::Blob(bench.other.hash.clone()).name();
        bench.storage.put(&name, Bytes::from_static(b"tokens of Before")).await.unwrap();
        send_companions(&bench.job, vec![companion], &options).await.unwrap();
        let there = bench.storage.get(&name, 1 << 10).await.unwrap().unwrap();
        assert_eq!(there.body, "tokens of before");
    }

    #[tokio::test]
    async fn nothing_goes_without_the_job_or_on_a_marker_that_cannot_be_read() {
        let bench = Bench::new().await;
        let later = bench.began + SignedDuration::from_hours(2);
        assert_eq!(clear(&bench.job, bench.began, || false).await.unwrap(), 0);
        assert!(bench.job.list(Prefix::Trash).await.unwrap().is_empty());
        clear(&bench.job, bench.began, || true).await.unwrap();
        // The job is lost between two of its requests.
        let asked = std::cell::Cell::new(0);
        let once = || asked.replace(asked.get() + 1) == 0;
        assert_eq!(clear(&bench.job, later, once).await.unwrap(), 0);
        assert_eq!(bench.has_both().await, [true, true]);
        let name = JobObject::Commit(marker(1, &bench.named).name()).name();
        bench.storage.put(&name, Bytes::from_static(b"{")).await.unwrap();
        assert!(clear(&bench.job, later, || true).await.is_err());
        assert_eq!(bench.has_both().await, [true, true]);
    }
}
