//! The log of a store's sessions, for people: what was said while what lies here was made.
//!
//! Invariant: bounded: a file that is full becomes the old one, in the place of the one before. Nothing depends on it,
//! so it is never synced. Deliberately not here: what is logged, and when (the daemon).

use std::fs::File;

use super::handle::Store;
use super::layout::{LOG, OLD_LOG};
use super::lock::StoreLock;
use crate::error::Result;
use crate::os::fs;

/// Bytes of each of the two files.
const MAX_BYTES: u64 = 2 << 20;
/// How the line begins that a session's log begins with.
pub const SESSION_LINE: &str = "-- session of ";

/// The open log of a store.
#[derive(Debug)]
pub struct StoreLog {
    file: File,
    length: u64,
}

/// Up to where a log was read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogPosition {
    inode: u64,
    offset: u64,
}

impl Store {
    /// Opens the log to write behind what is there.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn open_log(&self, _lock: &StoreLock) -> Result<StoreLog> {
        let file = self.dir.open_kept(LOG)?;
        let length = fs::length(&file, &self.dir.join(LOG))?;
        Ok(StoreLog { file, length })
    }

    /// Writes `lines` at the log's end.
    ///
    /// # Errors
    /// Those of the file system; what was written before stays.
    pub fn append_log(&self, log: &mut StoreLog, lock: &StoreLock, lines: &[u8]) -> Result<()> {
        if log.length > 0 && log.length + lines.len() as u64 > MAX_BYTES {
            self.dir.remove(OLD_LOG)?;
            self.dir.rename_new(LOG, &self.dir, OLD_LOG)?;
            *log = self.open_log(lock)?;
        }
        let room = usize::try_from(MAX_BYTES - log.length.min(MAX_BYTES)).unwrap_or_default();
        let lines = &lines[..lines.len().min(room)];
        fs::write_all_at(&log.file, lines, log.length, &self.dir.join(LOG))?;
        log.length += lines.len() as u64;
        Ok(())
    }

    /// What was logged since `position`, or everything that is kept; and up to where that is.
    ///
    /// # Errors
    /// Those of reading.
    pub fn log_since(&self, position: Option<LogPosition>) -> Result<(Vec<u8>, LogPosition)> {
        let Some(stat) = self.dir.stat(LOG)? else { return Ok((Vec::new(), LogPosition::default())) };
        let (inode, length) = (stat.st_ino, stat.st_size.unsigned_abs());
        if position == Some(LogPosition { inode, offset: length }) {
            return Ok((Vec::new(), LogPosition { inode, offset: length }));
        }
        let old_inode = self.dir.stat(OLD_LOG)?.map(|stat| stat.st_ino);
        let new = self.dir.read_small(LOG, 2 * MAX_BYTES)?.unwrap_or_default();
        let old = || Ok::<_, crate::error::Error>(self.dir.read_small(OLD_LOG, 2 * MAX_BYTES)?.unwrap_or_default());
        let offset = new.len() as u64;
        let rest =
            |bytes: &[u8], from: u64| bytes.get(usize::try_from(from).unwrap_or(usize::MAX)..).map(<[u8]>::to_vec);
        let text = match position {
            Some(position) if position.inode == inode => rest(&new, position.offset).unwrap_or_default(),
            Some(position) if Some(position.inode) == old_inode => {
                [rest(&old()?, position.offset).unwrap_or_default(), new].concat()
            }
            Some(_) => new,
            None => [old()?, new].concat(),
        };
        Ok((text, LogPosition { inode, offset }))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_bounded_and_a_reader_follows_it_over_the_change_of_files() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::create(folder.path()).unwrap();
        let lock = store.lock("a test").unwrap();
        let mut log = store.open_log(&lock).unwrap();
        assert_eq!(store.log_since(None).unwrap().0, b"");
        store.append_log(&mut log, &lock, b"first\n").unwrap();
        let (text, position) = store.log_since(None).unwrap();
        assert_eq!(text, b"first\n");
        // A second session goes on behind it.
        let mut log = store.open_log(&lock).unwrap();
        store.append_log(&mut log, &lock, b"second\n").unwrap();
        let (text, position) = store.log_since(Some(position)).unwrap();
        assert_eq!(text, b"second\n");
        let line = [b'x'; 64 << 10];
        (0..32).for_each(|_| store.append_log(&mut log, &lock, &line).unwrap());
        let (text, position) = store.log_since(Some(position)).unwrap();
        assert_eq!(text.len(), 32 * line.len());
        (0..200).for_each(|_| store.append_log(&mut log, &lock, &line).unwrap());
        assert!(store.log_since(None).unwrap().0.len() as u64 <= 2 * MAX_BYTES);
        assert!(!store.log_since(Some(position)).unwrap().0.is_empty());
    }
}
