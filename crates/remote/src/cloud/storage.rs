//! The trait over the client library, for all stores that are reached by HTTP.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt};
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path;
use object_store::{
    Error as StoreError, GetOptions, GetRange, ObjectMeta, ObjectStore, ObjectStoreExt, PutMode, PutOptions,
    PutPayload, PutResult, UpdateVersion,
};

use super::answers::Reader;
use super::lifecycle::BucketRules;
use crate::errors::{ErrorKind, ObjectError, Operation, Result};
use crate::names::ObjectName;
use crate::objects::{
    Abilities, Created, Head, Listed, Object, ObjectStorage, ObjectVersion, PartReceipt, PartsRule, RangeStream,
    Swapped, UploadId,
};

/// A body to try with whether a store compares digests.
const SCRATCH: &[u8] = b"a bit of this is changed on its way";

/// What one of the library's stores can do.
pub trait Client: ObjectStore + MultipartStore {}

impl<T: ObjectStore + MultipartStore> Client for T {}

/// How a store names a version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VersionBy {
    ETag,
    /// The number of the generation (Google).
    Generation,
}

/// The same store three times, with other patience.
#[derive(Clone)]
pub struct Clients {
    /// The same with a cheaper digest, which not every store compares.
    pub cheaper: Option<CheaperDigest>,
    /// Small objects, conditions: a failure is told soon.
    pub control: Arc<dyn Client>,
    /// Parts, ranges, lists: tried for long.
    pub data: Arc<dyn Client>,
    /// Changes each body on its way, after its digest was computed.
    pub tampering: Arc<dyn Client>,
}

/// Clients whose digest costs less time than that of the others.
#[derive(Clone)]
pub struct CheaperDigest {
    data: Arc<dyn Client>,
    /// Asks once: a store may answer that it is out of order where it does not know the digest.
    trial: Arc<dyn Client>,
    tampering: Arc<dyn Client>,
    /// The store was seen to take a body with this digest, and to refuse a changed one.
    is_compared: Arc<AtomicBool>,
}

impl CheaperDigest {
    /// Clients that are used once the store was seen to compare their digest.
    pub fn new(data: Arc<dyn Client>, trial: Arc<dyn Client>, tampering: Arc<dyn Client>) -> CheaperDigest {
        CheaperDigest { data, trial, tampering, is_compared: Arc::default() }
    }
}

/// Objects in a bucket.
#[derive(Clone)]
pub struct CloudStorage {
    pub place: String,
    pub prefix: Path,
    pub clients: Clients,
    pub reader: Reader,
    pub version_by: VersionBy,
    pub abilities: Abilities,
    pub rules: BucketRules,
}

impl fmt::Debug for CloudStorage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CloudStorage({})", self.place)
    }
}

impl CloudStorage {
    fn path(&self, name: &str) -> Path {
        let prefix: &str = self.prefix.as_ref();
        Path::from(if prefix.is_empty() { name.to_owned() } else { format!("{prefix}/{name}") })
    }

    fn failed(&self, operation: Operation, name: Option<&ObjectName>, error: &StoreError) -> ObjectError {
        let (kind, detail) = self.reader.read(error);
        self.error(operation, name, kind, &detail)
    }

    fn version(&self, e_tag: Option<String>, version: Option<String>) -> Option<ObjectVersion> {
        match self.version_by {
            VersionBy::ETag => e_tag,
            VersionBy::Generation => version,
        }
        .map(ObjectVersion)
    }

    fn told_version(&self, operation: Operation, name: &ObjectName, told: PutResult) -> Result<ObjectVersion> {
        self.version(told.e_tag, told.version).ok_or_else(|| self.no_version(operation, name))
    }

    fn no_version(&self, operation: Operation, name: &ObjectName) -> ObjectError {
        self.error(operation, Some(name), ErrorKind::BadAnswer, "the answer does not say the object's version")
    }

    async fn put_if(
        &self,
        operation: Operation,
        name: &ObjectName,
        body: Bytes,
        mode: PutMode,
    ) -> Result<Option<ObjectVersion>> {
        let options = PutOptions { mode, ..PutOptions::default() };
        match self.clients.control.put_opts(&self.path(name.as_str()), PutPayload::from(body), options).await {
            Ok(told) => self.told_version(operation, name, told).map(Some),
            Err(
                StoreError::AlreadyExists { .. } | StoreError::Precondition { .. } | StoreError::NotModified { .. },
            ) => Ok(None),
            Err(e) => match self.failed(operation, Some(name), &e) {
                gone if gone.is_not_there() && operation == Operation::Swap => Ok(None),
                failed => Err(failed),
            },
        }
    }

    /// For parts and what belongs to them.
    fn parts_client(&self) -> &dyn Client {
        let cheaper = self.clients.cheaper.as_ref().filter(|cheaper| cheaper.is_compared.load(Relaxed));
        cheaper.map_or(&*self.clients.data, |cheaper| &*cheaper.data)
    }

