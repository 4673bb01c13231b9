//! This test program as the worker that trains nothing (see the test kit).

use std::fs::File;
use std::time::Duration;

use ckptd_testkit::worker::{WorkerOptions, run};

pub const SCRIPT: &str = "FAKE_WORKER_SCRIPT";

/// The command line that makes this test program the worker. The test harness writes on stdout, so that the worker's
/// own stdout is handed over as descriptor 3.
pub fn command() -> Vec<String> {
    let exe = std::env::current_exe().unwrap().to_string_lossy().into_owned();
    let shell = r#"exec "$0" "$@" 3>&1 >/dev/null"#;
    ["/bin/sh", "-c", shell, &exe, "--exact", "worker::worker", "--nocapture"].map(str::to_owned).to_vec()
}

#[test]
fn worker() {
    if let Some(script) = std::env::var_os(SCRIPT) {
        let events = File::options().write(true).open("/proc/self/fd/3").unwrap();
        let step = Duration::from_millis(15);
        let options = WorkerOptions { step, is_configurable: true, script: Some(script.into()) };
        std::process::exit(run(options, events).unwrap());
    }
}
