//! A session ends well, whatever ends it, and the exit code says whether there is more to do.

use std::io::{PipeReader, PipeWriter, Read};
use std::os::fd::AsRawFd;
use std::process::Stdio;

use rustix::process::Signal;

use crate::harness::{AgentJob, RunningAgent};

#[test]
fn sigterm_saves_and_verifies_the_newest_state_and_the_next_run_completes() {
    let job = AgentJob::new(200, "");
    let mut run = job.start();
    run.wait_for_step("verified step ", 10);
    run.signal(Signal::TERM);
    let ended = run.wait();
    assert_eq!(ended.code, Some(75), "{}", ended.log);
    assert!(ended.log.contains("session over (SIGTERM)") && ended.log.contains("saved and verified"), "{}", ended.log);
    let list = job.json("list");
    assert_eq!(list[0]["state"], "verified");
    let status = job.json("status");
    assert_eq!((&status["state"], &status["step"]), (&"stopped".into(), &list[0]["step"]));
    let ended = job.run();
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    assert!(ended.log.contains(&format!("resuming from step {} of 200", list[0]["step"])), "{}", ended.log);
    assert_eq!(job.json("list")[0]["root"], AgentJob::undisturbed_root(200));
}

#[test]
fn a_second_signal_ends_at_once_and_what_was_saved_stays() {
    let job = AgentJob::new(1000, "");
    job.ask("deaf", 1);
    let mut run = job.start();
    run.wait_for("verified step 10:");
    run.signal(Signal::INT);
    run.wait_for("stopping: SIGINT");
    // Signals that come within a moment count as one: it takes somebody who means it.
    run.signal_until_it_ends(Signal::INT);
    let ended = run.wait();
    assert_eq!(ended.code, Some(75), "{}", ended.log);
    assert_eq!(job.ckptd(&["verify", &job.store().to_string_lossy()]).status.code(), Some(0));
}

#[test]
fn a_worker_that_does_not_stop_is_ended_when_the_grace_is_over() {
    let job = AgentJob::new(1000, "[session]\ngrace = \"1s\"");
    job.ask("deaf", 1);
    let mut run = job.start();
    run.wait_for("verified step 10:");
    run.signal(Signal::TERM);
    let ended = run.wait();
    assert_eq!(ended.code, Some(75), "{}", ended.log);
    assert!(ended.log.contains("the time to stop is over"), "{}", ended.log);
}

#[test]
fn a_signal_before_the_training_begins_ends_it_at_once() {
    let job = AgentJob::new(20, "");
    job.ask("mute", 1);
    let mut run = job.start();
    run.wait_for("starting a training of 20 steps");
    run.signal(Signal::TERM);
    let ended = run.wait();
    assert_eq!(ended.code, Some(75), "{}", ended.log);
    assert!(ended.log.contains("nothing was trained yet"), "{}", ended.log);
}

#[test]
fn sigusr1_takes_a_snapshot_and_the_training_goes_on() {
    let job = AgentJob::new(200, "");
    // No other snapshot before the last one.
    let config = std::fs::read_to_string(job.config()).unwrap().replace("every_steps = 5", "every_steps = 1000");
    std::fs::write(job.config(), config).unwrap();
    let mut run = job.start();
    run.wait_for("training 3000 parameters");
    run.signal(Signal::USR1);
    run.wait_for("SIGUSR1: snapshot now");
    let line = run.wait_for("verified step");
    assert!(!line.contains("verified step 200:"), "{line}");
    let ended = run.wait();
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    assert!(ended.log.contains("verified step 200:"), "{}", ended.log);
}

#[test]
fn a_budget_ends_the_session_with_its_last_state_saved() {
    let job = AgentJob::new(100_000, "[session]\nbudget = \"4s\"");
    let ended = job.run();
    assert_eq!(ended.code, Some(75), "{}", ended.log);
    assert!(ended.log.contains("session over (the session's budget ends)"), "{}", ended.log);
    assert!(ended.log.contains("is saved and verified; `ckptd run` goes on from it"), "{}", ended.log);
}

