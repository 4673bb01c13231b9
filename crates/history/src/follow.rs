//! Following a history that grows: what has come since the last look, each step and event once.

use ckptd_core::error::{Error, Result};
use ckptd_core::os::dir::Dir;
use ckptd_core::store::Store;
use ckptd_core::store::layout::{self, Folder, HistoryPart};

use crate::reader::{HistoryPosition, TrainingHistory};
use crate::record::HistoryRecord;

/// A reader that goes on where it was.
#[derive(Debug)]
pub struct HistoryFollower {
    position: HistoryPosition,
    /// The number of the file that grows and its length, at the last look.
    seen: Option<(u64, i64)>,
}

impl HistoryFollower {
    /// One that has read up to `position`.
    pub fn from(position: HistoryPosition) -> HistoryFollower {
        HistoryFollower { position, seen: None }
    }

    /// What has come since.
    ///
    /// # Errors
    /// Those of reading.
    pub fn next(&mut self, store: &Store) -> Result<Vec<HistoryRecord>> {
        let folder = match store.folder(Folder::History) {
            Ok(folder) => folder,
            Err(Error::NotFound(_)) => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let newest = newest(&folder)?;
        if newest.is_some() && newest == self.seen {
            return Ok(Vec::new());
        }
        let history = TrainingHistory::read_folder(&folder, self.position.part)?;
        let (mut skipped, mut records) = (0, Vec::new());
        let is_same = history.first_part() == Some(self.position.part);
        let known = if is_same { self.position.items } else { 0 };
        let mut take = |item: crate::reader::HistoryItem| {
            if skipped < known {
                skipped += 1;
            } else {
                records.push(item.record);
            }
            Ok(())
        };
        history.each(&mut take, &mut |_| ())?;
        if !history.is_empty() {
            self.position = history.end();
        }
        self.seen = newest;
        Ok(records)
    }
}

/// How much there is of a history: another one, where anything has come since.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HistoryExtent {
    files: usize,
    newest: Option<(HistoryPart, i64)>,
}

/// How much there is of the history of `store`.
///
/// # Errors
/// Those of reading the folder.
pub fn extent(store: &Store) -> Result<HistoryExtent> {
    let folder = match store.folder(Folder::History) {
        Ok(folder) => folder,
        Err(Error::NotFound(_)) => return Ok(HistoryExtent::default()),
        Err(error) => return Err(error),
    };
    let parts: Vec<HistoryPart> = folder.files()?.iter().filter_map(|name| layout::parse_history_file(name)).collect();
    let Some(newest) = parts.iter().max().copied() else { return Ok(HistoryExtent::default()) };
    let length = folder.stat(&layout::history_file(newest))?.map_or(0, |stat| stat.st_size);
    Ok(HistoryExtent { files: parts.len(), newest: Some((newest, length)) })
}

/// The number of the newest file, where it grows, and its length.
fn newest(folder: &Dir) -> Result<Option<(u64, i64)>> {
    let parts = folder.files()?;
    let newest = parts.iter().filter_map(|name| layout::parse_history_file(name)).max();
    let Some(HistoryPart { number, is_packed: false }) = newest else { return Ok(None) };
    let name = layout::history_file(HistoryPart { number, is_packed: false });
    Ok(folder.stat(&name)?.map(|stat| (number, stat.st_size)))
}
