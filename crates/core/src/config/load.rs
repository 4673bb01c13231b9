//! From the text of a job file to a [`Config`] whose paths are absolute and whose values make sense.
//!
//! Invariant: paths are relative to the file's folder; a message names the file, and the line where the text is wrong.
//! Deliberately not here: whether other files exist.

use std::path::{Component, Path, PathBuf};

use super::document::Document;
use super::overrides::ConfigOverrides;
use super::problem;
use super::sections::{Config, JobSection};
use crate::error::{Error, Result};
use crate::store::layout;

/// The commented job file with every key at its default; `ckptd init` writes it.
pub const TEMPLATE: &str = include_str!("../../../../config/ckptd.toml");

impl Config {
    /// Reads and validates the job file at `path`.
    pub fn load(path: &Path) -> Result<Config> {
        Config::parse(&Config::read(path)?, path)
    }

    /// The text of the job file at `path`.
    pub fn read(path: &Path) -> Result<String> {
        // Daemon and worker speak JSON, which has no other names.
        if let Some(whole) = std::path::absolute(path).ok().filter(|whole| whole.to_str().is_none()) {
            return Err(Error::Config(format!(
                "{whole:?} is no UTF-8, and ckptd could not name the job's files to its worker; rename the folder"
            )));
        }
        std::fs::read_to_string(path).map_err(|e| {
            Error::Config(format!("reading config {}: {e}; `ckptd init` writes one to start from", path.display()))
        })
    }

    /// Validates `text`, which stands in the file `path`.
    pub fn parse(text: &str, path: &Path) -> Result<Config> {
        Config::parse_with(text, path, &ConfigOverrides::default())
    }

    /// Validates `text`, which stands in the file `path`, where the command line says some of it otherwise.
    pub fn parse_with(text: &str, path: &Path, overrides: &ConfigOverrides) -> Result<Config> {
        let refuse = |problems| Error::Config(format!("{}: {}", path.display(), problem::list(problems)));
        let document = Document::parse(text).map_err(|problem| refuse(vec![problem]))?;
        let placed = document.problems().map_err(refuse)?;
        let mut config: Config =
            toml::from_str(text).map_err(|e| Error::Config(format!("{}: {}", path.display(), e.to_string().trim())))?;
        overrides.apply(&mut config);
        config.resolve(path)?;
        if !config.worker.script.is_empty() {
            (config.train.steps, config.train.eval_every) = (0, 0);
        }
        match config.contradictions(&placed) {
            problems if problems.is_empty() => Ok(config),
            problems => Err(refuse(problems)),
        }
    }

    /// The store of a job file at `path` that names none.
    ///
    /// # Errors
    /// [`Error::Config`] where the working directory is not known or a name is no UTF-8.
    pub fn usual_store(path: &Path) -> Result<PathBuf> {
        let mut config = Config::default();
        config.resolve(path)?;
        Ok(config.job.store)
    }

    /// The store that the job file at `path` names, as far as a file that is wrong can say.
    pub fn store_named_in(path: &Path) -> Option<PathBuf> {
        let text = std::fs::read_to_string(path).ok()?;
        let (table, _) = toml::de::DeTable::parse_recoverable(&text);
        let job = table.get_ref().get("job").map(|job| job.get_ref());
        let said = |key: &str| match job {
            Some(toml::de::DeValue::Table(job)) => match job.get(key)?.get_ref() {
                toml::de::DeValue::String(text) => Some(text.clone().into_owned()),
                _ => None,
            },
            _ => None,
        };
        let job = JobSection {
            name: said("name").unwrap_or_default(),
            store: said("store").unwrap_or_default().into(),
            ..JobSection::default()
        };
        let mut config = Config { job, ..Config::default() };
        config.resolve(path).ok()?;
        Some(config.job.store)
    }

