//! The commands, and the way from the arguments to an exit code.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use super::{
    check, compare, export, fetch, generate, history, import, init, inspect, jobs, list, log, logs, orders, output,
    pin, plan, plot, prune, push, remote_job, run, serve, status, unpack, usage, verify,
};
use ckptd_core::error::Result;

/// Keeps a fine-tuning job alive through sessions that are shorter than the training.
#[derive(Parser)]
#[command(name = "ckptd", version, about, max_term_width = 100)]
struct CommandLine {
    #[command(subcommand)]
    command: CliCommand,
}

#[derive(Subcommand)]
enum CliCommand {
    Init(init::InitArgs),
    Run(run::RunArgs),
    Status(status::StatusArgs),
    Jobs(jobs::JobsArgs),
    Stop(orders::StopArgs),
    Snapshot(orders::SnapshotArgs),
    Logs(logs::LogsArgs),
    List(list::ListArgs),
    History(history::HistoryArgs),
    Plot(plot::PlotArgs),
    Plan(plan::PlanArgs),
    Serve(serve::ServeArgs),
    Verify(verify::VerifyArgs),
    Prune(prune::PruneArgs),
    Inspect(inspect::InspectArgs),
    Compare(compare::CompareArgs),
    Check(check::CheckArgs),
    Export(export::ExportArgs),
    Import(import::ImportArgs),
    Unpack(unpack::UnpackArgs),
    Generate(generate::GenerateArgs),
    Pin(pin::PinArgs),
    Unpin(pin::UnpinArgs),
    Push(push::PushArgs),
    Fetch(fetch::FetchArgs),
    Remote(remote_job::RemoteArgs),
}

/// The command line as it is parsed, for the page that is made of it (docs/cli.md).
pub fn command() -> clap::Command {
    <CommandLine as clap::CommandFactory>::command()
}

/// The whole program.
pub fn main() -> ExitCode {
    ckptd_core::os::fs::refuse_size_limit_signal();
    // Usage errors end here, with 2.
    let cli = CommandLine::try_parse().unwrap_or_else(|error| usage::leave(error));
    match execute(cli.command) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            let line = log::for_journal(&format!("ckptd: {error}"), tracing::Level::ERROR, log::journal());
            output::complain(&line);
            ExitCode::from(error.exit_code())
        }
    }
}

fn execute(command: CliCommand) -> Result<u8> {
    match command {
        CliCommand::Init(args) => init::execute(&args),
        CliCommand::Run(args) => run::execute(&args),
        CliCommand::Status(args) => status::execute(&args),
        CliCommand::Jobs(args) => jobs::execute(&args),
        CliCommand::Stop(args) => orders::stop(&args),
        CliCommand::Snapshot(args) => orders::snapshot(&args),
        CliCommand::Logs(args) => logs::execute(&args),
        CliCommand::List(args) => list::execute(&args),
        CliCommand::History(args) => history::execute(&args),
        CliCommand::Plot(args) => plot::execute(&args),
        CliCommand::Plan(args) => plan::execute(&args),
        CliCommand::Serve(args) => serve::execute(&args),
        CliCommand::Verify(args) => verify::execute(&args),
        CliCommand::Prune(args) => prune::execute(&args),
        CliCommand::Inspect(args) => inspect::execute(&args),
        CliCommand::Compare(args) => compare::execute(&args),
        CliCommand::Check(args) => check::execute(&args),
        CliCommand::Export(args) => export::execute(&args),
        CliCommand::Import(args) => import::execute(&args),
        CliCommand::Unpack(args) => unpack::execute(&args),
        CliCommand::Generate(args) => generate::execute(&args),
        CliCommand::Pin(args) => pin::pin(&args),
        CliCommand::Unpin(args) => pin::unpin(&args),
        CliCommand::Push(args) => push::execute(&args),
        CliCommand::Fetch(args) => fetch::execute(&args),
        CliCommand::Remote(args) => remote_job::execute(&args),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_command_line_is_well_formed() {
        super::command().debug_assert();
    }
}
