//! An open folder, and what is done to the names in it.
//!
//! Invariant: names are single components, links are never followed, and nothing outside the folder is touched. What
//! must survive a power loss goes through [`Dir::write_durably`] or the steps of a commit.
//! Deliberately not here: what the names mean (layout), when to call what (commit, verify, rotate).

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RenameFlags, Stat};
use rustix::io::Errno;

use super::faults::{self, FsCall, FsPlace};
use super::fs::{
    FILE_FLAGS, Transfer, is_missing, is_regular, lacks_rename_flags, read_at, require_regular, sync_file, write_all_at,
};
use super::temporary::temporary_file;
use crate::error::{Error, Result};

/// An open folder.
#[derive(Debug)]
pub struct Dir {
    fd: OwnedFd,
    path: PathBuf,
}

const DIR_FLAGS: OFlags = OFlags::DIRECTORY.union(OFlags::RDONLY).union(OFlags::CLOEXEC);
impl Dir {
    /// Opens the folder that the user named; links in that path are the user's own.
    pub fn open(path: &Path) -> Result<Dir> {
        let fd = faults::call(FsCall::OpenFolder(path.into()), || rustix::fs::open(path, DIR_FLAGS, Mode::empty()))
            .map_err(|e| Error::io("opening", path, e.into()))?;
        Ok(Dir { fd, path: path.to_path_buf() })
    }

    /// Opens the folder at `path`, and first makes it (0700) and what is missing above it, each durably.
    pub fn create(path: &Path) -> Result<Dir> {
        let path = std::path::absolute(path).map_err(|e| Error::io("resolving", path, e))?;
        let missing: Vec<&Path> = path.ancestors().take_while(|folder| is_missing(folder)).collect();
        for folder in missing.iter().rev() {
            match faults::call(FsCall::MakeFolder((*folder).into()), || rustix::fs::mkdir(*folder, Mode::RWXU)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(e) => return Err(Error::io("making folder", folder, e.into())),
            }
        }
        // The folder's own name must survive, too, also where a start that was killed has made it.
        for folder in missing.iter().copied().chain([path.as_path()]).filter_map(Path::parent) {
            match Dir::open(folder).and_then(|parent| parent.sync()) {
                // Not ours to sync, or nothing there that could be: it was there before.
                Err(Error::Io { source, .. }) if is_elsewhere(source.kind()) => {}
                other => other?,
            }
        }
        Dir::open(&path)
    }

    /// Opens a folder below; `None` where there is none.
    pub fn open_dir(&self, name: &str) -> Result<Option<Dir>> {
        let open = || rustix::fs::openat(&self.fd, name, DIR_FLAGS | OFlags::NOFOLLOW, Mode::empty());
        match faults::call(FsCall::OpenFolder(self.place(name)), open) {
            Ok(fd) => Ok(Some(Dir { fd, path: self.join(name) })),
            Err(Errno::NOENT) => Ok(None),
            Err(e) => Err(self.error("opening", name, e)),
        }
    }

    /// Makes a folder below (0700) unless it is there.
    pub fn make_dir(&self, name: &str) -> Result<()> {
        match faults::call(FsCall::MakeFolder(self.place(name)), || rustix::fs::mkdirat(&self.fd, name, Mode::RWXU)) {
            Ok(()) | Err(Errno::EXIST) => Ok(()),
            Err(e) => Err(self.error("making folder", name, e)),
        }
    }

