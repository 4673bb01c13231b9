//! The real Python with torch and transformers that `make setup-full` lays in `.cache`.
#![allow(clippy::expect_used)]

use std::path::{Path, PathBuf};
use std::process::Command;

pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The interpreter; a test that needs it fails with what to type when it is missing.
pub fn interpreter() -> PathBuf {
    let python = root().join(".cache/python/bin/python");
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
