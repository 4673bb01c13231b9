//! A file that is touched, or a folder in which something is: the session is to end.
//!
//! What lies there when the session begins does not count, or a file forgotten there would end every session at once;
//! touching it again does. The kernel reports changes at once where it can; network file systems do not report what
//! other machines do: it is looked at now and then as well. Deliberately not here: what a file says; its
//! content is not read.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ckptd_core::os::stamp::FileStamp;
use tracing::{debug, info};

use super::source::{NoticeSink, SourceWake};
use super::trouble::SourceTrouble;
use crate::folder_watch::FolderWatch;
use crate::session::notice::{NoticeKind, SessionNotice};

pub const NAME: &str = "notice file";
/// Between two looks where nothing is reported.
const INTERVAL: Duration = Duration::from_secs(2);

/// What was seen of a notice file last, kept from one session of this process to the next: what is touched in between
/// counts.
#[derive(Clone, Debug, Default)]
pub struct NoticeMemory(Arc<Mutex<Option<SeenFiles>>>);

impl NoticeMemory {
    fn get(&self) -> Option<SeenFiles> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, seen: &SeenFiles) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(seen.clone());
    }
}

/// Watches `path` until it is touched, or until it is told to stop. `wake` leads to `wakes`.
pub fn watch(
    path: &Path,
    wakes: &Receiver<SourceWake>,
    wake: Sender<SourceWake>,
    sink: &NoticeSink,
    memory: &NoticeMemory,
) {
    let mut trouble = SourceTrouble::new(NAME);
    let mut before = memory.get();
    let mut watcher = None;
    loop {
        // Watched first and looked at then: no change falls in between.
        if watcher.is_none() {
            watcher = watch_for_changes(path, wake.clone());
        }
        match look(path) {
            Err(e) => trouble.met(&format!("looking at {}: {e}", path.display())),
            Ok(now) => {
                trouble.over();
                memory.set(&now);
                match &before {
                    None => {
                        if !now.is_empty() {
                            info!("{NAME}: {} is there already; it counts when it is touched again", path.display());
                        }
                        before = Some(now);
                    }
                    Some(known) if has_news(known, &now) => {
                        info!("{NAME}: {} was touched", path.display());
                        return sink(SessionNotice { source: NAME.into(), kind: NoticeKind::Finish });
                    }
                    // What was taken away counts anew when it comes back.
                    Some(_) => before = Some(now),
                }
            }
        }
        match wakes.recv_timeout(INTERVAL) {
            Ok(SourceWake::Look) | Err(RecvTimeoutError::Timeout) => {}
            Ok(SourceWake::Stop) | Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

/// What tells whether something was touched: for the file itself, or for each entry of the folder.
type SeenFiles = BTreeMap<OsString, FileStamp>;

fn look(path: &Path) -> std::io::Result<SeenFiles> {
    let metadata = match std::fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(SeenFiles::new()),
        Err(e) => return Err(e),
    };
    if !metadata.is_dir() {
        return Ok([(OsString::new(), FileStamp::from(&metadata))].into());
    }
    let mut seen = SeenFiles::new();
    for entry in std::fs::read_dir(path)? {
        let entry = entry?;
        match std::fs::metadata(entry.path()) {
            Ok(metadata) => {
                let _ = seen.insert(entry.file_name(), FileStamp::from(&metadata));
            }
            // It went meanwhile, or is a link to nowhere.
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
    }
    Ok(seen)
}

fn has_news(before: &SeenFiles, now: &SeenFiles) -> bool {
    // A new owner, mode or link is no touch.
    now.iter().any(|(name, stamp)| !before.get(name).is_some_and(|known| known.same_content(stamp)))
}

/// Reports changes of `path`, and of what lies in it if it is a folder; `None` where that cannot be had (yet).
fn watch_for_changes(path: &Path, wake: Sender<SourceWake>) -> Option<FolderWatch> {
    let hint = move || drop(wake.send(SourceWake::Look));
    let watch = if path.is_dir() { FolderWatch::of_folder(path, hint) } else { FolderWatch::of_file(path, hint) };
    watch.inspect_err(|e| debug!("{NAME}: {} is looked at every {INTERVAL:?} only: {e}", path.display())).ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::mpsc::channel;
    use std::thread::JoinHandle;

    use super::*;

    struct Watched {
        wake: Sender<SourceWake>,
        notices: Receiver<SessionNotice>,
        thread: JoinHandle<()>,
    }

    fn start(path: &Path) -> Watched {
        start_with(path, NoticeMemory::default())
    }

    fn start_with(path: &Path, memory: NoticeMemory) -> Watched {
        let (wake, wakes) = channel();
        let (sender, notices) = channel();
        let sender = Mutex::new(sender);
        let sink: NoticeSink = Arc::new(move |notice| sender.lock().unwrap().send(notice).unwrap());
        let (path, other) = (path.to_path_buf(), wake.clone());
        let thread = std::thread::spawn(move || watch(&path, &wakes, other, &sink, &memory));
        Watched { wake, notices, thread }
    }

    #[test]
    fn a_file_that_comes_or_changes_is_news_and_one_that_stays_or_goes_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("stop");
        let nothing = look(&path).unwrap();
        std::fs::write(&path, "1").unwrap();
        let first = look(&path).unwrap();
        assert!(has_news(&nothing, &first) && !has_news(&first, &nothing) && !has_news(&first, &first.clone()));
        std::fs::write(&path, "22").unwrap();
        assert!(has_news(&first, &look(&path).unwrap()));
        let inside = look(folder.path()).unwrap();
        std::fs::write(folder.path().join("other"), "").unwrap();
        assert!(has_news(&inside, &look(folder.path()).unwrap()));
        assert_eq!(look(&path.join("below/a/file")).unwrap(), SeenFiles::new());
    }

    #[test]
    fn a_touched_file_or_folder_ends_the_session() {
        let folder = tempfile::tempdir().unwrap();
        for path in [folder.path().join("stop"), folder.path().to_path_buf()] {
            let watched = start(&path);
            // Written until it is seen, since the first look may come after the first write.
            let mut n = 0;
            let notice = loop {
                std::fs::write(folder.path().join("stop"), "x".repeat(n)).unwrap();
                n += 1;
                match watched.notices.recv_timeout(Duration::from_millis(20)) {
                    Ok(notice) => break notice,
                    Err(e) => assert!(e == RecvTimeoutError::Timeout && n < 1000),
                }
            };
            assert_eq!(notice, SessionNotice { source: NAME.into(), kind: NoticeKind::Finish });
            watched.thread.join().unwrap();
        }
    }

    #[test]
    fn a_file_from_before_the_session_ends_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("stop");
        std::fs::write(&path, "").unwrap();
        let watched = start(&path);
        // Looked at three times, then told to stop.
        for _ in 0..3 {
            watched.wake.send(SourceWake::Look).unwrap();
        }
        watched.wake.send(SourceWake::Stop).unwrap();
        watched.thread.join().unwrap();
        assert!(watched.notices.try_recv().is_err());
    }

    #[test]
    fn what_is_touched_between_two_sessions_of_a_process_counts_for_the_second() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("stop");
        let memory = NoticeMemory::default();
        let first = start_with(&path, memory.clone());
        first.wake.send(SourceWake::Look).unwrap();
        first.wake.send(SourceWake::Stop).unwrap();
        first.thread.join().unwrap();
        std::fs::write(&path, "").unwrap();
        let second = start_with(&path, memory);
        assert_eq!(second.notices.recv().unwrap().kind, NoticeKind::Finish);
        second.thread.join().unwrap();
    }
}