#[test]
fn a_finished_training_is_said_to_be_finished_without_a_worker() {
    let job = AgentJob::new(10, "");
    let ended = job.run();
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    assert!(ended.log.contains("finished: all 10 steps are done"), "{}", ended.log);
    job.ask("fail-other", 100);
    let again = job.run();
    assert_eq!(again.code, Some(0), "{}", again.log);
    assert!(again.log.contains("the training is finished: step 10 of 10"), "{}", again.log);
    assert_eq!(job.json("status")["state"], "finished");
}

#[test]
fn a_second_run_on_the_same_store_is_refused_with_the_first_ones_process_id() {
    let job = AgentJob::new(1000, "");
    let mut run = job.start();
    run.wait_for("verified step 5:");
    let second = job.run();
    assert_eq!(second.code, Some(1), "{}", second.log);
    assert!(second.log.contains(&format!("process {}", run.pid())), "{}", second.log);
    let prune = job.ckptd(&["prune", &job.store().to_string_lossy()]);
    assert_eq!(prune.status.code(), Some(1));
    assert!(job.ckptd(&["prune", "--dry-run", &job.store().to_string_lossy()]).status.success());
    run.signal(Signal::TERM);
    assert_eq!(run.wait().code, Some(75));
}

#[test]
fn a_log_that_is_never_read_neither_ends_nor_stalls_a_run() {
    for read_some in [true, false] {
        let job = AgentJob::new(40, "");
        let config = job.config();
        // Saying much: every step's snapshot.
        let text = std::fs::read_to_string(&config).unwrap().replace("every_steps = 5", "every_steps = 1");
        std::fs::write(&config, text).unwrap();
        let (mut log, writer) = small_pipe();
        let mut child = job
            .command(&["run", "-v", &config.to_string_lossy()])
            .stderr(writer)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        if read_some {
            log.read_exact(&mut [0; 10]).unwrap();
            drop(log);
            assert_eq!(child.wait().unwrap().code(), Some(0));
        } else {
            assert_eq!(child.wait().unwrap().code(), Some(0));
            let mut left = Vec::new();
            log.read_to_end(&mut left).unwrap();
            assert!(left.len() > PIPE_BYTES / 2, "the pipe was never full: {} bytes", left.len());
        }
    }
}

#[test]
fn a_store_that_was_deleted_is_not_said_to_hold_what_was_verified() {
    // All of it, or its snapshots, or it lies elsewhere now.
    for take_away in ["rm -r \"$1\"", "rm \"$1\"/snapshots/*", "mv \"$1\" \"$1.elsewhere\""] {
        let job = AgentJob::new(100_000, "");
        // Nothing new is saved before the end, and what the end saves goes where the store is open.
        let config = std::fs::read_to_string(job.config()).unwrap();
        std::fs::write(job.config(), config.replace("every_steps = 5", "every_steps = 50")).unwrap();
        let mut run = job.start();
        run.wait_for("verified step 50:");
        let store = job.store();
        let shell = std::process::Command::new("sh").args(["-c", take_away, "sh"]).arg(&store).status().unwrap();
        assert!(shell.success());
        run.signal(Signal::TERM);
        let ended = run.wait();
        let left = std::fs::read_dir(store.join("snapshots")).map_or(0, Iterator::count);
        let said = ended.log.lines().rev().find(|line| line.contains("session over")).unwrap_or_default();
        assert!(left > 0 || !said.contains("is saved"), "{take_away}: {}", ended.log);
        assert_eq!(ended.code, Some(if left > 0 { 75 } else { 1 }), "{take_away}: {}", ended.log);
    }
}

/// What `/proc` says a process does: "T" is stopped.
fn process_state(pid: u32) -> String {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").map_or(String::new(), |(_, rest)| rest.chars().take(1).collect())
}

