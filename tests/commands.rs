//! The commands on a store: exit codes, JSON that holds what the contract names and nothing beside it, errors that
//! say what to do.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use ckptd_core::config::Config;
use ckptd_core::store::{CommitOptions, Store, StoreLock, commit};
use ckptd_testkit::small;
use ckptd_testkit::small::{RUN, save, save_verified, snapshot, store};
use serde_json::Value;

fn ckptd(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ckptd")).args(arguments).stdin(Stdio::null()).output().unwrap()
}

fn path(store: &Store) -> &str {
    store.path().to_str().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {}{}", stdout(output), stderr(output)))
}

fn keys(value: &Value) -> Vec<&str> {
    let mut keys: Vec<&str> = value.as_object().unwrap().keys().map(String::as_str).collect();
    keys.sort_unstable();
    keys
}

fn flip(file: &Path, at: usize) {
    let mut bytes = std::fs::read(file).unwrap();
    bytes[at] ^= 1;
    std::fs::write(file, bytes).unwrap();
}

/// A store whose last job keeps the last two, with a folder for the test's files.
fn job_store() -> (tempfile::TempDir, Store, PathBuf) {
    let (folder, store) = store();
    let config = folder.path().join("job.toml");
    let text = "[job]\nstore = \"store\"\n[model]\npreset = \"gpt2-mini\"\n[data]\ntext = [\"a\"]\n\
                [train]\nsteps = 40\neval_every = 0\n[retention]\nkeep_last = 2\nkeep_best = 0\n";
    std::fs::write(&config, text).unwrap();
    store
        .write_record(&StoreLock::inherited(), ckptd_core::store::Record::Job, &Config::load(&config).unwrap())
        .unwrap();
    (folder, store, config)
}

#[test]
fn list_shows_every_snapshot_newest_first_and_why_it_is_kept() {
    let (_folder, store, config) = job_store();
    save_verified(&store, 10, 1);
    let damaged = save(&store, 20, 2);
    save_verified(&store, 30, 3);
    save(&store, 40, 4);
    store.quarantine(&StoreLock::inherited(), &store.find(&damaged.id).unwrap(), "a test says so").unwrap();
    let output = ckptd(&["list", "--json", path(&store)]);
    assert_eq!((output.status.code(), stderr(&output).as_str()), (Some(0), ""));
    let rows = json(&output);
    let column = |name: &str| -> Vec<Value> { rows.as_array().unwrap().iter().map(|row| row[name].clone()).collect() };
    assert_eq!(column("step"), [40, 30, 10, 20]);
    assert_eq!(column("state"), ["committed", "verified", "verified", "quarantined"]);
    for row in rows.as_array().unwrap() {
        assert_eq!(
            keys(row),
            [
                "bytes",
                "created_at",
                "healthy",
                "id",
                "kept_because",
                "path",
                "problem",
                "ratio",
                "raw_bytes",
                "root",
                "run",
                "seq",
                "state",
                "step",
                "train_loss",
                "val_loss"
            ]
        );
        let file = Path::new(row["path"].as_str().unwrap());
        assert!(file.is_absolute());
        assert_eq!(std::fs::metadata(file).unwrap().len(), row["bytes"].as_u64().unwrap());
    }
    assert_eq!(column("kept_because")[1], Value::from(vec!["latest"]));
    assert_eq!(column("kept_because")[3], Value::Array(Vec::new()));
    assert_eq!(column("problem"), [Value::Null, Value::Null, Value::Null, Value::from("a test says so")]);
    assert_eq!(rows[0]["run"], RUN);
    let table = ckptd(&["list", config.to_str().unwrap()]);
    let text = stdout(&table);
    assert!(text.starts_with("STEP") && text.lines().count() == 5, "{text}");
    assert!(
        text.contains("not verified yet") && text.contains("quarantined") && text.contains("a test says so"),
        "{text}"
    );
}

#[test]
fn an_output_that_takes_nothing_is_not_said_to_be_the_stores_disk() {
    let (_folder, store, _) = job_store();
    save_verified(&store, 10, 1);
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_ckptd"));
    let output = command.args(["list", path(&store)]).stdout(full).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = stderr(&output);
    assert!(said.contains("writing to standard output") && !said.contains("retention"), "{said}");
}

