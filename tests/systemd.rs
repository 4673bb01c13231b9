//! The unit under a real systemd, booted in namespaces of its own: `scripts/systemd_check.sh`, with these binaries.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::{Command, Stdio};

#[test]
fn the_unit_starts_resumes_reloads_stops_and_finishes_under_a_real_systemd() {
    let project = Path::new(env!("CARGO_MANIFEST_DIR"));
    let programs = Path::new(env!("CARGO_BIN_EXE_ckptd")).parent().unwrap();
    let output = Command::new(project.join("scripts/systemd_check.sh"))
        .arg(programs)
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|e| panic!("running scripts/systemd_check.sh: {e}"));
    let table = String::from_utf8_lossy(&output.stdout);
    // It says so itself where it cannot run: no root, no systemd, no namespaces.
    println!("{table}");
    assert!(output.status.success(), "{table}\n{}", String::from_utf8_lossy(&output.stderr));
}
