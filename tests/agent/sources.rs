//! Whoever knows that the session ends is heard: Slurm, a touched file, the clouds. Who talks nonsense is not.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use jiff::Timestamp;

use rustix::process::Signal;

use crate::harness::{AgentJob, EndedRun, RunningAgent};
use crate::metadata::{Answer, Request, Service, ok};

/// What the log says once about a source in trouble.
const TROUBLE: &str = "the training goes on, and it is asked again";

/// A job that is not at its end before a test is, with snapshots at the end only.
fn long_job(session: &str) -> AgentJob {
    let job = AgentJob::new(100_000, &format!("[session]\n{session}"));
    let config = std::fs::read_to_string(job.config()).unwrap().replace("every_steps = 5", "every_steps = 1000000");
    std::fs::write(job.config(), config).unwrap();
    job
}

fn in_seconds(seconds: u64) -> Timestamp {
    Timestamp::now() + Duration::from_secs(seconds)
}

/// The whole story of a session that a source ends: what was trained is saved and verified, and 75 says "go on".
fn ends_well(run: RunningAgent, source: &str) -> EndedRun {
    let ended = run.wait();
    assert_eq!(ended.code, Some(75), "{}", ended.log);
    let last = ended.log.lines().rev().find(|line| line.contains("session over")).unwrap_or_default();
    assert!(last.contains(source) && last.contains("is saved and verified; `ckptd run` goes on"), "{}", ended.log);
    ended
}

/// Waits for the first step.
fn trains(run: &mut RunningAgent) {
    run.wait_for(", loss ");
}

/// How many seconds are left until the deadline that the daemon knows of, as soon as it knows of one.
fn seconds_left(job: &AgentJob) -> f64 {
    let mut asked = (0..100).filter_map(|_| job.json("status")["session"]["seconds_left"].as_f64());
    asked.next().unwrap_or_else(|| panic!("no deadline: {}", job.json("status")))
}

fn goes_on_until_told(mut run: RunningAgent) -> EndedRun {
    run.signal(Signal::TERM);
    run.wait_for("stopping: SIGTERM");
    let ended = run.wait();
    assert_eq!(ended.code, Some(75), "{}", ended.log);
    ended
}

fn aws(request: &Request, action: Answer, rebalance: Answer) -> Answer {
    match request.line.as_str() {
        "PUT /latest/api/token" if request.header("X-aws-ec2-metadata-token-ttl-seconds") == Some("21600") => {
            // An empty body in chunks would still be on its way when the answer comes.
            assert_eq!((request.header("Content-Length"), request.header("Transfer-Encoding")), (Some("0"), None));
            ok("TOKEN")
        }
        _ if request.header("X-aws-ec2-metadata-token") != Some("TOKEN") => Answer::Reply(401, String::new()),
        "GET /latest/meta-data/spot/instance-action" => action,
        "GET /latest/meta-data/events/recommendations/rebalance" => rebalance,
        other => panic!("{other}"),
    }
}

fn nothing() -> Answer {
    Answer::Reply(404, String::new())
}

