//! The trait over files behind SFTP.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt, TryStreamExt};

use super::calls::{Line, Outcome, SftpStorage, Trouble};
use super::files;
use super::session::{Server, Session};
use crate::errors::{ErrorKind, Operation, Result};
use crate::names::ObjectName;
use crate::nonce::nonce;
use crate::objects::{
    Abilities, Created, Head, Listed, Object, ObjectStorage, ObjectVersion, PartReceipt, RangeStream, Swapped,
    UploadId, end_of, version_of,
};
use crate::settings::RemoteSettings;

/// Holds what is not an object yet. No object's name has a `_`.
const STAGING: &str = "_staging";

/// The folder `root` of a server; connects at once, so that a wrong host or key is told now.
///
/// # Errors
/// [`ErrorKind::NoBucket`] where the folder is not there, and what `ssh` says.
pub async fn open(
    place: String,
    user: Option<String>,
    host: String,
    port: Option<u16>,
    root: &str,
    settings: &RemoteSettings,
) -> Result<SftpStorage> {
    let storage = SftpStorage::new(place, Server { user, host, port }, root, settings);
    let call = storage.begin(Operation::Open, None, Line::Control).await?;
    let outcome = storage.require_root(&call.session).await;
    call.end(outcome).await?;
    Ok(storage)
}

impl SftpStorage {
    fn path(&self, name: &ObjectName) -> String {
        format!("{}/{name}", self.0.root)
    }

    fn staging(&self, file: &str) -> String {
        format!("{}/{STAGING}/{file}", self.0.root)
    }

    /// That nothing is there is only said of a folder that is there.
    async fn require_root(&self, session: &Session) -> Outcome<()> {
        let root = &self.0.root;
        if session.is_folder(root).await? {
            return Ok(());
        }
        Err(Trouble::Refused(
            ErrorKind::NoBucket,
            format!("there is no folder {root} on the server; mkdir -p it there"),
        ))
    }

    /// A finished file that is no object yet.
    async fn stage(&self, session: &Session, what: &str, body: &Bytes) -> Outcome<String> {
        let path = self.staging(&format!("{what}-{}", nonce()));
        match session.write_new(&path, body).await {
            Err(e) if files::is_missing(&e) => {
                self.require_root(session).await?;
                session.make_folders(&self.0.root, STAGING).await?;
                session.write_new(&path, body).await?;
            }
            outcome => outcome?,
        }
        Ok(path)
    }

    /// Makes the folders that `name` is in.
    async fn make_way(&self, session: &Session, name: &ObjectName) -> Outcome<()> {
        let Some((folders, _)) = name.as_str().rsplit_once('/') else { return Ok(()) };
        if !session.is_folder(&format!("{}/{folders}", self.0.root)).await? {
            session.make_folders(&self.0.root, folders).await?;
        }
        Ok(())
    }

    async fn create_by(&self, session: &Session, name: &ObjectName, body: &Bytes) -> Outcome<bool> {
        let staged = self.stage(session, "new", body).await?;
        self.make_way(session, name).await?;
        let named = session.name_new(&staged, &self.path(name)).await;
        session.remove(&staged).await?;
        Ok(named?)
    }

    async fn put_by(&self, session: &Session, name: &ObjectName, body: &Bytes) -> Outcome<()> {
        let staged = self.stage(session, "new", body).await?;
        self.make_way(session, name).await?;
        Ok(session.name(&staged, &self.path(name)).await?)
    }

    async fn get_by(&self, session: &Arc<Session>, name: &ObjectName, max_bytes: u64) -> Outcome<Option<Bytes>> {
        let Some(bytes) = self.size_by(session, name).await? else { return Ok(None) };
        if bytes > max_bytes {
            let detail = format!("it has {bytes} bytes, and at most {max_bytes} are expected");
            return Err(Trouble::Refused(ErrorKind::TooLarge, detail));
        }
        let mut pieces = files::read_range(Arc::clone(session), &self.path(name), 0..bytes).await?;
        let mut whole = BytesMut::new();
        while let Some(piece) = pieces.next().await {
            whole.extend_from_slice(&piece?);
        }
        Ok(Some(whole.freeze()))
    }

