//! A job at a remote: its small documents, read and written.
//!
//! Invariant: a document that does not parse, or that a later release wrote, is an error that names it, and never reads
//! as absent: what is absent is written anew.

use std::sync::Arc;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use ckptd_core::error::Error;
use ckptd_core::ids::RunId;

use super::error::{JobError, Result};
use super::retry::again;
use crate::confirmed::{ConfirmedStorage, Outcome};
use crate::errors::{ErrorKind, Operation};
use crate::layout::{JobObject, MarkerName, Prefix};
use crate::objects::{ObjectStorage, ObjectVersion};
use crate::records::{JobRecord, Marker, RunRecord, TrashRecord, VERSION};

/// Largest document that is read.
const MAX_DOCUMENT: u64 = 4 << 20;

/// A job at a remote.
#[derive(Clone, Debug)]
pub struct RemoteJob {
    storage: Arc<dyn ObjectStorage>,
}

impl RemoteJob {
    /// The job whose objects are below the prefix of `storage`.
    pub fn new(storage: Arc<dyn ObjectStorage>) -> RemoteJob {
        RemoteJob { storage }
    }

    /// The store of its objects.
    pub fn storage(&self) -> &dyn ObjectStorage {
        &*self.storage
    }

    /// The store of its objects, to be shared.
    pub(super) fn shared(&self) -> Arc<dyn ObjectStorage> {
        self.storage.clone()
    }

    /// Where it is, for messages: `s3://bucket/job`.
    pub fn place(&self) -> &str {
        self.storage.place()
    }

    /// Where one of its objects is, for messages.
    pub fn path_of(&self, object: &JobObject) -> String {
        format!("{}/{}", self.place().trim_end_matches('/'), object.path())
    }

    /// A document and its version; none where it is not there.
    pub async fn read<T: DeserializeOwned>(&self, object: &JobObject) -> Result<Option<(T, ObjectVersion)>> {
        let Some(found) = self.storage.get(&object.name(), MAX_DOCUMENT).await? else { return Ok(None) };
        match serde_json::from_slice(&found.body) {
            Ok(document) => Ok(Some((document, found.version))),
            Err(e) => Err(Error::malformed(self.path_of(object), format!("is no document of a job: {e}")).into()),
        }
    }

    /// Writes a document, whatever was there.
    pub async fn put<T: Serialize>(&self, object: &JobObject, document: &T) -> Result<()> {
        self.storage.put(&object.name(), json(document)?).await?;
        Ok(())
    }

    /// Removes an object.
    pub async fn delete(&self, object: &JobObject) -> Result<()> {
        Ok(self.storage.delete(&object.name()).await?)
    }

    /// Writes a document where none is. `false`: another one is there.
    pub async fn create<T: Serialize>(&self, object: &JobObject, document: &T) -> Result<bool> {
        match ConfirmedStorage::new(self.storage.clone()).create(&object.name(), json(document)?).await {
            Outcome::Mine(_) => Ok(true),
            Outcome::Other(_) => Ok(false),
            Outcome::Unknown(error) => Err(error.into()),
            // Whoever tries again does no harm: it is created once.
            Outcome::NotThere(Some(error)) if error.is_worth_retrying() => Err(error.into()),
            Outcome::NotThere(_) => {
                let (operation, name) = (Operation::Create, object.name());
                Err(self.storage.error(operation, Some(&name), ErrorKind::Unreachable, "the request was lost").into())
            }
        }
    }

    /// The training that the job is; none where nothing is there yet.
    pub async fn run_id(&self) -> Result<Option<RunId>> {
        let Some((run, _)) = self.read::<RunRecord>(&JobObject::Run).await? else { return Ok(None) };
        self.require_version(run.version, &JobObject::Run)?;
        Ok(Some(run.run_id))
    }

    /// The job as its file says; none where no session has told it.
    pub async fn job_record(&self) -> Result<Option<JobRecord>> {
        let Some((record, _)) = self.read::<JobRecord>(&JobObject::Job).await? else { return Ok(None) };
        self.require_version(record.version, &JobObject::Job)?;
        Ok(Some(record))
    }

    /// Makes the job that of a training, for good.
    ///
    /// # Errors
    /// [`Error::Config`] where it is that of another one.
    pub async fn claim_run(&self, run_id: &RunId) -> Result<()> {
        if self.run_id().await?.is_none() {
            let record = RunRecord { version: VERSION, run_id: run_id.clone() };
            again(|| self.create(&JobObject::Run, &record)).await?;
        }
        self.require_run(run_id).await
    }

    /// # Errors
    /// [`Error::Config`] where the job is that of another training.
    pub async fn require_run(&self, run_id: &RunId) -> Result<()> {
        match self.run_id().await? {
            Some(other) if other != *run_id => Err(Error::Config(format!(
                "{} holds the training {other}, the store here is of the training {run_id}; give each training a URL \
                 of its own",
                self.place()
            ))
            .into()),
            _ => Ok(()),
        }
    }

    /// A marker; none where it is gone.
    pub async fn marker(&self, name: &MarkerName) -> Result<Option<Marker>> {
        let object = JobObject::Commit(name.clone());
        let Some((marker, _)) = self.read::<Marker>(&object).await? else { return Ok(None) };
        self.require_version(marker.version, &object)?;
        if marker.name() != *name {
            return Err(Error::damaged(self.path_of(&object), "says another snapshot than its name").into());
        }
        Ok(Some(marker))
    }

    /// A marker that retention took away; none where that is over.
    pub async fn trashed(&self, name: &MarkerName) -> Result<Option<TrashRecord>> {
        let object = JobObject::Trash(name.clone());
        let record = self.read::<TrashRecord>(&object).await?.map(|(record, _)| record);
        Ok(record.filter(|record| record.marker.name() == *name))
    }

    /// All of the job's objects below a folder, in the order of their names. What is not ours is left out.
    pub async fn list(&self, prefix: Prefix) -> Result<Vec<(JobObject, u64)>> {
        let listed = self.storage.list(&format!("{}/", prefix.name())).await?;
        Ok(listed.into_iter().filter_map(|l| Some((JobObject::parse(l.name.as_str())?, l.bytes))).collect())
    }

    pub(super) fn require_version(&self, version: u32, object: &JobObject) -> Result<()> {
        if version <= VERSION {
            return Ok(());
        }
        let path = self.path_of(object);
        Err(JobError::other(format!(
            "{path}: a newer ckptd wrote this (layout {version}, this one reads {VERSION}); install that release"
        )))
    }
}

/// A document as it is written.
pub(super) fn json<T: Serialize>(document: &T) -> Result<Bytes> {
    let json = serde_json::to_vec_pretty(document).map_err(|e| JobError::other(format!("writing JSON: {e}")))?;
    Ok(json.into())
}
