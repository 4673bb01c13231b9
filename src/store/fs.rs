//! Every file-system call of the store.
//!
//! Invariant: names are single components below an open folder, links are never followed, and nothing outside the
//! store is touched. What must survive a power loss goes through [`Dir::write_durably`] or the steps of a commit.
//! Deliberately not here: what the names mean (layout), when to call what (commit, verify, retain).

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RenameFlags, Stat};

use crate::error::{Error, Result};

/// Alignment that direct I/O needs of memory, offset and length on every device that we know.
pub const SECTOR: usize = 4096;

/// An open folder of the store.
#[derive(Debug)]
pub struct Dir {
    fd: OwnedFd,
    path: PathBuf,
}

const DIR_FLAGS: OFlags = OFlags::DIRECTORY.union(OFlags::RDONLY).union(OFlags::CLOEXEC);

impl Dir {
    /// Opens the folder that the user named; links in that path are the user's own.
    pub fn open(path: &Path) -> Result<Dir> {
        let fd = rustix::fs::open(path, DIR_FLAGS, Mode::empty()).map_err(|e| Error::io("opening", path, e.into()))?;
        Ok(Dir { fd, path: path.to_path_buf() })
    }

    /// Opens a folder below; `None` where there is none.
    pub fn open_dir(&self, name: &str) -> Result<Option<Dir>> {
        match rustix::fs::openat(&self.fd, name, DIR_FLAGS | OFlags::NOFOLLOW, Mode::empty()) {
            Ok(fd) => Ok(Some(Dir { fd, path: self.join(name) })),
            Err(rustix::io::Errno::NOENT) => Ok(None),
            Err(e) => Err(self.error("opening", name, e)),
        }
    }

    /// Makes a folder below (0700) unless it is there.
    pub fn make_dir(&self, name: &str) -> Result<()> {
        match rustix::fs::mkdirat(&self.fd, name, Mode::RWXU) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
            Err(e) => Err(self.error("making folder", name, e)),
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Names of the regular files below, unsorted. Names that are not UTF-8 are not ours and left out.
    pub fn files(&self) -> Result<Vec<String>> {
        let entries =
            rustix::fs::Dir::read_from(&self.fd).map_err(|e| Error::io("reading folder", &self.path, e.into()))?;
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|e| Error::io("reading folder", &self.path, e.into()))?;
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
        match rustix::fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(rustix::io::Errno::NOENT) => Ok(None),
            Err(e) => Err(self.error("looking at", name, e)),
        }
    }

    /// Opens a regular file for reading; `extra` may ask for direct I/O.
    pub fn open_file(&self, name: &str, extra: OFlags) -> Result<File> {
        // Without NONBLOCK a planted FIFO would hang the open.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK | extra;
        let file = File::from(
            rustix::fs::openat(&self.fd, name, flags, Mode::empty()).map_err(|e| self.error("opening", name, e))?,
        );
        require_regular(&file, &self.join(name))?;
        Ok(file)
    }

    /// Creates a file that must not be there (0600).
    pub fn create_file(&self, name: &str, extra: OFlags) -> Result<File> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC | extra;
        rustix::fs::openat(&self.fd, name, flags, Mode::RUSR | Mode::WUSR)
            .map(File::from)
            .map_err(|e| self.error("creating", name, e))
    }

    /// Opens or creates a small file of the store itself, such as the lock; it stays open across exec.
    pub fn open_lock(&self, name: &str) -> Result<File> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let file = File::from(
            rustix::fs::openat(&self.fd, name, flags, Mode::RUSR | Mode::WUSR)
                .map_err(|e| self.error("opening", name, e))?,
        );
        require_regular(&file, &self.join(name))?;
        Ok(file)
    }

    /// The content of a small file, at most `max` bytes; `None` where there is none.
    pub fn read_small(&self, name: &str, max: u64) -> Result<Option<Vec<u8>>> {
        let Some(stat) = self.stat(name)? else { return Ok(None) };
        if !is_regular(&stat) || stat.st_size as u64 > max {
            return Err(Error::damaged(self.join(name), format!("not a regular file of at most {max} bytes")));
        }
        let mut bytes = Vec::new();
        self.open_file(name, OFlags::empty())?
            .take(max)
            .read_to_end(&mut bytes)
            .map_err(|e| Error::io("reading", self.join(name), e))?;
        Ok(Some(bytes))
    }

    /// Replaces a small file so that after a power loss either the old or the new content is there.
    pub fn write_durably(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let temporary = format!("{name}.{}.new", std::process::id());
        self.remove(&temporary)?;
        let mut file = self.create_file(&temporary, OFlags::empty())?;
        let path = self.join(&temporary);
        file.write_all(bytes).map_err(|e| Error::io("writing", &path, e))?;
        sync_file(&file, &path)?;
        rustix::fs::renameat(&self.fd, &temporary, &self.fd, name).map_err(|e| self.error("renaming to", name, e))?;
        self.sync()
    }

    /// Moves a file to another folder under a name that must be free.
    pub fn rename_new(&self, from: &str, to: &Dir, name: &str) -> Result<()> {
        match rustix::fs::renameat_with(&self.fd, from, &to.fd, name, RenameFlags::NOREPLACE) {
            Ok(()) => return Ok(()),
            // File systems without the flag (NFS, some FUSE mounts): the lock makes the look before the rename safe.
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS | rustix::io::Errno::OPNOTSUPP) => {}
            Err(e) => return Err(to.error("renaming to", name, e)),
        }
        if to.stat(name)?.is_some() {
            return Err(to.error("renaming to", name, rustix::io::Errno::EXIST));
        }
        rustix::fs::renameat(&self.fd, from, &to.fd, name).map_err(|e| to.error("renaming to", name, e))
    }

    /// Removes a file; that it is not there is success.
    pub fn remove(&self, name: &str) -> Result<()> {
        match rustix::fs::unlinkat(&self.fd, name, AtFlags::empty()) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(()),
            Err(e) => Err(self.error("removing", name, e)),
        }
    }

    /// Makes renames and removals in this folder durable.
    pub fn sync(&self) -> Result<()> {
        rustix::fs::fsync(&self.fd).map_err(|e| Error::io("syncing folder", &self.path, e.into()))
    }

    fn error(&self, op: &'static str, name: &str, e: rustix::io::Errno) -> Error {
        Error::io(op, self.join(name), e.into())
    }
}