    /// Where the folder is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The path of a name in the folder.
    pub fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Names of the regular files below, unsorted. Names that are not UTF-8 are not ours and left out.
    pub fn files(&self) -> Result<Vec<String>> {
        let failed = |e: Errno| Error::io("reading folder", &self.path, e.into());
        let list = || rustix::fs::Dir::read_from(&self.fd);
        let entries = faults::call(FsCall::List(self.path.as_path().into()), list).map_err(failed)?;
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.map_err(failed)?;
            let Ok(name) = entry.file_name().to_str() else { continue };
            let regular = match entry.file_type() {
                FileType::RegularFile => true,
                FileType::Unknown => self.stat(name)?.is_some_and(|s| is_regular(&s)),
                _ => false,
            };
            if regular {
                names.push(name.to_owned());
            }
        }
        Ok(names)
    }

    /// `None` where there is no such name.
    pub fn stat(&self, name: &str) -> Result<Option<Stat>> {
        let stat = || rustix::fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW);
        match faults::call(FsCall::Stat(self.place(name)), stat) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(e) => Err(self.error("reading the attributes of", name, e)),
        }
    }

    /// Creates a file that must not be there (0600).
    pub fn create_file(&self, name: &str) -> Result<File> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let create = || rustix::fs::openat(&self.fd, name, flags, Mode::RUSR | Mode::WUSR);
        let file =
            faults::call(FsCall::Create(self.place(name)), create).map_err(|e| self.error("creating", name, e))?;
        Ok(File::from(file))
    }

    /// Opens or creates a file of the store itself that is not replaced, such as its lock and its log.
    pub fn open_kept(&self, name: &str) -> Result<File> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let open = || rustix::fs::openat(&self.fd, name, flags, Mode::RUSR | Mode::WUSR);
        let file =
            faults::call(FsCall::OpenOrCreate(self.place(name)), open).map_err(|e| self.error("opening", name, e))?;
        let file = File::from(file);
        require_regular(&file, &self.join(name))?;
        Ok(file)
    }

    /// The content of a small file, at most `max` bytes; `None` where there is none.
    pub fn read_small(&self, name: &str, max: u64) -> Result<Option<Vec<u8>>> {
        let Some(stat) = self.stat(name)? else { return Ok(None) };
        if !is_regular(&stat) || stat.st_size as u64 > max {
            return Err(Error::damaged(self.join(name), format!("not a regular file of at most {max} bytes")));
        }
        let open = || rustix::fs::openat(&self.fd, name, FILE_FLAGS, Mode::empty());
        let file = faults::call(FsCall::Open(self.place(name)), open).map_err(|e| self.error("opening", name, e))?;
        let (file, path) = (File::from(file), self.join(name));
        require_regular(&file, &path)?;
        let mut bytes = vec![0; stat.st_size as usize];
        let length = read_at(&file, &mut bytes, 0, Transfer::Cached, &path)?;
        bytes.truncate(length);
        Ok(Some(bytes))
    }

    /// Replaces a small file so that after a power loss either the old or the new content is there.
    pub fn write_durably(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let temporary = temporary_file(name);
        self.remove(&temporary)?;
        let written = self.write_temporary(&temporary, bytes).and_then(|()| {
            let rename = || rustix::fs::renameat(&self.fd, &temporary, &self.fd, name);
            let call = FsCall::Rename(self.place(&temporary), self.place(name));
            faults::call(call, rename).map_err(|e| self.error("renaming to", name, e))
        });
        if written.is_err() {
            // The first error says more; what stays is removed by the next start.
            let _ = self.remove(&temporary);
        }
        written.and_then(|()| self.sync())
    }

    fn write_temporary(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let file = self.create_file(name)?;
        let path = self.join(name);
        write_all_at(&file, bytes, 0, &path)?;
        sync_file(&file, &path)
    }

    /// Moves a file to another folder under a name that must be free.
    pub fn rename_new(&self, from: &str, to: &Dir, name: &str) -> Result<()> {
        let call = FsCall::Rename(self.place(from), to.place(name));
        match faults::call(call, || rustix::fs::renameat_with(&self.fd, from, &to.fd, name, RenameFlags::NOREPLACE)) {
            Ok(()) => return Ok(()),
            Err(e) if lacks_rename_flags(e) => {}
            Err(e) => return Err(to.error("renaming to", name, e)),
        }
        // The store's lock makes the question before the rename safe.
        if to.stat(name)?.is_some() {
            return Err(to.error("renaming to", name, Errno::EXIST));
        }
        faults::call(call, || rustix::fs::renameat(&self.fd, from, &to.fd, name))
            .map_err(|e| to.error("renaming to", name, e))
    }

    /// Removes a file; that it is not there is success.
    pub fn remove(&self, name: &str) -> Result<()> {
        match faults::call(FsCall::Remove(self.place(name)), || rustix::fs::unlinkat(&self.fd, name, AtFlags::empty()))
        {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(e) => Err(self.error("removing", name, e)),
        }
    }

    /// Makes renames and removals in this folder durable.
    pub fn sync(&self) -> Result<()> {
        faults::call(FsCall::SyncFolder(self.path.as_path().into()), || rustix::fs::fsync(&self.fd))
            .map_err(|e| Error::io("syncing folder", &self.path, e.into()))
    }

    fn place<'a>(&'a self, name: &'a str) -> FsPlace<'a> {
        FsPlace(&self.path, name)
    }

    fn error(&self, op: &'static str, name: &str, e: Errno) -> Error {
        Error::io(op, self.join(name), e.into())
    }
}

/// Whether an error is that of a folder of another user, or of a file system that is read-only or syncs no folders.
fn is_elsewhere(kind: std::io::ErrorKind) -> bool {
    use std::io::ErrorKind::{InvalidInput, PermissionDenied, ReadOnlyFilesystem, Unsupported};
    matches!(kind, PermissionDenied | ReadOnlyFilesystem | InvalidInput | Unsupported)
}
