//! `ckptd run`

use std::path::PathBuf;

use super::{exit_code, log};
use crate::training::job::events::SessionOutcome;
use crate::training::run::{self, RunOptions};
use ckptd_core::config::{Config, LogLevel};
use ckptd_core::error::Result;

/// Train, snapshot, verify, rotate and resume, in the foreground.
///
/// Exits with 0 when the training is complete and its last snapshot verified, with 75 when the session is over and the
/// next run goes on. SIGINT and SIGTERM end the session with a last snapshot, a second one at once; SIGUSR1 takes a
/// snapshot, SIGHUP reads the job file again (as a change of it does).
#[derive(clap::Args)]
pub(super) struct RunArgs {
    /// The job file; `ckptd init` writes one to start from.
    config: PathBuf,
    /// Go on although settings that change the arithmetic differ from the snapshot's.
    #[arg(long)]
    accept_changes: bool,
    /// As [snapshot] probe = true: store with each snapshot a fingerprint of the model's logits.
    #[arg(long)]
    probe: bool,
    #[arg(long, value_enum, default_value = "text")]
    log_format: log::LogFormat,
    /// Say more, the worker's stderr included.
    #[arg(short, long, conflicts_with = "quiet")]
    verbose: bool,
    /// Say only what is wrong.
    #[arg(short, long)]
    quiet: bool,
}

pub(super) fn execute(args: &RunArgs) -> Result<u8> {
    let text = Config::read(&args.config)?;
    let mut config = Config::parse(&text, &args.config)?;
    config.snapshot.probe |= args.probe;
    let asked = match (args.verbose, args.quiet) {
        (true, _) => Some(LogLevel::Debug),
        (_, true) => Some(LogLevel::Warn),
        _ => None,
    };
    let log = log::start(args.log_format, asked.unwrap_or(config.log.level));
    let printer = &log.printer;
    let options = RunOptions {
        path: args.config.clone(),
        text,
        accept_changes: args.accept_changes,
        probe: args.probe,
        printer,
        // What the command line asks for stands.
        set_log_level: &|level| log.set_level(asked.unwrap_or(level)),
    };
    let outcome = run::run(config, &options);
    if let (Err(error), log::LogFormat::Json) = (&outcome, args.log_format) {
        tracing::error!("{error}");
    }
    printer.finish();
    match outcome? {
        SessionOutcome::Finished => Ok(exit_code::DONE),
        SessionOutcome::Resume => Ok(exit_code::RESUME_LATER),
    }
}
