//! Removal of what killed processes left unfinished: staging files and temporary files.
//!
//! Invariant: nothing that a process still writes is removed.

use super::handle::Store;
use super::layout::Folder;
use super::lock::StoreLock;
use crate::error::Result;
use crate::os::{process, temporary};

impl Store {
    /// Removes what killed writers left, and returns how many files that were.
    pub fn clean_staging(&self, _lock: &StoreLock) -> Result<usize> {
        let staging = self.folder(Folder::Staging)?;
        let leftovers = staging.files()?;
        leftovers.iter().try_for_each(|name| staging.remove(name))?;
        Ok(leftovers.len() + self.clean_temporary()?)
    }

    /// Removes the halves of small files that killed processes left. Who still runs may be writing one without the
    /// lock.
    fn clean_temporary(&self) -> Result<usize> {
        let mut cleaned = 0;
        let below = [Folder::Quarantine, Folder::Receipts, Folder::Pins, Folder::History];
        let below = below.map(|folder| self.dir.open_dir(folder.name()));
        for dir in below.into_iter().collect::<Result<Vec<_>>>()?.iter().flatten().chain([&self.dir]) {
            for name in dir.files()? {
                if temporary::parse_temporary_file(&name).is_some_and(process::is_over) {
                    dir.remove(&name)?;
                    cleaned += 1;
                }
            }
        }
        Ok(cleaned)
    }
}