#[test]
fn verify_exits_with_1_and_the_reason_when_any_snapshot_is_damaged() {
    let (_folder, store, _) = job_store();
    save(&store, 10, 1);
    let damaged = save(&store, 20, 2);
    assert_eq!(ckptd(&["verify", path(&store)]).status.code(), Some(0));
    assert!(stdout(&ckptd(&["list", path(&store)])).matches("verified").count() >= 2);
    flip(&damaged.path, 200);
    let output = ckptd(&["verify", "--json", path(&store)]);
    assert_eq!(output.status.code(), Some(1));
    let rows = json(&output);
    assert_eq!((&rows[0]["verified"], &rows[1]["verified"]), (&false.into(), &true.into()));
    assert!(rows[0]["reason"].as_str().unwrap().contains("does not match its hash"), "{rows}");
    // Nothing but a look: the file is where it was.
    assert!(damaged.path.exists());
    assert_eq!(ckptd(&["verify", path(&store), "10"]).status.code(), Some(0));
    assert_eq!(ckptd(&["verify", path(&store), "20"]).status.code(), Some(1));
    let missing = ckptd(&["verify", path(&store), "30"]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(stderr(&missing).contains("\"30\"") && stderr(&missing).contains("ckptd list"), "{missing:?}");
    // A file outside the store can be verified, too.
    let copy = store.path().join("copy.ckpt");
    std::fs::copy(store.find("10").unwrap().path, &copy).unwrap();
    assert_eq!(ckptd(&["verify", path(&store), copy.to_str().unwrap()]).status.code(), Some(0));
    flip(&copy, 200);
    assert_eq!(ckptd(&["verify", path(&store), copy.to_str().unwrap()]).status.code(), Some(1));
}

#[test]
fn prune_applies_the_last_jobs_policy_and_a_dry_run_deletes_nothing() {
    let (_folder, store, config) = job_store();
    for n in 1..=4 {
        save_verified(&store, n * 10, n);
    }
    let pinned = ckptd(&["pin", path(&store), "10"]);
    assert_eq!(pinned.status.code(), Some(0), "{pinned:?}");
    let steps = || -> Vec<u64> {
        let rows = json(&ckptd(&["list", "--json", path(&store)]));
        rows.as_array().unwrap().iter().map(|row| row["step"].as_u64().unwrap()).collect()
    };
    let plan = json(&ckptd(&["prune", "--dry-run", "--json", path(&store)]));
    let deleted: Vec<&Value> = plan.as_array().unwrap().iter().filter(|row| row["keep"] == false).collect();
    assert_eq!((deleted.len(), &deleted[0]["id"]), (1, &"step-000000000020".into()));
    assert_eq!(steps(), [40, 30, 20, 10]);
    let output = ckptd(&["prune", config.to_str().unwrap()]);
    assert!(stdout(&output).contains("deleted 1 of 4 snapshots"), "{output:?}");
    assert_eq!(steps(), [40, 30, 10]);
    assert_eq!(ckptd(&["unpin", path(&store), "10"]).status.code(), Some(0));
    ckptd(&["prune", path(&store)]);
    assert_eq!(steps(), [40, 30]);
}

#[test]
fn prune_of_a_store_whose_policy_is_not_known_deletes_nothing() {
    let (_folder, store) = store();
    for n in 1..=8 {
        save_verified(&store, n * 10, n);
    }
    let output = ckptd(&["prune", path(&store)]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("give the job file"), "{output:?}");
    assert_eq!(store.entries().unwrap().len(), 8);
}

#[test]
fn inspect_shows_the_manifest_and_how_each_tensor_is_stored() {
    let (_folder, store, _) = job_store();
    let saved = save_verified(&store, 10, 1);
    let document = json(&ckptd(&["inspect", "--json", path(&store), "latest"]));
    assert_eq!((&document["root"], &document["train"]["step"]), (&saved.root.as_str().into(), &10.into()));
    assert_eq!(document["tensors"].as_array().unwrap().len(), 6);
    let stored = document["stored"].as_array().unwrap();
    assert_eq!(stored.len(), 7);
    let raw: u64 = stored[..6].iter().map(|item| item["raw_bytes"].as_u64().unwrap()).sum();
    assert_eq!(Some(raw), document["raw_bytes"].as_u64());
    let encoded: u64 = stored.iter().map(|item| item["encoded_bytes"].as_u64().unwrap()).sum();
    assert!(encoded < document["bytes"].as_u64().unwrap());
    let text = stdout(&ckptd(&["inspect", path(&store), saved.path.to_str().unwrap()]));
    assert!(
        text.contains(saved.root.as_str()) && text.contains("h.0.weight") && text.contains("config.json"),
        "{text}"
    );
}

#[test]
fn compare_finds_equal_states_identical_and_names_the_first_difference() {
    let (_folder, store, _) = job_store();
    let a = save(&store, 10, 1);
    let b = save(&store, 20, 2);
    let (_other_folder, other) = small::store();
    let same = commit(
        &other,
        &StoreLock::inherited(),
        snapshot(10, 64),
        &CommitOptions { level: 0, ..CommitOptions::new(RUN, 9) },
    )
    .unwrap();
    let file = |committed: &ckptd_core::store::Committed| committed.path.to_str().unwrap().to_owned();
    // Another coding of the same state is the same state.
    let identical = ckptd(&["compare", "--json", &file(&a), &file(&same)]);
    assert_eq!(identical.status.code(), Some(0));
    let document = json(&identical);
    assert_eq!((&document["identical"], &document["l2"]), (&true.into(), &0.0.into()));
    let different = ckptd(&["compare", "--json", "--store", path(&store), "10", "latest"]);
    assert_eq!(different.status.code(), Some(1));
    let document = json(&different);
    assert_eq!(document["first_difference"], document["tensors"][0]["tensor"]);
    assert_eq!(document["train_state"]["step"], Value::from(vec![10, 20]));
    assert!(document["l2"].as_f64().unwrap() > document["tensors"][0]["l2"].as_f64().unwrap(), "{document}");
    assert_eq!(json(&ckptd(&["compare", "--json", path(&store), "10", "latest"])), document);
    // The farthest three, or all of them.
    let text = stdout(&ckptd(&["compare", &file(&a), &file(&b)]));
    assert!(text.contains("FARTHEST") && text.contains("param h.0.weight") && text.contains("--all"), "{text}");
    let all = stdout(&ckptd(&["compare", "--all", path(&store), "10", "20"]));
    assert!(all.contains("param h.0.bias") && !text.contains("param h.0.bias"), "{text}{all}");
    assert_eq!(text.lines().count() + 2, all.lines().count(), "5 of 6 differ: {text}{all}");
    let unknown = ckptd(&["compare", "latest", "10"]);
    assert_eq!(unknown.status.code(), Some(1));
    assert!(stderr(&unknown).contains("ckptd compare STORE latest 10"), "{unknown:?}");
    flip(&b.path, 300);
    assert_eq!(ckptd(&["compare", &file(&a), &file(&b)]).status.code(), Some(1));
}

#[test]
fn a_distance_is_a_failure_unless_it_is_asked_for_alone() {
    let (_folder, store, _) = job_store();
    let saved = save(&store, 10, 1);
    save(&store, 20, 2);
    let copy = saved.path.to_str().unwrap();
    let check = |more: &[&str]| ckptd(&[&["check", path(&store)], more].concat());
    let far = check(&["20", "--against", "10"]);
    assert_eq!(far.status.code(), Some(1), "{far:?}");
    assert!(stdout(&far).contains("not the same") && stdout(&far).lines().count() < 8, "{far:?}");
    assert_eq!(check(&["20", "--against", "10", "--may-differ"]).status.code(), Some(0));
    assert_eq!(check(&["10", "--against", copy]).status.code(), Some(0));
    assert_eq!(check(&["20", "--may-differ"]).status.code(), Some(2));
    assert!(stdout(&check(&["20", "--all"])).contains("h.0.weight"));
}

#[test]
fn an_import_writes_a_job_file_that_says_what_is_missing_and_keeps_the_time() {
    let (folder, store, _) = job_store();
    let saved = save_verified(&store, 10, 1);
    let (from, new) = (saved.path.to_str().unwrap(), folder.path().join("new"));
    let imported = ckptd(&["import", "--from", from, new.to_str().unwrap()]);
    assert_eq!(imported.status.code(), Some(0), "{imported:?}");
    let job = folder.path().join("new.toml");
    let lacks = format!("wrote {}, which lacks one thing: ", job.display());
    assert!(stdout(&imported).contains(&lacks) && stdout(&imported).contains("write `text = "), "{imported:?}");
    let text = std::fs::read_to_string(&job).unwrap();
    std::fs::write(&job, text.replace("# text = [\"data/*.txt\"]", "text = [\"a\"]")).unwrap();
    assert_eq!(Config::load(&job).unwrap().job.store, new);
    let created = |store: &Store| store.find("10").unwrap().manifest.unwrap().created_at;
    assert_eq!(created(&Store::open(&new).unwrap()), created(&store));
    // A job file that is to be is named as one, and nothing is written over.
    let named = folder.path().join("named.toml");
    let arguments = ["import", "--from", from, named.to_str().unwrap(), "--text", "a"];
    let imported = ckptd(&arguments);
    assert!(stdout(&imported).contains(&format!("next: ckptd run {} goes on", named.display())), "{imported:?}");
    assert!(folder.path().join("checkpoints/named/snapshots").is_dir());
    let again = ckptd(&arguments[..4]);
    assert!(again.status.code() == Some(1) && stderr(&again).contains("holds snapshots already"), "{again:?}");
}

#[test]
fn init_from_a_model_writes_a_short_job_that_is_one_and_fits_this_machine() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("a.txt"), "some words\n".repeat(5000)).unwrap();
    let (job, glob) = (folder.path().join("job.toml"), folder.path().join("*.txt"));
    let arguments = ["init", job.to_str().unwrap(), "--text", glob.to_str().unwrap(), "--hours", "1.5", "--from"];
    let written = ckptd(&[&arguments[..], &["gpt2-mini"]].concat());
    assert_eq!(written.status.code(), Some(0), "{written:?}");
    assert!(stdout(&written).contains(&format!("next: ckptd run {}", job.display())), "{written:?}");
    let text = std::fs::read_to_string(&job).unwrap();
    assert!((15..=25).contains(&text.lines().count()), "{text}");
    let config = Config::load(&job).unwrap();
    assert_eq!(config.train.batch_size * config.train.grad_accumulation, 8);
    assert_eq!((config.train.sequence_length, config.model.preset.as_deref()), (256, Some("gpt2-mini")));
    assert_eq!(config.session.budget.unwrap().0.as_secs(), 5400);
    // It overwrites nothing, and tells what is missing at once.
    assert_eq!(ckptd(&[&arguments[..], &["gpt2-mini"]].concat()).status.code(), Some(1));
    let other = folder.path().join("other.toml");
    let refused = ckptd(&["init", other.to_str().unwrap(), "--from", "gpt3", "--text", "a"]);
    assert_eq!(refused.status.code(), Some(78));
    assert!(stderr(&refused).contains("downloads nothing") && !other.exists(), "{refused:?}");
    let refused = ckptd(&["init", other.to_str().unwrap(), "--from", "gpt2", "--text", "/nowhere/*.txt"]);
    assert!(stderr(&refused).contains("/nowhere") && !other.exists(), "{refused:?}");
}

