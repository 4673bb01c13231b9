//! Files and folders that are there whole or not at all.
//!
//! Everything is written under a hidden partial name beside the target, made durable, and renamed. The partial is
//! locked while it is written: one that a killed process left behind is recognised by its free lock and removed by
//! the next export to the same target.
//!
//! Invariant: an existing target is replaced only when the caller says so, and only where all of it is what an export
//! has written; a link is never followed and never replaced. When the work fails, nothing is left, the folders that
//! were made on the way included. Deliberately not here: what is written, and how an export is known (export_record).

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;

use ckptd_core::error::{Error, Result};
use ckptd_core::os::publish::{Existing, folder_of, publish};

/// Files that are made durable at a time.
const SYNCS: usize = 16;

/// What becomes of a target that is there already.
#[derive(Clone, Copy, Debug)]
pub enum OverwriteRule {
    /// It stays, and the writing is refused.
    Refuse,
    /// It is replaced, where this finds nothing in it that no export has written; it names what it finds.
    Replace(fn(&Path) -> Result<Vec<String>>),
}

impl OverwriteRule {
    /// Replaces what is there where `force` says so and `foreign` finds nothing of others in it.
    pub fn forced(force: bool, foreign: fn(&Path) -> Result<Vec<String>>) -> OverwriteRule {
        if force { OverwriteRule::Replace(foreign) } else { OverwriteRule::Refuse }
    }
}

/// What is to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutputKind {
    /// One file.
    File,
    /// A folder with files in it.
    Folder,
}

/// Names of others that a message shows.
const SHOWN: usize = 5;

/// Whether `path` is a name that reports can say: they are text.
///
/// # Errors
/// [`Error::Config`] for one that is no UTF-8.
pub fn check_name(path: &Path) -> Result<()> {
    let whole = std::path::absolute(path).map_err(|e| Error::io("looking at", path, e))?;
    match whole.to_str() {
        Some(_) => Ok(()),
        None => Err(Error::Config(format!(
            "{whole:?} is no UTF-8, and reports about it could not name it; rename the file or folder"
        ))),
    }
}

/// Whether `target` may be written; call this before any long work.
///
/// # Errors
/// [`Error::Other`] where something is there that may not be replaced or its folder may not be written to,
/// [`Error::Config`] where no file can have that name.
pub fn check(target: &Path, kind: OutputKind, overwrite: OverwriteRule) -> Result<()> {
    let refuse = |what: String| Err(Error::Other(format!("{} {what}", target.display())));
    if target.file_name().is_none() {
        return Err(Error::Config(format!("{} is not a name to write to", target.display())));
    }
    check_place(target)?;
    let found = match std::fs::symlink_metadata(target) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        found => found.map_err(|e| Error::io("looking at", target, e))?,
    };
    match (kind, found.file_type()) {
        (_, found) if found.is_symlink() => {
            let to = std::fs::read_link(target).unwrap_or_default();
            return refuse(format!("is a link to {}; links are not written through: give that name", to.display()));
        }
        (OutputKind::File, found) if found.is_dir() => {
            return refuse("is a folder, and one file is to be written; give the name of a file in it".into());
        }
        (OutputKind::Folder, found) if found.is_file() => {
            return refuse("is a file, and a folder is to be written; choose another name".into());
        }
        (_, found) if !found.is_dir() && !found.is_file() => {
            return refuse("is neither a file nor a folder; choose another name".into());
        }
        (_, found) if found.is_dir() && is_empty(target)? => return Ok(()),
        _ => {}
    }
    let OverwriteRule::Replace(foreign) = overwrite else {
        return refuse("is there already; --force replaces it".into());
    };
    let foreign = foreign(target)?;
    if foreign.is_empty() {
        return Ok(());
    }
    let more = if foreign.len() > SHOWN { format!(" and {} more", foreign.len() - SHOWN) } else { String::new() };
    let shown = foreign.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
    refuse(format!(
        "holds what no export of ckptd has written, and --force deletes only what one has: {shown}{more}; move it \
         away, or choose another name"
    ))
}

/// Whether a file may be made at `target`, where folders on the way to it may be missing.
fn check_place(target: &Path) -> Result<()> {
    let folder = there(&folder_of(target));
    if !folder.is_dir() {
        return Err(Error::Other(format!("{} is not a folder, so nothing can be written below it", folder.display())));
    }
    let access = rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK;
    rustix::fs::access(&folder, access).map_err(|e| Error::io("writing to", &folder, e.into()))
}

