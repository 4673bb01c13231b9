//! `ckptd status` tells what a job does, running or not.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use serde_json::Value;

use rustix::process::Signal;

use crate::harness::AgentJob;

fn keys(value: &Value) -> Vec<&str> {
    let mut keys: Vec<&str> = value.as_object().unwrap().keys().map(String::as_str).collect();
    keys.sort_unstable();
    keys
}

fn assert_shape(status: &Value) {
    assert_eq!(
        keys(status),
        [
            "daemon",
            "history",
            "interval",
            "last_snapshot",
            "learning_rate",
            "loss",
            "percent",
            "problem",
            "ranks",
            "remote",
            "seconds_to_finish",
            "session",
            "snapshots",
            "stall_ms",
            "state",
            "step",
            "stored",
            "tokens_per_second",
            "total_steps",
            "warnings",
            "worker"
        ]
    );
    assert_eq!(keys(&status["session"]), ["began", "deadline", "last_call", "seconds_left", "source"]);
    assert_eq!(keys(&status["interval"]), ["seconds", "why"]);
    assert_eq!(keys(&status["history"]), ["ends_at", "latest", "sessions", "sessions_left"]);
    assert_eq!(keys(&status["last_snapshot"]), ["age_seconds", "id", "state"]);
    assert_eq!(keys(&status["snapshots"]), ["committed", "failed", "quarantined", "skipped", "verified", "waited"]);
    assert_eq!(keys(&status["stall_ms"]), ["p50", "p99"]);
    assert_eq!(keys(&status["worker"]), ["pid", "restarts"]);
}

#[test]
fn what_makes_no_sense_is_told_once_and_stands_in_status() {
    let job = AgentJob::new(60, "").with("[train]", "[train]\nlearning_rate = 30.0\nwarmup_steps = 60");
    let mut run = job.start();
    run.wait_for("verified step 5:");
    let findings = ["[train] warmup_steps = 60 of 60 steps", "[train] learning_rate = 30 is not one"];
    let hold = |status: &Value| {
        let told: Vec<&str> = status["warnings"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
        for finding in findings {
            assert_eq!(told.iter().filter(|told| told.contains(finding)).count(), 1, "{finding}: {status}");
        }
    };
    hold(&job.json("status"));
    let ended = run.wait();
    assert_eq!(ended.code, Some(0), "what makes no sense is no failure: {}", ended.log);
    // When nothing runs any more, the store says it.
    hold(&job.json("status"));
    let text = job.ckptd(&["status", &job.store().to_string_lossy()]);
    let text = String::from_utf8(text.stdout).unwrap();
    for finding in findings {
        assert_eq!(ended.log.matches(finding).count(), 1, "{}", ended.log);
        assert!(text.lines().any(|line| line.starts_with("warning: ") && line.contains(finding)), "{text}");
    }
}

#[test]
fn a_running_job_answers_beside_stuck_clients_a_stopped_one_from_files() {
    let job = AgentJob::new(1000, "[session]\nbudget = \"1h\"");
    let mut run = job.start();
    run.wait_for("verified step 10:");
    let socket = job.store().join("status.sock");
    assert_eq!(std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    let _stuck: Vec<UnixStream> = (0..8).map(|_| UnixStream::connect(&socket).unwrap()).collect();
    let live = job.json("status");
    assert_shape(&live);
    assert_eq!(live["state"], "training");
    assert_eq!(live["total_steps"], 1000);
    assert_eq!(live["stall_ms"]["p99"], 0.5);
    assert!(live["step"].as_u64().unwrap() >= 10, "{live}");
    assert!(live["session"]["seconds_left"].as_f64().unwrap() > 3000.0, "{live}");
    assert!(live["worker"]["pid"].as_u64().is_some(), "{live}");
    let text = job.ckptd(&["status", &job.config().to_string_lossy()]);
    assert!(String::from_utf8_lossy(&text.stdout).starts_with("training: step"), "{text:?}");
    run.signal(Signal::TERM);
    assert_eq!(run.wait().code, Some(75));
    assert!(!socket.exists());
    let stopped = job.json("status");
    assert_shape(&stopped);
    assert_eq!(stopped["state"], "stopped");
    assert_eq!(stopped["last_snapshot"]["state"], "verified");
    assert_eq!(stopped["worker"]["pid"], Value::Null);
}

/// How the daemon ends the connection within `time`; `None` where it does not.
fn end_within(mut client: &UnixStream, time: Duration) -> Option<usize> {
    client.set_read_timeout(Some(time)).unwrap();
    match client.read(&mut [0; 16]) {
        Ok(bytes) => Some(bytes),
        Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => None,
        // Closed with bytes of ours unread.
        Err(_) => Some(0),
    }
}

#[test]
fn the_status_socket_serves_sixteen_clients_for_two_seconds_and_64_kib_each() {
    let job = AgentJob::new(100_000, "");
    let mut run = job.start();
    run.wait_for("verified step 5:");
    let socket = job.store().join("status.sock");
    // More than a request may have, and no end of line: not worth waiting for.
    let mut long = UnixStream::connect(&socket).unwrap();
    let _ = long.write_all(&[b' '; (64 << 10) + 1]);
    assert_eq!(end_within(&long, Duration::from_millis(1500)), Some(0), "a request may be of any length");
    let silent: Vec<UnixStream> = (0..16).map(|_| UnixStream::connect(&socket).unwrap()).collect();
    let one_more = UnixStream::connect(&socket).unwrap();
    assert_eq!(end_within(&one_more, Duration::from_millis(1500)), Some(0), "a seventeenth client is served");
    assert_eq!(end_within(&silent[0], Duration::from_millis(20)), None, "the first client was turned away");
    assert_eq!(end_within(&silent[0], Duration::from_secs(10)), Some(0), "a silent client keeps its place");
    run.signal(Signal::TERM);
    assert_eq!(run.wait().code, Some(75));
}
