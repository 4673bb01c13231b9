//! `ckptd logs`

use std::path::PathBuf;
use std::time::Duration;

use super::target::CommandTarget;
use super::{exit_code, output};
use ckptd_core::error::{Error, Result};
use ckptd_core::store::log::SESSION_LINE;

/// Between two looks for new lines.
const LOOK: Duration = Duration::from_millis(200);

/// Show what the last session, or the one under way, has said.
#[derive(clap::Args)]
pub(super) struct LogsArgs {
    /// The store's folder, or the job file.
    #[arg(value_name = "STORE|CONFIG")]
    target: PathBuf,
    /// Go on with what is said from now on, until Ctrl-C.
    #[arg(short, long)]
    follow: bool,
    /// All sessions that are kept, up to 4 MiB.
    #[arg(long)]
    all: bool,
}

pub(super) fn execute(args: &LogsArgs) -> Result<u8> {
    let store = CommandTarget::open(&args.target)?.store;
    let (kept, mut position) = store.log_since(None)?;
    let kept = String::from_utf8_lossy(&kept);
    if kept.is_empty() && !args.follow {
        return Err(Error::NotFound(format!("no session's log is kept in {} yet", store.path().display())));
    }
    let shown = if args.all { &kept } else { last_session(&kept) };
    output::text(shown)?;
    if !args.follow {
        return Ok(exit_code::DONE);
    }
    loop {
        std::thread::sleep(LOOK);
        let (more, now) = store.log_since(Some(position))?;
        position = now;
        if !more.is_empty() && output::stream(&String::from_utf8_lossy(&more))? == output::Reader::Gone {
            return Ok(exit_code::DONE);
        }
    }
}

/// What was said since the last session began.
fn last_session(kept: &str) -> &str {
    let marks = kept.match_indices(SESSION_LINE).map(|(at, _)| at);
    let begins = marks.filter(|at| *at == 0 || kept.as_bytes().get(at - 1) == Some(&b'\n')).last();
    &kept[begins.unwrap_or(0)..]
}

#[cfg(test)]
mod tests {
    use super::last_session;

    #[test]
    fn the_last_session_begins_with_its_own_line() {
        let kept = "-- session of a --\none\n-- session of b --\ntwo says -- session of c\n";
        assert_eq!(last_session(kept), "-- session of b --\ntwo says -- session of c\n");
        assert_eq!(last_session("cut\n"), "cut\n");
    }
}
