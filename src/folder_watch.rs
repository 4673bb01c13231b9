//! Watches a folder by inotify, for changes of one file in it or of anything in it.
//!
//! Invariant: a hint only says that something may have changed; an overflow or an error may hide anything, so it is a
//! hint, too. A file is watched by way of its folder: a rename over the file would leave a watch on the old one.
//! Deliberately not here: looking at what changed, and network file systems, which report nothing.

use std::ffi::OsStr;
use std::path::Path;

use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};

/// A watched folder, for as long as this lives.
pub struct FolderWatch {
    _watcher: RecommendedWatcher,
}

impl FolderWatch {
    /// Calls `hint` when the file at `path` may have changed, come or gone. Fails where its folder cannot be watched.
    pub fn of_file(path: &Path, hint: impl Fn() + Send + 'static) -> notify::Result<FolderWatch> {
        let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let name = path.file_name().map(ToOwned::to_owned);
        FolderWatch::start(folder, move |event| concerns(event, name.as_deref()), hint)
    }

    /// Calls `hint` when anything in the folder at `path` may have changed. Fails where it cannot be watched.
    pub fn of_folder(path: &Path, hint: impl Fn() + Send + 'static) -> notify::Result<FolderWatch> {
        FolderWatch::start(path, |_| true, hint)
    }

    fn start(
        folder: &Path,
        concerns: impl Fn(&Event) -> bool + Send + 'static,
        hint: impl Fn() + Send + 'static,
    ) -> notify::Result<FolderWatch> {
        let mut watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
            if event.map_or(true, |event| !matches!(event.kind, EventKind::Access(_)) && concerns(&event)) {
                hint();
            }
        })?;
        watcher.watch(folder, RecursiveMode::NonRecursive)?;
        Ok(FolderWatch { _watcher: watcher })
    }
}

fn concerns(event: &Event, name: Option<&OsStr>) -> bool {
    event.need_rescan() || event.paths.is_empty() || event.paths.iter().any(|path| path.file_name() == name)
}
