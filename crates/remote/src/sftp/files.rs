//! What is done with files over a session: written aside, made durable where the server offers that, and only then
//! given their name.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream::{self, BoxStream};
use futures_util::{StreamExt, TryStreamExt};
use russh_sftp::client::RawSftpSession;
use russh_sftp::client::error::Error as SftpError;
use russh_sftp::extensions::HardlinkExtension;
use russh_sftp::protocol::{FileAttributes, OpenFlags, Packet, StatusCode};

use super::session::{Failure, Session};

/// Every server takes so many bytes at once.
const PIECE_BYTES: usize = 32 << 10;
/// So many pieces are on their way at once.
const IN_FLIGHT: usize = 32;

type Result<T> = std::result::Result<T, Failure>;

/// Whether `failure` says that there is no such file.
pub fn is_missing(failure: &Failure) -> bool {
    matches!(&failure.error, SftpError::Status(status) if status.status_code == StatusCode::NoSuchFile)
}

fn if_there<T>(result: Result<T>) -> Result<Option<T>> {
    match result {
        Ok(it) => Ok(Some(it)),
        Err(e) if is_missing(&e) => Ok(None),
        Err(e) => Err(e),
    }
}

/// An entry of a folder.
pub struct Entry {
    pub name: String,
    pub bytes: u64,
    pub is_folder: bool,
    /// Seconds of the server's clock.
    pub modified: u32,
}

impl Session {
    /// Writes a file that must be new; one that cannot be written whole is removed.
    pub async fn write_new(&self, path: &str, body: &Bytes) -> Result<()> {
        let flags = OpenFlags::WRITE | OpenFlags::CREATE | OpenFlags::EXCLUDE;
        let handle = match self.open_file(path, flags).await {
            Ok(handle) => handle,
            Err(failure) => return Err(self.with_space(failure, path, body.len()).await),
        };
        let written = self.write_all(&handle, 0, body).await;
        self.close(handle).await?;
        let Err(failure) = written else { return Ok(()) };
        let failure = self.with_space(failure, path, body.len()).await;
        let _ = self.remove(path).await; // the first failure is the one to tell
        Err(failure)
    }

    /// Writes into a file that is there.
    pub async fn write_at(&self, path: &str, offset: u64, body: &Bytes) -> Result<()> {
        let handle = self.open_file(path, OpenFlags::WRITE).await?;
        let written = self.write_all(&handle, offset, body).await;
        self.close(handle).await?;
        match written {
            Ok(()) => Ok(()),
            Err(failure) => Err(self.with_space(failure, path, body.len()).await),
        }
    }

    /// SFTP has one word, "Failure", for a full disk and for much else: where the server tells how much room there is,
    /// that is looked at.
    async fn with_space(&self, failure: Failure, path: &str, bytes: usize) -> Failure {
        let is_failure = matches!(&failure.error, SftpError::Status(s) if s.status_code == StatusCode::Failure);
        if !is_failure || !self.has_statvfs {
            return failure;
        }
        let folder = path.rsplit_once('/').map_or(path, |(folder, _)| folder);
        let is_full = self.raw.statvfs(folder).await.is_ok_and(|room| {
            let free = room.blocks_avail.saturating_mul(room.fragment_size);
            free < bytes as u64 || room.inodes > 0 && room.inodes_avail == 0
        });
        Failure { is_full, ..failure }
    }

    async fn open_file(&self, path: &str, flags: OpenFlags) -> Result<String> {
        let opened = self.raw.open(path, flags, FileAttributes::empty()).await;
        opened.map(|opened| opened.handle).map_err(|e| self.failure(e))
    }

    async fn close(&self, handle: String) -> Result<()> {
        self.raw.close(handle).await.map(|_| ()).map_err(|e| self.failure(e))
    }

    async fn write_all(&self, handle: &str, offset: u64, body: &Bytes) -> Result<()> {
        let pieces =
            (0..body.len()).step_by(PIECE_BYTES).map(|at| (at, body.slice(at..body.len().min(at + PIECE_BYTES))));
        let writes = stream::iter(pieces).map(|(at, piece)| self.raw.write(handle, offset + at as u64, piece.to_vec()));
        let written = writes.buffer_unordered(IN_FLIGHT).try_for_each(|_| std::future::ready(Ok(()))).await;
        written.map_err(|e| self.failure(e))?;
        if self.has_fsync {
            self.raw.fsync(handle).await.map_err(|e| self.failure(e))?;
        }
        Ok(())
    }

    /// The file's size; none where it is not there.
    pub async fn size(&self, path: &str) -> Result<Option<u64>> {
        let found = if_there(self.raw.stat(path).await.map_err(|e| self.failure(e)))?;
        Ok(found.filter(|found| !found.attrs.is_dir()).map(|found| found.attrs.size.unwrap_or(0)))
    }

    pub async fn is_folder(&self, path: &str) -> Result<bool> {
        let found = if_there(self.raw.stat(path).await.map_err(|e| self.failure(e)))?;
        Ok(found.is_some_and(|found| found.attrs.is_dir()))
    }

