//! `ckptd run`

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::begin::{self, BeginOptions, Beginning};
use super::from_remote::{self, FromRemote};
use super::{exit_code, log};
use crate::daemon::user_stop::UserStop;
use crate::training::display::LineInterval;
use crate::training::job::events::SessionOutcome;
use crate::training::launch;
use crate::training::run::{self, RunOptions, SessionSeries};
use ckptd_core::config::{Config, ConfigOverrides, LogLevel};
use ckptd_core::error::{Error, Result};
use ckptd_core::text::parse_duration;

/// Stands for the job file where there is none; relative paths are those of the current folder.
const NO_FILE: &str = "the command line";

/// Train, snapshot, verify, rotate and resume, in the foreground.
///
/// Exits with 0 when the training is complete and its last snapshot verified, with 75 when the session is over and the
/// next run goes on. SIGINT and SIGTERM end the session with a last snapshot, the same one again at once; SIGUSR1 takes
/// a snapshot, SIGHUP reads the job file again (as a change of it does).
#[derive(clap::Args)]
pub(super) struct RunArgs {
    /// The job file; `ckptd init` writes one to start from. Or the URL of a job at a remote, whose file, data and
    /// newest snapshot come from there.
    #[arg(value_name = "CONFIG|URL", required_unless_present_any = ["script", "job"])]
    config: Option<PathBuf>,
    /// The job file, for a script.
    #[arg(long = "config", value_name = "JOB", conflicts_with = "config")]
    job: Option<PathBuf>,
    /// Keep the snapshots here, whatever the job file says. Without one: checkpoints/NAME, after the script's name.
    #[arg(long, value_name = "DIR")]
    store: Option<PathBuf>,
    /// As [session] budget: how long this session may last (11h45m).
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    budget: Option<Duration>,
    /// As [remote] url: where verified snapshots are replicated to.
    #[arg(long, value_name = "URL")]
    remote: Option<String>,
    /// With a URL: the folder for job file, data and store. Without it: the URL's last part, in the current folder.
    #[arg(long, value_name = "DIR")]
    folder: Option<PathBuf>,
    /// With a URL: take also the worker's command of the job file there. Whoever may write there may then run anything
    /// here.
    #[arg(long)]
    allow_commands: bool,
    /// Begin the next session when [session] budget has ended one, until the training is complete. What else ends a
    /// session ends the run: a signal, the notice file, a deadline, the end of the machine or of the allocation.
    #[arg(long)]
    until_done: bool,
    /// Go on although settings that change the arithmetic differ from the snapshot's.
    #[arg(long)]
    accept_changes: bool,
    /// Begin at step 0 with the weights of [model] from, although it carries the state of a training.
    #[arg(long)]
    weights_only: bool,
    /// As [snapshot] probe = true: store with each snapshot a fingerprint of the model's logits.
    #[arg(long)]
    probe: bool,
    /// Take the job from another machine that owns it at the remote, without waiting for its lease to run out.
    #[arg(long)]
    take_over: bool,
    #[arg(long, value_enum, default_value = "text")]
    log_format: log::LogFormat,
    /// A line on the progress each time so long (10s) or so many steps (100) have passed, also beside the panel.
    #[arg(long, value_name = "TIME|STEPS", value_parser = parse_interval)]
    log_every: Option<LineInterval>,
    /// Say more, the worker's stderr included.
    #[arg(short, long, conflicts_with = "quiet")]
    verbose: bool,
    /// Say only what is wrong.
    #[arg(short, long)]
    quiet: bool,
    /// A training script that uses the Python package ckptd, and its arguments, as [worker] script. It needs no job
    /// file.
    #[arg(last = true, value_name = "COMMAND")]
    script: Vec<String>,
}

pub(super) fn execute(args: &RunArgs) -> Result<u8> {
    let overrides = args.overrides()?;
    let Some(given) = args.config.as_ref().or(args.job.as_ref()) else {
        return run_file(args, overrides, Path::new(NO_FILE));
    };
    match given.to_str().filter(|config| config.contains("://")) {
        Some(url) => {
            let asked = FromRemote { url, folder: args.folder.as_deref(), allow_commands: args.allow_commands };
            run_file(args, overrides, &from_remote::job_file(asked)?)
        }
        None if args.folder.is_some() || args.allow_commands => {
            Err(Error::Config("--folder and --allow-commands are for the URL of a job at a remote".into()))
        }
        None => run_file(args, overrides, given),
    }
}

