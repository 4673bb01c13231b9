//! A snapshot file goes to a remote, and is checked there.
//!
//! Invariant: what is called verified was read back whole, or the store has confirmed a digest of every part, of a
//! store that was seen to refuse a wrong one, and of chunks that matched their hashes when they were sent. A file
//! that is there already is not sent again, and is checked all the same; one that is damaged there is replaced.

use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt, stream};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use ckptd_core::store::SnapshotReader;

use super::error::{JobError, Result};
use super::part_source::{PART_STEP, PartSource};
use super::place::RemoteJob;
use super::probe::scratch_name;
use super::rate::RateLimit;
use super::remote_file::RemoteFile;
use super::retry::{TRIES, again};
use crate::confirmed::{ConfirmedStorage, Outcome};
use crate::errors::ErrorKind;
use crate::layout::{ContentHash, JobObject};
use crate::names::ObjectName;
use crate::objects::{PartReceipt, UploadId};
use crate::records::{Checked, Nonce, UploadRecord};

/// A file up to this size goes in one request.
const SINGLE_BYTES: u64 = 8 << 20;
/// Least bytes of a part, unless the rate is limited.
pub(super) const PART_BYTES: u64 = 8 << 20;
/// Parts that a file is cut into at most, of the 10,000 that stores allow.
const MOST_PARTS: u64 = 9_000;
pub(super) const IN_FLIGHT: usize = 4;
/// How long a part may take at a limited rate, so that a lost one costs little.
const PART_TIME: u64 = 10;
/// How long a part may take where the rate is not known, and how long at least.
const LONGEST_PART: Duration = Duration::from_secs(600);
const SHORTEST_PATIENCE: Duration = Duration::from_secs(30);
/// A part that takes so many times as long as the ones before is given up and sent again.
const PATIENCE: f64 = 8.0;
/// What has arrived is written down so often: a record takes as long as a part on a fast link.
const KEEP_INTERVAL: Duration = if cfg!(feature = "faults") { Duration::ZERO } else { Duration::from_secs(1) };

/// How a file is checked at its destination.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum CheckDepth {
    /// Read back whole, or as the store confirms by digests.
    Auto,
    /// Read back whole.
    Whole,
    /// A share of the chunks, from above 0 to below 1, is read back.
    Share(f64),
}

/// What is known of an upload under way, kept on this machine so that it can be gone on with after a restart.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UploadProgress {
    /// Where it goes.
    pub place: String,
    /// The file.
    pub file_hash: ContentHash,
    /// The store's name of the upload.
    pub upload: UploadId,
    /// Length of every part but the last.
    pub part_bytes: u64,
    /// Parts that have arrived.
    pub parts: Vec<PartReceipt>,
}

/// Keeps [`UploadProgress`] on this machine. A record that is lost costs the parts.
pub trait ProgressKeeper: Send + Sync {
    /// What was kept last.
    fn load(&self) -> Option<UploadProgress>;
    /// Keeps it; `None`: nothing is under way.
    fn keep(&self, progress: Option<&UploadProgress>);
}

/// Nothing is kept: an upload that is interrupted begins again.
#[derive(Clone, Copy, Debug)]
pub struct KeepNothing;

impl ProgressKeeper for KeepNothing {
    fn load(&self) -> Option<UploadProgress> {
        None
    }

    fn keep(&self, _progress: Option<&UploadProgress>) {}
}

/// How a file is sent.
pub struct SendOptions<'a> {
    /// Limits the rate.
    pub rate: &'a RateLimit,
    /// Remembers what has arrived.
    pub keeper: &'a dyn ProgressKeeper,
    /// How it is checked.
    pub depth: CheckDepth,
    /// Is told of bytes that have arrived.
    pub sent: &'a (dyn Fn(u64) + Send + Sync),
}

/// Sends the snapshot file at `path` unless it is there, and checks it at its destination.
pub async fn send(job: &RemoteJob, path: &Path, options: &SendOptions<'_>) -> Result<Checked> {
    let reader = SnapshotReader::open(path)?;
    let (hash, bytes) = (ContentHash::from(reader.file_hash()), reader.file_bytes());
    let source = PartSource::snapshot(&reader)?;
    drop(reader);
    let object = JobObject::Data(hash.clone());
    let is_there = job.storage().head(&object.name()).await?.is_some_and(|head| head.bytes == bytes);
    let mut confirmed = false;
    if !is_there {
        confirmed = confirms_digests(job).await && options.depth == CheckDepth::Auto;
        send_file(job, &source, &object, &hash, bytes, options).await?;
    }
    match check(job, &hash, if confirmed { Some(Checked::Digests) } else { None }, options.depth).await {
        // A bit flipped on the way, or it rotted there: its length alone says that it is there, so it is replaced.
        Err(error) if error.is_of_the_file() => {
            send_file(job, &source, &object, &hash, bytes, options).await?;
            check(job, &hash, None, options.depth).await
        }
        outcome => outcome,
    }
}

