//! The trait over object stores, and the values that it takes and gives.
//!
//! Invariant: `Ok` is a promise, an error is not: after an error a write may have happened, may not have happened, or
//! may still happen later ([`crate::confirmed`] finds out which). Deliberately not here: retries, limits of the rate,
//! and what the objects mean.

use std::fmt;
use std::ops::Range;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use serde::{Deserialize, Serialize};

use crate::errors::{ErrorKind, ObjectError, Operation, Result};
use crate::names::ObjectName;

/// A store of objects below one prefix. All names are relative to that prefix.
///
/// An object is seen whole or not at all, and is seen by every reader as soon as the writer was told `Ok`
/// (where [`Abilities::whole_creates`] says otherwise, an object that is being created is the exception).
/// Dropping a future gives the request up; what it would have done is then unknown.
#[async_trait]
pub trait ObjectStorage: Send + Sync + fmt::Debug {
    /// Scheme, bucket and prefix, as `s3://bucket/job`, without a slash at the end and without credentials.
    fn place(&self) -> &str;

    /// What the store can do.
    fn abilities(&self) -> Abilities;

    /// Writes an object where there is none.
    async fn create(&self, name: &ObjectName, body: Bytes) -> Result<Created>;

    /// Replaces an object that is still of version `expected`.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] where [`Abilities::swap`] is false.
    async fn swap(&self, name: &ObjectName, expected: &ObjectVersion, body: Bytes) -> Result<Swapped>;

    /// Writes an object, whatever was there.
    async fn put(&self, name: &ObjectName, body: Bytes) -> Result<ObjectVersion>;

    /// A whole object of at most `max_bytes`; none where it is not there.
    ///
    /// # Errors
    /// [`ErrorKind::TooLarge`] where it has more bytes.
    async fn get(&self, name: &ObjectName, max_bytes: u64) -> Result<Option<Object>>;

    /// The bytes of `range` as they come, of one version of the object. The stream gives exactly as many bytes as the
    /// range has, or ends with an error.
    ///
    /// # Errors
    /// [`ErrorKind::NotThere`] where there is no such object, [`ErrorKind::BadAnswer`] where it ends before the range.
    async fn read_range(&self, name: &ObjectName, range: Range<u64>) -> Result<RangeStream>;

    /// Size and version of an object; none where it is not there.
    async fn head(&self, name: &ObjectName) -> Result<Option<Head>>;

    /// All objects whose names begin with `prefix`, sorted by name. `prefix` is empty, or ends with a `/`.
    ///
    /// A list is whole: what ends early is an error. What does not parse as a name is not ours, and is left out.
    async fn list(&self, prefix: &str) -> Result<Vec<Listed>>;

    /// Removes an object; one that is gone is no error.
    async fn delete(&self, name: &ObjectName) -> Result<()>;

    /// Begins an upload in parts, which are all of `part_bytes` except for the last one. Nothing is seen of it until it
    /// is completed.
    async fn begin_upload(&self, name: &ObjectName, part_bytes: u64) -> Result<UploadId>;

    /// Sends the part `index`, counted from 0; a part may be sent again, and in any order. It begins at `index` times
    /// `part_bytes`, which must be what the upload began with.
    ///
    /// # Errors
    /// [`ErrorKind::NoUpload`] where the upload is gone.
    async fn upload_part(
        &self,
        name: &ObjectName,
        upload: &UploadId,
        index: u32,
        part_bytes: u64,
        body: Bytes,
    ) -> Result<PartReceipt>;

    /// Makes an object of all parts in their order, whatever was there under its name.
    ///
    /// # Errors
    /// [`ErrorKind::NoUpload`] where the upload is gone: it was aborted, or completed by an earlier try.
    async fn complete_upload(
        &self,
        name: &ObjectName,
        upload: &UploadId,
        parts: &[PartReceipt],
    ) -> Result<ObjectVersion>;

    /// Removes the parts of an upload; one that is gone is no error.
    async fn abort_upload(&self, name: &ObjectName, upload: &UploadId) -> Result<()>;

    /// Removes what killed writers left behind and nobody has touched for `idle`, by the store's own clock; returns how
    /// many pieces. Does nothing where [`Abilities::sweeps`] is false.
    async fn sweep(&self, idle: Duration) -> Result<u64>;

    /// Whether the store refuses a body that was changed on its way. Writes to `scratch`, and removes it again.
    ///
    /// This is what [`Abilities::digests`] cannot promise: that the server at the other end really compares.
    async fn checks_digests(&self, _scratch: &ObjectName) -> Result<bool> {
        Ok(false)
    }

