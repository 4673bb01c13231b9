//! The trait over the files of a folder.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;

use super::files::{CreateBy, Files};
use crate::errors::{ErrorKind, ObjectError, Operation, Result};
use crate::names::ObjectName;
use crate::objects::{
    Abilities, Created, Head, Listed, Object, ObjectStorage, ObjectVersion, PartReceipt, RangeStream, Swapped,
    UploadId, end_of, version_of,
};

/// What is read at once.
const PIECE_BYTES: u64 = 1 << 20;

/// Objects in a folder.
#[derive(Clone, Debug)]
pub struct FolderStorage {
    place: String,
    files: Files,
}

/// The folder at `path`, which must be there: one that is not may be a drive that is not mounted.
///
/// # Errors
/// [`ErrorKind::NoBucket`] where it is not there.
pub async fn open(place: String, path: &Path) -> Result<FolderStorage> {
    let (root, shown) = (path.to_owned(), path.display().to_string());
    let opened = tokio::task::spawn_blocking(move || Files::open(&root)).await;
    match opened.map_err(io::Error::other).and_then(|opened| opened) {
        Ok(files) => Ok(FolderStorage { place, files }),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            let detail = format!("there is no folder {shown}; mount its drive, or, the first time: mkdir -p '{shown}'");
            Err(ObjectError::new(Operation::Open, place, None, ErrorKind::NoBucket, detail))
        }
        Err(e) => Err(ObjectError::new(Operation::Open, place, None, kind_of(&e), e.to_string())),
    }
}

fn kind_of(e: &io::Error) -> ErrorKind {
    match e.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => ErrorKind::Denied,
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorKind::NoSpace,
        io::ErrorKind::NotFound => ErrorKind::NoBucket,
        io::ErrorKind::FileTooLarge => ErrorKind::TooLarge,
        io::ErrorKind::UnexpectedEof => ErrorKind::BadAnswer,
        io::ErrorKind::InvalidData | io::ErrorKind::IsADirectory | io::ErrorKind::NotADirectory => ErrorKind::Refused,
        _ => ErrorKind::Unreachable,
    }
}

impl FolderStorage {
    /// The same folder, as if it could do no better.
    pub fn limited_to(self, create_by: CreateBy) -> FolderStorage {
        FolderStorage { files: self.files.limited_to(create_by), ..self }
    }

    async fn run<T: Send + 'static>(
        &self,
        operation: Operation,
        name: Option<&ObjectName>,
        work: impl FnOnce(Files) -> io::Result<T> + Send + 'static,
    ) -> Result<T> {
        let files = self.files.clone();
        let done = tokio::task::spawn_blocking(move || work(files)).await.map_err(io::Error::other);
        done.and_then(|done| done).map_err(|e| self.failed(operation, name, &e))
    }

    fn failed(&self, operation: Operation, name: Option<&ObjectName>, e: &io::Error) -> ObjectError {
        let is_upload = matches!(operation, Operation::UploadPart | Operation::CompleteUpload);
        let kind = match kind_of(e) {
            ErrorKind::NoBucket if operation == Operation::GetRange => ErrorKind::NotThere,
            ErrorKind::NoBucket if is_upload => ErrorKind::NoUpload,
            kind => kind,
        };
        let detail = match kind {
            ErrorKind::BadAnswer => "the object ends before the range".to_owned(),
            ErrorKind::NotThere => "there is no such object".to_owned(),
            ErrorKind::NoUpload => "there is no such upload".to_owned(),
            _ => e.to_string(),
        };
        self.error(operation, name, kind, &detail)
    }
}

#[async_trait]
impl ObjectStorage for FolderStorage {
    fn place(&self) -> &str {
        &self.place
    }

    fn abilities(&self) -> Abilities {
        Abilities {
            swap: false,
            digests: false,
            whole_creates: self.files.create_by() != CreateBy::Exclusive,
            sweeps: true,
            max_parts: u32::MAX,
            min_part_bytes: 1,
        }
    }

    async fn create(&self, name: &ObjectName, body: Bytes) -> Result<Created> {
        let (version, object) = (version_of(&body), name.clone());
        let created = self.run(Operation::Create, Some(name), move |files| files.create(&object, &body)).await?;
        Ok(if created { Created::Created(version) } else { Created::AlreadyThere })
    }

