//! Files and folders that are there whole or not at all.
//!
//! Everything is written under a hidden partial name beside the target, made durable, and renamed. The partial is
//! locked while it is written: one that a killed process left behind is recognised by its free lock and removed by
//! the next export to the same target.
//!
//! Invariant: an existing target is replaced only when the caller says so, and a folder only where it is empty or the
//! caller knows it by a file in it, never a folder of anything else. When the work fails, nothing is left. Deliberately
//! not here: what is written.

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
    /// It is replaced; a folder only where it holds plain files alone, one of them with a name that this accepts.
    Replace(fn(&str) -> bool),
}

impl OverwriteRule {
    /// Replaces what is there where `force` says so, folders only by a file of theirs that `marks` accepts.
    pub fn forced(force: bool, marks: fn(&str) -> bool) -> OverwriteRule {
        if force { OverwriteRule::Replace(marks) } else { OverwriteRule::Refuse }
    }
}

/// Whether `target` may be written; call this before any long work.
///
/// # Errors
/// [`Error::Other`] where something is there that may not be replaced, [`Error::NotFound`] where its folder is not
/// there.
pub fn check(target: &Path, overwrite: OverwriteRule) -> Result<()> {
    let parent = folder_of(target);
    if target.file_name().is_none() {
        return Err(Error::Config(format!("{} is not a name to write to", target.display())));
    }
    if !parent.is_dir() {
        return Err(Error::NotFound(format!("the folder {} is not there; make it first", parent.display())));
    }
    let found = match std::fs::symlink_metadata(target) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        found => found.map_err(|e| Error::io("looking at", target, e))?,
    };
    if found.is_dir() && is_empty(target)? {
        return Ok(());
    }
    let OverwriteRule::Replace(marks) = overwrite else {
        return Err(Error::Other(format!("{} is there already; --force replaces it", target.display())));
    };
    if found.is_dir() && !is_marked(target, marks)? {
        return Err(Error::Other(format!(
            "{} is a folder with other things than an export in it, which --force does not replace; choose another \
             name",
            target.display()
        )));
    }
    Ok(())
}

/// Writes the file `target` through `fill`.
pub fn file<T>(target: &Path, overwrite: OverwriteRule, fill: impl FnOnce(&mut File) -> Result<T>) -> Result<T> {
    check(target, overwrite)?;
    let mut partial = PartialOutput::make(target, "partial", make_file)?;
    let result = fill(&mut partial.handle)?;
    partial.publish(target, overwrite)?;
    Ok(result)
}

/// Writes the folder `target`: `fill` puts files into the folder that it is given.
pub fn folder<T>(target: &Path, overwrite: OverwriteRule, fill: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
    check(target, overwrite)?;
    let partial = PartialOutput::make(target, "partial", make_folder)?;
    let result = fill(&partial.path)?;
    partial.publish(target, overwrite)?;
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
pub struct ScratchFolder(PartialOutput);

impl ScratchFolder {
    /// Makes one beside `target`, under a name that says whose it is.
    pub fn beside(target: &Path) -> Result<ScratchFolder> {
        PartialOutput::make(target, "scratch", make_folder).map(ScratchFolder)
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.0.path
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
        let name = target.file_name().unwrap_or_default().to_string_lossy();
        let path = folder_of(target).join(format!(".{name}.ckptd-{kind}"));
        remove_stale(&path)?;
        let handle = create(&path)?;
        let partial = PartialOutput { path, handle, published: false };
        lock(&partial.handle, &partial.path)?;
        Ok(partial)
    }

    fn publish(mut self, target: &Path, overwrite: OverwriteRule) -> Result<()> {
        let existing = match std::fs::symlink_metadata(target) {
            Ok(found) if found.is_dir() && !is_empty(target)? => {
                check(target, overwrite)?;
                Existing::Exchange
            }
            Ok(_) if matches!(overwrite, OverwriteRule::Replace(_)) => Existing::Replace,
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

/// Whether there are plain files only, and among them one with a name that `marks` accepts.
fn is_marked(folder: &Path, marks: fn(&str) -> bool) -> Result<bool> {
    let entries = std::fs::read_dir(folder).map_err(|e| Error::io("reading folder", folder, e))?;
    let mut marked = false;
    for entry in entries {
        let entry = entry.map_err(|e| Error::io("reading folder", folder, e))?;
        if !entry.file_type().map_err(|e| Error::io("looking at", entry.path(), e))?.is_file() {
            return Ok(false);
        }
        marked |= entry.file_name().to_str().is_some_and(marks);
    }
    Ok(marked)
}

fn open_folder(path: &Path) -> Result<File> {
    File::open(path).map_err(|e| Error::io("opening", path, e))
}
