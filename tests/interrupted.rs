//! An export that is interrupted leaves nothing, one that is killed leaves nothing that could be taken for an export,
//! and what is there already is replaced only when that is asked for.
#![allow(clippy::unwrap_used)]

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::channel;

use ckptd_core::snapshot::{Role, Tensor, TensorMeta};
use ckptd_core::store::{CommitOptions, Store, StoreLock, commit};
use ckptd_testkit::small;
use notify::{RecursiveMode, Watcher};
use rustix::process::{Pid, Signal, kill_process};

/// A snapshot so large that no export of it is over before a signal arrives.
fn store() -> &'static Path {
    static STORE: OnceLock<(tempfile::TempDir, Store)> = OnceLock::new();
    let (_, store) = STORE.get_or_init(|| {
        let (folder, store) = small::store();
        let mut state = small::snapshot(3, 8);
        let rows = 200_000;
        let meta = TensorMeta { role: Role::Param, ..state.tensors[0].meta.clone() };
        let meta = TensorMeta { name: "transformer.wte.weight".into(), shape: vec![rows, 96], ..meta };
        state.tensors = vec![Tensor::new(meta, small::floats(1, rows as usize, 96))];
        state.files[0].bytes = br#"{"model_type": "gpt2"}"#.to_vec().into();
        commit(&store, &StoreLock::inherited(), state, &CommitOptions::new(small::RUN, 1)).unwrap();
        (folder, store)
    });
    store.path()
}

fn export(format: &str, out: &Path, more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ckptd"));
    command.arg("export").arg(store()).args(["latest", "--format", format]).arg(out).args(more);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Starts the export, and sends `signal` as soon as something of it appears in the folder of `out`.
fn interrupted(format: &str, out: &Path, signal: Signal) -> Output {
    let (appeared, wait) = channel();
    let mut watcher = notify::recommended_watcher(move |_| {
        // Nobody waits for the later ones.
        let _ = appeared.send(());
    })
    .unwrap();
    watcher.watch(out.parent().unwrap(), RecursiveMode::Recursive).unwrap();
    let child: Child = export(format, out, &[]).spawn().unwrap();
    wait.recv().unwrap();
    kill_process(Pid::from_child(&child), signal).unwrap();
    child.wait_with_output().unwrap()
}

fn names(dir: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect()
}

const FORMATS: [&str; 5] = ["hf", "pt", "safetensors", "zip", "tar.zst"];

#[test]
fn an_interrupted_export_leaves_nothing() {
    for (format, signal) in FORMATS.into_iter().zip([Signal::INT, Signal::TERM, Signal::HUP, Signal::INT, Signal::INT])
    {
        let dir = tempfile::tempdir().unwrap();
        let output = interrupted(format, &dir.path().join("out"), signal);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{format}: {said}");
        assert!(said.contains("interrupted; nothing was left behind"), "{format}: {said}");
        assert_eq!(names(dir.path()), [] as [PathBuf; 0], "{format}");
    }
}

#[test]
fn a_killed_export_is_no_export_and_the_next_one_clears_it_away() {
    for format in FORMATS {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        interrupted(format, &out, Signal::KILL);
        assert!(!out.exists(), "{format}");
        assert!(!names(dir.path()).is_empty(), "{format}: it was killed in the middle");
        assert!(export(format, &out, &[]).status().unwrap().success());
        assert_eq!(names(dir.path()), [out], "{format}");
    }
}

#[test]
fn what_is_there_is_replaced_only_when_that_is_asked_for_and_an_export_has_written_it() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let refused = |format: &str, out: &Path, more: &[&str]| {
        let refused = export(format, out, more).output().unwrap();
        assert_eq!(refused.status.code(), Some(1), "{format} {}", out.display());
        String::from_utf8_lossy(&refused.stderr).into_owned()
    };
    assert!(export("pt", &out, &[]).status().unwrap().success());
    assert!(refused("safetensors", &out, &[]).contains("--force"));
    assert!(export("safetensors", &out, &["--force"]).status().unwrap().success());
    assert!(std::fs::metadata(&out).unwrap().len() > 1 << 20);

    // A file of another kind, a folder, a link: nothing of it is touched.
    let (text, link) = (dir.path().join("thesis.tex"), dir.path().join("link"));
    std::fs::write(&text, "precious").unwrap();
    std::os::unix::fs::symlink(&out, &link).unwrap();
    assert!(refused("pt", &text, &["--force"]).contains("thesis.tex"));
    assert_eq!(std::fs::read(&text).unwrap(), b"precious");
    assert!(refused("pt", dir.path(), &["--force"]).contains("is a folder"));
    assert!(refused("hf", &text, &["--force"]).contains("is a file"));
    assert!(refused("pt", &link, &["--force"]).contains("is a link to"));

    // A model folder of others with work of one's own in it.
    let folder = dir.path().join("folder");
    std::fs::create_dir(&folder).unwrap();
    for name in ["config.json", "notes.md"] {
        std::fs::write(folder.join(name), "{}").unwrap();
    }
    let said = refused("hf", &folder, &["--force"]);
    assert!(said.contains("config.json, notes.md"), "{said}");
    assert_eq!(names(&folder).len(), 2);
}