    async fn swap(&self, name: &ObjectName, _expected: &ObjectVersion, _body: Bytes) -> Result<Swapped> {
        let detail = "a folder knows no compare-and-swap";
        Err(self.error(Operation::Swap, Some(name), ErrorKind::Unsupported, detail))
    }

    async fn put(&self, name: &ObjectName, body: Bytes) -> Result<ObjectVersion> {
        let (version, object) = (version_of(&body), name.clone());
        self.run(Operation::Put, Some(name), move |files| files.put(&object, &body)).await.map(|()| version)
    }

    async fn get(&self, name: &ObjectName, max_bytes: u64) -> Result<Option<Object>> {
        let object = name.clone();
        let body = self.run(Operation::Get, Some(name), move |files| files.get(&object, max_bytes)).await?;
        Ok(body.map(|body| Object { version: version_of(&body), body }))
    }

    async fn read_range(&self, name: &ObjectName, range: Range<u64>) -> Result<RangeStream> {
        let (object, whole) = (name.clone(), range.clone());
        let opened = self.run(Operation::GetRange, Some(name), move |files| files.open_range(&object, &whole)).await?;
        let (storage, name, file) = (self.clone(), name.clone(), Arc::new(opened));
        let pieces = futures_util::stream::try_unfold(range, move |left| {
            let (storage, name, file) = (storage.clone(), name.clone(), Arc::clone(&file));
            async move {
                if left.is_empty() {
                    return Ok(None);
                }
                let end = left.end.min(left.start + PIECE_BYTES);
                let read = storage.run(Operation::GetRange, Some(&name), move |_| read(&file, left.start..end)).await?;
                Ok(Some((read, end..left.end)))
            }
        });
        Ok(pieces.boxed())
    }

    async fn head(&self, name: &ObjectName) -> Result<Option<Head>> {
        let object = name.clone();
        let bytes = self.run(Operation::Head, Some(name), move |files| files.length(&object)).await?;
        Ok(bytes.map(|bytes| Head { bytes, version: None }))
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Listed>> {
        let prefix = prefix.to_owned();
        let found = self.run(Operation::List, None, move |files| files.list(&prefix)).await?;
        Ok(found.into_iter().map(|(name, bytes)| Listed { name, bytes }).collect())
    }

    async fn delete(&self, name: &ObjectName) -> Result<()> {
        let object = name.clone();
        self.run(Operation::Delete, Some(name), move |files| files.delete(&object)).await
    }

    async fn begin_upload(&self, name: &ObjectName, _part_bytes: u64) -> Result<UploadId> {
        self.run(Operation::BeginUpload, Some(name), |files| files.begin_upload()).await.map(UploadId)
    }

    async fn upload_part(
        &self,
        name: &ObjectName,
        upload: &UploadId,
        index: u32,
        part_bytes: u64,
        body: Bytes,
    ) -> Result<PartReceipt> {
        let (upload, bytes, offset) = (upload.0.clone(), body.len() as u64, u64::from(index) * part_bytes);
        let write = move |files: Files| files.write_part(&upload, offset, &body);
        self.run(Operation::UploadPart, Some(name), write).await?;
        Ok(PartReceipt { index, tag: offset.to_string(), bytes })
    }

    async fn complete_upload(
        &self,
        name: &ObjectName,
        upload: &UploadId,
        parts: &[PartReceipt],
    ) -> Result<ObjectVersion> {
        let missing = || self.error(Operation::CompleteUpload, Some(name), ErrorKind::Refused, "a part is missing");
        let end = end_of(parts).ok_or_else(missing)?;
        let (upload, object) = (upload.0.clone(), name.clone());
        let complete = move |files: Files| files.complete_upload(&upload, &object, end);
        self.run(Operation::CompleteUpload, Some(name), complete).await?;
        Ok(ObjectVersion(end.to_string()))
    }

    async fn abort_upload(&self, name: &ObjectName, upload: &UploadId) -> Result<()> {
        let upload = upload.0.clone();
        self.run(Operation::AbortUpload, Some(name), move |files| files.abort_upload(&upload)).await
    }

    async fn sweep(&self, idle: Duration) -> Result<u64> {
        self.run(Operation::Sweep, None, move |files| files.sweep(idle)).await
    }
}

fn read(file: &File, range: Range<u64>) -> io::Result<Bytes> {
    let mut bytes = vec![0; (range.end - range.start) as usize];
    file.read_exact_at(&mut bytes, range.start)?;
    Ok(bytes.into())
}
