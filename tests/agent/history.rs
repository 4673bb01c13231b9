//! The store remembers its sessions, and says how many more the training takes.

use rustix::process::Signal;

use crate::harness::{AgentJob, signal};

#[test]
fn sessions_are_remembered_with_their_ends_killed_ones_included() {
    let job = AgentJob::new(300, "");
    let mut run = job.start();
    run.wait_for_step("verified step ", 40);
    run.signal(Signal::TERM);
    let ended = run.wait();
    // Nobody knows when the next one ends.
    assert!(ended.log.contains("if not interrupted") && !ended.log.contains("more session"), "{}", ended.log);
    let status = job.json("status");
    let history = &status["history"];
    assert_eq!((&history["sessions"], &history["latest"][0]["cause"]), (&1.into(), &"SIGTERM".into()));
    assert_eq!(history["latest"][0]["saved_step"], job.json("list")[0]["step"]);
    assert!(history["sessions_left"].is_null() && history["ends_at"].is_string(), "{history}");
    assert!(status["seconds_to_finish"].as_f64().unwrap() > 0.0 && status["percent"].as_f64().unwrap() > 10.0);

    let mut run = job.start();
    run.wait_for("resuming from step");
    run.wait_for("verified step ");
    let worker = run.worker().unwrap();
    run.signal(Signal::KILL);
    signal(worker, Signal::KILL);
    run.wait();
    let status = job.json("status");
    assert_eq!(status["history"]["latest"][0]["cause"], "killed", "{status}");
    let text = job.ckptd(&["status", &job.store().to_string_lossy()]);
    let text = String::from_utf8(text.stdout).unwrap();
    assert!(text.contains("session 2:") && text.contains(": killed") && text.contains("outlook: "), "{text}");

    let ended = job.run();
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    let history = &job.json("status")["history"];
    // What the killed session had saved is where this one went on.
    let killed = &history["latest"][1];
    assert_eq!(killed["saved_step"], history["latest"][0]["from_step"], "{history}");
    assert!(killed["from_step"].as_u64() <= killed["saved_step"].as_u64(), "{history}");
    assert!(killed["saved_step"].as_u64() <= killed["step"].as_u64(), "{history}");
    assert_eq!((&history["sessions"], &history["sessions_left"]), (&3.into(), &0.into()));
    assert_eq!(history["latest"][0]["cause"], "finished");
    assert_eq!(history["latest"][0]["saved_step"], 300);
}

#[test]
fn a_worker_crash_counts_its_lost_steps_and_the_interval_is_explained() {
    let job = AgentJob::new(100_000, "");
    let text = std::fs::read_to_string(job.config()).unwrap();
    std::fs::write(job.config(), text.replace("every_steps = 5", "every = \"auto\"")).unwrap();
    job.ask("exit-in-8", 1);
    let mut run = job.start();
    run.wait_for("restarting it");
    run.wait_for("training 3000 parameters");
    let status = job.json("status");
    let session = &status["history"]["latest"][0];
    assert_eq!((&session["failures"], &session["lost_steps"]), (&1.into(), &7.into()), "{status}");
    assert!(status["interval"]["why"].as_str().unwrap().starts_with("every "), "{status}");
    assert!(status["interval"]["seconds"].as_f64().unwrap() > 0.0, "{status}");
    run.signal(Signal::TERM);
    assert_eq!(run.wait().code, Some(75));
}

#[test]
fn sessions_on_a_budget_say_how_many_more_of_them_are_needed() {
    let job = AgentJob::new(100_000, "[session]\nbudget = \"3s\"");
    let ended = job.run();
    assert_eq!(ended.code, Some(75), "{}", ended.log);
    assert!(ended.log.contains("to go: done about "), "{}", ended.log);
    assert!(job.json("status")["history"]["sessions_left"].as_u64().unwrap() > 1);
}
