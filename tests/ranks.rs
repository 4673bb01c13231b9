//! Ranks behind a launcher: it closes what it has inherited, its exit code means nothing, and it may be killed while
//! its ranks live. And what ranks that do not agree lead to.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use ckptd_testkit::job::{JobFolder, RunningAgent, signal};
use ckptd_testkit::text;
use rustix::process::Signal;
use serde_json::Value;

/// So many steps that no session here comes to the last.
const ENDLESS: u64 = 1000;

/// Starts a rank per process, as torchrun does: in sessions of their own, with nothing inherited but rank 0's pipes.
const LAUNCHER: &str = r#"
import os, subprocess, sys
count = int(sys.argv[1])
def start(rank):
    own = dict(os.environ, RANK=str(rank), WORLD_SIZE=str(count))
    pipes = {} if rank == 0 else dict(stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    return subprocess.Popen(sys.argv[2:], env=own, start_new_session=True, **pipes)
for rank in [start(rank) for rank in range(count)]:
    rank.wait()
sys.exit(9)
"#;

fn config(steps: u64, ranks: &str) -> String {
    format!(
        "threads = 1\n[model]\npreset = \"gpt2-mini\"\ndropout = 0.1\n\
         [data]\ntext = [\"text.txt\"]\ncache = \"cache\"\n[snapshot]\nevery_steps = 5\n[log]\nlevel = \"debug\"\n\
         [worker]\nmax_restarts = 100\n[retention]\nkeep_last = 1000\n\
         [train]\nsteps = {steps}\nbatch_size = 1\nsequence_length = 32\nwarmup_steps = 2\ngrad_accumulation = 6\n\
         eval_every = 10\neval_batches = 4\n[ranks]\n{ranks}\n"
    )
}

fn job(steps: u64, ranks: &str) -> JobFolder {
    let folder = JobFolder::new(&config(steps, ranks));
    std::fs::write(folder.path("text.txt"), text::words(20_000)).unwrap();
    std::fs::write(folder.path("launcher.py"), LAUNCHER).unwrap();
    folder
}

fn start(job: &JobFolder) -> RunningAgent {
    job.start(Path::new(env!("CARGO_BIN_EXE_ckptd")))
}

fn behind_launcher(job: &JobFolder, count: &str) -> String {
    let launcher = job.path("launcher.py");
    format!("launcher = [\"python3\", \"{}\", \"{{count}}\"]\ncount = {count}", launcher.display())
}

fn status(job: &JobFolder) -> Value {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ckptd"));
    let output = command.args(["status", "--json"]).arg(job.config()).output().unwrap();
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn ranks_of_a_launcher_end_in_the_same_root_whatever_its_exit_code_and_however_it_ends() {
    let many = job(ENDLESS, "");
    many.configure(&config(ENDLESS, &behind_launcher(&many, "3")));
    let mut agent = start(&many);
    agent.wait_for("3 ranks compute this training together");
    agent.wait_for("step 7 done");
    // Rank 0 is asked once per second.
    let ranks = loop {
        let report = status(&many);
        if !report["ranks"]["slowest"].is_null() {
            break report["ranks"].clone();
        }
        assert!(!agent.pass(Duration::from_millis(50)), "{}", agent.log());
    };
    assert_eq!((&ranks["count"], ranks["each"].as_array().unwrap().len()), (&Value::from(3), 3), "{ranks}");
    assert!(ranks["slowest"].as_u64().unwrap() < 3 && ranks["lag_ms"].as_f64().unwrap() >= 0.0, "{ranks}");
    // Its ranks live on, and rank 0 saves what it has: nobody else writes before it has left.
    signal(agent.worker().unwrap(), Signal::KILL);
    agent.wait_for("it was killed by SIGKILL; restarting it");
    agent.wait_for("3 ranks compute this training together");
    agent.wait_for(" done: loss");
    agent.signal(Signal::TERM);
    let ended = agent.wait();
    assert_eq!(ended.code, Some(75), "{}", ended.log);
    let saved = many.newest().unwrap().step();
    assert!(saved >= 7, "{}", ended.log);

    many.configure(&config(ENDLESS, &behind_launcher(&many, "\"auto\"")));
    holds_what_one_process_computes(&many, saved);

    let few = job(3, "");
    few.configure(&config(3, &behind_launcher(&few, "2")));
    let ended = start(&few).wait();
    assert_eq!(ended.code, Some(0), "its launcher exits with 9: {}", ended.log);
}

/// Goes on with a disturbed training until a snapshot after step `since` is verified, and holds its snapshots against
/// those of a training on one process.
fn holds_what_one_process_computes(many: &JobFolder, since: u64) {
    let train_until = |job: &JobFolder, is_there: &dyn Fn(u64) -> bool| {
        let mut agent = start(job);
        while !job.newest().is_some_and(|newest| is_there(newest.step())) {
            assert!(!agent.pass(Duration::from_millis(50)), "{}", agent.log());
        }
        agent.signal(Signal::TERM);
        let ended = agent.wait();
        assert_eq!(ended.code, Some(75), "{}", ended.log);
    };
    // Several, since a snapshot is left out while another one is in flight.
    train_until(many, &|step| step >= since + 15);
    let found = roots(many);
    let last = *found.keys().filter(|step| *step % 5 == 0).max().unwrap();
    let alone = job(ENDLESS, "");
    train_until(&alone, &|step| step >= last);
    let expected = roots(&alone);
    let common: Vec<u64> = found.keys().filter(|step| expected.contains_key(step)).copied().collect();
    assert!(common.iter().any(|step| *step > since), "{found:?} {expected:?}");
    for step in common {
        assert_eq!(found[&step], expected[&step], "step {step}");
    }
}

#[test]
fn a_launcher_that_starts_something_else_than_it_was_asked_for_is_named() {
    let job = job(5, "launcher = [\"env\", \"-u\", \"RANK\"]\ncount = 2");
    let ended = start(&job).wait();
    assert_eq!(ended.code, Some(78), "{}", ended.log);
    assert!(ended.log.contains("[ranks] launcher env was to start 2 ranks"), "{}", ended.log);
    job.configure(&config(5, "launcher = [\"env\", \"RANK=0\"]\ncount = 2"));
    let ended = start(&job).wait();
    assert_eq!(ended.code, Some(78), "{}", ended.log);
    assert!(ended.log.contains("RANK=0 is set in the environment, and WORLD_SIZE is not"), "{}", ended.log);
}

fn sharded(count: usize) -> String {
    format!("count = {count}\nshard_optimizer = true")
}

/// The last step that a session has told since it lost a rank, if it did.
fn last_step(log: &str) -> u64 {
    let since = log.rfind("is gone").unwrap_or(0);
    let done = log[since..].split(" done: loss").filter_map(|text| text.rsplit("step ").next()?.parse().ok());
    done.max().unwrap_or(0)
}

#[test]
fn a_stopped_session_with_a_sharded_optimizer_saves_the_newest_state_and_a_lost_rank_costs_little() {
    let many = job(ENDLESS, &sharded(3));
    for part in 0..5 {
        let mut agent = start(&many);
        agent.wait_for(" done: loss");
        if part == 2 {
            let report = loop {
                let report = status_text(&many);
                if report.contains("ranks: 3") {
                    break report;
                }
                assert!(!agent.pass(Duration::from_millis(50)), "{}", agent.log());
            };
            assert!(report.contains("losing one costs the steps since the newest snapshot"), "{report}");
            // A rank that rank 0 has started.
            signal(other_rank(agent.worker().unwrap()), Signal::KILL);
            agent.wait_for("is gone, after step");
            agent.wait_for("3 ranks compute this training together");
            agent.wait_for(" done: loss");
        }
        // At another place within a step each time.
        agent.pass(Duration::from_millis(137 * part));
        agent.signal(Signal::TERM);
        let ended = agent.wait();
        assert_eq!(ended.code, Some(75), "{}", ended.log);
        let saved = many.newest().unwrap().step();
        assert!(saved >= last_step(&ended.log), "{saved}: {}", ended.log);
    }
    many.configure(&config(ENDLESS, "count = 2"));
    holds_what_one_process_computes(&many, many.newest().unwrap().step());
}

/// The highest of the ranks that this rank 0 has started.
fn other_rank(zero: u32) -> u32 {
    let children = std::fs::read_to_string(format!("/proc/{zero}/task/{zero}/children")).unwrap();
    children.split_whitespace().last().unwrap().parse().unwrap()
}

fn status_text(job: &JobFolder) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_ckptd")).arg("status").arg(job.config()).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

/// Starts the job with one bit of `rank`'s parameters flipped after step 12, once.
fn start_flipping(job: &JobFolder, rank: usize) -> RunningAgent {
    let once = job.path("flip");
    std::fs::write(&once, "").unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_ckptd"));
    command.args(["run", "--log-format", "json"]).arg(job.config());
    command.env("CKPTD_TEST_FLIP_BIT", format!("{rank}:12:{}", once.display()));
    RunningAgent::start(command)
}

/// What each snapshot holds, by step.
fn roots(job: &JobFolder) -> BTreeMap<u64, String> {
    let manifests = job.store().entries().unwrap().into_iter().filter_map(|entry| entry.manifest);
    manifests.map(|manifest| (manifest.train.step, manifest.root.to_string())).collect()
}

#[test]
fn a_flipped_bit_is_found_its_rank_is_named_and_the_result_is_the_undisturbed_one() {
    const STEPS: u64 = 24;
    let alone = job(STEPS, "");
    assert_eq!(start(&alone).wait().code, Some(0));
    let cases = [
        ("count = 3", 2, "rank 2 holds a state other than the rest"),
        ("count = 3", 0, "rank 0 holds a state other than the rest"),
        ("count = 2", 1, "rank 1 held another state"),
        ("count = 2", 0, "rank 0 held another state"),
        (&sharded(3), 2, "rank 2 holds a state other than its last update left"),
        (&sharded(2), 0, "rank 0 holds a state other than its last update left"),
    ];
    for (ranks, rank, told) in cases {
        let job = job(STEPS, ranks);
        let ended = start_flipping(&job, rank).wait();
        assert_eq!(ended.code, Some(0), "{}", ended.log);
        assert!(ended.log.contains(told), "{told}: {}", ended.log);
        assert_eq!(job.root(), alone.root(), "{ranks}, a bit of rank {rank}: {}", ended.log);
        // What rank 0 saved is right where most of them hold the same. Otherwise what it wrote since they last agreed
        // is set aside; whether it had written something by then is a matter of time.
        let (aside, is_right) = (job.store().quarantined().unwrap(), told.ends_with("than the rest") && rank != 0);
        assert!(!is_right || aside.is_empty(), "{ranks}, a bit of rank {rank}: {aside:?}");
        let right = roots(&alone);
        for (step, root) in roots(&job) {
            assert!(right.get(&step).is_none_or(|right| *right == root), "step {step} is wrong: {}", ended.log);
        }
    }
}
