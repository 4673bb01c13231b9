//! A job moves to another machine as one file and ends in the same bits; its model says the same there.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;
use std::time::Duration;

use ckptd_core::store::{CommitOptions, SnapshotReader, SnapshotState, Store, StoreLock, commit};
use ckptd_history::travel::MAX_PART_BYTES;
use ckptd_testkit::job::RunningAgent;
use ckptd_testkit::python;
use ckptd_testkit::servers::{ObjectServer, ssh_in};
use ckptd_testkit::small;
use serde_json::Value;

const MODEL: &str = "[model]\npreset = \"gpt2-mini\"\ndropout = 0.1\n";

/// A training that never moved, with snapshots after step 4 of 12, and the last.
struct Home {
    folder: tempfile::TempDir,
    root: String,
}

fn home() -> &'static Home {
    static HOME: OnceLock<Home> = OnceLock::new();
    HOME.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        lay_texts(&folder.path().join("texts"));
        let root = train(&write_job(folder.path(), MODEL, "texts", ""), &[]);
        Home { folder, root }
    })
}

impl Home {
    fn store(&self) -> PathBuf {
        self.folder.path().join("checkpoints/job")
    }
}

/// Text that is always here: this project's own sources.
fn lay_texts(folder: &Path) {
    std::fs::create_dir(folder).unwrap();
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("crates/interop/src");
    for entry in std::fs::read_dir(sources).unwrap().map(Result::unwrap).filter(|e| e.path().is_file()) {
        std::fs::copy(entry.path(), folder.join(entry.file_name()).with_extension("txt")).unwrap();
    }
}

fn write_job(folder: &Path, model: &str, texts: &str, snapshot: &str) -> PathBuf {
    let job = folder.join("job.toml");
    let config = format!(
        "[job]\nthreads = 2\n{model}[data]\ntext = [\"{texts}\"]\n\
         [snapshot]\nevery_steps = 4\n{snapshot}[retention]\nkeep_last = 9\n\
         [train]\nsteps = 12\nbatch_size = 2\nsequence_length = 32\n\
         warmup_steps = 3\neval_every = 6\neval_batches = 2\n",
    );
    std::fs::write(&job, config).unwrap();
    job
}

/// A variable of a cloud's tools, with a credential that nothing may show.
const PLANTED: (&str, &str) = ("AWS_SECRET_ACCESS_KEY", "planted/secret/of/a/cloud");

/// Whether a file below `folder` holds `bytes`.
fn is_in_a_file(folder: &Path, bytes: &[u8]) -> bool {
    let holds = |path: &Path| std::fs::read(path).is_ok_and(|file| file.windows(bytes.len()).any(|part| part == bytes));
    let mut paths = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    paths.any(|path| if path.is_dir() { is_in_a_file(&path, bytes) } else { holds(&path) })
}

