//! The real Python with torch and transformers that `make setup-full` lays in `.cache`.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The folder of the whole project.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("the project lies above its crates")
}

/// The interpreter, or the one that CKPTD_PYTHON names; where it is missing, the test says what to type.
pub fn interpreter() -> PathBuf {
    let python = std::env::var_os("CKPTD_PYTHON").map_or(root().join(".cache/python/bin/python"), PathBuf::from);
    assert!(python.exists(), "{} is missing; run `make test`, which installs it", python.display());
    python
}

/// Runs `tests/python/<script>` with `arguments`; returns what it wrote to stdout.
pub fn run(script: &str, arguments: &[&Path]) -> String {
    let output = Command::new(interpreter())
        .arg(root().join("tests/python").join(script))
        .args(arguments)
        .env("HF_HUB_OFFLINE", "1")
        .env("OMP_NUM_THREADS", "2")
        .output()
        .expect("python starts");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{script} failed:\n{out}\n{err}");
    out.into_owned()
}

/// A folder for PYTHONPATH that holds the package `ckptd`: its sources, and the native half that was built with
/// `program`, a program of this workspace.
pub fn package(program: &Path) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let package = folder.path().join("ckptd");
    std::fs::create_dir(&package).expect("a folder");
    let sources = std::fs::read_dir(root().join("crates/python/python/ckptd")).expect("the package's sources");
    let link = |from: &Path, name: &std::ffi::OsStr| {
        std::os::unix::fs::symlink(from, package.join(name)).expect("a link");
    };
    sources.flatten().for_each(|entry| link(&entry.path(), &entry.file_name()));
    // What cargo lays beside a program may be of an earlier build; here it is of this one.
    let native = program.parent().expect("a folder").join("deps/libckptd_native.so");
    link(&native, "_native.abi3.so".as_ref());
    folder
}
