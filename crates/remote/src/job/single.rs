//! One file of the user's own at a remote, such as a bundle: sent and checked, or fetched.
//!
//! Invariant: what is said to be there was read back whole, or the store has confirmed a digest of every part. A file
//! that did not arrive whole is removed again, and parts of it are aborted. Deliberately not here: what is in the file.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};

use ckptd_core::error::Error;
use ckptd_core::progress::ProgressSink;

use super::companions::hash_of;
use super::error::{JobError, Result};
use super::part_source::PartSource;
use super::place::RemoteJob;
use super::retry::again;
use super::send::{IN_FLIGHT, PART_BYTES, confirms_digests, part_bytes};
use crate::confirmed::{ConfirmedStorage, Outcome};
use crate::layout::ContentHash;
use crate::names::ObjectName;
use crate::objects::{PartReceipt, UploadId};
use crate::records::Checked;

/// How often the sink is asked whether the work is still wanted.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// How long a request under way is waited for after the work was called off.
const PATIENCE: Duration = Duration::from_secs(3);

/// A file in a folder of a remote.
#[derive(Clone, Debug)]
pub struct SingleFile {
    folder: RemoteJob,
    name: ObjectName,
}

impl SingleFile {
    /// The file `name` in the remote's own folder.
    pub fn new(folder: RemoteJob, name: ObjectName) -> SingleFile {
        SingleFile { folder, name }
    }

    /// Where it is: `s3://bucket/folder/name`.
    pub fn place(&self) -> String {
        format!("{}/{}", self.folder.place().trim_end_matches('/'), self.name)
    }

    /// Its length; none where it is not there.
    pub async fn bytes(&self) -> Result<Option<u64>> {
        Ok(self.folder.storage().head(&self.name).await?.map(|head| head.bytes))
    }

    /// Its first bytes, `count` of them or all.
    pub async fn beginning(&self, count: u64) -> Result<Bytes> {
        let end = self.bytes().await?.unwrap_or(0).min(count);
        Ok(self.folder.storage().get_range(&self.name, 0..end).await?)
    }

    /// Sends the file at `path`, whatever was there, and checks it at its destination.
    pub async fn send(&self, path: &Path, progress: &dyn ProgressSink) -> Result<Checked> {
        unless_called_off(progress, self.send_whole(path, progress)).await
    }

    async fn send_whole(&self, path: &Path, progress: &dyn ProgressSink) -> Result<Checked> {
        let (hash, bytes) = hash_of(path)?;
        let hash = ContentHash::from(*hash.as_bytes());
        let is_confirmed = confirms_digests(&self.folder).await;
        progress.begin(&format!("sending to {}", self.folder.place()), bytes);
        self.send_parts(path, bytes, progress).await?;
        let there = self.bytes().await?;
        if there != Some(bytes) {
            return Err(self.not_whole("has another length than what was sent"));
        }
        if is_confirmed {
            return Ok(Checked::Digests);
        }
        progress.begin("reading it back", bytes);
        if self.read(bytes, &mut |piece| progress.advance(piece.len() as u64)).await? == hash {
            return Ok(Checked::Whole);
        }
        // A damaged bundle is of less use than none.
        self.folder.storage().delete(&self.name).await?;
        Err(self.not_whole("was damaged on its way, and is removed again; try again"))
    }

    fn not_whole(&self, what: &str) -> JobError {
        Error::damaged(self.place(), what).into()
    }