#[test]
fn an_exported_folder_is_replaced_until_somebody_works_in_it() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("below/one/model");
    for options in [&["--dtype", "bf16"][..], &["--force"], &["--force", "--dtype", "f16"]] {
        assert!(export("hf", &folder, options).status().unwrap().success(), "{options:?}");
    }
    let refused = || {
        let refused = export("hf", &folder, &["--force"]).output().unwrap();
        assert_eq!(refused.status.code(), Some(1));
        String::from_utf8_lossy(&refused.stderr).into_owned()
    };
    std::fs::write(folder.join("README.md"), "mine").unwrap();
    assert!(refused().contains("README.md"), "{}", refused());
    std::fs::remove_file(folder.join("README.md")).unwrap();
    let config = std::fs::read_to_string(folder.join("config.json")).unwrap();
    std::fs::write(folder.join("config.json"), config.replace("gpt2", "gpt3")).unwrap();
    assert!(refused().contains("config.json (changed since the export)"), "{}", refused());
    std::fs::write(folder.join("config.json"), config).unwrap();
    std::fs::create_dir(folder.join("runs")).unwrap();
    assert!(refused().contains("runs"), "{}", refused());
    std::fs::remove_dir(folder.join("runs")).unwrap();
    assert!(export("hf", &folder, &["--force"]).status().unwrap().success());
}

#[test]
fn a_checkpoint_of_an_earlier_step_is_older_than_those_that_are_there() {
    let dir = tempfile::tempdir().unwrap();
    let trainer = dir.path().join("trainer");
    for step in [0, 1_000_000] {
        let folder = trainer.join(format!("checkpoint-{step}"));
        std::fs::create_dir_all(&folder).unwrap();
        let time = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1000 + step);
        std::fs::File::open(folder).unwrap().set_modified(time).unwrap();
    }
    assert!(export("trainer", &trainer, &[]).status().unwrap().success());
    let mut made: Vec<PathBuf> = names(&trainer);
    let step = |path: &PathBuf| path.to_str().unwrap().rsplit('-').next().unwrap().parse::<u64>().unwrap();
    made.sort_by_key(|path| std::fs::metadata(path).unwrap().modified().unwrap());
    let steps: Vec<u64> = made.iter().map(step).collect();
    assert!(steps.len() == 3 && steps.last() == Some(&1_000_000), "{steps:?}");
    let odd = export("trainer", &trainer.join("checkpoint-77"), &[]).output().unwrap();
    assert_eq!(odd.status.code(), Some(78), "another step's name");
}

#[test]
fn a_name_that_is_no_text_is_refused_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join(std::ffi::OsStr::from_bytes(b"caf\xe9"));
    let refused = export("hf", &out, &[]).output().unwrap();
    assert_eq!(refused.status.code(), Some(78));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("UTF-8"));
    assert_eq!(names(dir.path()), [] as [PathBuf; 0]);
}

#[test]
fn a_job_in_a_folder_whose_name_is_no_text_is_refused_before_its_worker_starts() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join(std::ffi::OsStr::from_bytes(b"caf\xe9"));
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("job.toml"), "[model]\npreset = \"gpt2-mini\"\n[data]\ntext = [\"a.txt\"]\n").unwrap();
    let mut run = Command::new(env!("CARGO_BIN_EXE_ckptd"));
    let refused = run.args(["run", "job.toml"]).current_dir(&folder).output().unwrap();
    assert_eq!(refused.status.code(), Some(78));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("UTF-8"));
}