    async fn read_by(&self, session: &Arc<Session>, name: &ObjectName, range: Range<u64>) -> Outcome<files::Pieces> {
        let missing = || Trouble::Refused(ErrorKind::NotThere, "there is no such object".into());
        if self.size_by(session, name).await?.ok_or_else(missing)? < range.end {
            return Err(Trouble::Refused(ErrorKind::BadAnswer, "the object ends before the range".into()));
        }
        Ok(files::read_range(Arc::clone(session), &self.path(name), range).await?)
    }

    async fn size_by(&self, session: &Session, name: &ObjectName) -> Outcome<Option<u64>> {
        let bytes = session.size(&self.path(name)).await?;
        if bytes.is_none() {
            self.require_root(session).await?;
        }
        Ok(bytes)
    }

    async fn delete_by(&self, session: &Session, name: &ObjectName) -> Outcome<()> {
        if !session.remove(&self.path(name)).await? {
            self.require_root(session).await?;
        }
        Ok(())
    }

    async fn part_by(&self, session: &Session, upload: &UploadId, offset: u64, body: &Bytes) -> Outcome<()> {
        Ok(session.write_at(&self.staging(upload_file(upload)?), offset, body).await?)
    }

    async fn complete_by(
        &self,
        session: &Session,
        name: &ObjectName,
        upload: &UploadId,
        parts: &[PartReceipt],
    ) -> Outcome<ObjectVersion> {
        let missing = || Trouble::Refused(ErrorKind::Refused, "a part is missing".into());
        let end = end_of(parts).ok_or_else(missing)?;
        let path = self.staging(upload_file(upload)?);
        let gone = || Trouble::Refused(ErrorKind::NoUpload, "there is no such upload".into());
        if session.size(&path).await?.ok_or_else(gone)? != end {
            return Err(missing());
        }
        self.make_way(session, name).await?;
        session.name(&path, &self.path(name)).await?;
        Ok(ObjectVersion(end.to_string()))
    }

    async fn sweep_by(&self, session: &Session, idle: Duration) -> Outcome<u64> {
        let now = self.stage(session, "probe", &Bytes::new()).await?;
        let entries = session.entries(&self.staging("")).await?.unwrap_or_default();
        session.remove(&now).await?;
        let newest = entries.iter().map(|entry| entry.modified).max().unwrap_or(0);
        let mut swept = 0;
        for entry in entries.iter().filter(|entry| !now.ends_with(&entry.name)) {
            if u64::from(newest.saturating_sub(entry.modified)) >= idle.as_secs() {
                swept += u64::from(session.remove(&self.staging(&entry.name)).await?);
            }
        }
        Ok(swept)
    }

    async fn list_by(&self, session: &Session, prefix: &str) -> Outcome<Vec<Listed>> {
        self.require_root(session).await?;
        let (mut found, mut folders) = (Vec::new(), vec![prefix.trim_end_matches('/').to_owned()]);
        while let Some(folder) = folders.pop() {
            let path = format!("{}/{folder}", self.0.root);
            for entry in session.entries(path.trim_end_matches('/')).await?.unwrap_or_default() {
                let below = if folder.is_empty() { entry.name } else { format!("{folder}/{}", entry.name) };
                match ObjectName::new(below.clone()) {
                    Ok(_) if entry.is_folder => folders.push(below),
                    Ok(name) => found.push(Listed { name, bytes: entry.bytes }),
                    Err(_) => {}
                }
            }
        }
        found.sort();
        Ok(found)
    }
}

/// The name of an upload's file; one that is none cannot be there.
fn upload_file(upload: &UploadId) -> Outcome<&str> {
    let nonce = upload.0.strip_prefix("upload-").filter(|nonce| nonce.bytes().all(|b| b.is_ascii_hexdigit()));
    let refused = || Trouble::Refused(ErrorKind::NoUpload, "there is no such upload".into());
    nonce.map(|_| upload.0.as_str()).ok_or_else(refused)
}

#[async_trait]
impl ObjectStorage for SftpStorage {
    fn place(&self) -> &str {
        &self.0.place
    }

    fn abilities(&self) -> Abilities {
        Abilities {
            swap: false,
            digests: false,
            whole_creates: true,
            sweeps: true,
            max_parts: u32::MAX,
            min_part_bytes: 1,
        }
    }

    async fn create(&self, name: &ObjectName, body: Bytes) -> Result<Created> {
        let call = self.begin(Operation::Create, Some(name), Line::Control).await?;
        let outcome = self.create_by(&call.session, name, &body).await;
        Ok(if call.end(outcome).await? { Created::Created(version_of(&body)) } else { Created::AlreadyThere })
    }

