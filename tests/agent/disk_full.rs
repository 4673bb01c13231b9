//! A full disk stops snapshots, not the training, and is told once.

use crate::harness::AgentJob;

#[test]
fn a_full_disk_is_told_once_and_told_again_when_there_is_room() {
    let job = AgentJob::new(40, "");
    job.ask("disk-full", 4);
    let ended = job.run();
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    assert_eq!(ended.log.matches("no space left").count(), 1, "{}", ended.log);
    assert_eq!(ended.log.matches("snapshots work again: step 25 is written").count(), 1, "{}", ended.log);
}

#[test]
fn a_training_whose_last_state_cannot_be_saved_is_not_finished() {
    let job = AgentJob::new(8, "");
    job.ask("disk-full", 1000);
    let ended = job.run();
    assert_eq!(ended.code, Some(1), "{}", ended.log);
    assert!(ended.log.contains("disk full"), "{}", ended.log);
}
