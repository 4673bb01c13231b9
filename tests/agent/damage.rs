//! What is not what was written is moved aside, and never gone on from.

use crate::harness::{AgentJob, flip_a_byte};

#[test]
fn a_damaged_new_snapshot_is_quarantined_and_taken_again_at_once() {
    let job = AgentJob::new(40, "");
    job.ask("flip-10", 1);
    let ended = job.run();
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    assert!(ended.log.contains("step 10 is not what was written and went to quarantine"), "{}", ended.log);
    let list = job.json("list");
    let quarantined = list.as_array().unwrap().iter().find(|row| row["state"] == "quarantined").unwrap();
    assert_eq!(quarantined["step"], 10);
    assert!(quarantined["problem"].is_string(), "{quarantined}");
    assert_eq!(quarantined["kept_because"].as_array().unwrap().len(), 0, "{quarantined}");
}

#[test]
fn a_damaged_last_snapshot_is_taken_again_before_the_run_is_finished() {
    let job = AgentJob::new(12, "");
    job.ask("flip-12", 1);
    let ended = job.run();
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    assert!(ended.log.contains("its last snapshot failed"), "{}", ended.log);
    assert!(ended.log.contains("resuming from step 10 of 12"), "{}", ended.log);
    assert_eq!(job.json("list")[0]["step"], 12);
}

#[test]
fn a_resume_quarantines_a_damaged_newest_snapshot_and_takes_the_one_before() {
    let job = AgentJob::new(20, "");
    assert_eq!(job.run().code, Some(0));
    let undisturbed = job.json("list")[0]["root"].clone();
    flip_a_byte(&job.snapshot(20));
    let ended = job.run();
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    assert!(ended.log.contains("step-000000000020 is damaged"), "{}", ended.log);
    assert!(ended.log.contains("resuming from step 15 of 20"), "{}", ended.log);
    assert_eq!(job.json("list")[0]["root"], undisturbed);
}

#[test]
fn a_snapshot_the_worker_finds_damaged_is_quarantined_and_passed_over() {
    let job = AgentJob::new(20, "");
    assert_eq!(job.run().code, Some(0));
    job.configure(30, "");
    job.ask("fail-damaged", 1);
    let ended = job.run();
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    assert!(ended.log.contains("resuming from step 20 of 30"), "{}", ended.log);
    assert!(ended.log.contains("resuming from step 15 of 30"), "{}", ended.log);
    assert!(job.store().join("quarantine/step-000000000020.ckpt").exists());
}
