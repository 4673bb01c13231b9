//! What the history says of sessions that were killed at any moment is what their logs say.
//!
//! `make kills` kills 50 (CKPTD_KILLS says how many).

use std::time::Duration;

use ckptd_testkit::random::SeededRandom;
use jiff::Timestamp;
use rustix::process::Signal;
use serde_json::Value;

use crate::harness::{AgentJob, EndedRun, RunningAgent, signal};

/// Steps that the daemon may have heard of and that its death kept it from writing down, or from saying in its log: the
/// threads that write and print are others than the one that hears.
const UNWRITTEN: u64 = 5;

/// What the log of one session says.
struct SessionLog {
    first: Timestamp,
    last: Timestamp,
    /// The step that it went on from; `None`: it died before it had chosen.
    from: Option<u64>,
    /// When it had chosen, or its last line: until then the worker before may save a last state.
    chosen: Timestamp,
    /// When each step was heard of.
    steps: Vec<(u64, Timestamp)>,
}

impl SessionLog {
    fn of(run: &EndedRun) -> SessionLog {
        // The line in which it died may be torn.
        let lines: Vec<Value> = run.log.lines().map_while(|line| serde_json::from_str(line).ok()).collect();
        let at = |line: &Value| line["timestamp"].as_str().unwrap().parse::<Timestamp>().unwrap();
        let number = |line: &Value, before: &str| -> Option<u64> {
            let rest = line["message"].as_str()?.strip_prefix(before)?;
            rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
        };
        let chosen = |line: &Value| match line["message"].as_str() {
            Some(message) if message.starts_with("starting a training") => Some(0),
            _ => number(line, "resuming from step "),
        };
        let done = |line: &&Value| line["message"].as_str().is_some_and(|message| message.contains(" done: loss "));
        SessionLog {
            first: at(&lines[0]),
            last: at(lines.last().unwrap()),
            from: lines.iter().find_map(chosen),
            chosen: at(lines.iter().find(|line| chosen(line).is_some()).unwrap_or(lines.last().unwrap())),
            steps: lines.iter().filter(done).map(|line| (number(line, "step ").unwrap(), at(line))).collect(),
        }
    }

    fn heard(&self, step: u64) -> Option<Timestamp> {
        self.steps.iter().find(|(heard, _)| *heard == step).map(|(_, at)| *at)
    }
}

/// Starts a session and kills it at a random moment: the daemon with its worker, or the daemon alone.
fn killed(job: &AgentJob, random: &mut SeededRandom) -> SessionLog {
    let command = job.command(&["run", "-v", "--log-format", "json", &job.config().to_string_lossy()]);
    let mut run = RunningAgent::start(command);
    // Some before their first step.
    let is_early = random.below(5) == 0;
    run.wait_for(if is_early { "in /" } else { " done: loss " });
    run.pass(Duration::from_millis(random.below(if is_early { 60 } else { 600 })));
    let worker = run.worker().filter(|_| is_early || random.below(4) > 0);
    run.signal(Signal::KILL);
    if let Some(worker) = worker {
        signal(worker, Signal::KILL);
    }
    SessionLog::of(&run.wait())
}

#[test]
fn the_history_of_killed_sessions_is_what_their_logs_say() {
    let kills = std::env::var("CKPTD_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(8);
    let job = AgentJob::new(1_000_000, "");
    let mut random = SeededRandom::new(15);
    let mut logs: Vec<SessionLog> = (0..kills).map(|_| killed(&job, &mut random)).collect();
    // The next one corrects the last of them.
    let mut last = job.start();
    last.wait_for("verified step ");
    last.signal(Signal::TERM);
    logs.push(SessionLog::of(&last.wait()));

    let records = std::fs::read(job.store().join("sessions.json")).unwrap();
    let records: Value = serde_json::from_slice(&records).unwrap();
    let records = records["sessions"].as_array().unwrap();
    let time = |record: &Value, key: &str| record[key].as_str().unwrap().parse::<Timestamp>().unwrap();
    let mut to_the_step = 0;
    for (n, log) in logs[..kills].iter().enumerate() {
        let next = &logs[n + 1];
        // It began, and was entered, before its first line.
        let since = n.checked_sub(1).map_or(Timestamp::MIN, |before| logs[before].first);
        let found = records.iter().find(|record| (since..=log.first).contains(&time(record, "began")));
        let Some(record) = found else {
            assert!(log.steps.is_empty(), "session {n} has steps and no record: {records:?}");
            continue;
        };
        let [from, saved, step, lost] =
            ["from_step", "saved_step", "step", "lost_steps"].map(|key| record[key].as_u64().unwrap());
        // Where it went on, and where the first one after it that had chosen did.
        let after = logs[n + 1..].iter().find_map(|log| log.from).unwrap();
        assert_eq!(record["cause"], "killed", "{n}: {record}");
        assert_eq!((from, saved), (log.from.unwrap_or(after), after), "{n}: {record}");
        assert_eq!(lost, step - saved, "{n}: {record}");
        let furthest = log.steps.last().map_or(from, |(step, _)| *step).max(saved);
        assert!(step.abs_diff(furthest) <= UNWRITTEN, "{n}: {furthest} by the log: {record}");
        to_the_step += usize::from(step == furthest);
        // It lasted until that step, or until its worker had saved a last one.
        let ended = time(record, "ended");
        let earliest = log.heard(step.saturating_sub(1)).unwrap_or(time(record, "began"));
        let unsaid = if step > furthest { next.first } else { log.last };
        let latest = if saved < step { log.heard(step + 1).unwrap_or(unsaid) } else { next.chosen };
        assert!((earliest..=latest).contains(&ended), "{n}: {ended} is not from {earliest} to {latest}: {record}");
    }
    println!("{kills} killed sessions: {to_the_step} to the very step, the others within {UNWRITTEN}");
}
