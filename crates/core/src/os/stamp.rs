//! What tells, without reading it, that a file is still the one that was read.
//!
//! Invariant: a write, a replacement or a reset time stamp changes a [`FileStamp`], once the file has settled.
//! Deliberately not here: hashes, which a stamp only spares.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, SystemTime};

use rustix::fs::Stat;
use serde::{Deserialize, Serialize};

/// A file that changed less than this ago may change again without a new time stamp, so its stamp proves nothing.
const SETTLED_AFTER: Duration = Duration::from_secs(2);

/// Size, times and inode of a file. The device is left out: its number may be another one after a restart. The change
/// time is the one that no program can set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileStamp {
    /// Length of the file.
    pub bytes: u64,
    /// Number of the file in its file system.
    pub inode: u64,
    /// Time of the last write, in seconds and nanoseconds since 1970.
    modified: (i64, i64),
    /// Time of the last change of content, name count, owner or mode, in seconds and nanoseconds since 1970.
    changed: (i64, i64),
}

impl From<&Metadata> for FileStamp {
    fn from(metadata: &Metadata) -> FileStamp {
        FileStamp {
            bytes: metadata.len(),
            inode: metadata.ino(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

impl From<&Stat> for FileStamp {
    fn from(stat: &Stat) -> FileStamp {
        FileStamp {
            bytes: stat.st_size as u64,
            inode: stat.st_ino,
            modified: (stat.st_mtime, stat.st_mtime_nsec as i64),
            changed: (stat.st_ctime, stat.st_ctime_nsec as i64),
        }
    }
}

impl FileStamp {
    /// Time of the last write, in nanoseconds since 1970.
    pub fn modified_ns(&self) -> i128 {
        nanoseconds(self.modified)
    }

    /// Time of the last change, in nanoseconds since 1970.
    pub fn changed_ns(&self) -> i128 {
        nanoseconds(self.changed)
    }

    /// Whether this is the same file with the same content as `other`. Its owner, mode and links may be others.
    pub fn same_content(&self, other: &FileStamp) -> bool {
        (self.bytes, self.inode, self.modified) == (other.bytes, other.inode, other.modified)
    }

    /// Whether the file had rested for long enough at `now` that a later change must show in its stamp. Asked at the
    /// time of reading; a stamp that has not settled is not remembered, as git does with its index.
    pub fn is_settled(&self, now: SystemTime) -> bool {
        let (seconds, nanoseconds) = self.modified.max(self.changed);
        let (Ok(seconds), Ok(nanoseconds)) = (u64::try_from(seconds), u32::try_from(nanoseconds)) else { return false };
        now.duration_since(SystemTime::UNIX_EPOCH + Duration::new(seconds, nanoseconds))
            .is_ok_and(|age| age >= SETTLED_AFTER)
    }
}

fn nanoseconds((seconds, nanoseconds): (i64, i64)) -> i128 {
    i128::from(seconds) * 1_000_000_000 + i128::from(nanoseconds)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_settles_two_seconds_after_the_last_change() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let stamp = FileStamp::from(&file.as_file().metadata().unwrap());
        let now = SystemTime::now();
        assert!(!stamp.is_settled(now));
        assert!(!stamp.is_settled(now - Duration::from_secs(3600)), "a file from the future");
        assert!(stamp.is_settled(now + Duration::from_secs(3)));
    }

    #[test]
    fn both_ways_to_ask_the_system_give_one_stamp() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "x").unwrap();
        let stamp = FileStamp::from(&file.as_file().metadata().unwrap());
        assert_eq!(stamp, FileStamp::from(&rustix::fs::fstat(file.as_file()).unwrap()));
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o640);
        std::fs::set_permissions(file.path(), mode).unwrap();
        assert!(stamp.same_content(&FileStamp::from(&file.as_file().metadata().unwrap())));
        std::fs::write(file.path(), "yy").unwrap();
        assert!(!stamp.same_content(&FileStamp::from(&file.as_file().metadata().unwrap())));
    }
}
