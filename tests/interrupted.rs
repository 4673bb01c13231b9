//! An export that is interrupted leaves nothing, one that is killed leaves nothing that could be taken for an export,
//! and what is there already is replaced only when that is asked for.
#![allow(clippy::unwrap_used)]

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
fn what_is_there_is_replaced_only_when_that_is_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    std::fs::write(&out, "precious").unwrap();
    let refused = export("safetensors", &out, &[]).output().unwrap();
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("--force"));
    assert_eq!(std::fs::read(&out).unwrap(), b"precious");
    assert!(export("safetensors", &out, &["--force"]).status().unwrap().success());
    assert!(std::fs::metadata(&out).unwrap().len() > 1 << 20);

    // A folder of other things is nobody's export.
    let folder = dir.path().join("folder");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("thesis.txt"), "precious").unwrap();
    let refused = export("hf", &folder, &["--force"]).output().unwrap();
    assert_eq!(refused.status.code(), Some(1));
    assert_eq!(names(&folder), [folder.join("thesis.txt")]);
}
