//! What of a job may change while it runs.
//!
//! Invariant: a change is taken as a whole or not at all. What is not listed here as live is not: a new key has to be
//! thought about first. Deliberately not here: reading the file again, and telling whom it concerns (agent).

use serde_json::Value;

use super::sections::Config;

/// Sections and keys that take effect at once.
const LIVE: [&str; 16] = [
    "train.eval_every",
    "train.eval_batches",
    "snapshot.every",
    "snapshot.every_steps",
    "snapshot.mtbf",
    "snapshot.max_overhead",
    "snapshot.level",
    "snapshot.encode_threads",
    "retention",
    "session.budget",
    "session.deadline",
    "session.margin",
    "session.grace",
    "worker.max_restarts",
    "worker.hang_timeout",
    "log.level",
];
/// What the training's arithmetic follows from.
const ARITHMETIC: [&str; 6] = ["model", "data", "train", "job.seed", "job.device", "job.threads"];

/// The keys that differ, as "[section] key", or why the change cannot be made while the job runs.
pub fn changes(before: &Config, after: &Config) -> Result<Vec<String>, String> {
    let mut changed = Vec::new();
    for (section, key) in differences(before, after) {
        let (path, name) = (format!("{section}.{key}"), format!("[{section}] {key}"));
        let listed = |list: &[&str]| list.iter().any(|entry| *entry == section || *entry == path);
        if listed(&LIVE) {
            changed.push(name);
        } else if listed(&ARITHMETIC) {
            return Err(format!(
                "{name}: it changes the arithmetic of the training; stop the job, and run it with \
                 --accept-changes to go on with it"
            ));
        } else {
            return Err(format!("{name}: it takes effect only when `ckptd run` starts"));
        }
    }
    Ok(changed)
}

fn differences(before: &Config, after: &Config) -> Vec<(String, String)> {
    // Plain structs always serialise; what did not would count as unchanged.
    let (Ok(Value::Object(before)), Ok(Value::Object(after))) =
        (serde_json::to_value(before), serde_json::to_value(after))
    else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for (section, values) in &after {
        let Value::Object(values) = values else { continue };
        for (key, value) in values {
            if before.get(section).and_then(|old| old.get(key)) != Some(value) {
                found.push((section.clone(), key.clone()));
            }
        }
    }
    found
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn parse(more: &str) -> Config {
        let base = "[model]\npreset = \"gpt2-mini\"\n[data]\ntext = [\"a\"]\n";
        Config::parse(&format!("{base}{more}"), "/job.toml".as_ref()).unwrap()
    }

    #[test]
    fn intervals_retention_session_and_log_level_may_change_while_running() {
        let after = parse(
            "[snapshot]\nevery = \"7s\"\n[retention]\nkeep_last = 9\n[session]\nbudget = \"1h\"\n[log]\nlevel = \
             \"debug\"\n",
        );
        assert_eq!(
            changes(&parse(""), &after).unwrap(),
            ["[log] level", "[retention] keep_last", "[session] budget", "[snapshot] every"]
        );
        assert!(changes(&after, &after).unwrap().is_empty());
        let evaluations = parse("[train]\neval_every = 7\neval_batches = 2\n");
        assert_eq!(changes(&parse(""), &evaluations).unwrap(), ["[train] eval_batches", "[train] eval_every"]);
    }

    #[test]
    fn what_would_alter_the_arithmetic_is_refused_with_its_key() {
        for change in
            ["[train]\nlearning_rate = 1.0\n", "[job]\nseed = 2\n", "[job]\nthreads = 3\n", "[train]\nsteps = 7\n"]
        {
            let why = changes(&parse(""), &parse(change)).unwrap_err();
            assert!(why.contains("arithmetic") && why.contains("--accept-changes"), "{why}");
        }
        let why = changes(&parse(""), &parse("[status]\nsocket = \"x\"\n")).unwrap_err();
        assert!(why.contains("[status] socket") && why.contains("starts"), "{why}");
    }

    #[test]
    fn every_key_that_is_called_live_exists() {
        let config = serde_json::to_value(parse("")).unwrap();
        for entry in LIVE.iter().chain(&ARITHMETIC) {
            let found = entry.split('.').try_fold(&config, |value, key| value.get(key));
            assert!(found.is_some(), "{entry}");
        }
    }
}