/// Whether the store refuses parts with a wrong digest, so that what it took need not be read back. A cheaper digest is
/// used from here on where it is seen to compare that.
pub(super) async fn confirms_digests(job: &RemoteJob) -> bool {
    if !job.storage().abilities().digests {
        return false;
    }
    let Ok(scratch) = scratch_name() else { return false };
    job.storage().checks_digests(&scratch).await.unwrap_or(false)
}

/// Checks the file with this hash at its destination. `confirmed`: how the store has confirmed it, if it has.
async fn check(job: &RemoteJob, hash: &ContentHash, confirmed: Option<Checked>, depth: CheckDepth) -> Result<Checked> {
    let file = RemoteFile::open(job, hash).await?;
    if let Some(checked) = confirmed {
        return Ok(checked);
    }
    let CheckDepth::Share(share) = depth else {
        file.read(|_| true, |_, _| Ok(())).await?;
        return Ok(Checked::Whole);
    };
    // Other chunks each time.
    let salt = Nonce::random()?;
    let chosen = |index: usize| {
        let hash = blake3::hash(format!("{} {index}", salt.0).as_bytes());
        let [a, b, c, d, ..] = *hash.as_bytes();
        f64::from(u32::from_le_bytes([a, b, c, d])) < share * f64::from(u32::MAX)
    };
    file.read(chosen, |_, _| Ok(())).await?;
    Ok(Checked::Sampled)
}

/// Sends a file to `object`, in parts where it is large.
pub(super) async fn send_file(
    job: &RemoteJob,
    source: &PartSource,
    object: &JobObject,
    hash: &ContentHash,
    bytes: u64,
    options: &SendOptions<'_>,
) -> Result<()> {
    if bytes <= SINGLE_BYTES && options.rate.bytes_per_second().is_none_or(|rate| bytes <= rate * PART_TIME) {
        let body = source.read(0, bytes).await?;
        let put = || async { Ok(job.storage().put(&object.name(), body.clone()).await.map(drop)?) };
        again(put).await?;
        (options.sent)(bytes);
        return Ok(());
    }
    let abilities = job.storage().abilities();
    let part_bytes = part_bytes(bytes, options.rate.bytes_per_second(), abilities.min_part_bytes);
    let name = object.name();
    let mut progress = go_on(job, options, hash, part_bytes).unwrap_or_else(|| begin_record(job, hash, part_bytes));
    for _ in 0..TRIES {
        if progress.upload.0.is_empty() {
            progress = begin(job, object, hash, bytes, part_bytes, options).await?;
        }
        match send_parts(job, source, &name, bytes, &mut progress, options).await {
            // It was aborted, or a lifecycle rule took it.
            Err(JobError::There(error)) if error.kind == ErrorKind::NoUpload => {
                progress = begin_record(job, hash, part_bytes);
                options.keeper.keep(None);
                continue;
            }
            outcome => outcome?,
        }
        let storage = ConfirmedStorage::new(job.shared());
        match storage.complete_upload(&name, &progress.upload, &progress.parts, bytes).await {
            Outcome::Mine(_) => {
                options.keeper.keep(None);
                job.delete(&JobObject::Upload(hash.clone())).await?;
                return Ok(());
            }
            Outcome::Unknown(error) => return Err(error.into()),
            Outcome::NotThere(Some(error)) if error.kind != ErrorKind::Unreachable => return Err(error.into()),
            // Not there, or another length: from the beginning.
            Outcome::NotThere(_) | Outcome::Other(_) => {
                progress = begin_record(job, hash, part_bytes);
                options.keeper.keep(None);
            }
        }
    }
    Err(JobError::other(format!("{}: the upload was lost {TRIES} times", job.path_of(object))))
}

/// An upload that has not begun.
fn begin_record(job: &RemoteJob, hash: &ContentHash, part_bytes: u64) -> UploadProgress {
    let (place, file_hash) = (job.place().to_owned(), hash.clone());
    UploadProgress { place, file_hash, upload: UploadId(String::new()), part_bytes, parts: Vec::new() }
}

/// What an earlier process has sent of the same file to the same place.
fn go_on(job: &RemoteJob, options: &SendOptions<'_>, hash: &ContentHash, part_bytes: u64) -> Option<UploadProgress> {
    let kept = options.keeper.load()?;
    (kept.place == job.place() && kept.file_hash == *hash && kept.part_bytes == part_bytes).then_some(kept)
}