    /// Whether the store refuses what `tampering` sends; what it takes is removed.
    async fn refuses(&self, tampering: &dyn Client, scratch: &ObjectName) -> Result<bool> {
        match tampering.put(&self.path(scratch.as_str()), PutPayload::from_static(SCRATCH)).await {
            Ok(_) => self.delete(scratch).await.map(|()| false),
            Err(e) => match self.failed(Operation::Put, Some(scratch), &e) {
                refused if refused.kind == ErrorKind::Refused => Ok(true),
                failed => Err(failed),
            },
        }
    }

    /// Whether the store compares the cheaper digest. A refusal shows that only where the same body, unchanged, is
    /// taken: a store may also refuse because it does not know the digest.
    async fn compares_cheaper(&self, cheaper: &CheaperDigest, scratch: &ObjectName) -> bool {
        let body = PutPayload::from_static(SCRATCH);
        if cheaper.trial.put(&self.path(scratch.as_str()), body).await.is_err() || self.delete(scratch).await.is_err() {
            return false;
        }
        self.refuses(&*cheaper.tampering, scratch).await.unwrap_or(false)
    }

    /// The entry of a list; none where the name is not ours.
    fn listed(&self, meta: ObjectMeta) -> Option<Listed> {
        let (location, prefix): (&str, &str) = (meta.location.as_ref(), self.prefix.as_ref());
        let below = location.strip_prefix(prefix)?;
        let name = ObjectName::new(below.trim_start_matches('/')).ok()?;
        Some(Listed { name, bytes: meta.size })
    }
}

/// None where the object is not there.
fn if_there<T>(result: Result<T>) -> Result<Option<T>> {
    match result {
        Ok(it) => Ok(Some(it)),
        Err(e) if e.is_not_there() => Ok(None),
        Err(e) => Err(e),
    }
}

#[async_trait]
impl ObjectStorage for CloudStorage {
    fn place(&self) -> &str {
        &self.place
    }

    fn abilities(&self) -> Abilities {
        self.abilities
    }

    async fn create(&self, name: &ObjectName, body: Bytes) -> Result<Created> {
        let created = self.put_if(Operation::Create, name, body, PutMode::Create).await?;
        Ok(created.map_or(Created::AlreadyThere, Created::Created))
    }

    async fn swap(&self, name: &ObjectName, expected: &ObjectVersion, body: Bytes) -> Result<Swapped> {
        let version = UpdateVersion { e_tag: Some(expected.0.clone()), version: Some(expected.0.clone()) };
        let swapped = self.put_if(Operation::Swap, name, body, PutMode::Update(version)).await?;
        Ok(swapped.map_or(Swapped::Changed, Swapped::Swapped))
    }

    async fn put(&self, name: &ObjectName, body: Bytes) -> Result<ObjectVersion> {
        let told = self.clients.data.put(&self.path(name.as_str()), PutPayload::from(body)).await;
        let told = told.map_err(|e| self.failed(Operation::Put, Some(name), &e))?;
        self.told_version(Operation::Put, name, told)
    }

    async fn get(&self, name: &ObjectName, max_bytes: u64) -> Result<Option<Object>> {
        let fail = |e: StoreError| self.failed(Operation::Get, Some(name), &e);
        let Some(found) = if_there(self.clients.control.get(&self.path(name.as_str())).await.map_err(fail))? else {
            return Ok(None);
        };
        if found.meta.size > max_bytes {
            let detail = format!("it has {} bytes, and at most {max_bytes} are expected", found.meta.size);
            return Err(self.error(Operation::Get, Some(name), ErrorKind::TooLarge, &detail));
        }
        let version = self.version(found.meta.e_tag.clone(), found.meta.version.clone());
        let version = version.ok_or_else(|| self.no_version(Operation::Get, name))?;
        let bytes = found.meta.size;
        let body = found.bytes().await.map_err(fail)?;
        if body.len() as u64 != bytes {
            return Err(self.error(Operation::Get, Some(name), ErrorKind::Unreachable, "the answer was cut short"));
        }
        Ok(Some(Object { body, version }))
    }

    async fn read_range(&self, name: &ObjectName, range: Range<u64>) -> Result<RangeStream> {
        if range.is_empty() {
            return Ok(futures_util::stream::empty().boxed());
        }
        let ends_early = |storage: &CloudStorage| {
            storage.error(Operation::GetRange, Some(name), ErrorKind::BadAnswer, "the object ends before the range")
        };
        let options = GetOptions { range: Some(GetRange::Bounded(range.clone())), ..GetOptions::default() };
        let found = self.clients.data.get_opts(&self.path(name.as_str()), options).await;
        let found = found.map_err(|e| self.failed(Operation::GetRange, Some(name), &e))?;
        if found.range != range {
            return Err(ends_early(self));
        }
        let (storage, name, mut left) = (self.clone(), name.clone(), range.end - range.start);
        let pieces = found.into_stream().map(Some).chain(futures_util::stream::iter([None]));
        let checked = pieces.filter_map(move |piece| {
            let fail = |kind, detail: &str| Some(Err(storage.error(Operation::GetRange, Some(&name), kind, detail)));
            std::future::ready(match piece {
                Some(Ok(bytes)) if bytes.len() as u64 <= left => {
                    left -= bytes.len() as u64;
                    Some(Ok(bytes))
                }
                Some(Ok(_)) => fail(ErrorKind::BadAnswer, "the answer is longer than what was asked for"),
                Some(Err(e)) => {
                    left = 0;
                    Some(Err(storage.failed(Operation::GetRange, Some(&name), &e)))
                }
                None if left > 0 => fail(ErrorKind::Unreachable, "the answer was cut short"),
                None => None,
            })
        });
        Ok(checked.boxed())
    }

