//! What the command line says otherwise than the job file, or in its place.
//!
//! Invariant: it is applied each time that the file is read, so that a change of the file does not undo it. Paths are
//! absolute. Deliberately not here: the command line itself.

use std::path::PathBuf;
use std::time::Duration;

use super::sections::Config;
use crate::text::TextValue;

/// Values that stand in place of the file's; `None` and empty: as the file says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConfigOverrides {
    /// `[job] name`.
    pub name: Option<String>,
    /// `[job] store`, absolute.
    pub store: Option<PathBuf>,
    /// `[session] budget`.
    pub budget: Option<Duration>,
    /// `[remote] url`.
    pub remote: Option<String>,
    /// `[worker] script`.
    pub script: Vec<String>,
    /// `[snapshot] probe`, where the file does not ask for it.
    pub probe: bool,
}

impl ConfigOverrides {
    pub(super) fn apply(&self, config: &mut Config) {
        if let Some(name) = &self.name {
            config.job.name.clone_from(name);
        }
        if let Some(store) = &self.store {
            config.job.store.clone_from(store);
        }
        if let Some(budget) = self.budget {
            config.session.budget = Some(TextValue(budget));
        }
        if let Some(url) = &self.remote {
            config.remote.url = Some(url.clone());
        }
        if !self.script.is_empty() {
            config.worker.script.clone_from(&self.script);
            config.worker.command.clear();
        }
        config.snapshot.probe |= self.probe;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_script_needs_no_model_and_no_data_and_its_steps_are_not_known() {
        let overrides = ConfigOverrides {
            store: Some("/stores/a".into()),
            budget: Some(Duration::from_secs(60)),
            script: vec!["python".into(), "train.py".into()],
            ..ConfigOverrides::default()
        };
        let config = Config::parse_with("", "/jobs/job.toml".as_ref(), &overrides).unwrap();
        assert_eq!(config.job.store, PathBuf::from("/stores/a"));
        assert_eq!(config.status.socket, PathBuf::from("/stores/a/status.sock"));
        assert_eq!(config.session.budget, Some(TextValue(Duration::from_secs(60))));
        assert_eq!((config.train.steps, config.worker.is_builtin()), (0, false));
        // Without it both are asked for.
        let error = Config::parse("", "/jobs/job.toml".as_ref()).unwrap_err().to_string();
        assert!(error.contains("[model]") && error.contains("[data]"), "{error}");
    }

    #[test]
    fn a_script_and_a_command_are_one_too_many() {
        let text = "[worker]\nscript = [\"./train.py\"]\n";
        let config = Config::parse(text, "/jobs/job.toml".as_ref()).unwrap();
        assert_eq!(config.worker.script, ["/jobs/train.py"]);
        let error = Config::parse(&format!("{text}command = [\"x\"]\n"), "/jobs/job.toml".as_ref()).unwrap_err();
        assert!(error.to_string().contains("line 3: [worker] command = [\"x\"]: a script is given, too"), "{error}");
    }
}
