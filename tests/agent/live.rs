//! The job file may be edited while the job runs.

use rustix::process::Signal;

use crate::harness::AgentJob;

/// Writes the file as many editors do: a new one, renamed over the old one.
fn save(job: &AgentJob, text: &str) {
    let new = job.config().with_extension("toml.new");
    std::fs::write(&new, text).unwrap();
    std::fs::rename(&new, job.config()).unwrap();
}

fn step_of(line: &str) -> u64 {
    let rest = line.split("verified step ").nth(1).unwrap();
    rest.split(':').next().unwrap().parse().unwrap()
}

#[test]
fn an_edit_changes_the_interval_of_the_running_worker() {
    let job = AgentJob::new(100_000, "");
    let mut run = job.start();
    run.wait_for("verified step 10:");
    let text = std::fs::read_to_string(job.config()).unwrap();
    save(&job, &text.replace("every_steps = 5", "every_steps = 7"));
    run.wait_for("the job file has changed: [snapshot] every_steps = 7 from now on");
    loop {
        // One of the old interval may be under way still.
        let step = step_of(&run.wait_for("verified step "));
        if !step.is_multiple_of(5) {
            assert_eq!(step % 7, 0);
            break;
        }
    }
    save(&job, &text.replace("every_steps = 5", "every = \"200ms\""));
    run.wait_for("[snapshot] every = \\\"200ms\\\"");
    while step_of(&run.wait_for("verified step ")).is_multiple_of(7) {}
    run.signal(Signal::TERM);
    assert_eq!(run.wait().code, Some(75));
    let remembered = std::fs::read_to_string(job.store().join("job.json")).unwrap();
    assert!(remembered.contains("\"200ms\""), "{remembered}");
}

#[test]
fn a_broken_or_arithmetic_edit_is_refused_and_the_run_goes_on() {
    let job = AgentJob::new(100_000, "");
    let mut run = job.start();
    run.wait_for("verified step 10:");
    let text = std::fs::read_to_string(job.config()).unwrap();
    save(&job, &format!("{text}[retention]\nkeep_lats = 4\n"));
    let line = run.wait_for("the job file is wrong");
    assert!(line.contains("no such key; did you mean keep_last") && line.contains("line "), "{line}");
    save(&job, &format!("{text}[job]\nseed = 4\n"));
    let line = run.wait_for("change of the job file refused");
    assert!(line.contains("[job] seed") && line.contains("arithmetic"), "{line}");
    run.wait_for("verified step ");
    // What was refused is not remembered: the file as it was is nothing new, also when asked for.
    save(&job, &text);
    run.wait_for("the job file is right again, and unchanged");
    run.signal(Signal::HUP);
    run.wait_for("SIGHUP: reading the job file again");
    run.wait_for("the job file is unchanged");
    run.wait_for("verified step ");
    run.signal(Signal::TERM);
    assert_eq!(run.wait().code, Some(75));
}

#[test]
fn the_log_level_and_the_budget_of_a_running_session_can_be_changed() {
    let job = AgentJob::new(100_000, "");
    let mut run = job.start();
    run.wait_for("verified step 10:");
    let text = std::fs::read_to_string(job.config()).unwrap();
    save(&job, &format!("{text}[log]\nlevel = \"debug\"\n"));
    run.wait_for("[log] level = \\\"debug\\\"");
    run.wait_for("\"level\":\"DEBUG\"");
    // It is over already: what was trained since the last snapshot is saved all the same.
    save(&job, &format!("{text}[session]\nbudget = \"100ms\"\n"));
    let ended = run.wait();
    assert!(!ended.log.contains("later steps are lost") && ended.log.contains("is durable"), "{}", ended.log);
    assert_eq!(ended.code, Some(75), "{}", ended.log);
    assert!(ended.log.contains("session over (the session's budget ends)"), "{}", ended.log);
}
