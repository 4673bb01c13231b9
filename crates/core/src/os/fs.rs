//! Every file-system call of the store, each announced to [`faults`].
//!
//! Invariant: names are single components below an open folder, links are never followed, and nothing outside the
//! store is touched. What must survive a power loss goes through [`Dir::write_durably`] or the steps of a commit.
//! Deliberately not here: what the names mean (layout), when to call what (commit, verify, retain).

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use memmap2::{Advice, MmapMut};
use rustix::fs::{AtFlags, FileType, FlockOperation, Mode, OFlags, RenameFlags, Stat};
use rustix::io::Errno;

use super::faults::{self, FsCall, FsPlace};
use super::temporary::temporary_file;
use crate::error::{Error, Result};

/// Alignment that direct I/O needs of memory, offset and length on every device that we know.
pub const SECTOR: usize = 4096;

/// How bytes of a file travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transfer {
    /// Through the page cache.
    Cached,
    /// Past it: memory, offset and length are whole sectors.
    Direct,
}

/// An open folder.
#[derive(Debug)]
pub struct Dir {
    fd: OwnedFd,
    path: PathBuf,
}

const DIR_FLAGS: OFlags = OFlags::DIRECTORY.union(OFlags::RDONLY).union(OFlags::CLOEXEC);
const FILE_FLAGS: OFlags =
    // Without NONBLOCK a planted FIFO would hang the open.
    OFlags::RDONLY.union(OFlags::CLOEXEC).union(OFlags::NOFOLLOW).union(OFlags::NONBLOCK);

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

    /// Opens or creates a small file of the store itself, such as the lock; it stays open across exec.
    pub fn open_lock(&self, name: &str) -> Result<File> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::NONBLOCK;
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

/// Renames, in place of what is at `to`.
pub fn rename(from: &Path, to: &Path) -> Result<()> {
    faults::call(FsCall::Rename(from.into(), to.into()), || rustix::fs::rename(from, to))
        .map_err(|e| Error::io("renaming to", to, e.into()))
}

/// Renames to a name that must be free.
pub fn rename_new(from: &Path, to: &Path) -> Result<()> {
    match rename_with(from, to, RenameFlags::NOREPLACE) {
        // What appears between this question and the rename is replaced; there is no better way here.
        Err(e) if lacks_rename_flags(e) && is_free(to) => rename(from, to),
        outcome => outcome.map_err(|e| Error::io("renaming to", to, e.into())),
    }
}

/// Swaps what is at two names.
pub fn exchange(one: &Path, other: &Path) -> Result<()> {
    rename_with(one, other, RenameFlags::EXCHANGE).map_err(|e| Error::io("renaming to", other, e.into()))
}

fn rename_with(from: &Path, to: &Path, flags: RenameFlags) -> rustix::io::Result<()> {
    let here = rustix::fs::CWD;
    faults::call(FsCall::Rename(from.into(), to.into()), || rustix::fs::renameat_with(here, from, here, to, flags))
}

/// Whether not even a link is at `path`.
fn is_free(path: &Path) -> bool {
    matches!(faults::call(FsCall::Stat(path.into()), || rustix::fs::lstat(path)), Err(Errno::NOENT))
}

/// Whether the error is that of a file system without flags for renames (NFS, some FUSE mounts).
fn lacks_rename_flags(error: Errno) -> bool {
    matches!(error, Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP)
}

/// What a folder says that belongs to somebody else or to a file system that is read-only or has no folders to sync.
fn is_elsewhere(kind: std::io::ErrorKind) -> bool {
    use std::io::ErrorKind::{InvalidInput, PermissionDenied, ReadOnlyFilesystem, Unsupported};
    matches!(kind, PermissionDenied | ReadOnlyFilesystem | InvalidInput | Unsupported)
}

fn is_regular(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
}

/// Refuses folders, links, pipes and devices.
pub fn require_regular(file: &File, path: &Path) -> Result<()> {
    if is_regular(&fstat(file, path)?) { Ok(()) } else { Err(Error::damaged(path, "not a regular file")) }
}

/// Length of an open file in bytes.
pub fn length(file: &File, path: &Path) -> Result<u64> {
    Ok(fstat(file, path)?.st_size as u64)
}

/// What the system says of an open file.
pub fn fstat(file: &File, path: &Path) -> Result<Stat> {
    faults::call(FsCall::Stat(path.into()), || rustix::fs::fstat(file))
        .map_err(|e| Error::io("reading the attributes of", path, e.into()))
}

/// Whether nothing is at `path`. What cannot be looked at counts as there: opening it gives the reason.
fn is_missing(path: &Path) -> bool {
    matches!(faults::call(FsCall::Stat(path.into()), || rustix::fs::stat(path)), Err(Errno::NOENT))
}

/// Whether a folder is at `path`, which may lead through links.
pub fn is_dir(path: &Path) -> bool {
    faults::call(FsCall::Stat(path.into()), || rustix::fs::stat(path))
        .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
}

/// Takes the kernel's lock on an open file; false where somebody else has it.
pub fn try_lock(file: &File, path: &Path) -> Result<bool> {
    let lock = || rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive);
    match faults::call(FsCall::Lock(path.into()), lock) {
        Ok(()) => Ok(true),
        Err(Errno::WOULDBLOCK) => Ok(false),
        Err(e) => Err(Error::io("locking", path, e.into())),
    }
}

