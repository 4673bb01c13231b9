//! Where a checkpoint lies among those of transformers' Trainer, and how old it is to look.
//!
//! Trainer resumes from the folder `checkpoint-<step>` with the highest number, and deletes those first whose folders
//! were changed first. So the times of the folders must be in the order of the steps.

use std::fs::{File, FileTimes};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::names::checkpoint_step;
use ckptd_core::error::{Error, Result};

/// Below a second, Trainer takes the times for those of a file system that has none.
const APART: Duration = Duration::from_secs(2);

/// The folder for the checkpoint of `step`: `out` itself where it has the name of one, else in `out`.
pub(super) fn checkpoint_folder(out: &Path, step: u64) -> Result<PathBuf> {
    match checkpoint_step(out) {
        Some(named) if named == step => Ok(out.to_path_buf()),
        Some(named) => Err(Error::Config(format!(
            "{} is the name of a checkpoint of step {named}, and the snapshot is of step {step}; give Trainer's output \
             folder, or checkpoint-{step}",
            out.display()
        ))),
        None => Ok(out.join(format!("checkpoint-{step}"))),
    }
}

/// Gives the checkpoint `dir` a time between those of the checkpoints before and after it.
pub(super) fn order_times(dir: &Path) -> Result<()> {
    let (Some(step), Some(folder)) = (checkpoint_step(dir), dir.parent()) else { return Ok(()) };
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    let (mut before, mut after): (Option<SystemTime>, Option<SystemTime>) = (None, None);
    for entry in std::fs::read_dir(folder).map_err(|e| Error::io("reading folder", folder, e))? {
        let path = entry.map_err(|e| Error::io("reading folder", folder, e))?.path();
        let Some(other) = checkpoint_step(&path).filter(|other| *other != step && path.is_dir()) else { continue };
        let time = std::fs::metadata(&path).and_then(|found| found.modified());
        let time = time.map_err(|e| Error::io("looking at", &path, e))?;
        if other < step {
            before = before.max(Some(time));
        } else {
            after = Some(after.map_or(time, |after| after.min(time)));
        }
    }
    let Some(time) = time_between(before, after, SystemTime::now()) else { return Ok(()) };
    let handle = File::open(dir).map_err(|e| Error::io("opening", dir, e))?;
    handle.set_times(FileTimes::new().set_modified(time)).map_err(|e| Error::io("setting the time of", dir, e))?;
    handle.sync_all().map_err(|e| Error::io("syncing", dir, e))
}

/// A time after `before` and earlier than `after`; `None` where `now` is such a one.
fn time_between(before: Option<SystemTime>, after: Option<SystemTime>, now: SystemTime) -> Option<SystemTime> {
    match (before, after) {
        (Some(before), None) if now < before + APART => Some(before + APART),
        (_, None) => None,
        (None, Some(after)) => Some(after - APART),
        // Where the others are in no order themselves, there is none to keep.
        (Some(before), Some(after)) => Some(before + after.duration_since(before).unwrap_or_default() / 2),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoints_time_lies_between_its_neighbours() {
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        assert_eq!(time_between(None, None, at(100)), None);
        assert_eq!(time_between(Some(at(50)), None, at(100)), None);
        assert_eq!(time_between(Some(at(100)), None, at(100)), Some(at(102)));
        assert_eq!(time_between(None, Some(at(50)), at(100)), Some(at(48)));
        assert_eq!(time_between(Some(at(40)), Some(at(50)), at(100)), Some(at(45)));
    }

    #[test]
    fn a_checkpoint_lies_in_the_output_folder_under_its_step() {
        assert_eq!(checkpoint_folder(Path::new("out"), 7).unwrap(), Path::new("out/checkpoint-7"));
        assert_eq!(checkpoint_folder(Path::new("a/checkpoint-7"), 7).unwrap(), Path::new("a/checkpoint-7"));
        assert!(checkpoint_folder(Path::new("a/checkpoint-8"), 7).is_err());
    }
}