    async fn swap(&self, name: &ObjectName, _expected: &ObjectVersion, _body: Bytes) -> Result<Swapped> {
        let detail = "SFTP knows no compare-and-swap";
        Err(self.error(Operation::Swap, Some(name), ErrorKind::Unsupported, detail))
    }

    async fn put(&self, name: &ObjectName, body: Bytes) -> Result<ObjectVersion> {
        let call = self.begin(Operation::Put, Some(name), Line::Control).await?;
        let outcome = self.put_by(&call.session, name, &body).await;
        call.end(outcome).await.map(|()| version_of(&body))
    }

    async fn get(&self, name: &ObjectName, max_bytes: u64) -> Result<Option<Object>> {
        let call = self.begin(Operation::Get, Some(name), Line::Control).await?;
        let outcome = self.get_by(&call.session, name, max_bytes).await;
        Ok(call.end(outcome).await?.map(|body| Object { version: version_of(&body), body }))
    }

    async fn read_range(&self, name: &ObjectName, range: Range<u64>) -> Result<RangeStream> {
        let call = self.begin(Operation::GetRange, Some(name), Line::Data).await?;
        let outcome = self.read_by(&call.session, name, range).await;
        let (storage, name) = (self.clone(), name.clone());
        let failed = move |e| storage.failed(Operation::GetRange, Some(&name), Trouble::Failure(e));
        Ok(call.end(outcome).await?.map_err(failed).boxed())
    }

    async fn head(&self, name: &ObjectName) -> Result<Option<Head>> {
        let call = self.begin(Operation::Head, Some(name), Line::Control).await?;
        let outcome = self.size_by(&call.session, name).await;
        Ok(call.end(outcome).await?.map(|bytes| Head { bytes, version: None }))
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Listed>> {
        let call = self.begin(Operation::List, None, Line::Control).await?;
        let outcome = self.list_by(&call.session, prefix).await;
        call.end(outcome).await
    }

    async fn delete(&self, name: &ObjectName) -> Result<()> {
        let call = self.begin(Operation::Delete, Some(name), Line::Control).await?;
        let outcome = self.delete_by(&call.session, name).await;
        call.end(outcome).await
    }

    async fn begin_upload(&self, name: &ObjectName, _part_bytes: u64) -> Result<UploadId> {
        let call = self.begin(Operation::BeginUpload, Some(name), Line::Control).await?;
        let outcome = self.stage(&call.session, "upload", &Bytes::new()).await;
        let path = call.end(outcome).await?;
        Ok(UploadId(path.rsplit('/').next().unwrap_or_default().to_owned()))
    }

    async fn upload_part(
        &self,
        name: &ObjectName,
        upload: &UploadId,
        index: u32,
        part_bytes: u64,
        body: Bytes,
    ) -> Result<PartReceipt> {
        let (bytes, offset) = (body.len() as u64, u64::from(index) * part_bytes);
        let call = self.begin(Operation::UploadPart, Some(name), Line::Data).await?;
        let outcome = self.part_by(&call.session, upload, offset, &body).await;
        call.end(outcome).await?;
        Ok(PartReceipt { index, tag: offset.to_string(), bytes })
    }

    async fn complete_upload(
        &self,
        name: &ObjectName,
        upload: &UploadId,
        parts: &[PartReceipt],
    ) -> Result<ObjectVersion> {
        let call = self.begin(Operation::CompleteUpload, Some(name), Line::Control).await?;
        let outcome = self.complete_by(&call.session, name, upload, parts).await;
        call.end(outcome).await
    }

    async fn abort_upload(&self, name: &ObjectName, upload: &UploadId) -> Result<()> {
        let Ok(file) = upload_file(upload) else { return Ok(()) };
        let call = self.begin(Operation::AbortUpload, Some(name), Line::Control).await?;
        let outcome = call.session.remove(&self.staging(file)).await.map(|_| ()).map_err(Trouble::Failure);
        call.end(outcome).await
    }

    async fn sweep(&self, idle: Duration) -> Result<u64> {
        let call = self.begin(Operation::Sweep, None, Line::Control).await?;
        let outcome = self.sweep_by(&call.session, idle).await;
        call.end(outcome).await
    }
}
