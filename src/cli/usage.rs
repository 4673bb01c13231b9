//! A command line that is none: what was probably meant.
//!
//! Invariant: nothing is suggested that deletes. Deliberately not here: the commands (`command`).

use clap::error::{ContextKind, ContextValue, Error, ErrorKind};

use super::{exit_code, output};

/// Words of other programs, and the command for them here.
const KNOWN: &[(&str, &[&str])] = &[
    ("run", &["resume", "start", "train", "continue", "restart", "go", "fit", "launch", "daemon", "finetune"]),
    ("stop", &["kill", "quit", "end", "abort", "cancel", "terminate", "pause"]),
    ("status", &["ps", "info", "show", "state", "progress", "watch", "top"]),
    ("logs", &["log", "tail", "journal"]),
    ("list", &["ls", "snapshots", "checkpoints"]),
    ("snapshot", &["save", "checkpoint", "backup"]),
    ("inspect", &["cat", "describe", "dump"]),
    ("compare", &["diff", "cmp"]),
    ("verify", &["fsck", "validate", "scrub"]),
    ("export", &["convert", "pack", "save_pretrained"]),
    ("import", &["load", "restore"]),
    ("init", &["new", "create", "setup", "config"]),
    ("generate", &["sample", "predict", "infer", "complete"]),
];
const DELETES: &str = "prune";
/// Words for what no command does in one go: only the job's retention and `prune` delete.
const DELETING: &[&str] = &["delete", "remove", "rm", "clean", "clear", "gc", "purge", "reset"];

/// Ends the process as clap does, with a better suggestion where there is one.
pub(super) fn leave(mut error: Error) -> ! {
    if asks_for_version(&error) {
        // Nobody is left to be told that stdout takes nothing.
        let _ = output::text(concat!("ckptd ", env!("CARGO_PKG_VERSION"), "\n"));
        std::process::exit(i32::from(exit_code::DONE))
    }
    if error.kind() == ErrorKind::InvalidSubcommand {
        let word = match error.get(ContextKind::InvalidSubcommand) {
            Some(ContextValue::String(word)) => word.clone(),
            _ => String::new(),
        };
        let usual = match error.get(ContextKind::SuggestedSubcommand) {
            Some(ContextValue::Strings(names)) => names.clone(),
            Some(ContextValue::String(name)) => vec![name.clone()],
            _ => Vec::new(),
        };
        let better = suggestions(&word, usual);
        // An empty list is shown as nothing.
        let _ = error.remove(ContextKind::SuggestedSubcommand);
        if !better.is_empty() {
            let _ = error.insert(ContextKind::SuggestedSubcommand, ContextValue::Strings(better));
        }
    }
    error.exit()
}

/// `ckptd run --version` and its like.
fn asks_for_version(error: &Error) -> bool {
    let argument = error.get(ContextKind::InvalidArg).map(ToString::to_string);
    error.kind() == ErrorKind::UnknownArgument && argument.is_some_and(|argument| argument == "--version")
}

fn suggestions(word: &str, usual: Vec<String>) -> Vec<String> {
    if DELETING.contains(&word.to_lowercase().as_str()) {
        return Vec::new();
    }
    let known = KNOWN.iter().find(|(_, words)| words.contains(&word.to_lowercase().as_str()));
    known.map_or_else(
        || usual.into_iter().filter(|name| name != DELETES).collect(),
        |(command, _)| vec![(*command).to_owned()],
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_other_programs_mean_a_command_and_none_deletes() {
        let commands: Vec<String> =
            crate::cli::command::command().get_subcommands().map(|command| command.get_name().to_owned()).collect();
        for (command, words) in KNOWN {
            assert!(commands.iter().any(|name| name == command), "{command}");
            assert!(words.iter().all(|word| !commands.iter().any(|name| name == word)), "{command}");
        }
        assert_eq!(suggestions("resume", vec!["prune".into()]), ["run"]);
        assert_eq!(suggestions("prume", vec!["prune".into()]), Vec::<String>::new());
        assert_eq!(suggestions("delete", vec!["generate".into()]), Vec::<String>::new());
        assert_eq!(suggestions("exportt", vec!["export".into()]), ["export"]);
    }
}
