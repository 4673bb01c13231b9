//! File-system calls on open files and on paths, each announced to [`faults`].
//!
//! Invariant: a link as the last component of a path is not followed where a file is opened.
//! Deliberately not here: names in an open folder (dir), when to call what (commit, verify).

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;

use memmap2::{Advice, MmapMut};
use rustix::fs::{FileType, FlockOperation, Mode, OFlags, RenameFlags, Stat};
use rustix::io::Errno;
use rustix::process::{Flock, FlockOffsetType, FlockType};

use super::faults::{self, FsCall};
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

pub(super) const FILE_FLAGS: OFlags =
    // Without NONBLOCK a planted FIFO would hang the open.
    OFlags::RDONLY.union(OFlags::CLOEXEC).union(OFlags::NOFOLLOW).union(OFlags::NONBLOCK);

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
pub(super) fn lacks_rename_flags(error: Errno) -> bool {
    matches!(error, Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP)
}

pub(super) fn is_regular(stat: &Stat) -> bool {
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

/// Whether nothing is at `path`. Where the system refuses to say, something counts as there: opening it gives the
/// reason.
pub(super) fn is_missing(path: &Path) -> bool {
    matches!(faults::call(FsCall::Stat(path.into()), || rustix::fs::stat(path)), Err(Errno::NOENT))
}

/// Whether a folder is at `path`, which may lead through links.
pub fn is_dir(path: &Path) -> bool {
    faults::call(FsCall::Stat(path.into()), || rustix::fs::stat(path))
        .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
}

/// Bytes that this user may still write on the file system that `path` is on; `None` where it does not say.
pub fn free_space(path: &Path) -> Option<u64> {
    let stat = faults::call(FsCall::Stat(path.into()), || rustix::fs::statvfs(path)).ok()?;
    Some(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Takes the kernel's lock on an open file; false where another process has it.
pub fn try_lock(file: &File, path: &Path) -> Result<bool> {
    let lock = || rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive);
    match faults::call(FsCall::Lock(path.into()), lock) {
        Ok(()) => Ok(true),
        Err(Errno::WOULDBLOCK) => Ok(false),
        Err(e) => Err(Error::io("locking", path, e.into())),
    }
}

/// Takes the kernel's record lock on all of an open file, which belongs to this process and to no child of it; false
/// where another process has it. It ends when this process closes any file that it has open under this name.
pub fn try_record_lock(file: &File, path: &Path) -> Result<bool> {
    let lock = || rustix::fs::fcntl_lock(file, FlockOperation::NonBlockingLockExclusive);
    match faults::call(FsCall::Lock(path.into()), lock) {
        Ok(()) => Ok(true),
        Err(Errno::ACCESS | Errno::AGAIN) => Ok(false),
        Err(e) => Err(Error::io("locking", path, e.into())),
    }
}

/// The other process that has a record lock on an open file, 0 where it has no number here; `None`: none has.
pub fn record_lock_holder(file: &File, path: &Path) -> Result<Option<u32>> {
    let (typ, offset_type) = (FlockType::WriteLock, FlockOffsetType::Set);
    let asked = Flock { start: 0, length: 0, pid: None, typ, offset_type };
    let found = rustix::process::fcntl_getlk(file, &asked);
    let found = found.map_err(|e| Error::io("looking for the lock of", path, e.into()))?;
    Ok(found.map(|found| found.pid.map_or(0, |pid| pid.as_raw_pid() as u32)))
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