fn run_file(args: &RunArgs, overrides: ConfigOverrides, path: &Path) -> Result<u8> {
    launch::refuse_other_tasks(&|name| std::env::var(name).ok())?;
    let mut log: Option<log::RunLog> = None;
    let user_stop = args.until_done.then(UserStop::listen).transpose()?;
    let mut series = SessionSeries::new(user_stop);
    loop {
        // Read anew: the job file may have been changed while a session ended.
        let text = if path == Path::new(NO_FILE) { String::new() } else { Config::read(path)? };
        let config = Config::parse_with(&text, path, &overrides)?;
        let log = log.get_or_insert_with(|| args.start_log(&config));
        let options = RunOptions {
            path: path.to_path_buf(),
            text,
            overrides: overrides.clone(),
            accept_changes: args.accept_changes,
            // Once: a job that was lost again meanwhile is another person's.
            take_over: args.take_over && series.is_first,
            series,
            printer: &log.printer,
            keeper: &log.keeper,
            lines: args.log_every.unwrap_or(LineInterval::USUAL),
            // What the command line asks for stands.
            set_log_level: &|level| log.set_level(args.level().unwrap_or(level)),
        };
        let asked = BeginOptions { weights_only: args.weights_only, accept_changes: args.accept_changes };
        let asked_for = config.clone();
        let outcome = match begin::prepare(&config, &options.text, path, asked) {
            Ok(Beginning::Ready) => run::run(config, &options),
            Ok(Beginning::Interrupted) => Ok(SessionOutcome::Resume),
            Err(error) => Err(error),
        };
        let outcome = outcome.map_err(|error| match error {
            Error::Config(what) => Error::Config(asked_for.place_problem(&options.text, path, &what)),
            other => other,
        });
        if let (Err(error), log::LogFormat::Json) = (&outcome, args.log_format) {
            tracing::error!("{error}");
        }
        series = options.series;
        series.is_first = false;
        if matches!(outcome, Ok(SessionOutcome::BudgetOver)) && args.until_done && !series.is_stopped() {
            tracing::info!("the next session begins; Ctrl-C, SIGTERM, SIGUSR2 or the notice file end them all");
            continue;
        }
        log.printer.finish();
        return match outcome? {
            SessionOutcome::Finished => Ok(exit_code::DONE),
            SessionOutcome::Resume | SessionOutcome::BudgetOver => Ok(exit_code::RESUME_LATER),
        };
    }
}

impl RunArgs {
    fn start_log(&self, config: &Config) -> log::RunLog {
        // A script's own words stand on the terminal, and a panel would be written over.
        let lines = self.log_every.is_some();
        let live = config.worker.script.is_empty();
        log::start(self.log_format, self.level().unwrap_or(config.log.level), log::Progress { lines, live })
    }

    /// What the command line says in place of the job file.
    fn overrides(&self) -> Result<ConfigOverrides> {
        let store =
            self.store.as_deref().map(|store| std::path::absolute(store).map_err(|e| Error::io("resolving", store, e)));
        Ok(ConfigOverrides {
            name: (self.config.is_none() && self.job.is_none()).then(|| script_name(&self.script)),
            store: store.transpose()?,
            budget: self.budget,
            remote: self.remote.clone(),
            script: self.script.clone(),
            probe: self.probe,
        })
    }

    /// The level of the log that the command line asks for.
    fn level(&self) -> Option<LogLevel> {
        match (self.verbose, self.quiet) {
            (true, _) => Some(LogLevel::Debug),
            (_, true) => Some(LogLevel::Warn),
            _ => None,
        }
    }
}

/// What a job without a file is called: the first argument that looks like a script, without its ending.
fn script_name(script: &[String]) -> String {
    let is_script = |word: &&String| Path::new(word.as_str()).extension().is_some_and(|ending| ending == "py");
    let word = script.iter().find(is_script).or(script.first());
    let stem = word.and_then(|word| Path::new(word).file_stem());
    stem.map_or_else(|| "job".to_owned(), |stem| stem.to_string_lossy().into_owned())
}

fn parse_interval(text: &str) -> Result<LineInterval, String> {
    match text.parse() {
        Ok(0) => Err("at least one step".to_owned()),
        Ok(steps) => Ok(LineInterval::Steps(steps)),
        Err(_) => parse_duration(text).map(LineInterval::Time),
    }
}
