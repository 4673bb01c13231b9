//! A worker that fails is started again from the newest verified snapshot, and not for ever.

use rustix::process::Signal;

use crate::harness::{AgentJob, signal};

#[test]
fn a_worker_that_is_killed_twice_ends_in_the_state_of_an_undisturbed_run() {
    let job = AgentJob::new(200, "");
    let mut run = job.start();
    for step in [10, 30] {
        run.wait_for_step("verified step ", step);
        signal(run.worker().unwrap(), Signal::KILL);
        run.wait_for("killed by SIGKILL; restarting it at once");
        run.wait_for("resuming from step");
    }
    let ended = run.wait();
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    assert_eq!(job.json("list")[0]["root"], AgentJob::undisturbed_root(200));
}

#[test]
fn after_an_agent_kill_the_worker_saves_and_the_next_run_waits_for_it() {
    let job = AgentJob::new(200, "");
    job.ask("linger", 1);
    let mut run = job.start();
    run.wait_for_step("verified step ", 10);
    run.signal(Signal::KILL);
    assert_eq!(run.wait().code, None);
    let mut next = job.start();
    next.wait_for("waiting for the worker of the last session");
    std::fs::remove_file(job.script().join("linger")).unwrap();
    next.wait_for("resuming from step");
    let ended = next.wait();
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    assert_eq!(job.json("list")[0]["root"], AgentJob::undisturbed_root(200));
}

#[test]
fn a_worker_that_is_stopped_is_noticed_as_hung_and_replaced() {
    let job = AgentJob::new(200, "hang_timeout = \"1s\"");
    let mut run = job.start();
    run.wait_for_step("verified step ", 10);
    signal(run.worker().unwrap(), Signal::STOP);
    run.wait_for("it said nothing for 1 s; restarting it at once");
    run.wait_for("resuming from step");
    assert_eq!(run.wait().code, Some(0));
}

#[test]
fn a_worker_that_hangs_in_a_step_goes_on_from_the_last_snapshot() {
    let job = AgentJob::new(20, "hang_timeout = \"1s\"");
    job.ask("hang-in-8", 1);
    let ended = job.run();
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    assert!(ended.log.contains("resuming from step 5 of 20"), "{}", ended.log);
}

#[test]
fn a_step_that_fails_three_times_ends_the_run_with_the_workers_stderr() {
    let job = AgentJob::new(20, "");
    job.ask("exit-in-8", 100);
    let ended = job.run();
    assert_eq!(ended.code, Some(1), "{}", ended.log);
    assert!(ended.log.contains("failed 3 times in a row in step 8: it exited with code 3"), "{}", ended.log);
    assert!(ended.log.contains("step 5 is saved and verified"), "{}", ended.log);
    assert!(ended.log.contains("boom in step 8"), "{}", ended.log);
    assert_eq!(std::fs::read_to_string(job.script().join("exit-in-8")).unwrap(), "97");
}

#[test]
fn a_worker_that_prints_something_else_than_messages_is_replaced() {
    let job = AgentJob::new(20, "");
    job.ask("garbage-in-8", 1);
    let ended = job.run();
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    assert!(ended.log.contains("Epoch 1: loss is fine"), "{}", ended.log);
}

#[test]
fn a_worker_of_another_protocol_is_refused_with_both_versions() {
    let job = AgentJob::new(20, "");
    job.ask("other-protocol", 1);
    let ended = job.run();
    assert_eq!(ended.code, Some(1), "{}", ended.log);
    assert!(ended.log.contains("speaks protocol 99, this ckptd 1"), "{}", ended.log);
}

#[test]
fn what_the_worker_cannot_go_on_for_decides_the_exit_code() {
    for (what, code) in [("fail-config", 78), ("fail-mismatch", 1), ("fail-other", 1)] {
        let job = AgentJob::new(20, "");
        job.ask(what, 100);
        let ended = job.run();
        assert_eq!(ended.code, Some(code), "{}", ended.log);
        assert!(ended.log.contains(&format!("the script says {what}")), "{}", ended.log);
        let tried = 100 - std::fs::read_to_string(job.script().join(what)).unwrap().parse::<u32>().unwrap();
        assert_eq!(tried, if what == "fail-other" { 3 } else { 1 }, "{}", ended.log);
    }
}

#[test]
fn a_worker_that_is_not_there_is_an_error_that_names_it() {
    let job = AgentJob::new(20, "");
    let config = std::fs::read_to_string(job.config()).unwrap();
    let at = config.find("command = ").unwrap();
    std::fs::write(job.config(), format!("{}command = [\"/nowhere/trainer\"]\n", &config[..at])).unwrap();
    let ended = job.run();
    assert_eq!(ended.code, Some(1), "{}", ended.log);
    assert!(ended.log.contains("/nowhere/trainer"), "{}", ended.log);
}

#[test]
fn signals_to_every_process_do_not_end_the_worker_before_its_snapshot() {
    let job = AgentJob::new(1000, "");
    let mut run = job.start();
    run.wait_for_step("verified step ", 10);
    let worker = run.worker().unwrap();
    for name in [Signal::INT, Signal::USR1, Signal::USR2, Signal::HUP, Signal::TERM] {
        signal(worker, name);
    }
    run.signal(Signal::TERM);
    let ended = run.wait();
    assert_eq!(ended.code, Some(75), "{}", ended.log);
    assert!(ended.log.contains("is saved and verified"), "{}", ended.log);
    assert!(!ended.log.contains("restarting"), "{}", ended.log);
}
