//! Watches the job file: one thread that reads it again when it may have changed, or when it is asked to.
//!
//! Invariant: a file counts as changed by its text alone, held against the text that was read last; so an editor that
//! writes in several steps, or renames a new file over the old one, makes one change. The kernel reports changes in the
//! file's folder at once; what lies behind a link, or on a file system that reports nothing, is looked at every second.
//! Deliberately not here: what may change while a job runs (core's config/live).

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use tracing::debug;

use crate::folder_watch::FolderWatch;
use ckptd_core::config::{Config, ConfigOverrides};
use ckptd_core::error::{Error, Result};
use ckptd_core::os::stamp::FileStamp;

/// How long a file has to rest before it is read: editors write in several steps.
const REST: Duration = Duration::from_millis(100);
/// A folder that never rests is read all the same.
const PATIENCE: Duration = Duration::from_millis(400);
/// Between two looks where nothing is reported.
const INTERVAL: Duration = Duration::from_secs(1);

enum Hint {
    Changed,
    Asked,
}

/// A job file, what was read from it last, and what the command line says otherwise.
#[derive(Clone, Debug)]
pub struct JobFile {
    pub path: PathBuf,
    pub text: String,
    pub overrides: ConfigOverrides,
}

/// A handle to the watching thread, which ends with it.
pub struct JobFileWatcher {
    hints: Sender<Hint>,
    /// `None` where the system watches no folders; looking and asking work all the same.
    _watch: Option<FolderWatch>,
}

impl JobFileWatcher {
    /// Watches `file` and reports what is read from it, or why that is no config, until `report` breaks off.
    pub fn start(
        file: JobFile,
        report: impl Fn(Result<Box<Config>>) -> ControlFlow<()> + Send + 'static,
    ) -> Result<JobFileWatcher> {
        let (hints, queue) = channel();
        let changed = hints.clone();
        let watch = FolderWatch::of_file(&file.path, move || drop(changed.send(Hint::Changed)))
            .inspect_err(|e| debug!("{} is looked at every {INTERVAL:?} only: {e}", file.path.display()))
            .ok();
        std::thread::Builder::new()
            .name("job file".into())
            .spawn(move || reread(file, &queue, &report))
            .map_err(|e| Error::Other(format!("starting a thread: {e}")))?;
        Ok(JobFileWatcher { hints, _watch: watch })
    }

    /// Reads the file again, and reports it even where its text is the same.
    pub fn ask(&self) {
        let _ = self.hints.send(Hint::Asked);
    }
}

fn reread(file: JobFile, hints: &Receiver<Hint>, report: &dyn Fn(Result<Box<Config>>) -> ControlFlow<()>) {
    let JobFile { path, text: mut known, overrides } = file;
    let path = path.as_path();
    // Nothing: it may have changed between its reading and now.
    let mut seen = None;
    loop {
        let hint = match hints.recv_timeout(INTERVAL) {
            Ok(hint) => hint,
            Err(RecvTimeoutError::Timeout) if stamp(path) == seen => continue,
            Err(RecvTimeoutError::Timeout) => Hint::Changed,
            Err(RecvTimeoutError::Disconnected) => return,
        };
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
        // Taken first: what changes from here on is another change.
        seen = stamp(path);
        let config = match std::fs::read_to_string(path) {
            Ok(text) if text == known && !asked => continue,
            Ok(text) => {
                let config = Config::parse_with(&text, path, &overrides).map(Box::new);
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

/// What tells that the file at `path`, behind whatever links, may have changed; `None` where it is not there.
fn stamp(path: &Path) -> Option<FileStamp> {
    std::fs::metadata(path).ok().map(|metadata| FileStamp::from(&metadata))
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
        let file = JobFile { path: path.clone(), text: JOB.into(), overrides: ConfigOverrides::default() };
        let watcher = JobFileWatcher::start(file, report).unwrap();
        std::fs::write(&path, format!("{JOB}[retention]\nkeep_last = 7\n")).unwrap();
        assert_eq!(reports.recv().unwrap().unwrap().retention.keep_last, 7);
        let new = folder.path().join(".job.toml.swp");
        std::fs::write(&new, format!("{JOB}[retention]\nkeep_last = 8\n")).unwrap();
        std::fs::rename(&new, &path).unwrap();
        assert_eq!(reports.recv().unwrap().unwrap().retention.keep_last, 8);
        std::fs::write(&path, format!("{JOB}[retention]\nkeep_lats = 8\n")).unwrap();
        let error = reports.recv().unwrap().unwrap_err().to_string();
        assert!(error.contains("line 6: [retention] keep_lats = 8: no such key"), "{error}");
        watcher.ask();
        assert!(reports.recv().unwrap().is_err());
    }

    /// As Kubernetes does it: `..data` leads to a folder, and is replaced by a link to the next one.
    #[test]
    fn a_file_behind_links_is_read_when_a_link_is_swapped_and_when_the_file_is_edited() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let job = |keep: u32| format!("{JOB}[retention]\nkeep_last = {keep}\n");
        for (version, keep) in [("mount/..one", 3), ("mount/..two", 4), ("real", 5)] {
            std::fs::create_dir_all(at(version)).unwrap();
            std::fs::write(at(version).join("job.toml"), job(keep)).unwrap();
        }
        let link = |to: &str, from: &str| std::os::unix::fs::symlink(to, at(from)).unwrap();
        link("..one", "mount/..data");
        link("..data/job.toml", "mount/job.toml");
        link("mount/job.toml", "through-two.toml");
        link("real/job.toml", "plain.toml");
        let watch = |name: &str, keep| {
            let (sender, reports) = channel();
            let report = move |config: Result<Box<Config>>| {
                sender.send(config.unwrap().retention.keep_last).unwrap();
                ControlFlow::Continue(())
            };
            let file = JobFile { path: at(name), text: job(keep), overrides: ConfigOverrides::default() };
            (JobFileWatcher::start(file, report).unwrap(), reports)
        };
        let (_first, mounted) = watch("mount/job.toml", 3);
        let (_second, through_two) = watch("through-two.toml", 3);
        let (_third, plain) = watch("plain.toml", 5);
        link("..two", "mount/..new");
        std::fs::rename(at("mount/..new"), at("mount/..data")).unwrap();
        std::fs::write(at("real/job.toml"), job(6)).unwrap();
        assert_eq!((mounted.recv().unwrap(), through_two.recv().unwrap(), plain.recv().unwrap()), (4, 4, 6));
    }
}
