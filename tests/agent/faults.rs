//! Every way to fail says what happened and what to do: on stderr, by the exit code, and in the status, while it is so
//! and afterwards. docs/reliability.md has the whole table.

use ckptd_core::store::format::VERSION;
use rustix::process::Signal;

use crate::harness::{AgentJob, signal};

/// What `ckptd status --json` says: state and problem.
fn status(job: &AgentJob) -> (String, String) {
    let status = job.json("status");
    (status["state"].as_str().unwrap().to_owned(), status["problem"].as_str().unwrap_or_default().to_owned())
}

#[test]
fn a_run_that_gave_up_says_why_in_its_status_too_until_the_next_one() {
    let job = AgentJob::new(20, "");
    job.ask("exit-in-8", 3);
    let ended = job.run();
    assert_eq!(ended.code, Some(1), "{}", ended.log);
    let (state, problem) = status(&job);
    assert_eq!(state, "failed");
    assert!(problem.contains("failed 3 times in a row in step 8") && problem.contains("step 5 is saved"), "{problem}");
    let text = job.ckptd(&["status", &job.store().to_string_lossy()]);
    assert!(String::from_utf8_lossy(&text.stdout).contains("problem: the worker failed 3 times"), "{text:?}");
    assert_eq!(job.run().code, Some(0));
    assert_eq!(status(&job), ("finished".to_owned(), String::new()));
}

#[test]
fn status_reports_a_killed_daemon_and_no_problem_after_a_stop() {
    let job = AgentJob::new(10_000, "");
    let mut run = job.start();
    run.wait_for("verified step 10:");
    let agent = run.pid();
    run.signal(Signal::KILL);
    assert_eq!(run.wait().code, None);
    let (state, problem) = status(&job);
    assert_eq!(state, "stopped");
    assert!(problem.starts_with(&format!("process {agent}, ")) && problem.contains("`ckptd run` goes on"), "{problem}");
    let mut run = job.start();
    run.wait_for("resuming from step");
    run.wait_for("verified step");
    run.signal(Signal::TERM);
    assert_eq!(run.wait().code, Some(75));
    assert_eq!(status(&job), ("stopped".to_owned(), String::new()));
}

#[test]
fn a_running_job_tells_its_problem_until_a_snapshot_is_verified_again() {
    let job = AgentJob::new(10_000, "");
    let mut run = job.start();
    run.wait_for_step("verified step ", 10);
    job.ask("disk-full", 1_000_000);
    run.wait_for("no space left");
    let (state, problem) = status(&job);
    assert_eq!(state, "training");
    assert!(problem.contains("no space left") && problem.contains("training goes on and tries again"), "{problem}");
    job.ask("disk-full", 0);
    run.wait_for("snapshots work again");
    run.wait_for("verified step");
    assert_eq!(status(&job), ("training".to_owned(), String::new()));
    // Neither this worker nor the next one has anything to verify from here on.
    job.ask("disk-full", 1_000_000);
    run.wait_for("no space left");
    job.ask("mute", 1);
    signal(run.worker().unwrap(), Signal::KILL);
    run.wait_for("restarting it at once");
    assert!(status(&job).1.contains("it was killed by SIGKILL"));
    run.signal_until_it_ends(Signal::TERM);
}

#[test]
fn a_snapshot_of_a_newer_ckptd_ends_the_run_by_name_and_stays_where_it_is() {
    let job = AgentJob::new(20, "");
    assert_eq!(job.run().code, Some(0));
    let newest = job.snapshot(20);
    let mut bytes = std::fs::read(&newest).unwrap();
    let newer = VERSION + 1;
    of_version(&mut bytes, newer as u8);
    std::fs::write(&newest, &bytes).unwrap();
    let ended = job.run();
    assert_eq!(ended.code, Some(1), "{}", ended.log);
    for said in [ended.log, status(&job).1] {
        let told = format!("a newer ckptd wrote this (snapshot format {newer}, this one reads {VERSION})");
        assert!(said.contains(&told), "{said}");
        assert!(said.contains("install that release, or move the file out of the store"), "{said}");
    }
    assert_eq!(std::fs::read(&newest).unwrap(), bytes, "it was touched");
    let list = job.json("list");
    let problem = format!("written by a newer ckptd (snapshot format {newer})");
    let rows = list.as_array().unwrap();
    assert!(rows.iter().any(|row| row["state"] == "newer" && row["problem"] == problem.as_str()), "{list}");
}

#[test]
fn a_second_daemon_is_turned_away_with_the_name_of_the_first() {
    let job = AgentJob::new(10_000, "");
    let mut run = job.start();
    run.wait_for("verified step 5:");
    let second = job.run();
    assert_eq!(second.code, Some(1), "{}", second.log);
    let named = format!("in use by process {} (ckptd run, job job); stop it first, or use another store", run.pid());
    assert!(second.log.contains(&named), "{}", second.log);
    assert_eq!(status(&job), ("training".to_owned(), String::new()));
}

/// Makes a snapshot one of another version, as far as every version is defined (docs/format.md).
fn of_version(bytes: &mut [u8], version: u8) {
    let trailer = bytes.len() - ckptd_core::store::trailer::TRAILER_BYTES;
    bytes[8] = version;
    bytes[trailer + 8] = version;
    let own = blake3::hash(&bytes[trailer..trailer + 112]);
    bytes[trailer + 112..trailer + 144].copy_from_slice(own.as_bytes());
}
