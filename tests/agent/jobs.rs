//! Several jobs on one machine: `ckptd jobs` lists those that run, and `ckptd serve` shows any number of stores,
//! running or not.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use rustix::process::Signal;
use serde_json::Value;

use crate::harness::{AgentJob, RunningAgent, signal, worker_of};
use crate::page::Page;

/// The jobs of `stores` as `ckptd jobs` has them: the tests beside this one run jobs, too.
fn listed(job: &AgentJob, stores: &[&AgentJob]) -> Vec<Value> {
    let output = job.ckptd(&["jobs", "--json"]);
    let rows: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    let paths: BTreeSet<String> = stores.iter().map(|job| job.store().to_string_lossy().into_owned()).collect();
    rows.into_iter().filter(|row| paths.contains(row["store"].as_str().unwrap())).collect()
}

fn named(name: &str, steps: u64, more: &str) -> AgentJob {
    AgentJob::new(steps, &format!("[job]\nname = {name:?}\nstore = \"checkpoints/job\"\n{more}"))
}

fn end(run: RunningAgent) {
    run.signal(Signal::TERM);
    assert_eq!(run.wait().code, Some(75));
}

#[test]
fn jobs_lists_each_job_that_runs_with_its_state_its_step_what_is_verified_and_the_time_left() {
    let (one, two) = (named("one", 100_000, "[session]\nbudget = \"10m\"\n"), named("two", 100_000, ""));
    let (mut first, mut second) = (one.start(), two.start());
    for run in [&mut first, &mut second] {
        run.wait_for("verified step 5:");
    }
    let rows = listed(&one, &[&one, &two]);
    assert_eq!(rows.len(), 2, "{rows:?}");
    for (job, run, name) in [(&one, &first, "one"), (&two, &second, "two")] {
        let store = job.store().to_string_lossy().into_owned();
        let row = rows.iter().find(|row| row["store"] == store).unwrap();
        assert_eq!((&row["job"], &row["state"], &row["problem"]), (&name.into(), &"training".into(), &Value::Null));
        let pids: Vec<u64> = row["pids"].as_array().unwrap().iter().filter_map(Value::as_u64).collect();
        assert!(pids.contains(&run.pid().into()) && pids.contains(&worker_of(job).into()), "{row}");
        assert!(row["step"].as_u64().unwrap() >= 5 && row["total_steps"] == 100_000, "{row}");
        assert!(row["last_verified"]["step"].as_u64().unwrap() >= 5, "{row}");
        assert!(row["last_verified"]["age_seconds"].as_f64().unwrap() >= 0.0, "{row}");
        let left = row["session_seconds_left"].as_f64();
        assert_eq!(left.is_some_and(|left| (1.0..=600.0).contains(&left)), name == "one", "{row}");
    }
    let table = String::from_utf8(one.ckptd(&["jobs"]).stdout).unwrap();
    let line = table.lines().find(|line| line.contains(&*two.store().to_string_lossy())).unwrap();
    assert!(line.starts_with("two") && line.contains("training") && line.contains("/100000"), "{table}");
    // One that ends is listed no longer.
    end(first);
    let rows = listed(&one, &[&one, &two]);
    assert!(rows.len() == 1 && rows[0]["job"] == "two", "{rows:?}");
    end(second);
    assert!(listed(&one, &[&one, &two]).is_empty());
}

/// `ckptd serve` on a free port; it is ended where the test ends before it.
struct Server {
    child: std::process::Child,
    page: Page,
}

impl Server {
    fn start(mut command: Command) -> Server {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let (port, token) =
            line.trim().strip_prefix("http://127.0.0.1:").unwrap().split_once("/, its token is ").unwrap();
        let page = Page { port: port.parse().unwrap(), token: token.to_owned() };
        Server { child, page }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn serve_shows_several_stores_at_once_running_or_not_and_only_to_those_who_know_the_token() {
    let (running, over) = (named("running", 100_000, ""), named("over", 10, ""));
    assert_eq!(over.run().code, Some(0));
    let mut run = running.start();
    run.wait_for("verified step 5:");
    // A job file and a store.
    let (config, store) = (running.config(), over.store());
    let arguments = ["serve", &config.to_string_lossy(), &store.to_string_lossy(), "--http", "127.0.0.1:0"];
    let mut server = Server::start(running.command(&arguments));
    let page = &server.page;
    let states = |page: &Page| {
        [0, 1].map(|n| {
            let status: Value = serde_json::from_str(&page.get(&format!("/jobs/{n}/status.json")).body).unwrap();
            (status["name"].clone(), status["state"].clone(), status["is_live"].clone())
        })
    };
    let [live, files] = states(page);
    assert_eq!(live, ("running".into(), "training".into(), true.into()));
    assert_eq!(files, ("over".into(), "finished".into(), false.into()));
    assert_eq!(page.get("/jobs/2/").status, 404);
    assert_eq!(page.get("/").status, 200);
    for path in ["/", "/jobs/1/", "/jobs/1/events", "/events", "/metrics"] {
        assert_eq!(page.ask(&format!("GET {path}"), &[], "").status, 401, "{path}");
    }
    let (_, jobs) = page.events("/events", 1).remove(0);
    let text = jobs.to_string();
    assert!(text.contains("\"running\"") && text.contains("\"over\""), "{text}");
    let metrics = page.get("/metrics").body;
    for line in ["ckptd_job_live{job_name=\"running\"} 1\n", "ckptd_job_live{job_name=\"over\"} 0\n"] {
        assert!(metrics.contains(line), "{metrics}");
    }
    assert!(page.get("/jobs/1/picture.svg").body.starts_with("<svg"));
    // The page goes on when a job ends.
    end(run);
    let ended = std::iter::repeat_with(|| states(page)[0].clone()).take(100).find(|(_, state, _)| {
        let is_over = state == "stopped";
        if !is_over {
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        is_over
    });
    assert!(ended.is_some_and(|(_, _, is_live)| is_live == false));
    signal(server.child.id(), Signal::TERM);
    assert_eq!(server.child.wait().unwrap().code(), Some(0));
}