#[test]
fn a_wrong_config_is_78_and_a_wrong_command_line_is_2_with_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("job.toml");
    std::fs::write(&config, "[train]\nlerning_rate = 1.0\n").unwrap();
    let output = ckptd(&["run", config.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(78));
    assert!(
        stderr(&output).contains("line 2: [train] lerning_rate = 1.0: no such key; did you mean learning_rate"),
        "{output:?}"
    );
    let missing = ckptd(&["run", "/nowhere/job.toml"]);
    assert_eq!(missing.status.code(), Some(78));
    assert!(stderr(&missing).contains("/nowhere/job.toml") && stderr(&missing).contains("ckptd init"), "{missing:?}");
    assert_eq!(ckptd(&["run"]).status.code(), Some(2));
    assert_eq!(ckptd(&["explode"]).status.code(), Some(2));
    assert_eq!(ckptd(&["--version"]).status.code(), Some(0));
    assert_eq!(stdout(&ckptd(&["run", "--version"])), stdout(&ckptd(&["--version"])));
    let resume = ckptd(&["resume", "job.toml"]);
    assert_eq!(resume.status.code(), Some(2));
    assert!(stderr(&resume).contains("'run'") && !stderr(&resume).contains("prune"), "{resume:?}");
    let no_store = ckptd(&["list", folder.path().to_str().unwrap()]);
    assert_eq!(no_store.status.code(), Some(1));
    assert!(stderr(&no_store).contains("is no ckptd store"), "{no_store:?}");
    assert_eq!(ckptd(&["status", "/nowhere"]).status.code(), Some(1));
}

