//! What a machine needs besides a snapshot, such as tokens: sent once, under its content's hash.
//!
//! Invariant: a marker names such a file only after it was read back whole, by this process or by the one that wrote an
//! earlier marker. A fetched file gets its name only after its hash matched. Deliberately not here: which files these
//! are (the caller), and the job file.

use std::collections::BTreeSet;
use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ckptd_core::error::Error;
use ckptd_core::os::fs;
use ckptd_core::os::publish::{Existing, publish};
use ckptd_core::progress::{NoProgress, ProgressSink};
use ckptd_core::store::Manifest;

use super::error::{JobError, Result};
use super::part_source::PartSource;
use super::place::RemoteJob;
use super::retry::again;
use super::send::{SendOptions, send_file};
use super::survey::Survey;
use super::unnamed;
use crate::layout::{ContentHash, JobObject};
use crate::records::BlobRecord;

/// Bytes that are read at a time.
const PIECE_BYTES: usize = 1 << 20;
const RANGE_BYTES: u64 = 8 << 20;

/// A file that is to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Companion {
    /// What it is called on the machine that fetches it: "tokens.bin".
    pub name: String,
    /// What is in it.
    pub body: CompanionBody,
}

/// Where the content of a file is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CompanionBody {
    /// In a file here.
    File(PathBuf),
    /// It is small, and this.
    Text(String),
}

type Finder = dyn Fn(&Manifest) -> ckptd_core::Result<Vec<Companion>> + Send + Sync;
type Places = dyn Fn(&Manifest) -> Vec<(String, PathBuf)> + Send + Sync;

/// Says what belongs to a snapshot, and where it goes on a machine that lacks it.
#[derive(Clone)]
pub struct CompanionSource {
    find: Arc<Finder>,
    places: Arc<Places>,
}

impl CompanionSource {
    /// Asks `find`.
    pub fn new(find: impl Fn(&Manifest) -> ckptd_core::Result<Vec<Companion>> + Send + Sync + 'static) -> Self {
        CompanionSource { find: Arc::new(find), places: Arc::new(|_| Vec::new()) }
    }

    /// The same, and `places` says what this machine lacks for a snapshot: names, and where the files go.
    #[must_use]
    pub fn with_places(self, places: impl Fn(&Manifest) -> Vec<(String, PathBuf)> + Send + Sync + 'static) -> Self {
        CompanionSource { places: Arc::new(places), ..self }
    }

    /// Nothing belongs to any.
    pub fn none() -> CompanionSource {
        CompanionSource::new(|_| Ok(Vec::new()))
    }

    /// What belongs to the snapshot with this manifest.
    pub fn of(&self, manifest: &Manifest) -> ckptd_core::Result<Vec<Companion>> {
        (self.find)(manifest)
    }

    /// Fetches what this machine lacks for the snapshot with this manifest; returns where it is now.
    pub async fn bring(&self, job: &RemoteJob, manifest: &Manifest) -> Result<Vec<PathBuf>> {
        let places = (self.places)(manifest);
        let mut brought = Vec::new();
        if places.is_empty() {
            return Ok(brought);
        }
        for blob in newest_blobs(job).await? {
            let Some((_, path)) = places.iter().find(|(name, _)| *name == blob.name) else { continue };
            if !path.exists() {
                if let Some(folder) = path.parent() {
                    std::fs::create_dir_all(folder).map_err(|e| Error::io("creating", folder, e))?;
                }
                fetch_companion(job, &blob, path, &NoProgress).await?;
                brought.push(path.clone());
            }
        }
        Ok(brought)
    }
}

impl fmt::Debug for CompanionSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CompanionSource")
    }
}

/// What the newest snapshot that counts needs besides itself.
pub async fn newest_blobs(job: &RemoteJob) -> Result<Vec<BlobRecord>> {
    let survey = Survey::of(job).await?;
    for name in survey.in_order() {
        if let Some(marker) = survey.marker(job, &name).await?.filter(|marker| marker.healthy) {
            return Ok(marker.blobs);
        }
    }
    Ok(Vec::new())
}

/// Sends what is not there yet of `companions`, and reads it back.
pub async fn send_companions(
    job: &RemoteJob,
    companions: Vec<Companion>,
    options: &SendOptions<'_>,
) -> Result<Vec<BlobRecord>> {
    if companions.is_empty() {
        return Ok(Vec::new());
    }
    let vouched = vouched_for(job).await?;
    let mut records = Vec::new();
    for Companion { name, body } in companions {
        let (hash, bytes) = match &body {
            CompanionBody::Text(text) => (blake3::hash(text.as_bytes()), text.len() as u64),
            CompanionBody::File(path) => {
                let path = path.clone();
                let hashing = tokio::task::spawn_blocking(move || hash_of(&path));
                hashing.await.map_err(|e| JobError::other(format!("hashing a file: {e}")))??
            }
        };
        let hash = ContentHash::from(*hash.as_bytes());
        let object = JobObject::Blob(hash.clone());
        // It was to be deleted, since no marker named it; one will again.
        let was_condemned = unnamed::reprieve(job, &hash).await?;
        let is_there = job.storage().head(&object.name()).await?.is_some_and(|head| head.bytes == bytes);
        let record = BlobRecord { name, hash, bytes };
        if !is_there {
            send_body(job, &body, &record, options).await?;
        }
        if !is_there || was_condemned || !vouched.contains(&record.hash) {
            match read_blob(job, &record, |_| Ok(())).await {
                // Damaged on the way, or since: it is replaced.
                Err(error) if error.is_of_the_file() => {
                    send_body(job, &body, &record, options).await?;
                    read_blob(job, &record, |_| Ok(())).await?;
                }
                outcome => outcome?,
            }
        }
        records.push(record);
    }
    Ok(records)
}

