//! `ckptd generate`: the worker's command, started with the arguments that it takes.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use crate::training::launch::default_program;
use ckptd_core::error::{Error, Result};

/// Continue a text with a snapshot.
///
/// Starts the worker, `ckptd-gpt2 generate`, whose options follow: --prompt, --snapshot, --tokens, --seed,
/// --temperature, --top-k, --top-p, --threads.
#[derive(clap::Args)]
pub(super) struct GenerateArgs {
    /// The store's folder, or the job file; left out where --model names another model.
    #[arg(value_name = "STORE|CONFIG")]
    target: Option<PathBuf>,
    /// Options of the worker; `ckptd generate STORE --help` lists them.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "OPTIONS")]
    options: Vec<OsString>,
}

pub(super) fn execute(args: &GenerateArgs) -> Result<u8> {
    let program = default_program()?;
    let mut command = Command::new(&program);
    command.arg("generate");
    if let Some(target) = &args.target {
        command.arg("--store").arg(target);
    }
    // In this one's place: signals, the terminal and the exit code are the worker's.
    Err(Error::io("starting", &program, command.args(&args.options).exec()))
}
