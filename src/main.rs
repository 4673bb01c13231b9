//! Parses the command line, runs the command and maps what came of it to an exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    ckptd::cli::command::main()
}
