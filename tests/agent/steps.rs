//! Every step of every session is kept, and what a resume from an earlier step cuts off is no part of the curve.
//!
//! `make history-kills` kills 200 sessions (CKPTD_HISTORY_KILLS says how many).

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use ckptd_testkit::random::SeededRandom;
use jiff::Timestamp;
use rustix::process::Signal;
use serde_json::Value;

use crate::harness::{AgentJob, signal};

/// What a crash may cost at most.
const LOST: Duration = Duration::from_secs(5);

fn text(output: std::process::Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn history(job: &AgentJob, arguments: &[&str]) -> String {
    text(job.ckptd(&[&["history", &job.store().to_string_lossy()], arguments].concat()))
}

/// Every step and event, abandoned ones included.
fn all(job: &AgentJob) -> Vec<Value> {
    serde_json::from_str(&history(job, &["--json", "--all"])).unwrap()
}

fn steps<'a>(rows: &'a [Value], is_abandoned: bool) -> impl Iterator<Item = u64> + 'a {
    let of_kind = move |row: &&Value| row["event"] == "step" && (row["abandoned"] == true) == is_abandoned;
    rows.iter().filter(of_kind).map(|row| row["step"].as_u64().unwrap())
}

/// What changes the training, by TensorBoard's own reader of hyperparameters.
fn assert_hyperparameters(shown: &Value) {
    let of = |name: &str| &shown["hyperparameters"][name];
    assert_eq!((of("train.steps"), of("model.preset")), (&150.0.into(), &"gpt2-mini".into()), "{shown}");
    assert!(of("job.seed").is_f64() && of("train.learning_rate").is_f64(), "{shown}");
}

/// Starts a session and ends it with SIGTERM once `step` is verified.
fn session(job: &AgentJob, step: u64) {
    let mut run = job.start();
    run.wait_for(&format!("verified step {step}:"));
    run.signal(Signal::TERM);
    let ended = run.wait();
    assert_eq!(ended.code, Some(75), "{}", ended.log);
}

/// TensorBoard's own reader, which stays open.
struct CurveReader {
    child: std::process::Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl CurveReader {
    fn start(folder: &Path) -> CurveReader {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python/read_tensorboard.py");
        let mut command = Command::new(ckptd_testkit::python::interpreter());
        command.arg(script).arg(folder).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        CurveReader { child, lines }
    }

    /// What it shows now.
    fn look(&mut self) -> Value {
        self.child.stdin.as_mut().unwrap().write_all(b"look\n").unwrap();
        serde_json::from_str(&self.lines.next().unwrap().unwrap()).unwrap()
    }
}

impl Drop for CurveReader {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn three_sessions_with_a_resume_from_an_earlier_step_are_one_curve() {
    let job = AgentJob::new(150, "[retention]\nkeep_every_steps = 20\n[log]\ntensorboard = true");
    session(&job, 40);
    session(&job, 80);
    let events = tempfile::tempdir().unwrap();
    let events_path = events.path().to_string_lossy().into_owned();
    history(&job, &["--tensorboard", &events_path]);
    let mut reader = CurveReader::start(events.path());
    let before = reader.look();
    assert!(before["loss/train"].as_array().unwrap().len() >= 80, "{before}");
    // What was saved after step 40 is gone.
    for entry in std::fs::read_dir(job.store().join("snapshots")).unwrap() {
        let path = entry.unwrap().path();
        let later = path.file_stem().unwrap().to_str().unwrap() > "step-000000000040";
        let _ = later.then(|| std::fs::remove_file(path).unwrap());
    }
    let ended = job.run();
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    assert!(ended.log.contains("resuming from step 40 "), "{}", ended.log);

