//! The user's programs are told what matters, and are never in the way.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;

use crate::harness::{AgentJob, flip_a_byte};

/// A program in `folder` that keeps what it is told, one file per call.
fn keeper(folder: &Path) -> PathBuf {
    let path = folder.join("keep.sh");
    let script = format!("#!/bin/sh\nexec cat > \"$(mktemp {}/$1.XXXXXX)\"\n", folder.display());
    std::fs::write(&path, script).unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
    path
}

/// What it was told on `moment`.
fn told(folder: &Path, moment: &str) -> Vec<Value> {
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let of_moment = files.filter(|path| {
        path.file_stem().is_some_and(|stem| stem == moment) && path.extension().is_some_and(|e| e != "sh")
    });
    of_moment.map(|path| serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()).collect()
}

fn hooks(keeper: &Path, moments: &[&str]) -> String {
    let each = moments.iter().map(|moment| format!("{moment} = [{keeper:?}, \"{moment}\"]"));
    format!("[hooks]\non = {{ {} }}", each.collect::<Vec<_>>().join(", "))
}

#[test]
fn each_moment_is_told_to_its_program_as_one_json_object() {
    let folder = tempfile::tempdir().unwrap();
    let all = ["session_over", "failed", "finished", "quarantined", "verified"];
    let job = AgentJob::new(200, &hooks(&keeper(folder.path()), &all));
    let mut run = job.start();
    let id = format!("step-{:012}", run.wait_for_step("verified step ", 10));
    run.signal(Signal::TERM);
    assert_eq!(run.wait().code, Some(75));
    let over = told(folder.path(), "session_over");
    let [over] = over.as_slice() else { panic!("{over:?}") };
    assert_eq!(
        (&over["event"], &over["why"], &over["job"]),
        (&"session_over".into(), &"SIGTERM".into(), &"job".into())
    );
    assert!(over["saved_step"].as_u64().unwrap() >= 10 && over["total_steps"] == 200, "{over}");
    let verified = told(folder.path(), "verified");
    assert!(verified.iter().any(|told| told["snapshot"] == id.as_str() && told["loss"].is_f64()), "{verified:?}");

    // What was saved last rots: the next session says so, and then that all is done.
    flip_a_byte(&job.snapshot(over["saved_step"].as_u64().unwrap()));
    assert_eq!(job.run().code, Some(0));
    let finished = told(folder.path(), "finished");
    assert!(finished.len() == 1 && finished[0]["step"] == 200 && finished[0]["saved_step"] == 200, "{finished:?}");
    let quarantined = told(folder.path(), "quarantined");
    assert!(quarantined.len() == 1 && !quarantined[0]["reason"].as_str().unwrap().is_empty(), "{quarantined:?}");
    let failing = hooks(&keeper(folder.path()), &all).replace("[hooks]", "max_restarts = 0\n[hooks]");
    let job = AgentJob::new(80, &failing);
    job.ask("fail-other", 9);
    assert_eq!(job.run().code, Some(1));
    let failed = told(folder.path(), "failed");
    assert!(failed.len() == 1 && failed[0]["why"].as_str().unwrap().contains("fail-other"), "{failed:?}");
}

#[test]
fn a_program_that_hangs_fails_or_is_not_there_delays_neither_snapshot_nor_end() {
    let folder = tempfile::tempdir().unwrap();
    let mark = folder.path().join("ended");
    // The child of a shell that is ended must end, too.
    let hang = format!("sleep 60; touch {}", mark.display());
    let fails = "echo no such account >&2; exit 3";
    let config = format!(
        "[session]\ngrace = \"10s\"\n[hooks]\ntimeout = \"1s\"\non = {{ verified = [\"sh\", \"-c\", {hang:?}], \
         session_over = [\"sh\", \"-c\", {fails:?}] }}"
    );
    let job = AgentJob::new(100_000, &config);
    let mut run = job.start();
    run.wait_for("sh took too long, and was ended; the job goes on");
    run.wait_for("verified step");
    run.signal(Signal::TERM);
    let ended = run.wait();
    assert_eq!(ended.code, Some(75), "{}", ended.log);
    assert!(ended.log.contains("session_over: sh exited with 3: no such account; the job goes on"), "{}", ended.log);
    assert!(ended.log.contains("saved and verified") && !mark.exists(), "{}", ended.log);

    let missing = AgentJob::new(20, "[hooks]\non = { finished = [\"/nowhere/notify\"] }").run();
    assert!(missing.code == Some(0) && missing.log.contains("/nowhere/notify cannot be started"), "{}", missing.log);
    let wrong = AgentJob::new(20, "[hooks]\non = { verifiedd = [\"true\"] }").run();
    assert!(wrong.code == Some(78) && wrong.log.contains("verified"), "{}", wrong.log);
}

/// What such a program leaves behind must not keep the store locked.
#[test]
fn a_program_is_given_nothing_of_the_store() {
    let folder = tempfile::tempdir().unwrap();
    let open = folder.path().join("open");
    let list = format!("readlink /proc/self/fd/* > {}", open.display());
    let job = AgentJob::new(20, &format!("[hooks]\non = {{ finished = [\"sh\", \"-c\", {list:?}] }}"));
    assert_eq!(job.run().code, Some(0));
    let open = std::fs::read_to_string(open).unwrap();
    let store = job.store().canonicalize().unwrap();
    assert!(!open.is_empty() && !open.contains(store.to_str().unwrap()), "{open}");
}

#[test]
fn no_program_is_started_while_the_last_snapshot_is_on_its_way() {
    let folder = tempfile::tempdir().unwrap();
    let keeper = keeper(folder.path());
    let slow = format!("sleep 0.3; exec {} verified", keeper.display());
    let job = AgentJob::new(100_000, &format!("[hooks]\non = {{ verified = [\"sh\", \"-c\", {slow:?}] }}"));
    let mut run = job.start();
    run.wait_for_step("verified step ", 50);
    run.signal(Signal::TERM);
    let ended = run.wait();
    assert_eq!(ended.code, Some(75), "{}", ended.log);
    // Those that waited were told in the time that was left.
    let steps: Vec<u64> = told(folder.path(), "verified").iter().map(|told| told["step"].as_u64().unwrap()).collect();
    assert!(!steps.is_empty(), "{}", ended.log);
    assert!(ended.took < Duration::from_secs(30), "{:?}", ended.took);
}