async fn send_body(job: &RemoteJob, body: &CompanionBody, blob: &BlobRecord, options: &SendOptions<'_>) -> Result<()> {
    let object = JobObject::Blob(blob.hash.clone());
    match body {
        CompanionBody::File(path) => {
            send_file(job, &PartSource::file(path)?, &object, &blob.hash, blob.bytes, options).await
        }
        CompanionBody::Text(text) => {
            let body = bytes::Bytes::from(text.clone());
            again(|| async { Ok(job.storage().put(&object.name(), body.clone()).await.map(drop)?) }).await
        }
    }
}

/// Files that the newest marker names: whoever wrote it had read them back.
async fn vouched_for(job: &RemoteJob) -> Result<BTreeSet<ContentHash>> {
    let survey = Survey::of(job).await?;
    let Some(name) = survey.markers.last() else { return Ok(BTreeSet::new()) };
    let marker = job.marker(name).await?;
    Ok(marker.into_iter().flat_map(|marker| marker.blobs).map(|blob| blob.hash).collect())
}

/// Hash and length of a file.
pub(super) fn hash_of(path: &Path) -> ckptd_core::Result<(blake3::Hash, u64)> {
    let mut file = fs::open_path(path)?;
    let (mut hasher, mut bytes, mut piece) = (blake3::Hasher::new(), 0, vec![0; PIECE_BYTES]);
    loop {
        match file.read(&mut piece).map_err(|e| Error::io("reading", path, e))? {
            0 => return Ok((hasher.finalize(), bytes)),
            length => {
                hasher.update(&piece[..length]);
                bytes += length as u64;
            }
        }
    }
}

/// Reads a file there piece by piece, and holds the whole of it against its hash.
async fn read_blob(
    job: &RemoteJob,
    blob: &BlobRecord,
    mut take: impl FnMut(&[u8]) -> ckptd_core::Result<()>,
) -> Result<()> {
    let object = JobObject::Blob(blob.hash.clone());
    let damaged = |what: &str| Err(Error::damaged(job.path_of(&object), what).into());
    match job.storage().head(&object.name()).await? {
        None => return damaged("is not there"),
        Some(head) if head.bytes != blob.bytes => return damaged("has another length than its marker says"),
        Some(_) => {}
    }
    let mut hasher = blake3::Hasher::new();
    let mut from = 0;
    while from < blob.bytes {
        let to = blob.bytes.min(from + RANGE_BYTES);
        let range = || async { Ok(job.storage().get_range(&object.name(), from..to).await?) };
        let piece = again(range).await?;
        hasher.update(&piece);
        take(&piece)?;
        from = to;
    }
    if ContentHash::from(*hasher.finalize().as_bytes()) != blob.hash {
        return damaged("is not what its name says");
    }
    Ok(())
}

/// Whether all of `blobs` are still there, as far as their lengths tell.
pub async fn are_there(job: &RemoteJob, blobs: &[BlobRecord]) -> Result<bool> {
    for blob in blobs {
        let head = job.storage().head(&JobObject::Blob(blob.hash.clone()).name()).await?;
        if head.is_none_or(|head| head.bytes != blob.bytes) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Whether the file at `path` is that of `blob`.
pub fn is_whole(path: &Path, blob: &BlobRecord) -> ckptd_core::Result<bool> {
    let (hash, bytes) = hash_of(path)?;
    Ok(bytes == blob.bytes && ContentHash::from(*hash.as_bytes()) == blob.hash)
}

/// Fetches the file of `blob` to `path`, where it appears when it is whole and nothing else has come there.
pub async fn fetch_companion(
    job: &RemoteJob,
    blob: &BlobRecord,
    path: &Path,
    progress: &dyn ProgressSink,
) -> Result<()> {
    let mut partial = path.as_os_str().to_owned();
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    let io = |operation| {
        let partial = partial.clone();
        move |e| Error::io(operation, partial, e)
    };
    progress.begin(&format!("fetching {}", blob.name), blob.bytes);
    let mut file = std::fs::File::create(&partial).map_err(io("creating"))?;
    let fetched = read_blob(job, blob, |piece| {
        std::io::Write::write_all(&mut file, piece).map_err(io("writing"))?;
        progress.advance(piece.len() as u64)
    });
    let fetched = match fetched.await {
        Ok(()) => publish(&file, &partial, path, Existing::Keep).map_err(JobError::from),
        Err(error) => Err(error),
    };
    if fetched.is_err() {
        // Half a file is of no use to anybody.
        let _ = std::fs::remove_file(&partial);
    }
    fetched
}