    let whole: Vec<u64> = (1..=150).collect();
    let rows = all(&job);
    assert_eq!(steps(&rows, false).collect::<Vec<u64>>(), whole);
    let lost: Vec<u64> = steps(&rows, true).collect();
    assert_eq!(lost, (41..41 + lost.len() as u64).collect::<Vec<u64>>());
    assert!(lost.len() >= 40, "{lost:?}");
    let first = rows.iter().find(|row| row["event"] == "step").unwrap();
    let keys: Vec<&String> = first.as_object().unwrap().keys().collect();
    let contract = ["event", "grad_norm", "learning_rate", "loss", "session", "step", "time", "tokens_per_second"];
    assert_eq!(keys, contract, "{first}");
    assert_eq!((&first["loss"], &first["learning_rate"]), (&10.0.into(), &0.001.into()));
    for (event, count) in [("session_started", 3), ("resumed", 3), ("session_ended", 3)] {
        assert_eq!(rows.iter().filter(|row| row["event"] == event).count(), count, "{event}");
    }
    let ends: Vec<&Value> = rows.iter().filter(|row| row["event"] == "session_ended").map(|row| &row["why"]).collect();
    assert_eq!(ends, ["SIGTERM", "SIGTERM", "finished"]);
    let verified = |row: &&Value| row["event"] == "snapshot_verified" && row["abandoned"] != true;
    let verified: BTreeSet<u64> = rows.iter().filter(verified).map(|row| row["step"].as_u64().unwrap()).collect();
    assert!([20, 40, 60, 150].iter().all(|step| verified.contains(step)), "{verified:?}");

    let csv = history(&job, &["--csv"]);
    let column = |line: &str, at: usize| line.split(',').nth(at).unwrap().to_owned();
    assert_eq!(csv.lines().skip(1).map(|line| column(line, 0).parse().unwrap()).collect::<Vec<u64>>(), whole);
    assert!(csv.lines().skip(1).map(|line| column(line, 2)).is_sorted(), "{csv}");
    let table = history(&job, &[]);
    assert!(table.starts_with("step 150 of 150, loss 0.0") && table.contains("steps trained and lost"), "{table}");

    // An open TensorBoard shows the new curve alone.
    history(&job, &["--tensorboard", &events_path]);
    let shown = reader.look();
    let points = shown["loss/train"].as_array().unwrap();
    assert_eq!(points.iter().map(|point| point[0].as_u64().unwrap()).collect::<Vec<u64>>(), whole, "{shown}");
    let fits = |point: &Value| {
        let [step, loss] = [0, 1].map(|at| point[at].as_f64().unwrap());
        (loss - 10.0 / step).abs() < 1e-6 * loss
    };
    assert!(points.iter().all(fits), "{shown}");
    assert_eq!(shown["learning_rate"].as_array().unwrap().len(), 150);
    assert!(shown["job"].as_str().unwrap().contains("gpt2-mini"), "{shown}");
    assert_hyperparameters(&shown);
    // The job itself wrote the same curve, session by session: no point is left of what was cut off. The data server
    // reads it, too.
    let own = CurveReader::start(&job.store().join("tensorboard")).look();
    assert_hyperparameters(&own);
    for points in [&own["loss/train"], &own["data server"]["loss/train"]] {
        let steps: Vec<u64> = points.as_array().unwrap().iter().map(|point| point[0].as_u64().unwrap()).collect();
        assert_eq!(steps, whole, "{points}");
    }
    // A third export leaves two files, too: its own, and the one before without its points.
    history(&job, &["--tensorboard", &events_path]);
    let mut bytes: Vec<u64> =
        std::fs::read_dir(events.path()).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).collect();
    bytes.sort_unstable();
    assert!(bytes.len() == 2 && bytes[0] == 0 && bytes[1] > 5000, "{bytes:?}");