    /// Fills in what is derived from the file's place, and makes paths absolute.
    fn resolve(&mut self, path: &Path) -> Result<()> {
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        // Without links in it, `..` can be taken off the folder's path.
        let folder = std::fs::canonicalize(folder)
            .or_else(|_| std::path::absolute(folder))
            .map_err(|e| Error::io("resolving", folder, e))?;
        if self.job.name.is_empty() {
            self.job.name = path.file_stem().map_or_else(|| "job".into(), |s| s.to_string_lossy().into_owned());
        }
        if self.job.store.as_os_str().is_empty() {
            self.job.store = Path::new("checkpoints").join(&self.job.name);
        }
        self.job.store = below(&folder, &self.job.store);
        let (model, data, session) = (&mut self.model, &mut self.data, &mut self.session);
        let status = &mut self.status;
        let given = [&mut model.from, &mut data.tokens, &mut data.tokenizer, &mut session.notice_file];
        let given = given.into_iter().chain([&mut status.http_token_file, &mut status.metrics_file]);
        for path in given.flatten() {
            *path = below(&folder, path);
        }
        self.data.cache = if self.data.cache.as_os_str().is_empty() {
            self.job.store.join(layout::CACHE)
        } else {
            below(&folder, &self.data.cache)
        };
        for glob in &mut self.data.text {
            *glob = below(&folder, glob.as_ref()).to_string_lossy().into_owned();
        }
        self.status.socket = if self.status.socket.as_os_str().is_empty() {
            self.job.store.join(layout::STATUS_SOCKET)
        } else {
            below(&folder, &self.status.socket)
        };
        let programs = self.hooks.on.values_mut().filter_map(|command| command.first_mut());
        for program in self.worker.command.first_mut().into_iter().chain(programs).filter(|name| name.contains('/')) {
            *program = below(&folder, program.as_ref()).to_string_lossy().into_owned();
        }
        if let Some(program) = self.worker.script.first_mut()
            && program.contains('/')
        {
            *program = below(&folder, program.as_ref()).to_string_lossy().into_owned();
        }
        Ok(())
    }
}

