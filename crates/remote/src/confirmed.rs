//! Writes whose outcome is known: after anything but a plain `Ok`, what is there is read and compared.
//!
//! A lost answer, an error after the write was applied, a refusal of one's own repeated request and a refusal where
//! nothing was stored all look alike to a client. So no error and no "already there" is believed.
//!
//! Invariant: [`Outcome::Mine`] is only said of bytes that the store confirmed or that were read back. Deliberately not
//! here: trying again, which is for the caller to decide.

use std::sync::Arc;

use bytes::Bytes;

use crate::errors::{ErrorKind, ObjectError, Result};
use crate::names::ObjectName;
use crate::objects::{Created, Head, Object, ObjectStorage, ObjectVersion, PartReceipt, Swapped, UploadId};

/// Objects that are written under a condition are small; a larger one is another's.
const MAX_BYTES: u64 = 1 << 20;

/// What is true after a write.
#[derive(Clone, Debug)]
pub enum Outcome<T> {
    /// What was to be written is there.
    Mine(ObjectVersion),
    /// Another's is there.
    Other(T),
    /// It is as it was before: no object after a create, the expected version after a swap. Try again, unless what was
    /// told says that it will not help. What was sent may still arrive later.
    NotThere(Option<ObjectError>),
    /// Nothing can be said: the write failed, and so did the look at its result.
    Unknown(ObjectError),
}

impl<T> Outcome<T> {
    /// Whether what was to be written is there.
    pub fn is_mine(&self) -> bool {
        matches!(self, Outcome::Mine(_))
    }
}

/// A store whose conditional writes are confirmed by reading back.
#[derive(Clone, Debug)]
pub struct ConfirmedStorage {
    storage: Arc<dyn ObjectStorage>,
}

impl ConfirmedStorage {
    /// Confirms the writes to `storage`.
    pub fn new(storage: Arc<dyn ObjectStorage>) -> ConfirmedStorage {
        ConfirmedStorage { storage }
    }

    /// The store below, for all that needs no confirmation.
    pub fn storage(&self) -> &Arc<dyn ObjectStorage> {
        &self.storage
    }

    /// Writes an object where there is none. `body` must hold a nonce that no other writer uses, or else equal bytes
    /// must mean the same: what is there is "mine" if it is byte for byte the same.
    pub async fn create(&self, name: &ObjectName, body: Bytes) -> Outcome<Option<Object>> {
        let told = match self.storage.create(name, body.clone()).await {
            Ok(Created::Created(version)) => return Outcome::Mine(version),
            Ok(Created::AlreadyThere) => None,
            Err(error) if error.kind == ErrorKind::Config => return Outcome::Unknown(error),
            Err(error) => Some(error),
        };
        match self.look(name).await {
            Ok(Seen::Nothing) => Outcome::NotThere(told),
            Ok(Seen::Object(object)) if object.body == body => Outcome::Mine(object.version),
            Ok(Seen::Object(object)) => Outcome::Other(Some(object)),
            Ok(Seen::Large) => Outcome::Other(None),
            Err(error) => Outcome::Unknown(told.unwrap_or(error)),
        }
    }

    /// Replaces an object of version `expected`. For `body` see [`ConfirmedStorage::create`]. An object that is gone is
    /// another's doing: `Other(None)`.
    pub async fn swap(&self, name: &ObjectName, expected: &ObjectVersion, body: Bytes) -> Outcome<Option<Object>> {
        let told = match self.storage.swap(name, expected, body.clone()).await {
            Ok(Swapped::Swapped(version)) => return Outcome::Mine(version),
            Ok(Swapped::Changed) => None,
            Err(error) if matches!(error.kind, ErrorKind::Config | ErrorKind::Unsupported) => {
                return Outcome::Unknown(error);
            }
            Err(error) => Some(error),
        };
        match self.look(name).await {
            Ok(Seen::Object(object)) if object.body == body => Outcome::Mine(object.version),
            Ok(Seen::Object(object)) if object.version == *expected => Outcome::NotThere(told),
            Ok(Seen::Object(object)) => Outcome::Other(Some(object)),
            Ok(Seen::Nothing | Seen::Large) => Outcome::Other(None),
            Err(error) => Outcome::Unknown(told.unwrap_or(error)),
        }
    }

    /// Completes an upload of `bytes` bytes. "Mine" is said by the length alone: the content is known when it has been
    /// read back.
    pub async fn complete_upload(
        &self,
        name: &ObjectName,
        upload: &UploadId,
        parts: &[PartReceipt],
        bytes: u64,
    ) -> Outcome<Head> {
        let told = self.storage.complete_upload(name, upload, parts).await;
        match (self.storage.head(name).await, told) {
            (Ok(Some(head)), told) if head.bytes == bytes => {
                Outcome::Mine(head.version.or(told.ok()).unwrap_or_else(|| ObjectVersion(bytes.to_string())))
            }
            (Ok(Some(head)), _) => Outcome::Other(head),
            (Ok(None), told) => Outcome::NotThere(told.err()),
            (Err(error), Ok(_)) => Outcome::Unknown(error),
            (Err(_), Err(error)) => Outcome::Unknown(error),
        }
    }

    async fn look(&self, name: &ObjectName) -> Result<Seen> {
        match self.storage.get(name, MAX_BYTES).await {
            Ok(None) => Ok(Seen::Nothing),
            Ok(Some(object)) => Ok(Seen::Object(object)),
            Err(error) if error.kind == ErrorKind::TooLarge => Ok(Seen::Large),
            Err(error) => Err(error),
        }
    }
}

/// What stands under a name.
enum Seen {
    Nothing,
    Object(Object),
    /// More than anything that is written under a condition.
    Large,
}
