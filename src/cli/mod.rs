//! The command line: one file a command, each from its arguments to its output.
//!
//! Invariant: with `--json` stdout holds one JSON document and nothing else; errors go to stderr and say what failed,
//! on which path and what to do; exit codes are those of the contract. Nothing here asks a question. Deliberately not
//! here: what the commands are about (agent, store, interop).

mod check;
mod compare;
mod export;
mod import;
mod init;
mod inspect;
mod list;
mod log;
mod output;
mod outputs;
mod pin;
mod prune;
mod run;
mod status;
mod target;
mod unpack;
mod verify;
mod watch;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use ckptd_core::error::Result;

/// Keeps a fine-tuning job alive through sessions that are shorter than the training.
#[derive(Parser)]
#[command(name = "ckptd", version, about, max_term_width = 100, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Init(init::Args),
    Run(run::Args),
    Status(status::Args),
    List(list::Args),
    Verify(verify::Args),
    Prune(prune::Args),
    Inspect(inspect::Args),
    Compare(compare::Args),
    Check(check::Args),
    Export(export::Args),
    Import(import::Args),
    Unpack(unpack::Args),
    Pin(pin::PinArgs),
    Unpin(pin::UnpinArgs),
}

/// The command line as it is parsed, for the page that is made of it (docs/cli.md).
pub fn command() -> clap::Command {
    <Cli as clap::CommandFactory>::command()
}

/// Exit codes besides an error's own.
pub(crate) mod code {
    pub const DONE: u8 = 0;
    /// The command worked, and what it looked at falls short.
    pub const FALLS_SHORT: u8 = 1;
    /// EX_TEMPFAIL: the session is over, run it again to go on.
    pub const RESUME_LATER: u8 = 75;
}

/// The whole program.
pub fn main() -> ExitCode {
    ckptd_core::os::fs::refuse_size_limit_signal();
    // Usage errors end here, with 2.
    let cli = Cli::parse();
    match execute(cli.command) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            output::complain(&format!("ckptd: {error}"));
            ExitCode::from(error.exit_code())
        }
    }
}

fn execute(command: Command) -> Result<u8> {
    match command {
        Command::Init(args) => init::execute(&args),
        Command::Run(args) => run::execute(&args),
        Command::Status(args) => status::execute(&args),
        Command::List(args) => list::execute(&args),
        Command::Verify(args) => verify::execute(&args),
        Command::Prune(args) => prune::execute(&args),
        Command::Inspect(args) => inspect::execute(&args),
        Command::Compare(args) => compare::execute(&args),
        Command::Check(args) => check::execute(&args),
        Command::Export(args) => export::execute(&args),
        Command::Import(args) => import::execute(&args),
        Command::Unpack(args) => unpack::execute(&args),
        Command::Pin(args) => pin::pin(&args),
        Command::Unpin(args) => pin::unpin(&args),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_command_line_is_well_formed() {
        super::command().debug_assert();
    }
}
