//! Watches the job file: one thread that reads it again when it may have changed, or when it is asked to.
//!
//! Invariant: a file counts as changed by its text alone, held against the text that was read last; so an editor that
//! writes in several steps, or renames a new file over the old one, makes one change. Deliberately not here: what may
//! change while a job runs (core's config/live).

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use tracing::{debug, warn};

use crate::folder_watch::FolderWatch;
use ckptd_core::config::Config;
use ckptd_core::error::{Error, Result};

/// How long a file has to rest before it is read: editors write in several steps.
const REST: Duration = Duration::from_millis(100);
/// A folder that never rests is read all the same.
const PATIENCE: Duration = Duration::from_millis(400);

enum Hint {
    Changed,
    Asked,
}

/// A handle to the watching thread, which ends with it.
pub struct JobFileWatcher {
    hints: Sender<Hint>,
    /// `None` where the system watches no folders; asking works all the same.
    _watch: Option<FolderWatch>,
}

impl JobFileWatcher {
    /// Watches the file at `path`, of which `text` was read last, and reports what is read from it, or why that is no
    /// config, until `report` breaks off.
    pub fn start(
        path: PathBuf,
        text: String,
        report: impl Fn(Result<Box<Config>>) -> ControlFlow<()> + Send + 'static,
    ) -> Result<JobFileWatcher> {
        let (hints, queue) = channel();
        let changed = hints.clone();
        let watch = FolderWatch::of_file(&path, move || drop(changed.send(Hint::Changed)))
            .inspect_err(|e| warn!("{} is not watched for changes ({e}); SIGHUP reads it again", path.display()))
            .ok();
        std::thread::Builder::new()
            .name("job file".into())
            .spawn(move || reread(&path, text, &queue, &report))
            .map_err(|e| Error::Other(format!("starting a thread: {e}")))?;
        Ok(JobFileWatcher { hints, _watch: watch })
    }

    /// Reads the file again, and reports it even where its text is the same.
    pub fn ask(&self) {
        let _ = self.hints.send(Hint::Asked);
    }
}

fn reread(
    path: &Path,
    mut known: String,
    hints: &Receiver<Hint>,
    report: &dyn Fn(Result<Box<Config>>) -> ControlFlow<()>,
) {
    while let Ok(hint) = hints.recv() {
        let mut asked = matches!(hint, Hint::Asked);
        let began = Instant::now();
        while !asked && began.elapsed() < PATIENCE {
            match hints.recv_timeout(REST) {
                Ok(Hint::Changed) => {}
                Ok(Hint::Asked) => asked = true,
                Err(RecvTimeoutError::Timeout) => break,
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
        let config = match std::fs::read_to_string(path) {
            Ok(text) if text == known && !asked => continue,
            Ok(text) => {
                let config = Config::parse(&text, path).map(Box::new);
                known = text;
                config
            }
            // Between an editor's two renames there may be no such file; it comes back with another hint.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound && !asked => {
                debug!("{} is not there for now", path.display());
                continue;
            }
            Err(e) => Err(Error::Config(format!("reading config {}: {e}", path.display()))),
        };
        if report(config).is_break() {
            return;
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const JOB: &str = "[model]\npreset = \"gpt2-mini\"\n[data]\ntext = [\"a\"]\n";

    #[test]
    fn a_changed_file_is_read_and_a_broken_one_reported_with_its_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("job.toml");
        std::fs::write(&path, JOB).unwrap();
        let (sender, reports) = channel();
        let report = move |config| {
            sender.send(config).unwrap();
            ControlFlow::Continue(())
        };
        let watcher = JobFileWatcher::start(path.clone(), JOB.into(), report).unwrap();
        std::fs::write(&path, format!("{JOB}[retention]\nkeep_last = 7\n")).unwrap();
        assert_eq!(reports.recv().unwrap().unwrap().retention.keep_last, 7);
        let new = folder.path().join(".job.toml.swp");
        std::fs::write(&new, format!("{JOB}[retention]\nkeep_last = 8\n")).unwrap();
        std::fs::rename(&new, &path).unwrap();
        assert_eq!(reports.recv().unwrap().unwrap().retention.keep_last, 8);
        std::fs::write(&path, format!("{JOB}[retention]\nkeep_lats = 8\n")).unwrap();
        let error = reports.recv().unwrap().unwrap_err().to_string();
        assert!(error.contains("line 6: unknown key `keep_lats`"), "{error}");
        watcher.ask();
        assert!(reports.recv().unwrap().is_err());
    }
}