/// A file that would grow past the process's limit is an error like a full disk, not the end of the process.
pub fn refuse_size_limit_signal() {
    // SAFETY: SIG_IGN is no handler that could run.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}

/// A failed fsync is final for this file: the kernel may have dropped the data and marked the pages clean, so a second
/// one would lie. The caller drops the file.
pub fn sync_file(file: &File, path: &Path) -> Result<()> {
    faults::call(FsCall::Sync(path.into()), || rustix::fs::fsync(file))
        .map_err(|e| Error::io("syncing", path, e.into()))
}

/// Reserves room for `bytes`; a file system that cannot do that is no error, a full one is.
pub fn preallocate(file: &File, bytes: u64, path: &Path) -> Result<()> {
    let reserve = || rustix::fs::fallocate(file, rustix::fs::FallocateFlags::KEEP_SIZE, 0, bytes.max(1));
    match faults::call(FsCall::Reserve(path.into(), bytes), reserve) {
        Err(e @ (Errno::NOSPC | Errno::DQUOT | Errno::FBIG)) => Err(Error::io("reserving room for", path, e.into())),
        _ => Ok(()),
    }
}

/// Cuts or extends an open file to `bytes`.
pub fn truncate(file: &File, bytes: u64, path: &Path) -> Result<()> {
    faults::call(FsCall::Truncate(path.into(), bytes), || rustix::fs::ftruncate(file, bytes))
        .map_err(|e| Error::io("cutting", path, e.into()))
}

/// Memory for one large transfer past the page cache. In huge pages where the system has some: the device takes only so
/// many pieces in a request (254 on virtio), and with small ones it took a third longer to write a block.
pub fn transfer_memory(bytes: usize, path: &Path) -> Result<MmapMut> {
    // Anonymous memory is page-aligned, as direct I/O wants it.
    let memory = MmapMut::map_anon(bytes).map_err(|e| Error::io("getting memory to transfer", path, e))?;
    let _ = memory.advise(Advice::HugePage);
    Ok(memory)
}

/// Sets how an open file is read and written; false where the file system refuses.
pub fn set_transfer(file: &File, transfer: Transfer, path: &Path) -> bool {
    let change = || {
        let flags = rustix::fs::fcntl_getfl(file)?;
        let flags = match transfer {
            Transfer::Direct => flags | OFlags::DIRECT,
            Transfer::Cached => flags - OFlags::DIRECT,
        };
        rustix::fs::fcntl_setfl(file, flags)
    };
    faults::call(FsCall::Flags(path.into()), change).is_ok()
}

/// Drops this file's clean pages from the page cache, so that the next read comes from the device.
pub fn forget_cached(file: &File) {
    // Advice only: where it is not supported the read may be served from memory.
    let _ = rustix::fs::fadvise(file.as_fd(), 0, None, rustix::fs::Advice::DontNeed);
}

/// Opens a file by its path for direct reading where the file system can, else buffered with its pages dropped.
pub fn open_past_cache(path: &Path) -> Result<(File, Transfer)> {
    let open = || rustix::fs::open(path, FILE_FLAGS | OFlags::DIRECT, Mode::empty());
    if let Ok(fd) = faults::call(FsCall::Open(path.into()), open) {
        return Ok((File::from(fd), Transfer::Direct));
    }
    let file = open_path(path)?;
    forget_cached(&file);
    Ok((file, Transfer::Cached))
}

/// Opens a regular file by its path for buffered reading; a link as the last component is refused.
pub fn open_path(path: &Path) -> Result<File> {
    let file = faults::call(FsCall::Open(path.into()), || rustix::fs::open(path, FILE_FLAGS, Mode::empty()))
        .map_err(|e| Error::io("opening", path, e.into()))?;
    let file = File::from(file);
    require_regular(&file, path)?;
    Ok(file)
}

/// Reads exactly `buffer.len()` bytes at `offset`.
pub fn read_exact_at(file: &File, buffer: &mut [u8], offset: u64, path: &Path) -> Result<()> {
    if read_at(file, buffer, offset, Transfer::Cached, path)? < buffer.len() {
        return Err(Error::damaged(path, format!("the file ends within its data at byte {offset}")));
    }
    Ok(())
}

/// Reads up to `buffer.len()` bytes at `offset`, fewer only at the end of the file. Direct I/O ends with the first
/// read that is not whole sectors: that is the file's end, and the kernel would refuse the next one.
pub fn read_at(file: &File, buffer: &mut [u8], offset: u64, transfer: Transfer, path: &Path) -> Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        let at = offset + filled as u64;
        let read = faults::call(FsCall::Read(path.into(), at), || rustix::io::pread(file, &mut buffer[filled..], at));
        match read.map_err(|e| Error::io("reading", path, e.into()))? {
            0 => break,
            n => filled += n,
        }
        if transfer == Transfer::Direct && filled % SECTOR != 0 {
            break;
        }
    }
    Ok(filled)
}

/// Writes all of `buffer` at `offset`.
pub fn write_all_at(file: &File, buffer: &[u8], offset: u64, path: &Path) -> Result<()> {
    let mut done = 0;
    while done < buffer.len() {
        let at = offset + done as u64;
        let write = |bytes: &[u8]| rustix::io::pwrite(file, bytes, at);
        match faults::write(path.into(), at, &buffer[done..], write)
            .map_err(|e| Error::io("writing", path, e.into()))?
        {
            0 => return Err(Error::io("writing", path, std::io::ErrorKind::WriteZero.into())),
            n => done += n,
        }
    }
    Ok(())
}
