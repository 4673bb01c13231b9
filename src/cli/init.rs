//! `ckptd init`

use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};

use super::job_text::{JobText, StartingPoint, seen_from};
use super::{exit_code, output};
use ckptd_core::config::{Config, TEMPLATE};
use ckptd_core::error::{Error, Result};

/// Write a job file to start from: short and ready to run with --from and --text, else with every key and its default.
#[derive(clap::Args)]
pub(super) struct InitArgs {
    /// The file to write; it must not be there yet.
    #[arg(default_value = "ckptd.toml")]
    file: PathBuf,
    /// A Hugging Face folder of GPT-2 to fine-tune, or a preset for random weights. Batch, accumulation and sequence
    /// length are what fits the memory that is free here.
    #[arg(long, value_name = "MODEL", requires = "text")]
    from: Option<String>,
    /// A text file, folder or glob; may be given more than once.
    #[arg(long, value_name = "GLOB", requires = "from")]
    text: Vec<String>,
    /// How long a session may last.
    #[arg(long, value_name = "H", requires = "from", value_parser = parse_hours)]
    hours: Option<f64>,
    /// Optimiser steps; else about three passes over the text.
    #[arg(long, value_name = "N", requires = "from", value_parser = clap::value_parser!(u64).range(1..))]
    steps: Option<u64>,
}

pub(super) fn execute(args: &InitArgs) -> Result<u8> {
    let file = args.file.display();
    let (text, todo) = match &args.from {
        None => (TEMPLATE.to_owned(), format!("set [model] and [data] text in it, then: ckptd run {file}")),
        Some(from) => (ready(args, from)?, format!("next: ckptd run {file}")),
    };
    write_new(&args.file, &text)?;
    output::text(&format!("wrote {file}; {todo}\n"))?;
    Ok(exit_code::DONE)
}

/// A short job file that runs as it is.
fn ready(args: &InitArgs, from: &str) -> Result<String> {
    let start = StartingPoint::find(from, &args.file)?;
    let texts = args.text.iter().map(|text| seen_from(&args.file, text)).collect::<Result<Vec<_>>>()?;
    let job = JobText { start, texts, hours: args.hours, steps: args.steps };
    let text = job.write(&args.file)?;
    // What is missing is told now, and not by the first run.
    Config::parse(&text, &args.file)?.check_files(&text, &args.file)?;
    Ok(text)
}

/// Writes a file that must not be there.
pub(super) fn write_new(path: &Path, text: &str) -> Result<()> {
    let written = OpenOptions::new().write(true).create_new(true).open(path);
    match written.and_then(|mut file| file.write_all(text.as_bytes())) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
            Err(Error::Other(format!("{} is there already; name another file", path.display())))
        }
        Err(e) => Err(Error::io("writing", path, e)),
    }
}

fn parse_hours(text: &str) -> Result<f64, String> {
    let hours: f64 = text.parse().map_err(|_| "not a number of hours such as 11.75".to_owned())?;
    if (0.01..=8760.0).contains(&hours) { Ok(hours) } else { Err("from 0.01 to 8760 hours".to_owned()) }
}
