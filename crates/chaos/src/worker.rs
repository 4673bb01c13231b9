//! The worker that trains nothing, as a command of this program.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, ensure};
use ckptd_testkit::worker::{self, WorkerOptions};

#[derive(clap::Args)]
pub struct WorkerArgs {
    #[arg(long, default_value_t = 4)]
    step_ms: u64,
    /// The folder whose files say how it misbehaves.
    #[arg(long)]
    script: Option<PathBuf>,
}

pub fn run(args: WorkerArgs) -> Result<()> {
    let options =
        WorkerOptions { step: Duration::from_millis(args.step_ms), is_configurable: false, script: args.script };
    let code = worker::run(options, std::io::stdout())?;
    ensure!(code == 0, "the script says so");
    Ok(())
}
