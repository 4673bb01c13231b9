//! An object store in memory, for tests: every call takes effect at once, under one lock.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;

use crate::errors::{ErrorKind, Operation, Result};
use crate::names::ObjectName;
use crate::objects::{
    Abilities, Created, Head, Listed, Object, ObjectStorage, ObjectVersion, PartReceipt, RangeStream, Swapped, UploadId,
};

const PLACE: &str = "memory://test";

/// Objects in memory. Clones share them.
#[derive(Clone, Debug)]
pub struct MemoryStorage {
    state: Arc<Mutex<State>>,
    abilities: Abilities,
}

#[derive(Debug, Default)]
struct State {
    objects: BTreeMap<ObjectName, Object>,
    uploads: BTreeMap<String, BTreeMap<u32, Bytes>>,
    /// Given out as versions and upload ids, each once.
    count: u64,
}

impl State {
    fn next(&mut self) -> u64 {
        self.count += 1;
        self.count
    }

    fn write(&mut self, name: &ObjectName, body: Bytes) -> ObjectVersion {
        let version = ObjectVersion(self.next().to_string());
        self.objects.insert(name.clone(), Object { body, version: version.clone() });
        version
    }
}

impl Default for MemoryStorage {
    fn default() -> MemoryStorage {
        MemoryStorage::new()
    }
}

impl MemoryStorage {
    /// An empty store that can do everything.
    pub fn new() -> MemoryStorage {
        let abilities = Abilities {
            swap: true,
            digests: true,
            whole_creates: true,
            sweeps: true,
            max_parts: 10_000,
            min_part_bytes: 1,
        };
        MemoryStorage { state: Arc::default(), abilities }
    }

    /// An empty store that knows no compare-and-swap, as folders and SFTP.
    pub fn without_swap() -> MemoryStorage {
        let whole = MemoryStorage::new();
        MemoryStorage { abilities: Abilities { swap: false, ..whole.abilities }, ..whole }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl ObjectStorage for MemoryStorage {
    fn place(&self) -> &str {
        PLACE
    }

    fn abilities(&self) -> Abilities {
        self.abilities
    }

    async fn create(&self, name: &ObjectName, body: Bytes) -> Result<Created> {
        let mut state = self.state();
        if state.objects.contains_key(name) {
            return Ok(Created::AlreadyThere);
        }
        Ok(Created::Created(state.write(name, body)))
    }

    async fn swap(&self, name: &ObjectName, expected: &ObjectVersion, body: Bytes) -> Result<Swapped> {
        if !self.abilities.swap {
            return Err(self.error(
                Operation::Swap,
                Some(name),
                ErrorKind::Unsupported,
                "it knows no compare-and-swap",
            ));
        }
        let mut state = self.state();
        if state.objects.get(name).is_none_or(|object| object.version != *expected) {
            return Ok(Swapped::Changed);
        }
        Ok(Swapped::Swapped(state.write(name, body)))
    }

    async fn put(&self, name: &ObjectName, body: Bytes) -> Result<ObjectVersion> {
        Ok(self.state().write(name, body))
    }

    async fn get(&self, name: &ObjectName, max_bytes: u64) -> Result<Option<Object>> {
        let object = self.state().objects.get(name).cloned();
        if object.as_ref().is_some_and(|object| object.body.len() as u64 > max_bytes) {
            return Err(self.error(Operation::Get, Some(name), ErrorKind::TooLarge, "it is too large"));
        }
        Ok(object)
    }

    async fn read_range(&self, name: &ObjectName, range: Range<u64>) -> Result<RangeStream> {
        let fail = |kind, detail| self.error(Operation::GetRange, Some(name), kind, detail);
        let state = self.state();
        let object = state.objects.get(name).ok_or_else(|| fail(ErrorKind::NotThere, "there is no such object"))?;
        if range.start > range.end || range.end > object.body.len() as u64 {
            return Err(fail(ErrorKind::BadAnswer, "the object ends before the range"));
        }
        let bytes = object.body.slice(range.start as usize..range.end as usize);
        Ok(futures_util::stream::iter([Ok(bytes)]).boxed())
    }

    async fn head(&self, name: &ObjectName) -> Result<Option<Head>> {
        let head = |object: &Object| Head { bytes: object.body.len() as u64, version: Some(object.version.clone()) };
        Ok(self.state().objects.get(name).map(head))
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Listed>> {
        let state = self.state();
        let below = state.objects.iter().filter(|(name, _)| name.as_str().starts_with(prefix));
        Ok(below.map(|(name, object)| Listed { name: name.clone(), bytes: object.body.len() as u64 }).collect())
    }

    async fn delete(&self, name: &ObjectName) -> Result<()> {
        self.state().objects.remove(name);
        Ok(())
    }

    async fn begin_upload(&self, _name: &ObjectName, _part_bytes: u64) -> Result<UploadId> {
        let mut state = self.state();
        let id = state.next().to_string();
        state.uploads.insert(id.clone(), BTreeMap::new());
        Ok(UploadId(id))
    }

    async fn upload_part(
        &self,
        name: &ObjectName,
        upload: &UploadId,
        index: u32,
        _part_bytes: u64,
        body: Bytes,
    ) -> Result<PartReceipt> {
        let mut state = self.state();
        let Some(parts) = state.uploads.get_mut(&upload.0) else {
            return Err(self.error(Operation::UploadPart, Some(name), ErrorKind::NoUpload, "there is no such upload"));
        };
        let receipt = PartReceipt { index, tag: blake3::hash(&body).to_hex().to_string(), bytes: body.len() as u64 };
        parts.insert(index, body);
        Ok(receipt)
    }

    async fn complete_upload(
        &self,
        name: &ObjectName,
        upload: &UploadId,
        parts: &[PartReceipt],
    ) -> Result<ObjectVersion> {
        let fail = |kind, detail| self.error(Operation::CompleteUpload, Some(name), kind, detail);
        let mut state = self.state();
        let sent = state.uploads.get(&upload.0).ok_or_else(|| fail(ErrorKind::NoUpload, "there is no such upload"))?;
        let mut whole = BytesMut::new();
        for (index, receipt) in (0..).zip(parts) {
            let part = sent.get(&index).filter(|part| *blake3::hash(part).to_hex() == *receipt.tag);
            let part = part.filter(|_| receipt.index == index);
            whole.extend_from_slice(part.ok_or_else(|| fail(ErrorKind::Refused, "a part is missing"))?);
        }
        state.uploads.remove(&upload.0);
        Ok(state.write(name, whole.freeze()))
    }

    async fn abort_upload(&self, _name: &ObjectName, upload: &UploadId) -> Result<()> {
        self.state().uploads.remove(&upload.0);
        Ok(())
    }

    async fn sweep(&self, idle: Duration) -> Result<u64> {
        if !idle.is_zero() {
            return Ok(0); // nothing here has an age
        }
        let mut state = self.state();
        let swept = state.uploads.len() as u64;
        state.uploads.clear();
        Ok(swept)
    }

    async fn checks_digests(&self, _scratch: &ObjectName) -> Result<bool> {
        Ok(true)
    }
}