    for name in ["picture.svg", "picture.png"] {
        let path = events.path().join(name);
        let store = job.store().to_string_lossy().into_owned();
        text(job.ckptd(&["plot", &store, "-o", &path.to_string_lossy(), "--theme", "dark"]));
        assert!(std::fs::metadata(path).unwrap().len() > 5000);
    }
    let store = job.store().to_string_lossy().into_owned();
    let refused = job.ckptd(&["plot", &store, "-o", "picture.jpg"]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("pictures are .svg or .png"), "{refused:?}");
}

#[test]
fn a_follower_sees_each_step_as_a_whole_line() {
    let job = AgentJob::new(300, "");
    let mut run = job.start();
    run.wait_for("verified step 5:");
    let store = job.store().to_string_lossy().into_owned();
    let mut follow = job.command(&["history", &store, "--json", "--follow"]).stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(follow.stdout.take().unwrap()).lines();
    let mut seen = Vec::new();
    for line in lines.map_while(Result::ok) {
        let row: Value = serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {line}"));
        if row["event"] == "step" {
            seen.push(row["step"].as_u64().unwrap());
        } else if row["event"] == "session_ended" {
            break;
        }
    }
    let _ = follow.kill();
    let _ = follow.wait();
    assert_eq!(run.wait().code, Some(0));
    assert_eq!(seen, (1..=300).collect::<Vec<u64>>());
}

#[test]
fn a_session_that_is_killed_at_any_moment_loses_at_most_five_seconds_and_leaves_nothing_torn() {
    let kills = std::env::var("CKPTD_HISTORY_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(20);
    let job = AgentJob::new(1_000_000, "");
    let mut random = SeededRandom::new(20);
    let (mut torn, mut longest, mut last) = (0, Duration::ZERO, 0);
    for n in 0..kills {
        let command = job.command(&["run", "-v", "--log-format", "json", &job.config().to_string_lossy()]);
        let mut run = ckptd_testkit::job::RunningAgent::start(command);
        run.wait_for(" done: loss ");
        run.pass(Duration::from_millis(random.below(2600)));
        // A reader comes at any moment, too.
        let while_it_runs = all(&job);
        let worker = run.worker();
        run.signal(Signal::KILL);
        worker.into_iter().for_each(|worker| signal(worker, Signal::KILL));
        let log = run.wait().log;

        let output = job.ckptd(&["history", &job.store().to_string_lossy(), "--json", "--all"]);
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(told.is_empty() || told.contains("half a batch"), "{told}");
        torn += usize::from(!told.is_empty());
        let rows: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
        assert!(rows.len() >= while_it_runs.len());
        for row in rows.iter().filter(|row| row["event"] == "step") {
            let (step, loss) = (row["step"].as_u64().unwrap(), row["loss"].as_f64().unwrap());
            assert!((loss - 10.0 / step as f64).abs() < 1e-6 * loss, "{row}");
        }
        // What it was told last, and what it wrote last.
        let lines: Vec<Value> = log.lines().map_while(|line| serde_json::from_str(line).ok()).collect();
        let done = |line: &&Value| line["message"].as_str().is_some_and(|message| message.contains(" done: loss "));
        let time = |value: &Value| value.as_str().unwrap().parse::<Timestamp>().unwrap();
        let told_last = time(&lines.iter().rfind(done).unwrap()["timestamp"]);
        let began = time(&lines[0]["timestamp"]);
        let written = rows.last().map_or(began, |row| time(&row["time"])).max(began);
        let lost = Duration::try_from(told_last.duration_since(written)).unwrap_or_default();
        assert!(lost <= LOST, "session {n}: {lost:?} are lost");
        longest = longest.max(lost);
        let kept: Vec<u64> = steps(&rows, false).collect();
        assert!(kept.windows(2).all(|pair| pair[1] > pair[0]), "session {n}: the curve goes back");
        last = kept.last().copied().unwrap_or(0).max(last);
    }
    println!("{kills} kills: {torn} torn ends, none read; at most {longest:?} lost; {last} steps");
}

#[test]
fn a_history_that_cannot_be_written_costs_no_training_and_is_told_once() {
    let job = AgentJob::new(300, "");
    // Where the first file of the history would be there is something else.
    std::fs::create_dir_all(job.store().join("history/00000000.growing")).unwrap();
    let ended = job.run();
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    assert_eq!(ended.log.matches("the history is not written").count(), 1, "{}", ended.log);
    assert_eq!(job.json("list")[0]["step"], 300);
    // The next session writes one again.
    std::fs::remove_dir(job.store().join("history/00000000.growing")).unwrap();
    job.configure(330, "");
    assert_eq!(job.run().code, Some(0));
    assert_eq!(steps(&all(&job), false).collect::<Vec<u64>>(), (301..=330).collect::<Vec<u64>>());
}
