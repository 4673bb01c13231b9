//! `ckptd run URL`: the job of a remote, on a machine that has nothing but its address.
//!
//! Invariant: whoever may write to the remote may write any job file there, so that of it only plain values are taken,
//! by a list of what is known to be harmless: no command, no path, no address. Everything is written below one folder.
//! Deliberately not here: the snapshot itself, which the session fetches.

use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::console::Console;
use super::output;
use super::remote::with_job;
use ckptd_core::config::Config;
use ckptd_core::error::{Error, Result};
use ckptd_core::os::publish::{Existing, publish};
use ckptd_interop::names::{JOB, TOKENS, TOKENS_ORIGIN};
use ckptd_remote::job::companions::{fetch_companion, is_whole, newest_blobs};
use ckptd_remote::job::{self, RemoteJob};
use ckptd_remote::layout::JobObject;
use ckptd_remote::records::JobRecord;

/// Sections of which every key but these is a plain value.
const PLAIN: [(&str, &[&str]); 9] = [
    ("job", &["store"]),
    ("model", &["from"]),
    ("data", &["text", "field", "tokens", "tokenizer", "cache"]),
    ("train", &[]),
    ("snapshot", &[]),
    ("retention", &[]),
    ("session", &["deadline", "notice_file", "aws_url", "gcp_url", "azure_url"]),
    ("worker", &["command", "script"]),
    ("log", &[]),
];
/// Where things are below the folder.
const STORE: &str = "store";
/// A model that was a folder; a resume needs the snapshot alone.
const MODEL: &str = "model";
/// Characters of a job's name that are taken.
const LONGEST_NAME: usize = 80;
const HEAD: &str = "# The job of a remote, as `ckptd run URL` has found it. From now on this file counts.\n";

/// How `ckptd run URL` was asked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct FromRemote<'a> {
    pub url: &'a str,
    /// Where job file, data and store go; `None`: the URL's last part, in the current folder.
    pub folder: Option<&'a Path>,
    pub allow_commands: bool,
}

/// The job file of the job at a remote, which is made where it is not there yet.
pub(super) fn job_file(asked: FromRemote<'_>) -> Result<PathBuf> {
    let folder = match asked.folder {
        Some(folder) => folder.to_path_buf(),
        None => PathBuf::from(last_part(asked.url)?),
    };
    let path = folder.join(JOB);
    if path.exists() {
        let config = Config::load(&path)?;
        if config.remote.url.as_deref() == Some(asked.url) {
            return Ok(path);
        }
        return Err(Error::Config(format!(
            "{} is the file of another job; name another folder: --folder DIR",
            path.display()
        )));
    }
    let console = Console::start()?;
    let made = with_job(asked.url, async |job| make(&job, asked, &folder, &console).await)?;
    drop(console);
    made.iter().for_each(|line| output::complain(&format!("ckptd: {line}")));
    Ok(path)
}

/// A plain name.
fn last_part(url: &str) -> Result<&str> {
    let last = url.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if last.is_empty() || last.starts_with(['.', '-']) || !last.chars().all(is_plain) {
        return Err(Error::Config("the URL ends with no plain name; name a folder: --folder DIR".into()));
    }
    Ok(last)
}

/// Fetches what the job needs besides its snapshots, and writes its file last; returns what is to be told.
async fn make(job: &RemoteJob, asked: FromRemote<'_>, folder: &Path, console: &Console) -> job::Result<Vec<String>> {
    let place = job.place();
    let (Some(_), Some(record)) = (job.run_id().await?, job.job_record().await?) else {
        return Err(Error::Config(format!(
            "{place} holds no job to go on with; begin one there: [remote] url = \"{place}\" in a job file"
        ))
        .into());
    };
    let mut blobs = newest_blobs(job).await?;
    blobs.retain(|blob| [TOKENS, TOKENS_ORIGIN].contains(&blob.name.as_str()));
    let mut told = refused(&record.config, asked.allow_commands).map_or_else(Vec::new, |told| vec![told]);
    let source = job.path_of(&JobObject::Job);
    let config = safe_config(&record, asked, &source)?;
    let toml = toml::to_string_pretty(&config).map_err(|e| Error::Other(format!("writing {JOB}: {e}")))?;
    let text = format!("{HEAD}\n{toml}");
    // What it says is held to the same rules as any job file.
    Config::parse(&text, &folder.join(JOB)).map_err(|e| Error::malformed(&source, e.to_string()))?;
    std::fs::create_dir_all(folder).map_err(|e| Error::io("creating", folder, e))?;
    for blob in &blobs {
        let path = folder.join(&blob.name);
        // An earlier try may have brought it here.
        if !path.exists() {
            fetch_companion(job, blob, &path, console).await?;
        } else if !is_whole(&path, blob)? {
            let what = format!("{} is another file; name another folder: --folder DIR", path.display());
            return Err(Error::Config(what).into());
        }
    }
    if blobs.is_empty() {
        let tokens = folder.join(TOKENS);
        told.push(format!(
            "{place} holds no data: put the tokens at {}, or say in {JOB} where they are",
            tokens.display()
        ));
    }
    write_new(&folder.join(JOB), &text)?;
    told.push(format!("the job of {place} is in {} now", folder.display()));
    Ok(told)
}

