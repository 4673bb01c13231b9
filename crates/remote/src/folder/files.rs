//! Files of a folder that hold objects: written aside, made durable, and only then given their name.
//!
//! Invariant: an object's name is given to a file whose bytes are durable (but see [`CreateBy::Exclusive`]), and a name
//! that was given or taken is durable before that is told. No link is followed.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use rustix::fs::{AtFlags, CWD, OFlags, RenameFlags};
use rustix::io::Errno;

use crate::names::ObjectName;
use crate::nonce::nonce;

/// Holds what is not an object yet. No object's name has a `_`.
const STAGING: &str = "_staging";

/// How a file gets a name that nobody else may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CreateBy {
    /// A second name for the finished file.
    Link,
    /// A rename that never replaces.
    RenameNew,
    /// The name first, the bytes then: a reader may see the file half written.
    Exclusive,
}

/// The folder.
#[derive(Clone, Debug)]
pub struct Files {
    root: PathBuf,
    create_by: CreateBy,
}

impl Files {
    /// Looks at what the folder can do.
    pub fn open(root: &Path) -> io::Result<Files> {
        if !std::fs::metadata(root)?.is_dir() {
            return Err(ErrorKind::NotADirectory.into());
        }
        let files = Files { root: root.to_owned(), create_by: CreateBy::Link };
        // A folder that cannot be written to is of use for reading.
        let create_by = files.best_way().unwrap_or(CreateBy::Link);
        Ok(Files { create_by, ..files })
    }

    pub fn create_by(&self) -> CreateBy {
        self.create_by
    }

    /// The same folder, as if it could do no better.
    pub fn limited_to(self, create_by: CreateBy) -> Files {
        Files { create_by, ..self }
    }

    fn best_way(&self) -> io::Result<CreateBy> {
        let (one, other) = (self.stage("probe", b"")?, self.staging("probe"));
        let way = match std::fs::hard_link(&one, &other) {
            Ok(()) => CreateBy::Link,
            Err(_) if rename_new(&one, &other).is_ok() => CreateBy::RenameNew,
            Err(_) => CreateBy::Exclusive,
        };
        let _ = remove(&other);
        remove(&one)?;
        Ok(way)
    }

    pub fn path(&self, name: &ObjectName) -> PathBuf {
        self.root.join(name.as_str())
    }

    fn staging(&self, what: &str) -> PathBuf {
        self.root.join(STAGING).join(format!("{what}-{}", nonce()))
    }

    /// A durable file that is no object yet.
    fn stage(&self, what: &str, body: &[u8]) -> io::Result<PathBuf> {
        let path = self.staging(what);
        make_folders(&self.root, &path)?;
        write_new(&path, body)?;
        Ok(path)
    }

    /// Whether the object is this one now; false where there was one.
    pub fn create(&self, name: &ObjectName, body: &[u8]) -> io::Result<bool> {
        let target = self.path(name);
        make_folders(&self.root, &target)?;
        let created = if self.create_by == CreateBy::Exclusive {
            write_new(&target, body)
        } else {
            let staged = self.stage("new", body)?;
            let named = match self.create_by {
                CreateBy::RenameNew => rename_new(&staged, &target),
                _ => std::fs::hard_link(&staged, &target),
            };
            remove(&staged)?;
            named
        };
        match created {
            Ok(()) => sync_folder_of(&target).map(|()| true),
            Err(e) if e.kind() == ErrorKind::AlreadyExists => Ok(false),
            Err(e) => Err(e),
        }
    }

    pub fn put(&self, name: &ObjectName, body: &[u8]) -> io::Result<()> {
        let staged = self.stage("new", body)?;
        self.publish(&staged, name)
    }

    /// Gives a durable file its name, in place of what has it.
    fn publish(&self, staged: &Path, name: &ObjectName) -> io::Result<()> {
        let target = self.path(name);
        make_folders(&self.root, &target)?;
        rustix::fs::renameat_with(CWD, staged, CWD, &target, RenameFlags::empty())?;
        sync_folder_of(&target)
    }

    /// The whole file; none where it is not there, an error of kind `FileTooLarge` where it is larger.
    pub fn get(&self, name: &ObjectName, max_bytes: u64) -> io::Result<Option<Bytes>> {
        let Some(file) = self.open_file(name)? else { return Ok(None) };
        let bytes = file.metadata()?.len();
        if bytes > max_bytes {
            return Err(io::Error::new(
                ErrorKind::FileTooLarge,
                format!("it has {bytes} bytes, and at most {max_bytes} are expected"),
            ));
        }
        let mut body = Vec::with_capacity(bytes as usize);
        file.take(max_bytes).read_to_end(&mut body)?;
        Ok(Some(body.into()))
    }

    /// The file, once it is known that it has all of `range`. What the page cache has of it is dropped: reading is also
    /// how a copy is proven.
    pub fn open_range(&self, name: &ObjectName, range: &Range<u64>) -> io::Result<File> {
        let file = self.open_file(name)?.ok_or(ErrorKind::NotFound)?;
        if file.metadata()?.len() < range.end {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        ckptd_core::os::fs::forget_cached(&file);
        Ok(file)
    }

    fn open_file(&self, name: &ObjectName) -> io::Result<Option<File>> {
        let mut options = OpenOptions::new();
        options.read(true).custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32);
        let file = match options.open(self.path(name)) {
            Ok(file) => file,
            Err(e) if e.kind() == ErrorKind::NotFound => return self.require_root().map(|()| None),
            Err(e) => return Err(e),
        };
        if file.metadata()?.is_file() { Ok(Some(file)) } else { Err(ErrorKind::IsADirectory.into()) }
    }