async fn begin(
    job: &RemoteJob,
    object: &JobObject,
    hash: &ContentHash,
    bytes: u64,
    part_bytes: u64,
    options: &SendOptions<'_>,
) -> Result<UploadProgress> {
    let upload = job.storage().begin_upload(&object.name(), part_bytes).await?;
    // Parts are paid for until somebody removes them: whoever owns the job next finds them here.
    let record = UploadRecord { upload_id: upload.0.clone(), bytes, part_bytes };
    job.put(&JobObject::Upload(hash.clone()), &record).await?;
    let progress = UploadProgress { upload, ..begin_record(job, hash, part_bytes) };
    options.keeper.keep(Some(&progress));
    Ok(progress)
}

/// Sends the parts that have not arrived; `progress` then has all of them, in their order.
async fn send_parts(
    job: &RemoteJob,
    source: &PartSource,
    name: &ObjectName,
    bytes: u64,
    progress: &mut UploadProgress,
    options: &SendOptions<'_>,
) -> Result<()> {
    let part_bytes = progress.part_bytes;
    let count = u32::try_from(bytes.div_ceil(part_bytes)).unwrap_or(u32::MAX);
    progress.parts.retain(|part| part.index < count);
    let missing: Vec<u32> = (0..count).filter(|index| !progress.parts.iter().any(|p| p.index == *index)).collect();
    let upload = progress.upload.clone();
    let slowest = Mutex::new(Duration::ZERO);
    let (upload, slowest) = (&upload, &slowest);
    let send_part = |index: u32| async move {
        let from = u64::from(index) * part_bytes;
        let length = part_bytes.min(bytes - from);
        let patience = patience(slowest, options.rate, length);
        let send = || async {
            options.rate.wait_for(length).await;
            let body = source.read(from, length).await?;
            let began = Instant::now();
            let sending = job.storage().upload_part(name, upload, index, part_bytes, body);
            let receipt =
                tokio::time::timeout(patience, sending).await.map_err(|_| too_slow(job, name, patience))??;
            let mut slowest = slowest.lock().unwrap_or_else(|e| e.into_inner());
            *slowest = began.elapsed().max(*slowest);
            Ok(receipt)
        };
        let receipt = again(send).await?;
        (options.sent)(length);
        Ok::<_, JobError>(receipt)
    };
    let mut kept_at = Instant::now();
    let arriving = stream::iter(missing).map(send_part).buffer_unordered(IN_FLIGHT);
    let arrived = arriving
        .try_for_each(|receipt| {
            progress.parts.push(receipt);
            if kept_at.elapsed() >= KEEP_INTERVAL {
                options.keeper.keep(Some(progress));
                kept_at = Instant::now();
            }
            async { Ok(()) }
        })
        .await;
    if arrived.is_err() {
        options.keeper.keep(Some(progress));
    }
    arrived?;
    progress.parts.sort_by_key(|part| part.index);
    Ok(())
}

/// How long a part may take: by what the ones before took.
fn patience(slowest: &Mutex<Duration>, rate: &RateLimit, bytes: u64) -> Duration {
    let slowest = *slowest.lock().unwrap_or_else(|e| e.into_inner());
    if slowest.is_zero() || rate.bytes_per_second().is_some() {
        return LONGEST_PART.max(Duration::from_secs(bytes / (1 << 10)));
    }
    slowest.mul_f64(PATIENCE).max(SHORTEST_PATIENCE)
}

fn too_slow(job: &RemoteJob, name: &ObjectName, patience: Duration) -> JobError {
    let waited = ckptd_core::text::rough_duration(patience);
    let detail = format!("a part did not arrive within {waited}");
    let operation = crate::errors::Operation::UploadPart;
    job.storage().error(operation, Some(name), ErrorKind::Unreachable, &detail).into()
}

/// Length of every part but the last.
pub(super) fn part_bytes(bytes: u64, rate: Option<u64>, least: u64) -> u64 {
    let needed = bytes.div_ceil(MOST_PARTS).next_power_of_two();
    let wished = rate.map_or(PART_BYTES, |rate| PART_BYTES.min(rate * PART_TIME));
    wished.max(least).max(needed).next_multiple_of(PART_STEP)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_few_enough_and_short_at_a_limited_rate() {
        let mib = 1 << 20;
        assert_eq!(part_bytes(1 << 30, None, 5 * mib), 8 * mib);
        assert_eq!(part_bytes(100 << 30, None, 5 * mib), 16 * mib);
        assert_eq!(part_bytes(1 << 30, Some(100 << 10), 5 * mib), 5 * mib);
        assert_eq!(part_bytes(1 << 30, Some(100 << 10), 1), 1000 << 10);
        for bytes in [1, 1 << 20, 1 << 40, 40 << 40] {
            assert!(bytes / part_bytes(bytes, Some(1), 1) < 10_000);
        }
    }
}