#[test]
fn a_machine_with_nothing_but_the_url_ends_a_training_in_the_same_bits() {
    let (away, drive, other) =
        (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let url = format!("file://{}/job", drive.path().display());
    std::fs::create_dir(drive.path().join("job")).unwrap();
    lay_texts(&away.path().join("texts"));
    let remote = format!("[remote]\nurl = {url:?}\nlease = \"2s\"\n");
    let job = write_job(away.path(), MODEL, "texts", "");
    std::fs::write(&job, std::fs::read_to_string(&job).unwrap() + &remote).unwrap();
    let ckptd = Path::new(env!("CARGO_BIN_EXE_ckptd"));
    let mut command = Command::new(ckptd);
    command.args(["run", "--verbose", "--log-format", "json", job.to_str().unwrap()]).env(PLANTED.0, PLANTED.1);
    let mut first = RunningAgent::start(command);
    first.wait_for("replicated step 4:");
    if let Some(worker) = first.worker() {
        let environment = std::fs::read(format!("/proc/{worker}/environ")).unwrap_or_default();
        assert!(!String::from_utf8_lossy(&environment).contains(PLANTED.1), "our worker needs no credential");
    }
    // What happened so far follows the marker.
    let lists = drive.path().join("job/history");
    for _ in 0..600 {
        if is_there(&lists, ".json") {
            break;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(is_there(&lists, ".json"));
    first.signal(rustix::process::Signal::KILL);
    let log = first.wait().log;
    assert!(!log.contains(PLANTED.1));
    for folder in [away.path(), drive.path()] {
        assert!(!is_in_a_file(folder, PLANTED.1.as_bytes()), "{}", folder.display());
    }
    // Texts, job file and store are gone.
    drop(away);
    the_job_file_alone_goes_on_from(&drive.path().join("job"));
    let second = Command::new(ckptd).args(["run", &url]).current_dir(other.path()).output().unwrap();
    done(second);
    let store = Store::open(&other.path().join("job/store")).unwrap();
    let newest = store.find("latest").unwrap();
    assert_eq!((newest.step(), newest.state), (12, SnapshotState::Verified));
    assert_eq!(String::from(newest.manifest.unwrap().root), home().root);
    let (steps, _, sessions) = history(&other.path().join("job/store"));
    assert!(steps == range(1, 12) && sessions == 2, "one curve over both machines: {steps:?}, {sessions} sessions");
    // Its job file counts from now on.
    let again = Command::new(ckptd).args(["run", &url]).current_dir(other.path()).output().unwrap();
    let said = String::from_utf8_lossy(&again.stderr);
    assert!(said.contains("the training is finished"), "{said}");
    assert!(said.contains(&format!("step 12 is verified here and at {url}")), "{said}");
}

/// (steps of the curve, steps that a resume cut off, sessions)
fn history(store: &Path) -> (Vec<u64>, Vec<u64>, usize) {
    let rows: Vec<Value> = serde_json::from_str(&done(ckptd(&["history", text(store), "--json", "--all"]))).unwrap();
    let steps = |is_abandoned: bool| {
        let of_kind = |row: &&Value| row["event"] == "step" && (row["abandoned"] == true) == is_abandoned;
        rows.iter().filter(of_kind).map(|row| row["step"].as_u64().unwrap()).collect()
    };
    (steps(false), steps(true), rows.iter().filter(|row| row["event"] == "session_started").count())
}

fn range(from: u64, to: u64) -> Vec<u64> {
    (from..=to).collect()
}

/// Whether `folder` holds a file whose name ends so.
fn is_there(folder: &Path, end: &str) -> bool {
    let names = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.file_name());
    names.into_iter().any(|name| name.to_string_lossy().ends_with(end))
}

/// A machine that has the job file, without the texts that it names, trains on the tokens of a copy of `remote`.
fn the_job_file_alone_goes_on_from(remote: &Path) {
    let (copy, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let copied = Command::new("cp").arg("-r").arg(remote).arg(copy.path().join("job")).status().unwrap();
    assert!(copied.success());
    let job = write_job(there.path(), MODEL, "texts", "");
    let url = format!("file://{}/job", copy.path().display());
    let config = format!("{}[remote]\nurl = {url:?}\nlease = \"2s\"\n", std::fs::read_to_string(&job).unwrap());
    std::fs::write(&job, config).unwrap();
    assert_eq!(train(&job, &[]), home().root);
    // Its snapshots are as good as the others' for the next machine.
    let markers = std::fs::read_dir(copy.path().join("job/commits")).unwrap().map(|marker| marker.unwrap().path());
    let newest = std::fs::read_to_string(markers.max().unwrap()).unwrap();
    assert!(newest.contains("tokens.bin.json") && newest.contains("\"step\": 12"), "{newest}");
}

#[test]
fn a_job_goes_by_a_remote_in_one_command_on_each_side() {
    let home = home();
    let (server, drive, tools) = (ObjectServer::start(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let endpoint = server.url();
    let mut environment = vec![
        ("AWS_ENDPOINT_URL".to_owned(), endpoint),
        ("AWS_ACCESS_KEY_ID".into(), "AKIAPLANTEDKEYID".into()),
        (PLANTED.0.into(), PLANTED.1.into()),
    ];
    let mut urls = vec!["s3://bucket/bundles/Gpt2_mini.tar.zst".into(), format!("file://{}/b.zip", text(drive.path()))];
    if let Some(path) = ssh_in(tools.path()) {
        environment.push(("PATH".into(), path));
        urls.push(format!("sftp://me@host{}/b.tar.zst", text(drive.path())));
    }
    let ckptd = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ckptd"));
        command.args(arguments).envs(environment.iter().map(|(name, value)| (name, value))).output().unwrap()
    };
    let store = home.store();
    let said = |output: &Output| String::from_utf8_lossy(&output.stderr).into_owned();
    for (at, url) in urls.iter().enumerate() {
        let there = tempfile::tempdir().unwrap();
        let format = if url.ends_with("zip") { "zip" } else { "tar.zst" };
        let export = ["export", "--with-data", "--format", format, text(&store), "4", url];
        let told = done(ckptd(&export));
        assert!(told.contains(url) && told.contains("verified there"), "{told}");
        // What is there is not replaced by chance.
        let again = ckptd(&export);
        assert!(said(&again).contains(&format!("{url} is there already; --force replaces it")), "{}", said(&again));
        let job = there.path().join("job.toml");
        let told = done(ckptd(&["import", "--from", url, text(&job)]));
        assert!(told.contains(&format!("imported {url} as")) && told.contains("bit for bit"), "{told}");
        assert!(!said(&again).contains(PLANTED.1) && !told.contains(PLANTED.1));
        let here = there.path().join("checkpoints/job");
        let left: Vec<PathBuf> = [&store, &here]
            .iter()
            .flat_map(|folder| {
                std::fs::read_dir(folder.parent().unwrap()).unwrap().chain(std::fs::read_dir(folder).unwrap())
            })
            .map(|entry| entry.unwrap().path())
            .filter(|path| text(path).contains("scratch"))
            .collect();
        assert!(left.is_empty(), "{left:?}");
        if at == 0 {
            // Neither texts nor the home machine's folder are needed.
            let config = std::fs::read_to_string(&job).unwrap();
            assert!(!config.contains(text(home.folder.path())), "{config}");
            assert_eq!(train(&job, &[]), home.root);
        }
    }
    // Nothing half is left at the store, and what is no bundle is neither replaced nor fetched whole.
    assert_eq!(server.state().open_uploads(), 0);
    assert_eq!(server.state().paths(), ["bucket/bundles/Gpt2_mini.tar.zst"]);
    std::fs::write(drive.path().join("notes.zip"), "no bundle").unwrap();
    let notes = format!("file://{}/notes.zip", text(drive.path()));
    for arguments in [
        &["export", "--force", "--format", "zip", text(&store), "4", &notes][..],
        &["import", "--from", &notes, text(&drive.path().join("new.toml"))],
        &["import", "--from", "s3://bucket/bundles/none.zip", text(&drive.path().join("new.toml"))],
        &["export", "--format", "hf", text(&store), "4", "s3://bucket/bundles/folder"],
    ] {
        let refused = ckptd(arguments);
        let url = arguments.iter().find(|argument| argument.contains("://")).unwrap();
        assert!(!refused.status.success() && said(&refused).contains(url), "{}", said(&refused));
    }
    assert_eq!(std::fs::read_to_string(drive.path().join("notes.zip")).unwrap(), "no bundle");
    assert!(!drive.path().join("new.toml").exists());
    a_bundle_that_is_damaged_at_the_remote_is_not_imported(&server, &urls[0], &ckptd);
}

fn a_bundle_that_is_damaged_at_the_remote_is_not_imported(
    server: &ObjectServer,
    url: &str,
    ckptd: &dyn Fn(&[&str]) -> Output,
) {
    let there = tempfile::tempdir().unwrap();
    server.state().flip("bucket/bundles/Gpt2_mini.tar.zst", 1 << 20);
    let refused = ckptd(&["import", "--from", url, text(&there.path().join("job.toml"))]);
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && said.contains(url), "{said}");
    assert!(!there.path().join("checkpoints/job").exists() && !there.path().join("job.toml").exists());
}

fn run(program: &str, arguments: &[&str]) -> Output {
    let folder = Path::new(env!("CARGO_BIN_EXE_ckptd")).parent().unwrap();
    Command::new(folder.join(program)).args(arguments).output().unwrap()
}

fn ckptd(arguments: &[&str]) -> Output {
    run("ckptd", arguments)
}

/// stdout of a command that must succeed.
fn done(output: Output) -> String {
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{out}{err}");
    out.into_owned()
}

/// Trains to the end; returns the root of the last snapshot.
fn train(job: &Path, options: &[&str]) -> String {
    done(ckptd(&[&["run", job.to_str().unwrap()], options].concat()));
    let store = Store::open(&ckptd_core::config::Config::load(job).unwrap().job.store).unwrap();
    let newest = store.find("latest").unwrap();
    assert_eq!((newest.step(), newest.state), (12, SnapshotState::Verified));
    newest.manifest.unwrap().root.into()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn a_job_packed_with_its_tokens_goes_on_elsewhere_and_ends_in_the_same_root() {
    let home = home();
    let store = home.store();
    for format in ["zip", "tar.zst"] {
        let there = tempfile::tempdir().unwrap();
        let at = |name: &str| there.path().join(name);
        let bundle = at("job.bundle");
        let arguments = ["export", text(&store), "4", "--format", format, "--with-data", text(&bundle)];
        assert!(done(ckptd(&arguments)).contains("r = "));
        done(ckptd(&["unpack", text(&bundle), text(&at("moved"))]));
        let job = at("moved/job.toml");
        // Nothing of where it comes from may be needed.
        let config = std::fs::read_to_string(&job).unwrap();
        assert!(!config.contains(text(home.folder.path())), "{config}");
        done(ckptd(&["import", "--from", text(&bundle), text(&job)]));
        let (steps, _, sessions) = history(&at("moved/checkpoints/job"));
        assert!(steps == range(1, 12) && sessions == 1, "{steps:?}");
        assert_eq!(train(&job, &[]), home.root, "{format}");
        // What the other machine did after the step that was packed is another branch.
        assert_eq!(history(&at("moved/checkpoints/job")), (range(1, 12), range(5, 12), 2));
    }
}

#[test]
fn a_bundle_is_said_to_lack_the_part_of_the_history_that_cannot_be_read() {
    let folder = tempfile::tempdir().unwrap();
    lay_texts(&folder.path().join("texts"));
    train(&write_job(folder.path(), MODEL, "texts", ""), &[]);
    let store = folder.path().join("checkpoints/job");
    let part = std::fs::read_dir(store.join("history")).unwrap().map(|entry| entry.unwrap().path()).min().unwrap();
    std::fs::File::options().write(true).open(&part).unwrap().set_len(MAX_PART_BYTES + 1).unwrap();
    let bundle = folder.path().join("job.zip");
    let output = ckptd(&["export", text(&store), "latest", "--format", "zip", "--json", text(&bundle)]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let report: Value = serde_json::from_str(&done(output)).unwrap();
    assert!(said.contains(text(&part)) && said.contains("not in the bundle"), "{said}");
    assert!(report["history_lacks"][0].as_str().unwrap().contains(text(&part)), "{report}");
}

#[test]
fn an_unpacked_job_goes_on_by_itself_in_every_order_with_import() {
    let home = home();
    let bundle_folder = tempfile::tempdir().unwrap();
    let bundle = bundle_folder.path().join("job.zip");
    done(ckptd(&["export", text(&home.store()), "4", "--format", "zip", "--with-data", text(&bundle)]));
    for order in ["run", "import bundle, run", "import folder, run", "run, import"] {
        let there = tempfile::tempdir().unwrap();
        let (moved, job) = (there.path().join("moved"), there.path().join("moved/job.toml"));
        let said = done(ckptd(&["unpack", text(&bundle), text(&moved)]));
        assert!(said.contains(&format!("next: ckptd run {}", text(&job))), "{said}");
        match order {
            "import bundle, run" => drop(done(ckptd(&["import", "--from", text(&bundle), text(&job)]))),
            "import folder, run" => drop(done(ckptd(&["import", "--from", text(&moved), text(&job)]))),
            _ => {}
        }
        assert_eq!(train(&job, &[]), home.root, "{order}");
        if order == "run, import" {
            let refused = ckptd(&["import", "--from", text(&bundle), text(&job)]);
            let said = String::from_utf8_lossy(&refused.stderr);
            assert!(refused.status.code() != Some(0) && said.contains("holds snapshots already"), "{said}");
            assert_eq!(train(&job, &[]), home.root, "{order}");
        }
    }
}

#[test]
fn a_model_with_the_state_of_another_training_is_not_taken_for_weights_without_a_word() {
    let home = home();
    let there = tempfile::tempdir().unwrap();
    let model = there.path().join("model");
    done(ckptd(&["export", text(&home.store()), "4", "--format", "hf", "--with-optimizer", text(&model)]));
    let texts = home.folder.path().join("texts");
    let from = format!("[model]\nfrom = \"{}\"\ndropout = 0.1\n", text(&model));
    // The same settings: it goes on.
    let job = write_job(there.path(), &from, text(&texts), "");
    assert_eq!(train(&job, &[]), home.root);
    // It is finished: other evaluations change nothing, and more steps have a way out.
    let text_of = |job: &Path| std::fs::read_to_string(job).unwrap();
    std::fs::write(&job, text_of(&job).replace("eval_every = 6", "eval_every = 3")).unwrap();
    assert_eq!(train(&job, &[]), home.root);
    std::fs::write(&job, text_of(&job).replace("steps = 12", "steps = 16")).unwrap();
    let refused = ckptd(&["run", text(&job)]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1), "{said}");
    for part in ["train.steps: 12 then, 16 now", "--accept-changes", "the learning rate is ", "it was "] {
        assert!(said.contains(part) && !said.contains("loading"), "{part}: {said}");
    }
    // Others: it stops, with the commands, and each of them works.
    let other = there.path().join("other");
    std::fs::create_dir(&other).unwrap();
    let job = write_job(&other, &from, text(&texts), "");
    let longer = std::fs::read_to_string(&job).unwrap().replace("warmup_steps = 3", "warmup_steps = 2");
    std::fs::write(&job, longer).unwrap();
    let refused = ckptd(&["run", text(&job)]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(78), "{said}");
    for part in ["step 4", "train.warmup_steps: 3 then, 2 now", "--accept-changes", "--weights-only"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert!(!other.join("checkpoints/job/snapshots").exists(), "nothing is begun");
    let fresh = train(&job, &["--weights-only"]);
    std::fs::remove_dir_all(other.join("checkpoints")).unwrap();
    assert_ne!(train(&job, &["--accept-changes"]), fresh);
}

#[test]
fn a_job_packed_without_tokens_goes_on_with_the_same_texts_only() {
    let home = home();
    let there = tempfile::tempdir().unwrap();
    let at = |name: &str| there.path().join(name);
    let bundle = at("job.zip");
    done(ckptd(&["export", text(&home.store()), "4", "--format", "zip", text(&bundle)]));
    done(ckptd(&["unpack", text(&bundle), text(&at("moved"))]));
    let job = at("moved/job.toml");
    done(ckptd(&["import", "--from", text(&at("moved")), text(&job)]));
    let config = std::fs::read_to_string(&job).unwrap();
    let (old, new) = (home.folder.path().join("texts"), at("elsewhere"));
    std::fs::write(&job, config.replace(text(&old), text(&new))).unwrap();
    lay_texts(&new);
    let kept = std::fs::read(new.join("lib.txt")).unwrap();
    std::fs::write(new.join("lib.txt"), "another text").unwrap();
    let refused = ckptd(&["run", text(&job)]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned() + &String::from_utf8_lossy(&refused.stdout);
    assert_eq!(refused.status.code(), Some(1), "{said}");
    assert!(said.contains("the texts differ"), "{said}");
    std::fs::write(new.join("lib.txt"), kept).unwrap();
    assert_eq!(train(&job, &[]), home.root);
}

#[test]
fn the_probe_is_kept_outside_the_root_and_checked_at_a_resume() {
    let home = home();
    let folder = tempfile::tempdir().unwrap();
    let texts = home.folder.path().join("texts");
    let job = write_job(folder.path(), MODEL, text(&texts), "probe = true\n");
    assert_eq!(train(&job, &[]), home.root, "the probe changes nothing that counts");

    let store = Store::open(&folder.path().join("checkpoints/job")).unwrap();
    let probe =
        |step: &str| SnapshotReader::open(&store.find(step).unwrap().path).unwrap().manifest().metrics.probe.clone();
    let hashes = [probe("4").unwrap(), probe("12").unwrap()];
    assert_ne!(hashes[0], hashes[1]);
    assert!(home_probe(home).is_none(), "only where it is asked for");
    let json = done(ckptd(&["check", text(&job), "12", "--outputs", "--json"]));
    let checked: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&checked["probe"]["as_saved"], &checked["probe"]["hash"]), (&true.into(), &hashes[1].as_str().into()));

    for (answers, expect) in
        [(hashes[0].clone(), "gives the same logits, bit for bit"), ("0".repeat(64), "other logits here")]
    {
        let again = tempfile::tempdir().unwrap();
        let job = write_job(again.path(), MODEL, text(&texts), "");
        let mut state = SnapshotReader::open(&store.find("4").unwrap().path).unwrap().read_snapshot().unwrap();
        state.metrics.probe = Some(answers);
        let copy = Store::create(&again.path().join("checkpoints/job")).unwrap();
        commit(&copy, &StoreLock::inherited(), state, &CommitOptions::new(small::RUN, 1)).unwrap();
        let output = ckptd(&["run", text(&job)]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
        assert!(said.contains(expect), "{said}");
        if expect.starts_with("other") {
            assert_eq!(output.status.code(), Some(1), "{said}");
            assert!(said.contains("--accept-changes"), "{said}");
            train(&job, &["--accept-changes"]);
        }
    }
}

fn home_probe(home: &Home) -> Option<String> {
    let store = Store::open(&home.store()).unwrap();
    SnapshotReader::open(&store.find("latest").unwrap().path).unwrap().manifest().metrics.probe.clone()
}

#[test]
fn answers_differ_between_steps_and_are_the_same_in_every_format() {
    let home = home();
    let out = tempfile::tempdir().unwrap();
    let store = home.store();
    let check = |against: &str| -> serde_json::Value {
        let output = ckptd(&["check", text(&store), "latest", "--against", against, "--outputs", "--json"]);
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let other = check("4");
    assert!(other["probe"]["delta"].as_f64().unwrap() > 0.0 && other["probe"]["sigma2"].as_f64().unwrap() > 0.0);
    assert!(other["epsilon"].as_f64().unwrap() > 0.0);
    for (format, name) in [("hf", "hf"), ("pt", "m.pt"), ("safetensors", "m.safetensors"), ("zip", "m.zip")] {
        let path = out.path().join(name);
        // A state_dict alone does not say what shape of a model it is of.
        let options: &[&str] = if format == "pt" { &["--with-optimizer"] } else { &[] };
        let arguments = ["export", text(&store), "latest", "--format", format, text(&path)];
        done(ckptd(&[&arguments, options].concat()));
        let same = check(text(&path));
        assert_eq!((&same["probe"]["delta"], &same["epsilon"]), (&0.0.into(), &0.0.into()), "{format}");
    }
}

#[test]
fn ones_for_an_embedding_change_what_the_model_answers() {
    let home = home();
    let work = tempfile::tempdir().unwrap();
    let path = Store::open(&home.store()).unwrap().find("latest").unwrap().path;
    let mut state = SnapshotReader::open(&path).unwrap().read_snapshot().unwrap();
    let embedding = state.tensors.iter_mut().find(|t| t.meta.name == "transformer.wte.weight").unwrap();
    let elements = embedding.meta.elements().unwrap() as usize;
    embedding.bytes = std::sync::Arc::new(1f32.to_le_bytes().repeat(elements));
    let store = Store::create(&work.path().join("store")).unwrap();
    commit(&store, &StoreLock::inherited(), state, &CommitOptions::new(small::RUN, 1)).unwrap();
    let arguments = ["check", text(store.path()), "latest", "--against", text(&path), "--outputs"];
    let output = ckptd(&arguments);
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("mean 1.000000, std 0.000000, all ones, ||Delta E||_F = "), "{said}");
    assert!(said.contains("sigma^2 = ") && said.contains("delta = ") && !said.contains("delta = 0.0"), "{said}");
}

#[test]
fn a_generated_text_follows_from_the_seed_for_a_snapshot_and_its_exports() {
    let home = home();
    let out = tempfile::tempdir().unwrap();
    let generate = |source: &[&str], more: &[&str]| {
        let output =
            run("ckptd-gpt2", &[&["generate", "--prompt", "pub fn é"], source, &["--tokens", "24"], more].concat());
        assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
        done(output)
    };
    let store = home.store();
    let latest = ["--store", text(&store)];
    let one = generate(&latest, &["--seed", "1"]);
    assert!(one.starts_with("pub fn é") && one.ends_with('\n') && one.len() > 20, "{one}");
    assert_eq!(generate(&latest, &["--seed", "1"]), one);
    assert_ne!(generate(&latest, &["--seed", "2"]), one);
    let greedy = generate(&latest, &["--temperature", "0"]);
    assert_eq!(generate(&latest, &["--top-k", "1", "--seed", "5"]), greedy);

    let hf = out.path().join("hf");
    done(ckptd(&["export", text(&store), "latest", "--format", "hf", text(&hf)]));
    assert_eq!(generate(&["--model", text(&hf)], &["--seed", "1"]), one);
    let earlier = generate(&["--store", text(&store), "--snapshot", "4"], &["--temperature", "1.5"]);
    assert!(earlier.starts_with("pub fn é"));
    // More than the model's 256 positions: it goes on from the last of them.
    let long = run("ckptd-gpt2", &["generate", "--store", text(&store), "--tokens", "300", "--prompt", "fn"]);
    assert!(done(long).len() > 300);
}

#[test]
fn a_text_needs_a_tokenizer_and_a_prompt_only_where_no_document_can_begin() {
    let home = home();
    let out = tempfile::tempdir().unwrap();
    let hf = out.path().join("hf");
    let store = home.store();
    done(ckptd(&["export", text(&store), "latest", "--format", "hf", text(&hf)]));
    let tokenizer = out.path().join("tokenizer.json");
    std::fs::rename(hf.join("tokenizer.json"), &tokenizer).unwrap();
    std::fs::remove_file(hf.join("ckptd.json")).unwrap();
    let refused = run("ckptd-gpt2", &["generate", "--model", text(&hf)]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("--tokenizer"));
    done(run("ckptd-gpt2", &["generate", "--model", text(&hf), "--tokenizer", text(&tokenizer), "--tokens", "3"]));
}

#[test]
fn transformers_loads_model_and_tokenizer_of_an_export_without_a_warning() {
    let home = home();
    let out = tempfile::tempdir().unwrap();
    let hf = out.path().join("hf");
    done(ckptd(&["export", text(&home.store()), "latest", "--format", "hf", text(&hf)]));
    let tokens = python::run("verify_tokenizer.py", &[&hf, Path::new("pub fn é <|endoftext|>\n\n  x")]);
    assert!(serde_json::from_str::<Vec<u32>>(&tokens).unwrap().contains(&0), "{tokens}");
}