/// `folder`, or the nearest one above it that is there.
fn there(folder: &Path) -> PathBuf {
    let mut at = folder.to_path_buf();
    while std::fs::symlink_metadata(&at).is_err_and(|e| e.kind() == io::ErrorKind::NotFound) {
        at = folder_of(&at);
        if at == Path::new(".") {
            break;
        }
    }
    at
}

/// Whether so many bytes find room where `target` is to lie.
///
/// # Errors
/// [`Error::Other`] with both numbers.
pub fn check_room(target: &Path, bytes: u64) -> Result<()> {
    let folder = there(&folder_of(target));
    let disk = rustix::fs::statvfs(&folder).map_err(|e| Error::io("looking at", &folder, e.into()))?;
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    if free >= bytes {
        return Ok(());
    }
    Err(Error::Other(format!(
        "no space for {}: it takes at least {} MB, and {} MB are free; free some, or choose another disk",
        target.display(),
        bytes.div_ceil(1_000_000),
        free / 1_000_000
    )))
}

/// Folders that were made on the way to a target; they go again unless they are kept.
struct MadeFolders(Vec<PathBuf>);

impl MadeFolders {
    fn on_the_way_to(target: &Path) -> Result<MadeFolders> {
        let mut missing = Vec::new();
        let mut at = folder_of(target);
        while !at.exists() && at != Path::new(".") {
            missing.push(at.clone());
            at = folder_of(&at);
        }
        let mut made = MadeFolders(Vec::new());
        for folder in missing.into_iter().rev() {
            match std::fs::create_dir(&folder) {
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                result => result.map_err(|e| Error::io("creating", &folder, e))?,
            }
            made.0.push(folder);
        }
        Ok(made)
    }

    /// Makes the folders' names durable; they stay.
    fn keep(mut self) -> Result<()> {
        for folder in std::mem::take(&mut self.0) {
            let above = folder_of(&folder);
            open_folder(&above)?.sync_all().map_err(|e| Error::io("syncing", &above, e))?;
        }
        Ok(())
    }
}

impl Drop for MadeFolders {
    fn drop(&mut self) {
        for folder in self.0.iter().rev() {
            // Where something lies in it by now, it stays.
            let _ = std::fs::remove_dir(folder);
        }
    }
}

/// Writes the file `target` through `fill`.
pub fn file<T>(target: &Path, overwrite: OverwriteRule, fill: impl FnOnce(&mut File) -> Result<T>) -> Result<T> {
    check(target, OutputKind::File, overwrite)?;
    let made = MadeFolders::on_the_way_to(target)?;
    let mut partial = PartialOutput::make(target, "partial", make_file)?;
    let result = fill(&mut partial.handle)?;
    partial.publish(target, OutputKind::File, overwrite)?;
    made.keep()?;
    Ok(result)
}

/// Writes the folder `target`: `fill` puts files into the folder that it is given.
pub fn folder<T>(target: &Path, overwrite: OverwriteRule, fill: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
    check(target, OutputKind::Folder, overwrite)?;
    let made = MadeFolders::on_the_way_to(target)?;
    let partial = PartialOutput::make(target, "partial", make_folder)?;
    let result = fill(&partial.path)?;
    partial.publish(target, OutputKind::Folder, overwrite)?;
    made.keep()?;
    Ok(result)
}

/// A new file in a folder that `folder` makes; [`sync`] makes it durable, where it is to stay.
pub fn part<T>(folder: &Path, name: &str, fill: impl FnOnce(&mut File) -> Result<T>) -> Result<T> {
    let path = folder.join(name);
    let mut file = make_file(&path)?;
    fill(&mut file)
}

/// Makes files of a folder durable, all at once: one after the other, each would wait for the file system's journal.
pub fn sync(folder: &Path, names: &[String]) -> Result<()> {
    let one = |name: &String| {
        let path = folder.join(name);
        let file = File::open(&path).map_err(|e| Error::io("opening", &path, e))?;
        file.sync_all().map_err(|e| Error::io("syncing", &path, e))
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = names
            .chunks(names.len().div_ceil(SYNCS).max(1))
            .map(|names| scope.spawn(move || names.iter().try_for_each(one)))
            .collect();
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })
}

