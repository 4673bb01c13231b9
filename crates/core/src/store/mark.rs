//! How far the session under way is: one small document that is written over in place, again and again.
//!
//! Invariant: it survives the death of the process that wrote it, since a write is one call into the page cache, and
//! nobody waits for the disk. After a power cut it may be anything, and then reads as absent: nothing but the history
//! of sessions depends on it. Deliberately not here: what stands in it.

use std::fs::File;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::handle::Store;
use super::layout::MARK;
use super::lock::StoreLock;
use crate::error::{Error, Result};
use crate::os::fs;

/// Bytes of it: blanks fill it up, so that nothing of an older one stays behind a shorter one.
const BYTES: usize = 1024;

/// The open mark of a store.
#[derive(Debug)]
pub struct StoreMark(File);

impl Store {
    /// Opens the mark to write it.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn open_mark(&self, _lock: &StoreLock) -> Result<StoreMark> {
        self.dir.open_kept(MARK).map(StoreMark)
    }

    /// Writes `value` over what the mark was.
    ///
    /// # Errors
    /// Those of the file system, and [`Error::Other`] for a value that is too long.
    pub fn write_mark<T: Serialize>(&self, mark: &StoreMark, value: &T) -> Result<()> {
        let json = serde_json::to_vec(value).map_err(|e| Error::Other(format!("writing {MARK}: {e}")))?;
        if json.len() > BYTES {
            return Err(Error::Other(format!("writing {MARK}: {} bytes are more than it holds", json.len())));
        }
        let filled = [json.as_slice(), &[b' '; BYTES][json.len()..]].concat();
        fs::write_all_at(&mark.0, &filled, 0, &self.dir.join(MARK))
    }

    /// The mark as it was written last; `None` where there is none that is whole.
    pub fn read_mark<T: DeserializeOwned>(&self) -> Option<T> {
        let json = self.dir.read_small(MARK, BYTES as u64).ok()??;
        serde_json::from_slice(&json).ok()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_shorter_mark_leaves_nothing_of_a_longer_one_and_a_torn_one_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::create(folder.path()).unwrap();
        let lock = store.lock("a test").unwrap();
        assert_eq!(store.read_mark::<String>(), None);
        let mark = store.open_mark(&lock).unwrap();
        for text in ["a long one", "short"] {
            store.write_mark(&mark, &text).unwrap();
            assert_eq!(store.read_mark::<String>().as_deref(), Some(text));
        }
        assert!(store.write_mark(&mark, &"x".repeat(BYTES)).is_err());
        std::fs::write(folder.path().join(MARK), "\"torn").unwrap();
        assert_eq!(store.read_mark::<String>(), None);
    }
}