#[test]
fn init_writes_a_valid_job_file_and_overwrites_none() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("job.toml");
    assert_eq!(ckptd(&["init", file.to_str().unwrap()]).status.code(), Some(0));
    Config::load(&file).unwrap();
    std::fs::write(&file, "mine").unwrap();
    assert_eq!(ckptd(&["init", file.to_str().unwrap()]).status.code(), Some(1));
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "mine");
}

#[test]
fn status_of_a_store_without_a_daemon_comes_from_its_files() {
    let (_folder, store, config) = job_store();
    let empty = json(&ckptd(&["status", "--json", config.to_str().unwrap()]));
    assert_eq!(
        (&empty["state"], &empty["step"], &empty["last_snapshot"]),
        (&"stopped".into(), &0.into(), &Value::Null)
    );
    save_verified(&store, 10, 1);
    let status = json(&ckptd(&["status", "--json", path(&store)]));
    assert_eq!(
        (&status["state"], &status["step"], &status["total_steps"]),
        (&"stopped".into(), &10.into(), &40.into())
    );
    save_verified(&store, 40, 2);
    assert_eq!(json(&ckptd(&["status", "--json", path(&store)]))["state"], "finished");
}

#[test]
fn a_reader_that_goes_away_early_is_no_error() {
    let (_folder, store, _) = job_store();
    for n in 1..=20 {
        save(&store, n * 10, n);
    }
    let mut child = Command::new(env!("CARGO_BIN_EXE_ckptd"))
        .args(["inspect", path(&store), "latest"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), stderr(&output).as_str()), (Some(0), ""));
}