/// What of the job file would be run, in words; none where there is nothing of the kind.
fn refused(config: &Value, allow_commands: bool) -> Option<String> {
    let said = |key: &str| config.get("worker").and_then(|worker| worker.get(key)).filter(|said| !is_empty(said));
    let commands = ["command", "script"].into_iter().filter_map(|key| Some(format!("[worker] {key} = {}", said(key)?)));
    let commands: Vec<String> = commands.collect();
    let others = ["ranks", "hooks", "guard"].into_iter().filter_map(|name| Some((name, unknown_of(config, name)?)));
    let others: Vec<String> = others.map(|(name, value)| format!("[{name}] {value}")).collect();
    let hooks = config.get("hooks").and_then(|hooks| hooks.get("on")).filter(|on| !is_empty(on));
    let commands = commands.into_iter().chain(hooks.map(|on| format!("[hooks] on = {on}")));
    let commands = Some(commands.collect::<Vec<_>>().join(", ")).filter(|commands| !commands.is_empty());
    let unknown = (!others.is_empty())
        .then(|| format!("this release knows no {}, and nothing of it is taken", others.join(", ")));
    let what = if allow_commands {
        "is taken from the remote, as --allow-commands says"
    } else {
        "is what the remote's job file would have run; it is not taken, and what ckptd has of its own runs; \
         --allow-commands takes it"
    };
    let launcher = config.get("ranks").and_then(|ranks| ranks.get("launcher")).filter(|launcher| **launcher != "none");
    let launcher = launcher.filter(|launcher| !is_empty(launcher)).map(|launcher| {
        format!("[ranks] launcher = {launcher} is not taken: what starts ranks is for this machine's job file to say")
    });
    let commands = commands.map(|commands| format!("{commands} {what}"));
    let both: Vec<String> = commands.into_iter().chain(launcher).chain(unknown).collect();
    (!both.is_empty()).then(|| both.join("; "))
}

/// What this release does not know of a section, if there is anything.
fn unknown_of(config: &Value, section: &str) -> Option<Value> {
    let known = serde_json::to_value(Config::default()).unwrap_or_default();
    let mut value = config.get(section)?.clone();
    if let Some(keys) = value.as_object_mut() {
        keys.retain(|key, _| known[section].get(key).is_none());
    }
    (!is_empty(&value)).then_some(value)
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(keys) => keys.values().all(is_empty),
        Value::String(text) => text.is_empty(),
        _ => false,
    }
}

/// The job with the plain values of `record`, and everything else below the folder of its file.
fn safe_config(record: &JobRecord, asked: FromRemote<'_>, source: &str) -> Result<Config> {
    let known = serde_json::to_value(Config::default()).unwrap_or_default();
    let mut taken = Map::new();
    for (section, not_taken) in PLAIN {
        let (Some(known), Some(there)) = (known[section].as_object(), record.config[section].as_object()) else {
            continue;
        };
        let is_taken = |key: &str| known.contains_key(key) && !not_taken.contains(&key);
        let keys = there.iter().filter(|(key, _)| is_taken(key)).map(|(key, value)| (key.clone(), value.clone()));
        taken.insert(section.to_owned(), keys.collect::<Map<_, _>>().into());
    }
    if let (Some(known), Some(there)) = (known["remote"].as_object(), record.config["remote"].as_object()) {
        let keys =
            there.iter().filter(|(key, _)| known.contains_key(*key) && !["url", "endpoint"].contains(&key.as_str()));
        taken.insert("remote".into(), keys.map(|(k, v)| (k.clone(), v.clone())).collect::<Map<_, _>>().into());
    }
    let mut config: Config =
        serde_json::from_value(Value::Object(taken)).map_err(|e| Error::malformed(source, format!("no job: {e}")))?;
    config.job.name = config.job.name.chars().filter(|c| !c.is_control()).take(LONGEST_NAME).collect();
    config.job.store = STORE.into();
    if config.model.preset.is_none() {
        config.model.from = Some(MODEL.into());
    }
    // The type belongs to the tokens that the job named; what was made of texts says its own.
    if record.config["data"]["tokens"].is_null() {
        config.data.tokens_dtype = None;
    }
    config.data.tokens = Some(TOKENS.into());
    config.remote.url = Some(asked.url.to_owned());
    if asked.allow_commands {
        let said = |key: &str| serde_json::from_value(record.config["worker"][key].clone()).unwrap_or_default();
        (config.worker.command, config.worker.script) = (said("command"), said("script"));
        config.hooks.on = serde_json::from_value(record.config["hooks"]["on"].clone()).unwrap_or_default();
    }
    Ok(config)
}

