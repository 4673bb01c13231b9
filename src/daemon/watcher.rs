//! Watches the job file: one thread that reads it again when its folder changes, or when it is asked to.
//!
//! Invariant: events are only hints. What counts is the file's text against the text that was read last, so that an
//! editor that writes in several steps, or renames a new file over the old one, is one change. The folder is watched
//! and not the file, since a rename leaves a watch on the old one. Deliberately not here: what may change (config/live).

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use notify::{RecursiveMode, Watcher as _};
use tracing::{debug, warn};

use crate::training::Input;
use crate::training::job::JobEvent;
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
pub struct Watcher {
    hints: Sender<Hint>,
    /// `None` where the system watches no folders; asking works all the same.
    _notify: Option<notify::RecommendedWatcher>,
}

impl Watcher {
    /// Watches the file at `path`, of which `text` was read last.
    pub fn start(path: PathBuf, text: String, inputs: tokio::sync::mpsc::Sender<Input>) -> Result<Watcher> {
        let (hints, queue) = channel();
        let notify = watch(&path, hints.clone())
            .inspect_err(|e| warn!("{} is not watched for changes ({e}); SIGHUP reads it again", path.display()))
            .ok();
        std::thread::Builder::new()
            .name("watcher".into())
            .spawn(move || reread(&path, text, &queue, &inputs))
            .map_err(|e| Error::Other(format!("starting a thread: {e}")))?;
        Ok(Watcher { hints, _notify: notify })
    }

    /// Reads the file again.
    pub fn ask(&self) {
        let _ = self.hints.send(Hint::Asked);
    }
}

fn watch(path: &Path, hints: Sender<Hint>) -> notify::Result<notify::RecommendedWatcher> {
    let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = path.file_name().map(ToOwned::to_owned);
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        // An overflow or an error may hide anything: look.
        let concerns = event.map_or(true, |event| {
            let reads = matches!(event.kind, notify::EventKind::Access(_));
            !reads && (event.need_rescan() || event.paths.iter().any(|path| path.file_name() == name.as_deref()))
        });
        if concerns {
            let _ = hints.send(Hint::Changed);
        }
    })?;
    watcher.watch(folder, RecursiveMode::NonRecursive)?;
    Ok(watcher)
}

fn reread(path: &Path, mut known: String, hints: &Receiver<Hint>, inputs: &tokio::sync::mpsc::Sender<Input>) {
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
        if inputs.blocking_send(Input::Job(JobEvent::Config(config))).is_err() {
            return;
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const JOB: &str = "[model]\npreset = \"gpt2-mini\"\n[data]\ntext = [\"a\"]\n";

    /// The next config that the watcher reports.
    fn next(queue: &mut tokio::sync::mpsc::Receiver<Input>) -> Result<Box<Config>> {
        loop {
            if let Some(Input::Job(JobEvent::Config(config))) = queue.blocking_recv() {
                return config;
            }
        }
    }

    #[test]
    fn a_file_written_in_place_or_renamed_over_is_read_and_a_broken_one_is_told_with_its_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("job.toml");
        std::fs::write(&path, JOB).unwrap();
        let (inputs, mut queue) = tokio::sync::mpsc::channel(8);
        let watcher = Watcher::start(path.clone(), JOB.into(), inputs).unwrap();
        std::fs::write(&path, format!("{JOB}[retention]\nkeep_last = 7\n")).unwrap();
        assert_eq!(next(&mut queue).unwrap().retention.keep_last, 7);
        let new = folder.path().join(".job.toml.swp");
        std::fs::write(&new, format!("{JOB}[retention]\nkeep_last = 8\n")).unwrap();
        std::fs::rename(&new, &path).unwrap();
        assert_eq!(next(&mut queue).unwrap().retention.keep_last, 8);
        std::fs::write(&path, format!("{JOB}[retention]\nkeep_lats = 8\n")).unwrap();
        let error = next(&mut queue).unwrap_err().to_string();
        assert!(error.contains("line 6: unknown key `keep_lats`"), "{error}");
        watcher.ask();
        assert!(next(&mut queue).is_err());
    }
}
