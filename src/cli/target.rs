//! What a command is about: a store by its folder, or a job by its config.

use std::path::Path;

use ckptd_core::config::Config;
use ckptd_core::error::{Error, Result};
use ckptd_core::store::RetentionPolicy;
use ckptd_core::store::{Record, Store};

/// A store with the job that runs in it, where that is known.
pub(super) struct CommandTarget {
    pub store: Store,
    pub config: Option<Config>,
}

impl CommandTarget {
    /// `path` is a store's folder, whose job is the one that ran in it last, or a config file.
    pub(super) fn open(path: &Path) -> Result<CommandTarget> {
        if path.is_dir() {
            let store = Store::open(path)?;
            let config = store.read_record(Record::Job)?;
            return Ok(CommandTarget { store, config });
        }
        if !path.exists() {
            return Err(Error::NotFound(format!(
                "{} is not there; give a store's folder or a config file",
                path.display()
            )));
        }
        let config = Config::load(path)?;
        if !config.job.store.exists() {
            return Err(Error::NotFound(format!(
                "the job of {} has no store yet; `ckptd run {}` makes {}",
                path.display(),
                path.display(),
                config.job.store.display()
            )));
        }
        Ok(CommandTarget { store: Store::open(&config.job.store)?, config: Some(config) })
    }

    /// The job's retention, or what is the default of one.
    pub(super) fn retention(&self) -> RetentionPolicy {
        self.config.as_ref().map_or_else(RetentionPolicy::default, |config| config.retention.clone())
    }
}
