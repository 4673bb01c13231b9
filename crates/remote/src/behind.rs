//! An object store in memory, for tests, behind something that each request has to pass.

use std::fmt;
use std::ops::Range;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use crate::errors::{Operation, Result};
use crate::memory::MemoryStorage;
use crate::names::ObjectName;
use crate::objects::{
    Abilities, Created, Head, Listed, Object, ObjectStorage, ObjectVersion, PartReceipt, RangeStream, Swapped, UploadId,
};

/// A request on its way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request {
    pub operation: Operation,
    /// Bytes that it writes; `None` for one that reads.
    pub written: Option<usize>,
}

/// What requests have to pass.
pub(crate) trait Passage: fmt::Debug + Send + Sync + 'static {
    /// Carries `work` out, or does not.
    fn pass<T: Send>(
        &self,
        store: &MemoryStorage,
        request: Request,
        work: impl Future<Output = Result<T>> + Send,
    ) -> impl Future<Output = Result<T>> + Send;
}

/// A store behind a passage.
#[derive(Debug)]
pub(crate) struct Behind<P> {
    pub store: MemoryStorage,
    pub passage: P,
}

impl<P: Passage> Behind<P> {
    fn read<T: Send>(
        &self,
        operation: Operation,
        work: impl Future<Output = Result<T>> + Send,
    ) -> impl Future<Output = Result<T>> + Send {
        self.passage.pass(&self.store, Request { operation, written: None }, work)
    }

    fn write<T: Send>(
        &self,
        operation: Operation,
        bytes: usize,
        work: impl Future<Output = Result<T>> + Send,
    ) -> impl Future<Output = Result<T>> + Send {
        self.passage.pass(&self.store, Request { operation, written: Some(bytes) }, work)
    }
}

#[async_trait]
impl<P: Passage> ObjectStorage for Behind<P> {
    fn place(&self) -> &str {
        self.store.place()
    }
    fn abilities(&self) -> Abilities {
        self.store.abilities()
    }
    async fn create(&self, name: &ObjectName, body: Bytes) -> Result<Created> {
        self.write(Operation::Create, body.len(), self.store.create(name, body)).await
    }
    async fn swap(&self, name: &ObjectName, expected: &ObjectVersion, body: Bytes) -> Result<Swapped> {
        self.write(Operation::Swap, body.len(), self.store.swap(name, expected, body)).await
    }
    async fn put(&self, name: &ObjectName, body: Bytes) -> Result<ObjectVersion> {
        self.write(Operation::Put, body.len(), self.store.put(name, body)).await
    }
    async fn get(&self, name: &ObjectName, max_bytes: u64) -> Result<Option<Object>> {
        self.read(Operation::Get, self.store.get(name, max_bytes)).await
    }
    async fn read_range(&self, name: &ObjectName, range: Range<u64>) -> Result<RangeStream> {
        self.read(Operation::GetRange, self.store.read_range(name, range)).await
    }
    async fn head(&self, name: &ObjectName) -> Result<Option<Head>> {
        self.read(Operation::Head, self.store.head(name)).await
    }
    async fn list(&self, prefix: &str) -> Result<Vec<Listed>> {
        self.read(Operation::List, self.store.list(prefix)).await
    }
    async fn delete(&self, name: &ObjectName) -> Result<()> {
        self.write(Operation::Delete, 0, self.store.delete(name)).await
    }
    async fn begin_upload(&self, name: &ObjectName, part_bytes: u64) -> Result<UploadId> {
        self.write(Operation::BeginUpload, 0, self.store.begin_upload(name, part_bytes)).await
    }
    async fn upload_part(
        &self,
        name: &ObjectName,
        upload: &UploadId,
        index: u32,
        part_bytes: u64,
        body: Bytes,
    ) -> Result<PartReceipt> {
        let bytes = body.len();
        self.write(Operation::UploadPart, bytes, self.store.upload_part(name, upload, index, part_bytes, body)).await
    }
    async fn complete_upload(
        &self,
        name: &ObjectName,
        upload: &UploadId,
        parts: &[PartReceipt],
    ) -> Result<ObjectVersion> {
        self.write(Operation::CompleteUpload, 0, self.store.complete_upload(name, upload, parts)).await
    }
    async fn abort_upload(&self, name: &ObjectName, upload: &UploadId) -> Result<()> {
        self.write(Operation::AbortUpload, 0, self.store.abort_upload(name, upload)).await
    }
    async fn sweep(&self, idle: Duration) -> Result<u64> {
        self.write(Operation::Sweep, 0, self.store.sweep(idle)).await
    }
    async fn checks_digests(&self, scratch: &ObjectName) -> Result<bool> {
        self.write(Operation::Put, 0, self.store.checks_digests(scratch)).await
    }
}