#[test]
fn ctrl_z_stops_the_agent_and_its_worker_and_both_go_on_together() {
    let job = AgentJob::new(100_000, "");
    let mut run = job.start();
    run.wait_for("verified step 5:");
    let pids = [run.pid(), run.worker().unwrap()];
    let until = |state: &dyn Fn(&str) -> bool| {
        let is_so = || pids.iter().all(|pid| state(&process_state(*pid)));
        (0..500).any(|_| is_so() || (std::thread::sleep(std::time::Duration::from_millis(20)), false).1)
    };
    run.signal(Signal::TSTP);
    assert!(until(&|state| state == "T"), "{:?}", pids.map(process_state));
    run.signal(Signal::CONT);
    assert!(until(&|state| state != "T"), "{:?}", pids.map(process_state));
    run.wait_for("verified step");
    run.signal(Signal::TERM);
    let ended = run.wait();
    assert_eq!(ended.code, Some(75), "{}", ended.log);
    assert!(ended.log.contains("saved and verified"), "{}", ended.log);
}

/// `ckptd run --until-done`.
fn until_done(job: &AgentJob) -> RunningAgent {
    RunningAgent::start(job.command(&["run", "--until-done", "--log-format", "json", &job.config().to_string_lossy()]))
}

#[test]
fn until_done_begins_session_after_session_until_the_training_is_complete() {
    // A session of this length makes at most 200, however fast this machine is: a step takes 15 ms.
    const STEPS: u64 = 500;
    let job = AgentJob::new(STEPS, "[session]\nbudget = \"3s\"");
    let ended = until_done(&job).wait();
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    let sessions = ended.log.matches("session over (the session's budget ends)").count();
    assert!(sessions >= 2 && ended.log.contains("finished: all"), "{sessions} {}", ended.log);
    assert_eq!(job.json("status")["history"]["sessions"], sessions + 1);
    assert_eq!(job.json("list")[0]["root"], AgentJob::undisturbed_root(STEPS));
}

#[test]
fn a_user_ends_all_sessions_of_until_done_in_whichever_it_is_asked() {
    type End = dyn Fn(&AgentJob, &RunningAgent);
    let endings: [(&str, &End); 3] = [
        ("session over (SIGINT)", &|_, run| run.signal(Signal::INT)),
        ("session over (SIGUSR2)", &|_, run| run.signal(Signal::USR2)),
        ("session over (notice file)", &|job, _| std::fs::write(job.config().with_file_name("stop"), "").unwrap()),
    ];
    for (said, end) in endings {
        let job = AgentJob::new(1_000_000, "[session]\nbudget = \"2s\"\nnotice_file = \"stop\"");
        let mut run = until_done(&job);
        run.wait_for("session over (the session's budget ends)");
        run.wait_for("verified step");
        end(&job, &run);
        let ended = run.wait();
        assert_eq!(ended.code, Some(75), "{}", ended.log);
        // It may fall into the moment in which a budget ends, or between two sessions.
        let over: Vec<&str> = ended.log.lines().filter(|line| line.contains("session over")).collect();
        let is_last = over.last().is_some_and(|line| line.contains(said) || line.contains("budget ends"));
        assert!(is_last && over.len() <= 4, "{said}: {}", ended.log);
    }
}

#[test]
fn a_deadline_ends_the_sessions_of_until_done() {
    let end = jiff::Timestamp::now() + std::time::Duration::from_secs(6);
    let job = AgentJob::new(1_000_000, &format!("[session]\nbudget = \"1h\"\ndeadline = \"{end}\""));
    let ended = until_done(&job).wait();
    assert_eq!(ended.code, Some(75), "{}", ended.log);
    assert!(ended.log.contains("session over (the session's deadline is near)"), "{}", ended.log);
}

const PIPE_BYTES: usize = 4096;

/// A pipe that is full after a page: what a run of some steps says does not fit.
fn small_pipe() -> (PipeReader, PipeWriter) {
    let (reader, writer) = std::io::pipe().unwrap();
    // SAFETY: the descriptor is open, and its capacity is all that is set.
    let capacity = unsafe { libc::fcntl(writer.as_raw_fd(), libc::F_SETPIPE_SZ, PIPE_BYTES as libc::c_int) };
    assert_eq!(capacity, PIPE_BYTES as libc::c_int);
    (reader, writer)
}