/// `path` as seen from `folder`, which holds no links: leading `.` and `..` are resolved, so that messages are short.
/// A leading `~` is the user's home, as a shell has it; where there is none it stays a name.
fn below(folder: &Path, path: &Path) -> PathBuf {
    if let (Ok(rest), Some(home)) = (path.strip_prefix("~"), std::env::var_os("HOME")) {
        return Path::new(&home).join(rest);
    }
    let mut folder = folder.to_path_buf();
    let mut components = path.components();
    loop {
        let rest = components.as_path();
        match components.next() {
            Some(Component::ParentDir) if folder.pop() => {}
            Some(Component::ParentDir | Component::CurDir) => {}
            _ => return folder.join(rest),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::Duration;

    use super::super::sections::SnapshotEvery;
    use super::*;
    use crate::text::TextValue;

    fn parse(text: &str) -> Result<Config> {
        Config::parse(text, Path::new("/jobs/tiny.toml"))
    }

    #[test]
    fn the_template_holds_every_key_at_its_default() {
        // Optional keys stand in it commented out, as "#key = value".
        let mut defaults = toml::Table::try_from(Config::default()).unwrap();
        let template: toml::Table = toml::from_str(TEMPLATE).unwrap();
        // The template names a model and text, so that it is a job; they have no default.
        for (section, key) in [("model", "preset"), ("data", "text")] {
            let value = template[section][key].clone();
            defaults[section].as_table_mut().unwrap().insert(key.into(), value);
        }
        assert_eq!(template, defaults);
        let uncommented: String = TEMPLATE
            .lines()
            .map(|line| line.strip_prefix('#').filter(|l| !l.starts_with(' ')).unwrap_or(line))
            .fold(String::new(), |text, line| text + line + "\n");
        let all: toml::Table = toml::from_str(&uncommented).unwrap();
        let known: toml::Table = toml::from_str(
            r#"model = ["from", "dropout"]
               data = ["field", "tokens", "tokens_dtype", "tokenizer"]
               snapshot = ["every_steps", "mtbf"]
               retention = ["keep_every_steps", "max_bytes"]
               remote = ["url", "endpoint", "max_rate", "keep_every_steps", "max_bytes"]
               session = ["budget", "deadline", "notice_file"]
               status = ["http", "http_token_file", "metrics_file"]"#,
        )
        .unwrap();
        for (section, optional) in known {
            for key in optional.as_array().unwrap() {
                assert!(all[&section].get(key.as_str().unwrap()).is_some(), "[{section}] {key} is not documented");
            }
        }
        toml::from_str::<Config>(&uncommented).unwrap();
    }

    #[test]
    fn an_unknown_key_is_refused_with_its_line_and_the_nearest_known_key() {
        let error = parse("[model]\npreset = \"gpt2\"\n[train]\nlerning_rate = 1.0\n").unwrap_err().to_string();
        assert_eq!(
            error,
            "/jobs/tiny.toml: line 4: [train] lerning_rate = 1.0: no such key; did you mean learning_rate, a number \
             above 0?; write `learning_rate = 1.0`"
        );
        let error = parse("[trian]\nsteps = 1\n").unwrap_err().to_string();
        assert!(error.contains("line 1: [trian]: no such section; here it is [train]; write `[train]`"), "{error}");
    }

    #[test]
    fn paths_are_relative_to_the_file_and_durations_and_sizes_are_text() {
        let config = parse(
            "[model]\nfrom = \"gpt\"\n[data]\ntext = [\"*.txt\"]\n[session]\nbudget = \"11h45m\"\n\
             [retention]\nmax_bytes = \"2GiB\"\n[status]\nsocket = \"./../run/s.sock\"\n[snapshot]\nevery = \"auto\"\n",
        )
        .unwrap();
        assert_eq!(config.job.store, Path::new("/jobs/checkpoints/tiny"));
        assert_eq!(config.model.from.unwrap(), Path::new("/jobs/gpt"));
        assert_eq!(config.data.text, ["/jobs/*.txt"]);
        assert_eq!(config.session.budget, Some(TextValue(Duration::from_secs(11 * 3600 + 45 * 60))));
        assert_eq!(config.retention.max_bytes, Some(TextValue(2 << 30)));
        assert_eq!(config.snapshot.every, SnapshotEvery::Auto);
        assert_eq!(config.status.socket, Path::new("/run/s.sock"));
    }

    #[test]
    fn a_leading_tilde_is_the_home_folder_and_any_other_is_a_name() {
        let home = std::env::var("HOME").unwrap();
        let config = parse(
            "[model]\nfrom = \"~/gpt\"\n[data]\ntext = [\"~/t/*.txt\", \"a/~/b\", \"~x/c\"]\ntokenizer = \"~/t\"\n",
        )
        .unwrap();
        assert_eq!(config.model.from.unwrap(), Path::new(&home).join("gpt"));
        assert_eq!(config.data.text, [format!("{home}/t/*.txt"), "/jobs/a/~/b".into(), "/jobs/~x/c".into()]);
        assert_eq!(config.data.tokenizer.unwrap(), Path::new(&home).join("t"));
    }

    #[test]
    fn a_value_that_makes_no_sense_is_refused_with_section_and_key() {
        let base = "[model]\npreset = \"gpt2-mini\"\n[data]\ntext = [\"a\"]\n";
        for (line, names) in [
            ("[train]\nsteps = 0", "[train] steps"),
            ("[train]\nbetas = [0.9, 1.0]", "[train] betas"),
            ("[retention]\nkeep_last = 1", "[retention] keep_last"),
            ("[snapshot]\nevery = \"soon\"", "line 6"),
            ("[job]\ndevice = \"tpu\"", "[job] device"),
            ("[session]\nmargin = 0.5", "[session] margin"),
            ("[session]\ndeadline = \"tonight\"", "line 6"),
            ("[log]\nlevel = \"loud\"", "line 6"),
            ("[remote]\nkeep_last = 1", "[remote] keep_last"),
            ("[remote]\nurl = \"bucket/job\"", "[remote] url"),
            ("[remote]\nlease = \"2h\"", "from 1s to 1h"),
            ("[remote]\nverify = \"1.5\"", "[remote] verify"),
            ("[remote]\nmax_rate = \"10B\"", "at least 1024 bytes"),
        ] {
            let error = parse(&format!("{base}{line}\n")).unwrap_err();
            assert_eq!(error.exit_code(), 78);
            assert!(error.to_string().contains(names), "{error}");
        }
    }

    #[test]
    fn a_credential_in_an_address_is_refused_and_not_repeated() {
        let base = "[model]\npreset = \"gpt2-mini\"\n[data]\ntext = [\"a\"]\n[remote]\n";
        for line in [
            "url = \"s3://AKIA:hunter2@bucket/job\"",
            "url = \"az://container/job?sig=hunter2\"",
            "urll = \"sftp://me:hunter2@host/job\"",
            "bucket = \"s3://AKIA:hunter2@bucket/job\"",
            "url = \"s3://bucket:hunter2@/job\"\nurl = \"x\"",
            "url = s3://AKIA:hunter2@bucket/job",
            "endpoint = \"https://me:hunter2@minio.example:9000\"",
            "endpoint = \"https://account.example/?sig=hunter2\"",
        ] {
            let error = parse(&format!("{base}{line}\n")).unwrap_err();
            assert_eq!(error.exit_code(), 78);
            assert!(!error.to_string().contains("hunter2"), "{error}");
        }
        let url = "url = \"sftp://me@host:22/job\"";
        parse(&format!("{base}{url}\nendpoint = \"http://127.0.0.1:10000/devstoreaccount1\"")).unwrap();
    }

    #[test]
    fn a_config_survives_the_protocol_unchanged() {
        let config =
            parse("[model]\npreset = \"gpt2-mini\"\n[data]\ntext = [\"a\"]\n[session]\nbudget = \"90s\"").unwrap();
        let json = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::from_str::<Config>(&json).unwrap(), config);
    }
}