    /// That nothing is there is only said of a folder that is there: a drive may have gone.
    fn require_root(&self) -> io::Result<()> {
        std::fs::metadata(&self.root).map(|_| ())
    }

    pub fn length(&self, name: &ObjectName) -> io::Result<Option<u64>> {
        Ok(self.open_file(name)?.map(|file| file.metadata()).transpose()?.map(|metadata| metadata.len()))
    }

    /// All objects below `prefix`, which is empty or a folder.
    pub fn list(&self, prefix: &str) -> io::Result<Vec<(ObjectName, u64)>> {
        self.require_root()?;
        let (mut found, mut folders) = (Vec::new(), vec![prefix.trim_end_matches('/').to_owned()]);
        while let Some(folder) = folders.pop() {
            let entries = match std::fs::read_dir(self.root.join(&folder)) {
                Ok(entries) => entries,
                Err(e) if e.kind() == ErrorKind::NotFound => continue,
                Err(e) => return Err(e),
            };
            for entry in entries {
                let entry = entry?;
                let Ok(name) = entry.file_name().into_string() else { continue };
                let below = if folder.is_empty() { name } else { format!("{folder}/{name}") };
                let Ok(name) = ObjectName::new(below.clone()) else { continue };
                match entry.metadata() {
                    Ok(metadata) if metadata.is_dir() => folders.push(below),
                    Ok(metadata) if metadata.is_file() => found.push((name, metadata.len())),
                    Ok(_) => {}
                    Err(e) if e.kind() == ErrorKind::NotFound => {}
                    Err(e) => return Err(e),
                }
            }
        }
        found.sort();
        Ok(found)
    }

    pub fn delete(&self, name: &ObjectName) -> io::Result<()> {
        self.require_root()?;
        let path = self.path(name);
        if remove(&path)? { sync_folder_of(&path) } else { Ok(()) }
    }

    /// The name of a file that takes parts.
    pub fn begin_upload(&self) -> io::Result<String> {
        let path = self.stage("upload", b"")?;
        Ok(path.file_name().unwrap_or_default().to_string_lossy().into_owned())
    }

    /// None where `upload` cannot be the name of a file that takes parts.
    fn upload(&self, upload: &str) -> io::Result<PathBuf> {
        let nonce = upload.strip_prefix("upload-").filter(|nonce| nonce.bytes().all(|b| b.is_ascii_hexdigit()));
        nonce.map(|_| self.root.join(STAGING).join(upload)).ok_or_else(|| ErrorKind::NotFound.into())
    }

    /// Writes a part, durably: what is told of it outlives this machine.
    pub fn write_part(&self, upload: &str, offset: u64, body: &[u8]) -> io::Result<()> {
        let file = OpenOptions::new().write(true).open(self.upload(upload)?)?;
        file.write_all_at(body, offset)?;
        file.sync_data()
    }

    /// Gives the parts of `bytes` bytes together their name.
    pub fn complete_upload(&self, upload: &str, name: &ObjectName, bytes: u64) -> io::Result<()> {
        let path = self.upload(upload)?;
        let file = OpenOptions::new().write(true).open(&path)?;
        if file.metadata()?.len() != bytes {
            return Err(io::Error::new(ErrorKind::InvalidData, "a part is missing"));
        }
        file.sync_all()?;
        self.publish(&path, name)
    }

    pub fn abort_upload(&self, upload: &str) -> io::Result<()> {
        self.require_root()?;
        self.upload(upload).map_or(Ok(()), |path| remove(&path).map(|_| ()))
    }

    /// Removes what nobody has written to for `idle`, by the folder's own clock; how many files.
    pub fn sweep(&self, idle: Duration) -> io::Result<u64> {
        let now = self.stage("probe", b"")?;
        let newest = std::fs::metadata(&now)?.modified()?;
        remove(&now)?;
        let mut swept = 0;
        for entry in std::fs::read_dir(self.root.join(STAGING))? {
            let entry = entry?;
            let modified = entry.metadata().and_then(|metadata| metadata.modified());
            if modified.is_ok_and(|modified| newest.duration_since(modified).is_ok_and(|age| age >= idle)) {
                swept += u64::from(remove(&entry.path())?);
            }
        }
        Ok(swept)
    }
}

/// Writes a file that must be new, durably.
fn write_new(path: &Path, body: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).open(path)?;
    file.write_all(body).and_then(|()| file.sync_all()).inspect_err(|_| drop(remove(path)))
}

fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    Ok(rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE)?)
}

/// Whether there was a file to remove.
fn remove(path: &Path) -> io::Result<bool> {
    match rustix::fs::unlinkat(CWD, path, AtFlags::empty()) {
        Ok(()) => Ok(true),
        Err(Errno::NOENT) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

/// Makes the folders between `root` and `path`, durably; `root` itself must be there.
fn make_folders(root: &Path, path: &Path) -> io::Result<()> {
    let Some(folder) = path.parent().filter(|folder| *folder != root && !folder.is_dir()) else { return Ok(()) };
    make_folders(root, folder)?;
    match std::fs::create_dir(folder) {
        Err(e) if e.kind() != ErrorKind::AlreadyExists => Err(e),
        _ => sync_folder_of(folder),
    }
}

fn sync_folder_of(path: &Path) -> io::Result<()> {
    let Some(folder) = path.parent() else { return Ok(()) };
    match File::open(folder)?.sync_all() {
        // Network file systems may have nothing to do for a folder.
        Err(e) if matches!(e.kind(), ErrorKind::InvalidInput | ErrorKind::Unsupported) => Ok(()),
        outcome => outcome,
    }
}