    async fn head(&self, name: &ObjectName) -> Result<Option<Head>> {
        let found = self.clients.control.head(&self.path(name.as_str())).await;
        let found = if_there(found.map_err(|e| self.failed(Operation::Head, Some(name), &e)))?;
        Ok(found.map(|meta| Head { bytes: meta.size, version: self.version(meta.e_tag, meta.version) }))
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Listed>> {
        let below = self.path(prefix.trim_end_matches('/'));
        let below = (below != Path::default()).then_some(below);
        let found: Vec<ObjectMeta> = self
            .clients
            .data
            .list(below.as_ref())
            .try_collect()
            .await
            .map_err(|e| self.failed(Operation::List, None, &e))?;
        let mut listed: Vec<Listed> = found.into_iter().filter_map(|meta| self.listed(meta)).collect();
        listed.retain(|entry| entry.name.as_str().starts_with(prefix));
        listed.sort();
        Ok(listed)
    }

    async fn delete(&self, name: &ObjectName) -> Result<()> {
        let deleted = self.clients.control.delete(&self.path(name.as_str())).await;
        if_there(deleted.map_err(|e| self.failed(Operation::Delete, Some(name), &e))).map(|_| ())
    }

    async fn begin_upload(&self, name: &ObjectName, _part_bytes: u64) -> Result<UploadId> {
        let begun = self.parts_client().create_multipart(&self.path(name.as_str())).await;
        begun.map(UploadId).map_err(|e| self.failed(Operation::BeginUpload, Some(name), &e))
    }

    async fn upload_part(
        &self,
        name: &ObjectName,
        upload: &UploadId,
        index: u32,
        _part_bytes: u64,
        body: Bytes,
    ) -> Result<PartReceipt> {
        let bytes = body.len() as u64;
        let path = self.path(name.as_str());
        let sent = self.parts_client().put_part(&path, &upload.0, index as usize, PutPayload::from(body)).await;
        match sent {
            Ok(part) => Ok(PartReceipt { index, tag: part.content_id, bytes }),
            Err(e) => Err(no_upload(self.failed(Operation::UploadPart, Some(name), &e))),
        }
    }

    async fn complete_upload(
        &self,
        name: &ObjectName,
        upload: &UploadId,
        parts: &[PartReceipt],
    ) -> Result<ObjectVersion> {
        if !(0..).zip(parts).all(|(index, part): (u32, _)| part.index == index) {
            return Err(self.error(Operation::CompleteUpload, Some(name), ErrorKind::Refused, "a part is missing"));
        }
        let parts = parts.iter().map(|part| PartId { content_id: part.tag.clone() }).collect();
        let told = self.parts_client().complete_multipart(&self.path(name.as_str()), &upload.0, parts).await;
        let told = told.map_err(|e| no_upload(self.failed(Operation::CompleteUpload, Some(name), &e)))?;
        let (e_tag, version) = (told.e_tag, told.version);
        let version = self.version(e_tag.clone(), version).or(e_tag.map(ObjectVersion));
        version.ok_or_else(|| self.no_version(Operation::CompleteUpload, name))
    }

    async fn abort_upload(&self, name: &ObjectName, upload: &UploadId) -> Result<()> {
        let aborted = self.clients.control.abort_multipart(&self.path(name.as_str()), &upload.0).await;
        match aborted.map_err(|e| no_upload(self.failed(Operation::AbortUpload, Some(name), &e))) {
            Err(e) if e.kind != ErrorKind::NoUpload => Err(e),
            _ => Ok(()),
        }
    }

    async fn sweep(&self, _idle: Duration) -> Result<u64> {
        Ok(0)
    }

    async fn checks_digests(&self, scratch: &ObjectName) -> Result<bool> {
        if !self.abilities.digests {
            return Ok(false);
        }
        if let Some(cheaper) = &self.clients.cheaper {
            let is_compared = self.compares_cheaper(cheaper, scratch).await;
            cheaper.is_compared.store(is_compared, Relaxed);
            if is_compared {
                return Ok(true);
            }
        }
        self.refuses(&*self.clients.tampering, scratch).await
    }

    async fn parts_rule(&self) -> Result<PartsRule> {
        let rule = self.rules.parts_rule(self.prefix.as_ref()).await;
        rule.map_err(|(kind, detail)| self.error(Operation::Open, None, kind, &self.reader.redactor.clean(&detail)))
    }

    fn clock_offset_s(&self) -> Option<i64> {
        self.reader.clock.seconds()
    }
}

/// An upload that is gone is reported as an object that is not there.
fn no_upload(error: ObjectError) -> ObjectError {
    if error.is_not_there() { ObjectError { kind: ErrorKind::NoUpload, ..error } } else { error }
}
