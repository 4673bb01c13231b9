//! `ckptd init`

use std::fs::OpenOptions;
use std::io::Write;
use std::path::PathBuf;

use super::{exit_code, output};
use ckptd_core::config::TEMPLATE;
use ckptd_core::error::{Error, Result};

/// Write a commented job file to start from.
#[derive(clap::Args)]
pub(super) struct InitArgs {
    /// The file to write; it must not be there yet.
    #[arg(default_value = "ckptd.toml")]
    file: PathBuf,
}

pub(super) fn execute(args: &InitArgs) -> Result<u8> {
    let written = OpenOptions::new().write(true).create_new(true).open(&args.file);
    match written.and_then(|mut file| file.write_all(TEMPLATE.as_bytes())) {
        Ok(()) => {}
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
            return Err(Error::Other(format!("{} is there already; name another file", args.file.display())));
        }
        Err(e) => return Err(Error::io("writing", &args.file, e)),
    }
    let file = args.file.display();
    output::text(&format!("wrote {file}; set [model] and [data] text in it, then: ckptd run {file}\n"))?;
    Ok(exit_code::DONE)
}