#[test]
fn a_spot_interruption_of_aws_ends_the_session_before_its_time() {
    let at = in_seconds(5);
    let service = Service::start(move |request| {
        aws(request, ok(&format!(r#"{{"action": "terminate", "time": "{at:.0}"}}"#)), nothing())
    });
    let job = long_job(&format!("aws = true\naws_url = \"{}\"", service.url));
    // A proxy that leads nowhere is not used.
    let run = job.start_with(&[("http_proxy", "http://127.0.0.1:1"), ("ALL_PROXY", "http://127.0.0.1:1")]);
    let ended = ends_well(run, "AWS spot");
    assert!(ended.log.contains("AWS spot: terminate at"), "{}", ended.log);
    assert!(!ended.log.contains(TROUBLE), "{}", ended.log);
}

#[test]
fn a_rebalance_recommendation_takes_a_snapshot_and_the_training_goes_on() {
    let service = Service::start(|request| aws(request, nothing(), nothing()));
    let job = long_job(&format!("aws = true\naws_url = \"{}\"", service.url));
    let mut run = job.start();
    trains(&mut run);
    service.answers(|request| aws(request, nothing(), ok(r#"{"noticeTime": "2026-11-24T08:22:00Z"}"#)));
    run.wait_for("AWS rebalance: recommended at 2026-11-24T08:22:00Z");
    run.wait_for("verified step");
    goes_on_until_told(run);
}

#[test]
fn a_preemption_of_google_cloud_is_an_end_within_thirty_seconds() {
    let service = Service::start(|request| match request.line.as_str() {
        _ if request.header("Metadata-Flavor") != Some("Google") => Answer::Reply(403, String::new()),
        "GET /computeMetadata/v1/instance/preempted" => ok("TRUE"),
        "GET /computeMetadata/v1/instance/maintenance-event" => ok("MIGRATE_ON_HOST_MAINTENANCE"),
        other => panic!("{other}"),
    });
    let job = long_job(&format!("gcp = true\ngcp_url = \"{}/\"", service.url));
    let mut run = job.start();
    trains(&mut run);
    let left = seconds_left(&job);
    assert!((1.0..=29.0).contains(&left), "{left}");
    let ended = goes_on_until_told(run);
    assert!(ended.log.contains("this instance is preempted"), "{}", ended.log);
    assert!(ended.log.contains("about to be moved to another host"), "{}", ended.log);
}

#[test]
fn a_scheduled_event_of_azure_counts_if_it_names_this_machine() {
    let at = in_seconds(5).strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
    let event = |id: &str, machine: &str, at: &str| {
        format!(
            r#"{{"EventId":"{id}","EventStatus":"Scheduled","EventType":"Preempt","ResourceType":"VirtualMachine",
                "Resources":["{machine}"],"NotBefore":"{at}"}}"#
        )
    };
    let others = event("A", "somebody", "");
    let events = format!(r#"{{"DocumentIncarnation":2,"Events":[{others},{}]}}"#, event("B", "Trainer_3", &at));
    let service = Service::start(move |request| match request.line.as_str() {
        _ if request.header("Metadata") != Some("true") => Answer::Reply(400, String::new()),
        "GET /metadata/instance/compute/name?api-version=2021-02-01&format=text" => ok("trainer_3"),
        "GET /metadata/scheduledevents?api-version=2020-07-01" => ok(&events),
        other => panic!("{other}"),
    });
    let job = long_job(&format!("azure = true\nazure_url = \"{}\"", service.url));
    let ended = ends_well(job.start(), "Azure scheduled events");
    assert!(ended.log.contains("event B"), "{}", ended.log);
}

#[test]
fn slurms_end_time_ends_the_session_before_the_allocation_does() {
    let job = long_job("");
    let end = in_seconds(4).as_second().to_string();
    ends_well(job.start_with(&[("SLURM_JOB_ID", "4711"), ("SLURM_JOB_END_TIME", &end)]), "Slurm");
}

/// A shell script at `path`, written by another process: what a sibling's fork holds open for writing cannot be run.
fn program(path: &Path, script: &str) {
    let source = path.with_extension("source");
    std::fs::write(&source, format!("#!/bin/sh\n{script}\n")).unwrap();
    let installed = Command::new("install").arg("-m755").args([&source, path]).status().unwrap();
    assert!(installed.success());
}

/// A squeue that does what `script` says, first in PATH.
fn with_squeue(job: &AgentJob, script: &str) -> RunningAgent {
    with_squeue_and(job, script, &[("SLURM_JOB_ID", "4711")])
}

/// The same with more in the environment.
fn with_squeue_and(job: &AgentJob, script: &str, more: &[(&str, &str)]) -> RunningAgent {
    let folder = job.script().join("bin");
    std::fs::create_dir_all(&folder).unwrap();
    program(&folder.join("squeue"), script);
    let path = format!("{}:{}", folder.display(), std::env::var("PATH").unwrap());
    job.start_with(&[more, &[("PATH", path.as_str())]].concat())
}

#[test]
fn a_task_of_an_array_asks_by_its_own_id_and_without_the_users_settings_for_squeue() {
    let job = long_job("");
    let end = in_seconds(5).as_second();
    // What squeue says of the whole array is a line for each task, the others' ends included.
    let script = format!(
        "[ \"$*\" = '-h -j 4700_3 -o %e' ] || {{ printf '{}\\n{end}\\n' ; exit; }}\n\
         env | grep -q ^SQUEUE_ || echo {end}",
        end - 3600
    );
    let array = [("SLURM_JOB_ID", "4700"), ("SLURM_ARRAY_JOB_ID", "4700"), ("SLURM_ARRAY_TASK_ID", "3")];
    let users = [("SQUEUE_STATES", "PENDING"), ("SQUEUE_USERS", "nobody")];
    let ended = ends_well(with_squeue_and(&job, &script, &[&array[..], &users[..]].concat()), "Slurm");
    assert!(!ended.log.contains(TROUBLE), "{}", ended.log);
}

#[test]
fn an_allocation_that_is_over_is_told_and_not_obeyed() {
    let past = (Timestamp::now() - Duration::from_secs(3600)).as_second().to_string();
    let soon = in_seconds(600).as_second().to_string();
    // What the environment says of its end, and how squeue says that it knows no such job.
    for (end, script) in [
        (&past, "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1"),
        (&past, "exit 0"),
        (&soon, "exit 0"),
    ] {
        let job = long_job("");
        let environment = [("SLURM_JOB_ID", "4711"), ("SLURM_JOB_END_TIME", end.as_str())];
        let mut run = with_squeue_and(&job, script, &environment);
        if end == &soon {
            // The first word counts until squeue has the last one; SIGCONT has it asked at once.
            run.wait_for("Slurm: the session ends in");
            trains(&mut run);
            run.signal(Signal::CONT);
        }
        run.wait_for("the environment speaks of job 4711, which is over: its end is not obeyed");
        trains(&mut run);
        let ended = goes_on_until_told(run);
        assert!(ended.log.contains("session over (SIGTERM)"), "{}", ended.log);
    }
}

#[test]
fn a_limit_that_was_extended_is_heard_of_after_sigcont() {
    let job = long_job("");
    let file = job.script().join("end");
    std::fs::write(&file, in_seconds(30).as_second().to_string()).unwrap();
    let mut run = with_squeue(&job, &format!("cat {}", file.display()));
    run.wait_for("Slurm: the session ends in");
    trains(&mut run);
    std::fs::write(&file, in_seconds(3600).as_second().to_string()).unwrap();
    run.signal(Signal::CONT);
    run.wait_for("Slurm: the session ends in 5");
    assert!(seconds_left(&job) > 3000.0);
    goes_on_until_told(run);
}

#[test]
fn squeue_is_asked_where_slurm_does_not_say_when_the_allocation_ends() {
    let job = long_job("");
    let end = in_seconds(5).as_second();
    let script = format!("[ \"$*\" = '-h -j 4711 -o %e' ] && [ \"$SLURM_TIME_FORMAT\" = %s ] && echo {end}");
    ends_well(with_squeue(&job, &script), "Slurm");
}

#[test]
fn a_broken_squeue_costs_one_log_line() {
    for (script, what) in [
        ("sleep 600", "in time"),
        ("exit 1", "exit status: 1"),
        ("head -c 65537 /dev/zero", "64 KiB"),
        ("echo hm", "no time"),
    ] {
        let job = long_job("");
        let mut run = with_squeue(&job, script);
        let line = run.wait_for(TROUBLE);
        assert!(line.contains("Slurm: ") && line.contains(what), "{line}");
        goes_on_until_told(run);
    }
}

#[test]
fn the_slurm_recipe_ends_the_session_on_its_signal_and_requeues_the_job() {
    let job = long_job("slurm = false");
    let folder = job.script().join("bin");
    std::fs::create_dir(&folder).unwrap();
    std::fs::copy(job.config(), job.config().with_file_name("finetune.toml")).unwrap();
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_ckptd"), folder.join("ckptd")).unwrap();
    program(&folder.join("scontrol"), "echo \"$@\" > requeued");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/slurm.sbatch");
    let submitted = job.config().parent().unwrap().to_path_buf();
    let mut shell = Command::new("bash")
        .arg(script)
        .envs([("SLURM_JOB_ID", "4711".into()), ("SLURM_SUBMIT_DIR", submitted.clone())])
        .env("PATH", format!("{}:{}", folder.display(), std::env::var("PATH").unwrap()))
        .env(crate::worker::SCRIPT, job.script())
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(shell.stderr.take().unwrap()).lines();
    let mut wait_for = |text: &str| lines.any(|line| line.unwrap().contains(text));
    assert!(wait_for(", loss "));
    crate::harness::signal(shell.id(), Signal::USR1);
    assert!(wait_for("verified step"));
    crate::harness::signal(shell.id(), Signal::USR2);
    assert!(wait_for("session over (SIGUSR2)"));
    assert_eq!(shell.wait().unwrap().code(), Some(75));
    assert_eq!(std::fs::read_to_string(submitted.join("requeued")).unwrap(), "requeue 4711\n");
}

#[test]
fn a_touched_notice_file_ends_the_session_and_one_from_before_does_not() {
    let job = long_job("notice_file = \"stop\"");
    let file = job.config().with_file_name("stop");
    let mut run = job.start();
    trains(&mut run);
    std::fs::write(&file, "").unwrap();
    ends_well(run, "notice file");
    // It lies there still.
    let mut run = job.start();
    run.wait_for("is there already; it counts when it is touched again");
    trains(&mut run);
    std::fs::File::open(&file).unwrap().set_modified(std::time::SystemTime::now()).unwrap();
    ends_well(run, "notice file");
}

#[test]
fn a_new_file_in_a_notice_folder_ends_the_session() {
    let job = long_job("notice_file = \"notices\"");
    let folder = job.config().with_file_name("notices");
    std::fs::create_dir(&folder).unwrap();
    let mut run = job.start();
    trains(&mut run);
    std::fs::write(folder.join("maintenance-at-noon"), "").unwrap();
    ends_well(run, "notice file");
}

#[test]
fn broken_metadata_services_cost_one_log_line_each_and_not_the_training() {
    let elsewhere = Service::start(|_| ok("TRUE"));
    let decoy = format!("{}/computeMetadata/v1/instance/preempted", elsewhere.url);
    type Fault = fn(String) -> Answer;
    let faults: [(&str, Fault); 8] = [
        ("hang", |_| Answer::Hang),
        ("drip", |_| Answer::Drip),
        ("flood", |_| Answer::Flood),
        ("noise", |_| Answer::Noise),
        ("cut", |_| Answer::Cut),
        ("redirect", Answer::Redirect),
        ("error", |_| Answer::Reply(500, String::new())),
        ("nonsense", |_| ok("<html>Log in to the network</html>")),
    ];
    let runs = faults.map(|(name, fault)| {
        let decoy = decoy.clone();
        let service = Service::start(move |_| fault(decoy.clone()));
        let url = &service.url;
        let job = long_job(&format!(
            "aws = true\naws_url = \"{url}\"\ngcp = true\ngcp_url = \"{url}\"\nazure = true\nazure_url = \"{url}\""
        ));
        let mut run = job.start();
        run.wait_for(TROUBLE);
        (name, service, job, run)
    });
    for (name, service, _job, mut run) in runs {
        // Each of the five is asked at least twice.
        while service.times_asked() < 12 {
            run.wait_for("step ");
        }
        let ended = goes_on_until_told(run);
        for source in [
            "AWS spot",
            "AWS rebalance",
            "Google Cloud preemption",
            "Google Cloud maintenance",
            "Azure scheduled events",
        ] {
            let lines = ended.log.lines().filter(|line| line.contains(source)).count();
            assert_eq!(lines, 1, "{name}, {source}: {}", ended.log);
        }
    }
    assert_eq!(elsewhere.times_asked(), 0, "a redirect was followed");
}

#[test]
fn a_service_that_comes_back_is_heard_again() {
    let service = Service::start(|_| Answer::Reply(503, String::new()));
    let job = long_job(&format!("gcp = true\ngcp_url = \"{}\"", service.url));
    let mut run = job.start();
    run.wait_for(TROUBLE);
    trains(&mut run);
    service.answers(|request| {
        ok(if request.line.contains("preempted") { "FALSE" } else { "MIGRATE_ON_HOST_MAINTENANCE" })
    });
    run.wait_for("it answers again");
    run.wait_for("moved to another host");
    run.wait_for("verified step");
    goes_on_until_told(run);
}
