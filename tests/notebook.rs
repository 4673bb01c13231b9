//! The notebook for Colab, in a real Jupyter kernel: the machine goes in the middle of its training, a new one runs all
//! cells again, and the training ends in the bits of the one that nobody disturbed.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use ckptd_core::ids::StateRoot;
use ckptd_core::store::{SnapshotState, Store};
use ckptd_testkit::job::{PATIENCE, signal};
use ckptd_testkit::python;
use rustix::process::Signal;

const CKPTD: &str = env!("CARGO_BIN_EXE_ckptd");

/// A machine that has the notebook, and in a folder elsewhere what stays when it goes.
struct Machine {
    folder: tempfile::TempDir,
    home: PathBuf,
    package: tempfile::TempDir,
}

impl Machine {
    fn new(home: &Path) -> Machine {
        let package = python::package(Path::new(CKPTD));
        Machine { folder: tempfile::tempdir().unwrap(), home: home.to_owned(), package }
    }

    /// "Run all".
    fn start(&self) -> Child {
        let programs = Path::new(CKPTD).parent().unwrap();
        let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap_or_default());
        Command::new(python::interpreter())
            .arg(python::root().join("tests/python/run_notebook.py"))
            .arg(python::root().join("examples/python/sessions.ipynb"))
            .current_dir(self.folder.path())
            .env("CKPTD_HOME", &self.home)
            .env("IPYTHONDIR", self.folder.path().join(".ipython"))
            .env("OMP_NUM_THREADS", "1")
            .env("PATH", path)
            .env("PYTHONPATH", self.package.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    /// What all cells have printed.
    fn run(&self) -> String {
        let Output { status, stdout, stderr } = self.start().wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&stdout).into_owned();
        assert!(status.success(), "{said}{}", String::from_utf8_lossy(&stderr));
        said
    }

    /// The machine is gone, with all that ran and lay on it.
    fn lose(self, mut notebook: Child) {
        while let Some(pid) = self.processes().next() {
            signal(pid, Signal::KILL);
            // A zombie has no folder, and is not found again.
            std::thread::yield_now();
        }
        notebook.wait().unwrap();
    }

    /// All that runs in its folder.
    fn processes(&self) -> impl Iterator<Item = u32> {
        let is_here = |process: &std::fs::DirEntry| {
            std::fs::read_link(process.path().join("cwd")).is_ok_and(|cwd| cwd.starts_with(self.folder.path()))
        };
        std::fs::read_dir("/proc")
            .unwrap()
            .flatten()
            .filter(is_here)
            .filter_map(|process| process.file_name().to_str()?.parse().ok())
    }

    fn root(&self) -> StateRoot {
        let newest = Store::open(&self.folder.path().join("job")).unwrap().find("latest").unwrap();
        assert_eq!(newest.state, SnapshotState::Verified);
        newest.manifest.unwrap().root
    }
}

/// Whether a snapshot exists in the folder that stays.
fn has_marker(home: &Path) -> bool {
    std::fs::read_dir(home.join("remote/commits")).is_ok_and(|mut names| names.next().is_some())
}

#[test]
fn a_notebook_whose_machine_was_taken_away_is_run_again_and_ends_in_the_same_bits() {
    let homes = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let undisturbed = Machine::new(homes[0].path());
    let said = undisturbed.run();
    assert!(said.contains("The training is complete.") && said.contains("After 200 steps:"), "{said}");

    let home = homes[1].path();
    let machine = Machine::new(home);
    let mut notebook = machine.start();
    let began = Instant::now();
    while !has_marker(home) {
        assert!(
            notebook.try_wait().unwrap().is_none() && began.elapsed() < PATIENCE,
            "no snapshot has left the machine"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    machine.lose(notebook);

    let machine = Machine::new(home);
    let said = machine.run();
    assert!(said.contains("resuming from step") && said.contains("The training is complete."), "{said}");
    assert_eq!(machine.root(), undisturbed.root());
}