/// Writes `text` to a file that is not there yet.
fn write_new(path: &Path, text: &str) -> Result<()> {
    let mut partial = path.as_os_str().to_owned();
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    let mut file = std::fs::File::create(&partial).map_err(|e| Error::io("creating", &partial, e))?;
    file.write_all(text.as_bytes()).map_err(|e| Error::io("writing", &partial, e))?;
    publish(&file, &partial, path, Existing::Keep)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use ckptd_remote::records::VERSION;

    const URL: &str = "s3://bucket/job";

    fn asked(allow_commands: bool) -> FromRemote<'static> {
        FromRemote { url: URL, folder: None, allow_commands }
    }

    fn config(toml: &str) -> Value {
        serde_json::to_value(toml::from_str::<toml::Table>(toml).unwrap()).unwrap()
    }

    /// A job file that would run, read and write everywhere.
    const PLANTED: &str = r#"
        job = { name = "x\ty", store = "/planted/store", seed = 7, threads = 3 }
        model = { from = "/planted/model", dropout = 0.1 }
        data = { text = ["/planted/texts"], tokenizer = "/planted/t", cache = "/planted/x", validation = 0.1 }
        train = { steps = 30, batch_size = 4 }
        session = { budget = "1h", notice_file = "/planted/n", aws = true, aws_url = "http://planted.example" }
        worker = { command = ["touch", "/planted/touched"], max_restarts = 3 }
        status = { socket = "/planted/s" }
        remote = { url = "file:///planted/remote", endpoint = "http://planted.example", keep_last = 5 }
        ranks = { launcher = ["touch", "/planted/launched"], count = 2 }
        hooks = { verified = ["touch", "/planted/hooked"], on = { failed = ["touch", "/planted/failed"] } }
    "#;

    #[test]
    fn of_a_remote_job_file_only_plain_values_are_taken() {
        let record = JobRecord { version: VERSION, config: config(PLANTED) };
        let safe = safe_config(&record, asked(false), "job.json").unwrap();
        let toml = toml::to_string_pretty(&safe).unwrap();
        for planted in ["/planted", "planted.example", "touch", "\t"] {
            assert!(!toml.contains(planted), "{planted}: {toml}");
        }
        let job = Config::parse(&toml, Path::new("/here/job/job.toml")).unwrap();
        assert_eq!((job.job.seed, job.job.threads, job.train.steps, job.train.batch_size), (7, 3, 30, 4));
        assert_eq!((job.model.dropout, job.data.validation, job.remote.keep_last), (Some(0.1), 0.1, 5));
        assert_eq!(job.worker.max_restarts, 3);
        assert_eq!(job.remote.url.as_deref(), Some(URL));
        let paths =
            [Some(job.job.store), job.model.from, job.data.tokens, Some(job.data.cache), Some(job.status.socket)];
        assert!(paths.iter().flatten().all(|path| path.starts_with("/here/job")), "{paths:?}");
    }

    #[test]
    fn what_would_be_run_is_told_and_taken_only_when_that_is_allowed() {
        let record = JobRecord { version: VERSION, config: config(PLANTED) };
        let told = refused(&record.config, false).unwrap();
        for planted in ["touched", "launched", "hooked", "planted/failed", "--allow-commands"] {
            assert!(told.contains(planted), "{told}");
        }
        assert!(safe_config(&record, asked(false), "job.json").unwrap().worker.command.is_empty());
        assert_eq!(
            safe_config(&record, asked(true), "job.json").unwrap().worker.command,
            ["touch", "/planted/touched"]
        );
        let failed = |allow| safe_config(&record, asked(allow), "job.json").unwrap().hooks.on.len();
        assert_eq!((failed(false), failed(true)), (0, 1));
        // How many ranks there are is this machine's own.
        let harmless = config("worker = { command = [] }\nhooks = {}\nranks = { count = 2 }\n");
        assert_eq!(refused(&harmless, false), None);
    }

    #[test]
    fn the_folder_is_the_urls_last_part_if_that_is_a_plain_name() {
        assert_eq!(last_part("s3://bucket/runs/gpt2-a/").unwrap(), "gpt2-a");
        for url in ["file:///x/.hidden", "file:///x/a%20b", "sftp://me@host/=x"] {
            assert!(last_part(url).is_err(), "{url}");
        }
    }
}