    async fn send_parts(&self, path: &Path, bytes: u64, progress: &dyn ProgressSink) -> Result<()> {
        let source = PartSource::file(path)?;
        let storage = self.folder.storage();
        if bytes <= PART_BYTES {
            let body = source.read(0, bytes).await?;
            again(|| async { Ok(storage.put(&self.name, body.clone()).await.map(drop)?) }).await?;
            return Ok(progress.advance(bytes)?);
        }
        let part_bytes = part_bytes(bytes, None, storage.abilities().min_part_bytes);
        let upload = Begun::new(self, storage.begin_upload(&self.name, part_bytes).await?);
        let outcome = async {
            let count = u32::try_from(bytes.div_ceil(part_bytes)).unwrap_or(u32::MAX);
            let send_part = |index: u32| {
                let (source, id) = (&source, &upload.id);
                async move {
                    let from = u64::from(index) * part_bytes;
                    let body = source.read(from, part_bytes.min(bytes - from)).await?;
                    let length = body.len() as u64;
                    let send =
                        || async { Ok(storage.upload_part(&self.name, id, index, part_bytes, body.clone()).await?) };
                    let receipt = again(send).await?;
                    progress.advance(length)?;
                    Ok::<_, JobError>(receipt)
                }
            };
            let sent = stream::iter(0..count).map(send_part).buffer_unordered(IN_FLIGHT);
            let mut parts: Vec<PartReceipt> = sent.try_collect().await?;
            parts.sort_by_key(|part| part.index);
            let confirmed = ConfirmedStorage::new(self.folder.shared());
            match confirmed.complete_upload(&self.name, &upload.id, &parts, bytes).await {
                Outcome::Mine(_) => Ok(()),
                Outcome::Unknown(error) | Outcome::NotThere(Some(error)) => Err(error.into()),
                Outcome::NotThere(None) | Outcome::Other(_) => Err(self.not_whole("did not arrive; try again")),
            }
        };
        let outcome = outcome.await;
        upload.end(outcome.is_ok()).await;
        outcome
    }

    /// Fetches it to the new file `path`, which is whole when this is.
    pub async fn fetch(&self, path: &Path, progress: &dyn ProgressSink) -> Result<u64> {
        unless_called_off(progress, self.fetch_whole(path, progress)).await
    }

    async fn fetch_whole(&self, path: &Path, progress: &dyn ProgressSink) -> Result<u64> {
        let head = self.folder.storage().head(&self.name).await?;
        let Some(before) = head else { return Err(Error::NotFound(format!("{} is not there", self.place())).into()) };
        let mut file = File::create_new(path).map_err(|e| Error::io("creating", path, e))?;
        progress.begin(&format!("fetching {}", self.name), before.bytes);
        self.read(before.bytes, &mut |piece| {
            file.write_all(piece).map_err(|e| Error::io("writing", path, e))?;
            progress.advance(piece.len() as u64)
        })
        .await?;
        if self.folder.storage().head(&self.name).await? != Some(before.clone()) {
            return Err(self.not_whole("was changed while it was read; try again"));
        }
        Ok(before.bytes)
    }

    /// Gives all of its bytes to `take`, in their order; what they hash to.
    async fn read(&self, bytes: u64, take: &mut dyn FnMut(&[u8]) -> ckptd_core::Result<()>) -> Result<ContentHash> {
        let storage = self.folder.storage();
        let range = |index: u64| async move {
            let (from, to) = (index * PART_BYTES, bytes.min((index + 1) * PART_BYTES));
            again(|| async { Ok(storage.get_range(&self.name, from..to).await?) }).await
        };
        let mut pieces = stream::iter(0..bytes.div_ceil(PART_BYTES)).map(range).buffered(IN_FLIGHT);
        let mut hasher = blake3::Hasher::new();
        while let Some(piece) = pieces.next().await {
            let piece = piece?;
            hasher.update(&piece);
            take(&piece)?;
        }
        Ok(ContentHash::from(*hasher.finalize().as_bytes()))
    }
}

/// An upload that was begun. Where it is not completed, its parts are removed, since nobody else knows of them.
struct Begun<'a> {
    of: &'a SingleFile,
    id: UploadId,
}

impl<'a> Begun<'a> {
    fn new(of: &'a SingleFile, id: UploadId) -> Begun<'a> {
        Begun { of, id }
    }

    async fn end(self, is_complete: bool) {
        if !is_complete {
            // The error that led here says more than one of this removal.
            let _ = self.of.folder.storage().abort_upload(&self.of.name, &self.id).await;
        }
    }
}

/// Does `work` to its end: a sink that calls it off fails the next step of it, so that it can clear up.
async fn unless_called_off<T>(progress: &dyn ProgressSink, work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::pin!(work);
    let mut called_off = None;
    loop {
        tokio::select! {
            done = &mut work => return done,
            () = tokio::time::sleep(LOOK_INTERVAL) => {}
        }
        if let Err(error) = progress.advance(0) {
            // A request under way is given the time to end.
            let since = called_off.get_or_insert_with(tokio::time::Instant::now);
            if since.elapsed() > PATIENCE {
                return Err(error.into());
            }
        }
    }
}
