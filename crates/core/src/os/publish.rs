//! Publishing: what was written beside a target, under a name of its own, becomes the target.
//!
//! Invariant: the content is durable before the rename, and the rename before the return, so that after a power loss
//! the target is whole or as it was. Deliberately not here: names of partial files and what removes left-over ones
//! (their writers), small files of a store ([`Dir::write_durably`]), snapshots (commit).

use std::fs::File;
use std::path::{Path, PathBuf};

use super::dir::Dir;
use super::fs;
use crate::error::Result;

/// What becomes of something that is at the target already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    /// It stays, and the publishing fails.
    Keep,
    /// A file, or a folder that is empty, is replaced.
    Replace,
    /// A folder with content comes to lie under the partial name.
    Exchange,
}

/// Makes the file or folder `partial`, which is open as `handle`, the one at `target`, durably. Both names are in one
/// file system. A folder's files must have been made durable.
///
/// # Errors
/// Where the system refuses; `partial` then still has its name, unless the folder's sync was what failed.
pub fn publish(handle: &File, partial: &Path, target: &Path, existing: Existing) -> Result<()> {
    fs::sync_file(handle, partial)?;
    match existing {
        Existing::Keep => fs::rename_new(partial, target)?,
        Existing::Replace => fs::rename(partial, target)?,
        Existing::Exchange => fs::exchange(partial, target)?,
    }
    Dir::open(&folder_of(target))?.sync()
}

/// The folder that `path` is in; the current one for a bare name.
pub fn folder_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_path_buf(),
        _ => PathBuf::from("."),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_replaced_only_when_that_is_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        let (partial, target) = (folder.path().join(".partial"), folder.path().join("target"));
        let write = |text: &str| {
            std::fs::write(&partial, text).unwrap();
            File::open(&partial).unwrap()
        };
        publish(&write("one"), &partial, &target, Existing::Keep).unwrap();
        let handle = write("two");
        let error = publish(&handle, &partial, &target, Existing::Keep).unwrap_err();
        assert!(error.to_string().contains("target") && partial.exists(), "{error}");
        assert_eq!(std::fs::read(&target).unwrap(), b"one");
        publish(&handle, &partial, &target, Existing::Replace).unwrap();
        assert_eq!(std::fs::read(&target).unwrap(), b"two");
        publish(&write("three"), &partial, &target, Existing::Exchange).unwrap();
        assert_eq!(std::fs::read(&partial).unwrap(), b"two");
    }
}