fn is_regular(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
}

/// Refuses folders, links, pipes and devices.
pub fn require_regular(file: &File, path: &Path) -> Result<()> {
    let stat = rustix::fs::fstat(file).map_err(|e| Error::io("looking at", path, e.into()))?;
    match is_regular(&stat) {
        true => Ok(()),
        false => Err(Error::damaged(path, "not a regular file")),
    }
}

/// A failed fsync is final for this file: the kernel may have dropped the data and marked the pages clean, so a second
/// one would lie. The caller drops the file.
pub fn sync_file(file: &File, path: &Path) -> Result<()> {
    file.sync_all().map_err(|e| Error::io("syncing", path, e))
}

/// Reserves room for `bytes`; a file system that cannot do that is no error, a full one is.
pub fn preallocate(file: &File, bytes: u64, path: &Path) -> Result<()> {
    use rustix::io::Errno;
    match rustix::fs::fallocate(file, rustix::fs::FallocateFlags::KEEP_SIZE, 0, bytes.max(1)) {
        Err(e @ (Errno::NOSPC | Errno::DQUOT | Errno::FBIG)) => Err(Error::io("reserving room for", path, e.into())),
        _ => Ok(()),
    }
}

pub fn truncate(file: &File, bytes: u64, path: &Path) -> Result<()> {
    file.set_len(bytes).map_err(|e| Error::io("cutting", path, e))
}

/// Drops this file's clean pages from the page cache, so that the next read comes from the device.
pub fn forget_cached(file: &File) {
    // Advice only: where it is not supported the read may be served from memory.
    let _ = rustix::fs::fadvise(file.as_fd(), 0, None, rustix::fs::Advice::DontNeed);
}

/// Opens a file by its path for direct reading where the file system can, else buffered with its pages dropped.
pub fn open_past_cache(path: &Path) -> Result<(File, bool)> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    if let Ok(fd) = rustix::fs::open(path, flags | OFlags::DIRECT, Mode::empty()) {
        return Ok((File::from(fd), true));
    }
    let file = open_path(path)?;
    forget_cached(&file);
    Ok((file, false))
}

/// Opens a regular file by its path for buffered reading; a link as the last component is refused.
pub fn open_path(path: &Path) -> Result<File> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file =
        File::from(rustix::fs::open(path, flags, Mode::empty()).map_err(|e| Error::io("opening", path, e.into()))?);
    require_regular(&file, path)?;
    Ok(file)
}

/// Reads exactly `buffer.len()` bytes at `offset`.
pub fn read_exact_at(file: &File, buffer: &mut [u8], offset: u64, path: &Path) -> Result<()> {
    use std::os::unix::fs::FileExt;
    file.read_exact_at(buffer, offset).map_err(|e| match e.kind() {
        io::ErrorKind::UnexpectedEof => Error::damaged(path, format!("the file ends within its data at byte {offset}")),
        _ => Error::io("reading", path, e),
    })
}

/// Reads up to `buffer.len()` bytes at `offset`, fewer only at the end of the file. Direct I/O ends with the first
/// read that is not whole sectors: that is the file's end, and the kernel would refuse the next one.
pub fn read_at(file: &File, buffer: &mut [u8], offset: u64, direct: bool, path: &Path) -> Result<usize> {
    use std::os::unix::fs::FileExt;
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(n) => {
                filled += n;
                if direct && filled % SECTOR != 0 {
                    break;
                }
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(Error::io("reading", path, e)),
        }
    }
    Ok(filled)
}

/// Writes all of `buffer` at `offset`.
pub fn write_all_at(file: &File, buffer: &[u8], offset: u64, path: &Path) -> Result<()> {
    use std::os::unix::fs::FileExt;
    file.write_all_at(buffer, offset).map_err(|e| Error::io("writing", path, e))
}
