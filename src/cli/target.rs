//! What a command is about: a store by its folder, or a job by its config.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::output;
use ckptd_core::config::Config;
use ckptd_core::error::{Error, Result};
use ckptd_core::ids::SnapshotId;
use ckptd_core::store::{LastSession, PassedOver, Record, RetentionPolicy, SnapshotEntry, Store};

/// A store with the job that runs in it, where that is known.
pub(super) struct CommandTarget {
    pub store: Store,
    pub config: Option<Config>,
    /// What is wrong with the job file, where the job is the one that ran last in the store that it names.
    pub problem: Option<String>,
}

impl CommandTarget {
    /// `path` is a store's folder, whose job is the one that ran in it last, or a config file.
    pub(super) fn open(path: &Path) -> Result<CommandTarget> {
        if path.is_dir() {
            let store = Store::open(path)?;
            let config = store.read_record(Record::Job)?;
            return Ok(CommandTarget { store, config, problem: None });
        }
        if !path.exists() {
            return Err(Error::NotFound(format!(
                "{} is not there; give a store's folder or a config file",
                path.display()
            )));
        }
        let config = match Config::load(path) {
            Ok(config) => config,
            Err(error) => return CommandTarget::of_last_run(path, error),
        };
        if !config.job.store.exists() {
            return Err(Error::NotFound(format!(
                "the job of {} has no store yet; `ckptd run {}` makes {}",
                path.display(),
                path.display(),
                config.job.store.display()
            )));
        }
        Ok(CommandTarget { store: Store::open(&config.job.store)?, config: Some(config), problem: None })
    }

    /// The store of a job file that is wrong, with the job that ran in it last: that one may be running.
    fn of_last_run(path: &Path, error: Error) -> Result<CommandTarget> {
        let Some(folder) = Config::store_named_in(path).filter(|folder| folder.is_dir()) else { return Err(error) };
        let Ok(store) = Store::open(&folder) else { return Err(error) };
        let config = store.read_record(Record::Job)?;
        let problem = format!("the job file is wrong, and what its last run had counts: {error}");
        Ok(CommandTarget { store, config, problem: Some(problem) })
    }

    /// This target, unless its job file is wrong: for what must not act on an older job.
    pub(super) fn up_to_date(self) -> Result<CommandTarget> {
        match self.problem {
            None => Ok(self),
            Some(problem) => Err(Error::Config(problem)),
        }
    }

    /// That the daemon of this store did not answer, with its process.
    pub(super) fn not_answering(&self, error: Error) -> Error {
        match self.store.last_session() {
            Ok(LastSession::Running { pid }) => Error::Other(format!(
                "process {pid}, which runs this job, does not answer; is it suspended? `kill -CONT {pid}` wakes it"
            )),
            _ => error,
        }
    }

    /// The job's name, or that of the store's folder.
    pub(super) fn name(&self) -> String {
        let of_folder = || {
            let path = std::path::absolute(self.store.path()).unwrap_or_default();
            path.file_name().map_or_else(|| "training".to_owned(), |name| name.to_string_lossy().into_owned())
        };
        self.config.as_ref().map_or_else(of_folder, |config| config.job.name.clone())
    }

    /// The snapshot that `spec` means. What may be newer, or better, and is passed over for it is told on stderr and
    /// returned; with `strict` it is an error.
    pub(super) fn choose(&self, spec: &str, strict: bool) -> Result<(SnapshotEntry, Vec<PassedOverRow>)> {
        let choice = self.store.choose(spec)?;
        if let (true, Some(PassedOver { entry, reason })) = (strict, choice.passed_over.first()) {
            return Err(Error::Other(format!(
                "{spec} would pass over {}: {reason}; name the snapshot that you want, or leave out --strict",
                entry.id
            )));
        }
        for PassedOver { entry, reason } in &choice.passed_over {
            output::complain(&format!("warning: {spec} is {}; {} is passed over: {reason}", choice.entry.id, entry.id));
        }
        let rows = choice.passed_over.into_iter().map(|passed| PassedOverRow {
            path: std::path::absolute(&passed.entry.path).unwrap_or_else(|_| passed.entry.path.clone()),
            id: passed.entry.id,
            reason: passed.reason,
        });
        Ok((choice.entry, rows.collect()))
    }

    /// The job's retention, or what is the default of one.
    pub(super) fn retention(&self) -> RetentionPolicy {
        self.config.as_ref().map_or_else(RetentionPolicy::default, |config| config.retention.clone())
    }
}

/// A snapshot that a name does not mean although it may be newer, or better.
#[derive(Serialize)]
pub(super) struct PassedOverRow {
    id: SnapshotId,
    path: PathBuf,
    reason: String,
}

/// A command's document, and what was passed over for what it is about.
#[derive(Serialize)]
pub(super) struct WithPassedOver<'a, T> {
    #[serde(flatten)]
    pub document: &'a T,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    pub passed_over: &'a [PassedOverRow],
}