/// A folder to work in beside a target, on the same file system. It is gone when this is dropped.
pub struct ScratchFolder {
    partial: PartialOutput,
    /// Goes after what lies in it.
    _made: MadeFolders,
}

impl ScratchFolder {
    /// Makes one beside `target`, under a name that says whose it is.
    pub fn beside(target: &Path) -> Result<ScratchFolder> {
        let made = MadeFolders::on_the_way_to(target)?;
        Ok(ScratchFolder { partial: PartialOutput::make(target, "scratch", make_folder)?, _made: made })
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.partial.path
    }
}

/// What is being written; removed when it is dropped before it was published.
struct PartialOutput {
    path: PathBuf,
    handle: File,
    published: bool,
}

impl PartialOutput {
    fn make(target: &Path, kind: &str, create: impl FnOnce(&Path) -> Result<File>) -> Result<PartialOutput> {
        let mut name = OsString::from(".");
        name.push(target.file_name().unwrap_or_default());
        name.push(format!(".ckptd-{kind}"));
        let path = folder_of(target).join(name);
        remove_stale(&path)?;
        let handle = create(&path)?;
        let partial = PartialOutput { path, handle, published: false };
        lock(&partial.handle, &partial.path)?;
        Ok(partial)
    }

    fn publish(mut self, target: &Path, kind: OutputKind, overwrite: OverwriteRule) -> Result<()> {
        let existing = match std::fs::symlink_metadata(target) {
            Ok(found) if found.is_dir() && !is_empty(target)? => {
                check(target, kind, overwrite)?;
                Existing::Exchange
            }
            Ok(found) if found.is_file() && matches!(overwrite, OverwriteRule::Replace(_)) => {
                check(target, kind, overwrite)?;
                Existing::Replace
            }
            // An empty folder, or nothing: what appeared meanwhile is not replaced.
            Ok(found) if found.is_dir() => Existing::Replace,
            _ => Existing::Keep,
        };
        publish(&self.handle, &self.path, target, existing)?;
        self.published = true;
        if existing == Existing::Exchange {
            // The old folder has the partial name now.
            remove(&self.path)?;
        }
        Ok(())
    }
}

impl Drop for PartialOutput {
    fn drop(&mut self) {
        if !self.published {
            // The error that led here says more than one of this removal.
            let _ = remove(&self.path);
        }
    }
}

fn make_file(path: &Path) -> Result<File> {
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(path);
    file.map_err(|e| Error::io("creating", path, e))
}

fn make_folder(path: &Path) -> Result<File> {
    std::fs::create_dir(path).map_err(|e| Error::io("creating", path, e))?;
    open_folder(path)
}

/// Removes a partial that nobody is writing any more.
fn remove_stale(path: &Path) -> Result<()> {
    let handle = match OpenOptions::new().read(true).custom_flags(rustix::fs::OFlags::NOFOLLOW.bits() as i32).open(path)
    {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        handle => handle.map_err(|e| Error::io("opening", path, e))?,
    };
    lock(&handle, path)?;
    // The one that is locked is the one that is removed.
    let (open, named) = (handle.metadata(), std::fs::symlink_metadata(path));
    match (open, named) {
        (Ok(open), Ok(named)) if open.ino() == named.ino() => remove(path),
        _ => Ok(()),
    }
}

fn lock(handle: &File, path: &Path) -> Result<()> {
    match rustix::fs::flock(handle, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::WOULDBLOCK) => {
            Err(Error::Other(format!("another export is writing {}; wait for it or stop it", path.display())))
        }
        Err(e) => Err(Error::io("locking", path, e.into())),
    }
}

fn remove(path: &Path) -> Result<()> {
    let folder = std::fs::symlink_metadata(path).is_ok_and(|found| found.is_dir());
    let removed = if folder { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
    removed.map_err(|e| Error::io("removing", path, e))
}

fn is_empty(folder: &Path) -> Result<bool> {
    let mut entries = std::fs::read_dir(folder).map_err(|e| Error::io("reading folder", folder, e))?;
    Ok(entries.next().is_none())
}

fn open_folder(path: &Path) -> Result<File> {
    File::open(path).map_err(|e| Error::io("opening", path, e))
}
