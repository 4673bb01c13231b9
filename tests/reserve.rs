//! A worker in reserve takes the place of one that dies, and never outlives its daemon.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::time::{Duration, Instant};

use ckptd_testkit::job::{JobFolder, PATIENCE, RunningAgent, signal};
use ckptd_testkit::text;
use rustix::process::Signal;

fn job(steps: u64) -> JobFolder {
    let folder = JobFolder::new(&format!(
        "threads = 1\n[model]\npreset = \"gpt2-mini\"\n[data]\ntext = [\"text.txt\"]\ncache = \"cache\"\n\
         [snapshot]\nevery_steps = 5\n[log]\nlevel = \"debug\"\n[worker]\nmax_restarts = 100\n\
         [train]\nsteps = {steps}\nbatch_size = 1\nsequence_length = 32\nwarmup_steps = 2\neval_every = 0\n"
    ));
    std::fs::write(folder.path("text.txt"), text::words(20_000)).unwrap();
    folder
}

fn start(job: &JobFolder) -> RunningAgent {
    job.start(Path::new(env!("CARGO_BIN_EXE_ckptd")))
}

/// The worker and the one in reserve, once both are there.
fn both(agent: &mut RunningAgent) -> [u32; 2] {
    let until = Instant::now() + PATIENCE;
    loop {
        let pid = agent.pid();
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        let children: Vec<u32> = children.split_whitespace().map(|pid| pid.parse().unwrap()).collect();
        if let [worker, reserve] = children[..] {
            return [worker, reserve];
        }
        assert!(Instant::now() < until, "{children:?}: {}", agent.log());
        assert!(!agent.pass(Duration::from_millis(20)), "{}", agent.log());
    }
}

/// Waits until nothing runs under this number.
fn gone(pid: u32) {
    let until = Instant::now() + PATIENCE;
    let stat = || std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    while stat().rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z')) {
        assert!(Instant::now() < until, "{pid} is still there");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_worker_that_dies_is_replaced_by_the_one_in_reserve_and_the_training_ends_in_its_root() {
    const STEPS: u64 = 150;
    let undisturbed = job(STEPS);
    assert_eq!(start(&undisturbed).wait().code, Some(0));

    let job = job(STEPS);
    let mut agent = start(&job);
    agent.wait_for(" done: loss");
    let [worker, reserve] = both(&mut agent);
    signal(worker, Signal::KILL);
    agent.wait_for("restarting it at once");
    agent.wait_for(" done: loss");
    assert_eq!(agent.worker(), Some(reserve));

    // One that has died while it waited is not missed.
    let [worker, reserve] = both(&mut agent);
    signal(reserve, Signal::KILL);
    gone(reserve);
    signal(worker, Signal::KILL);
    agent.wait_for("restarting it");
    let ended = agent.wait();
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    assert_eq!(job.root(), undisturbed.root(), "{}", ended.log);
}

#[test]
fn a_worker_in_reserve_ends_with_the_session_and_with_its_daemon() {
    let job = job(100_000);
    for with in [Signal::TERM, Signal::KILL] {
        let mut agent = start(&job);
        agent.wait_for(" done: loss");
        let [worker, reserve] = both(&mut agent);
        agent.signal(with);
        let ended = agent.wait();
        assert_eq!(ended.code, (with == Signal::TERM).then_some(75), "{}", ended.log);
        [worker, reserve].into_iter().for_each(gone);
    }
    // Neither keeps the store.
    let mut agent = start(&job);
    agent.wait_for(" done: loss");
    agent.signal(Signal::TERM);
    assert_eq!(agent.wait().code, Some(75));
}