    /// What becomes of parts of an upload that nobody completes or aborts.
    async fn parts_rule(&self) -> Result<PartsRule> {
        Ok(PartsRule::Swept)
    }

    /// How many seconds this machine's clock is ahead of the store's, as its newest answer says; none where it does
    /// not say.
    fn clock_offset_s(&self) -> Option<i64> {
        None
    }

    /// The bytes of `range`.
    ///
    /// # Errors
    /// As [`ObjectStorage::read_range`].
    async fn get_range(&self, name: &ObjectName, range: Range<u64>) -> Result<Bytes> {
        let mut bytes = Vec::new();
        self.read_into(name, range, &mut bytes).await?;
        Ok(bytes.into())
    }

    /// Puts the bytes of `range` into `bytes`, in place of what is there.
    ///
    /// # Errors
    /// As [`ObjectStorage::read_range`].
    async fn read_into(&self, name: &ObjectName, range: Range<u64>, bytes: &mut Vec<u8>) -> Result<()> {
        bytes.clear();
        bytes.reserve_exact(usize::try_from(range.end.saturating_sub(range.start)).unwrap_or(0));
        let mut pieces = self.read_range(name, range).await?;
        while let Some(piece) = pieces.next().await {
            bytes.extend_from_slice(&piece?);
        }
        Ok(())
    }

    /// An error of this store.
    fn error(&self, operation: Operation, name: Option<&ObjectName>, kind: ErrorKind, detail: &str) -> ObjectError {
        ObjectError::new(operation, self.place(), name, kind, detail)
    }
}

/// The bytes of a range as they come.
pub type RangeStream = BoxStream<'static, Result<Bytes>>;

/// What a store can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Abilities {
    /// [`ObjectStorage::swap`] works. Where it does not, an epoch is an object that is created once.
    pub swap: bool,
    /// Each body carries a digest that the store is documented to compare.
    pub digests: bool,
    /// What is created is seen whole or not at all. False in folders without hard links and without a rename that
    /// never replaces: a reader may see the beginning of an object that is being created.
    pub whole_creates: bool,
    /// [`ObjectStorage::sweep`] finds leftovers. Where it does not, a lifecycle rule of the bucket must.
    pub sweeps: bool,
    /// The most parts of an upload.
    pub max_parts: u32,
    /// The least bytes of each part but the last.
    pub min_part_bytes: u64,
}

/// What becomes of the parts of an upload that nobody completes or aborts: they are paid for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PartsRule {
    /// [`ObjectStorage::sweep`] finds them.
    Swept,
    /// The store drops them by itself after so many days, or by a rule of the bucket.
    Dropped { days: u32 },
    /// The bucket has no rule that removes them; how one is made.
    Missing { remedy: String },
    /// These credentials may not look; how to look, and how a rule is made.
    NotShown { remedy: String },
}

/// What became of [`ObjectStorage::create`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Created {
    /// The object is there, and it is this one.
    Created(ObjectVersion),
    /// The store says that there is one already. It may be this very one, or none: see [`crate::confirmed`].
    AlreadyThere,
}

/// What became of [`ObjectStorage::swap`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Swapped {
    /// The object is replaced, and this is its version.
    Swapped(ObjectVersion),
    /// The store says that its version is another one, or that it is gone. See [`crate::confirmed`].
    Changed,
}

/// Tells one content of an object from the next: compared for equality only, and only within one store.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ObjectVersion(pub String);

impl fmt::Display for ObjectVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A whole object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    pub body: Bytes,
    pub version: ObjectVersion,
}

/// What is known of an object without reading it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    pub bytes: u64,
    /// None where the version is known by reading only (folders, SFTP).
    pub version: Option<ObjectVersion>,
}

/// One entry of a list.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Listed {
    pub name: ObjectName,
    pub bytes: u64,
}

/// An upload that was begun: a text of the store that may be written down, so that a later process can go on.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct UploadId(pub String);

/// A part that the store has: may be written down, so that a later process need not send it again.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PartReceipt {
    /// Counted from 0.
    pub index: u32,
    /// How the store calls it.
    pub tag: String,
    pub bytes: u64,
}

/// The version of a small object, where it is its content.
pub(crate) fn version_of(body: &[u8]) -> ObjectVersion {
    ObjectVersion(blake3::hash(body).to_hex()[..32].to_owned())
}

/// The bytes of an upload whose parts lie in one file, each at the offset that its tag says; none where one is missing.
pub(crate) fn end_of(parts: &[PartReceipt]) -> Option<u64> {
    let mut end = 0;
    for (index, part) in (0..).zip(parts) {
        if part.index != index || part.tag != end.to_string() {
            return None;
        }
        end += part.bytes;
    }
    Some(end)
}