    /// Whether `to` is the finished file `from` now; false where there was one.
    pub async fn name_new(&self, from: &str, to: &str) -> Result<bool> {
        let named = if self.has_hardlink {
            self.raw.hardlink(from, to).await
        } else {
            // Version 3 of the protocol: a rename onto a name that is taken fails.
            RawSftpSession::rename(&self.raw, from, to).await
        };
        match named {
            Ok(_) => Ok(true),
            // "Failure" is all that a server says.
            Err(e) => match self.size(to).await? {
                Some(_) => Ok(false),
                None => Err(self.failure(e)),
            },
        }
    }

    /// Gives a finished file its name, in place of what has it.
    pub async fn name(&self, from: &str, to: &str) -> Result<()> {
        if !self.has_posix_rename {
            return Err(self.failure(SftpError::UnexpectedBehavior(
                "the server does not offer posix-rename@openssh.com, without which nothing is replaced safely".into(),
            )));
        }
        // Two paths, as for a link.
        let paths = HardlinkExtension { oldpath: from.into(), newpath: to.into() };
        let data: Vec<u8> =
            paths.try_into().map_err(|e| self.failure(SftpError::UnexpectedBehavior(format!("{e}"))))?;
        match self.raw.extended("posix-rename@openssh.com", data).await.map_err(|e| self.failure(e))? {
            Packet::Status(status) if status.status_code == StatusCode::Ok => Ok(()),
            Packet::Status(status) => Err(self.failure(SftpError::Status(status))),
            _ => Err(self.failure(SftpError::UnexpectedPacket)),
        }
    }

    /// Whether there was a file to remove.
    pub async fn remove(&self, path: &str) -> Result<bool> {
        Ok(if_there(self.raw.remove(path).await.map_err(|e| self.failure(e)))?.is_some())
    }

    /// Makes the folders of `below`, which is relative to the folder `root`.
    pub async fn make_folders(&self, root: &str, below: &str) -> Result<()> {
        let mut path = root.to_owned();
        for part in below.split('/').filter(|part| !part.is_empty()) {
            path = format!("{path}/{part}");
            if let Err(e) = self.raw.mkdir(&path, FileAttributes::empty()).await
                && !self.is_folder(&path).await?
            {
                return Err(self.failure(e));
            }
        }
        Ok(())
    }

    /// What is in a folder; none where it is not there.
    pub async fn entries(&self, path: &str) -> Result<Option<Vec<Entry>>> {
        let Some(folder) = if_there(self.raw.opendir(path).await.map_err(|e| self.failure(e)))? else {
            return Ok(None);
        };
        let mut entries = Vec::new();
        let listed = loop {
            match self.raw.readdir(&folder.handle).await {
                Ok(names) => entries.extend(names.files.into_iter().map(|file| Entry {
                    is_folder: file.attrs.is_dir(),
                    bytes: file.attrs.size.unwrap_or(0),
                    modified: file.attrs.mtime.unwrap_or(0),
                    name: file.filename,
                })),
                Err(SftpError::Status(status)) if status.status_code == StatusCode::Eof => break Ok(()),
                Err(e) => break Err(self.failure(e)),
            }
        };
        self.close(folder.handle).await?;
        listed?;
        entries.retain(|entry| entry.name != "." && entry.name != "..");
        Ok(Some(entries))
    }
}

/// The bytes of a range as they come.
pub type Pieces = BoxStream<'static, Result<Bytes>>;

/// The bytes of `range`, each piece asked for before the one before it has come.
pub async fn read_range(session: Arc<Session>, path: &str, range: Range<u64>) -> Result<Pieces> {
    let handle = session.open_file(path, OpenFlags::READ).await?;
    let pieces = (range.start..range.end).step_by(PIECE_BYTES);
    let reads = stream::iter(pieces).map({
        let (session, handle) = (Arc::clone(&session), handle.clone());
        move |at| read_piece(Arc::clone(&session), handle.clone(), at..range.end.min(at + PIECE_BYTES as u64))
    });
    let closing = stream::once(async move { session.close(handle).await.map(|()| Bytes::new()) });
    Ok(reads.buffered(IN_FLIGHT).chain(closing).try_filter(|piece| std::future::ready(!piece.is_empty())).boxed())
}

/// A server may give less than it was asked for.
async fn read_piece(session: Arc<Session>, handle: String, range: Range<u64>) -> Result<Bytes> {
    let mut piece = Vec::with_capacity((range.end - range.start) as usize);
    while (piece.len() as u64) < range.end - range.start {
        let at = range.start + piece.len() as u64;
        let read = session.raw.read(handle.as_str(), at, (range.end - at) as u32).await;
        let read = read.map_err(|e| session.failure(e))?;
        if read.data.is_empty() {
            return Err(session.failure(SftpError::UnexpectedBehavior("an empty answer to a read".into())));
        }
        piece.extend_from_slice(&read.data);
    }
    Ok(piece.into())
}
