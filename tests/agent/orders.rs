//! A job takes orders over its socket, and what it says is kept.

use rustix::process::Signal;

use crate::harness::AgentJob;

fn text(output: &std::process::Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[test]
fn stop_ends_the_session_with_a_last_snapshot_and_waits_for_it() {
    let job = AgentJob::new(100_000, "");
    let store = job.store().to_string_lossy().into_owned();
    assert!(job.ckptd(&["stop", &store]).status.code() == Some(1), "there is no store yet");
    let mut run = job.start();
    run.wait_for("verified step 10:");
    assert_eq!(job.json("status")["daemon"]["pid"], run.pid());
    let stopped = job.ckptd(&["stop", &store]);
    assert_eq!(stopped.status.code(), Some(0), "{}", text(&stopped));
    assert!(text(&stopped).ends_with("the session is over\n"), "{}", text(&stopped));
    let ended = run.wait();
    assert_eq!(ended.code, Some(75), "{}", ended.log);
    assert!(ended.log.contains("session over (`ckptd stop`)"), "{}", ended.log);
    let status = job.json("status");
    assert_eq!((&status["state"], &status["last_snapshot"]["state"]), (&"stopped".into(), &"verified".into()));
    // There is nothing more to stop, and that is no failure.
    let again = job.ckptd(&["stop", &store]);
    assert_eq!(again.status.code(), Some(0));
    assert!(text(&again).contains("no job runs in"), "{}", text(&again));
}

#[test]
fn stop_now_does_not_wait_for_a_snapshot() {
    let job = AgentJob::new(100_000, "").with("every_steps = 5", "every_steps = 100000");
    let mut run = job.start();
    run.wait_for("training");
    run.wait_for("step ");
    let stopped = job.ckptd(&["stop", "--now", &job.config().to_string_lossy()]);
    assert_eq!(stopped.status.code(), Some(0), "{}", text(&stopped));
    let ended = run.wait();
    assert!(ended.log.contains("`ckptd stop --now`"), "{}", ended.log);
    assert_eq!(job.json("list").as_array().unwrap().len(), 0, "{}", ended.log);
}

#[test]
fn snapshot_takes_one_and_the_job_goes_on() {
    let job = AgentJob::new(100_000, "").with("every_steps = 5", "every_steps = 100000");
    let store = job.store().to_string_lossy().into_owned();
    let mut run = job.start();
    run.wait_for("step ");
    let taken = job.ckptd(&["snapshot", &store]);
    assert_eq!(taken.status.code(), Some(0), "{}", text(&taken));
    assert!(text(&taken).starts_with("taking a snapshot after step "), "{}", text(&taken));
    run.wait_for("verified step ");
    assert_eq!(job.json("status")["state"], "training");
    job.ckptd(&["stop", &store]);
    assert_eq!(run.wait().code, Some(75));
    let nobody = job.ckptd(&["snapshot", &store]);
    assert_eq!(nobody.status.code(), Some(1));
    assert!(text(&nobody).contains("no job runs in"), "{}", text(&nobody));
}

#[test]
fn a_suspended_job_is_named_with_its_process() {
    let job = AgentJob::new(100_000, "");
    let mut run = job.start();
    run.wait_for("verified step 5:");
    run.signal(Signal::STOP);
    let asked = job.ckptd(&["status", &job.store().to_string_lossy()]);
    run.signal(Signal::CONT);
    let said = text(&asked);
    assert_eq!(asked.status.code(), Some(1), "{said}");
    assert!(said.contains(&format!("process {}", run.pid())) && said.contains("suspended?"), "{said}");
    run.signal(Signal::TERM);
    assert_eq!(run.wait().code, Some(75));
}

#[test]
fn the_log_of_the_last_session_is_kept_with_date_and_zone() {
    let job = AgentJob::new(20, "");
    let store = job.store().to_string_lossy().into_owned();
    assert_eq!(job.run().code, Some(0));
    let kept = job.ckptd(&["logs", &store]);
    let said = text(&kept);
    assert_eq!(kept.status.code(), Some(0), "{said}");
    assert!(said.starts_with("-- session of 2"), "{said}");
    assert!(said.contains("starting a training of 20 steps") && said.contains("finished: all 20 steps"), "{said}");
    let zoned = |line: &str| line.len() > 26 && &line[4..5] == "-" && (&line[20..21] == "+" || &line[20..21] == "-");
    assert!(said.lines().skip(1).all(zoned), "{said}");
    // The next session's log takes its place; the first one is kept behind it.
    assert_eq!(job.run().code, Some(0));
    let last = text(&job.ckptd(&["logs", &store]));
    assert!(!last.contains("starting a training") && last.contains("the training is finished"), "{last}");
    let all = text(&job.ckptd(&["logs", "--all", &store]));
    assert_eq!(all.matches("-- session of ").count(), 2, "{all}");
}

#[test]
fn a_log_is_followed_while_it_is_written() {
    let job = AgentJob::new(100_000, "");
    let mut run = job.start();
    run.wait_for("verified step 5:");
    let mut follow = job.command(&["logs", "--follow", &job.store().to_string_lossy()]);
    let mut follow = follow.stdout(std::process::Stdio::piped()).spawn().unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(follow.stdout.take().unwrap()));
    let seen = lines.find(|line| line.as_ref().unwrap().contains("verified step 15:"));
    assert!(seen.is_some());
    follow.kill().unwrap();
    follow.wait().unwrap();
    run.signal(Signal::TERM);
    assert_eq!(run.wait().code, Some(75));
}

#[test]
fn a_broken_job_file_is_told_since_when_and_status_and_list_go_on() {
    let job = AgentJob::new(100_000, "");
    let config = job.config().to_string_lossy().into_owned();
    let mut run = job.start();
    run.wait_for("verified step 5:");
    let text_before = std::fs::read_to_string(job.config()).unwrap();
    std::fs::write(job.config(), format!("{text_before}[retention]\nkeep_lats = 4\n")).unwrap();
    run.wait_for("the job file is wrong");
    let status: serde_json::Value = serde_json::from_slice(&job.ckptd(&["status", "--json", &config]).stdout).unwrap();
    let problem = status["problem"].as_str().unwrap();
    assert!(problem.contains("the job file is wrong since 2") && problem.contains("keep_lats = 4"), "{problem}");
    assert_eq!(status["state"], "training");
    let list = job.ckptd(&["list", &config]);
    assert_eq!(list.status.code(), Some(0));
    assert!(text(&list).contains("STEP") && text(&list).contains("warning: the job file is wrong"), "{}", text(&list));
    // Nothing is deleted by what an older file says.
    assert_eq!(job.ckptd(&["prune", &config]).status.code(), Some(78));
    std::fs::write(job.config(), &text_before).unwrap();
    run.wait_for("the job file is right again, and unchanged");
    assert!(job.json("status")["problem"].is_null());
    // No TOML at all, and no job running.
    run.signal(Signal::TERM);
    assert_eq!(run.wait().code, Some(75));
    std::fs::write(job.config(), format!("{text_before}\nwhat is this\n")).unwrap();
    let status = job.ckptd(&["status", &config]);
    assert_eq!(status.status.code(), Some(0), "{}", text(&status));
    assert!(text(&status).contains("problem: the job file is wrong"), "{}", text(&status));
}
