//! Whole programs under fire: ckptd, its worker, or both are killed or stopped at random moments.
//!
//! Invariant: at every moment the store holds to its promises; a stopped worker is noticed and replaced; in the end
//! the training is complete, and its state is to the bit that of a run that nothing disturbed.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use rustix::process::Signal;

pub use crate::job::WorkerKind;
use crate::job::{self, ChaosAgent, ChaosJob, PATIENCE};
use crate::place;
use crate::row::{CampaignRow, CampaignTally};
use ckptd_testkit::random::SeededRandom;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StormStrike {
    KillAgent,
    KillWorker,
    KillBoth,
    /// A worker that hangs.
    StopWorker,
    /// A machine that stood still for a moment: nothing may come of it.
    PauseAgent,
    PauseAgentThenKillWorker,
}

const STRIKES: [StormStrike; 6] = [
    StormStrike::KillAgent,
    StormStrike::KillWorker,
    StormStrike::KillBoth,
    StormStrike::PauseAgent,
    StormStrike::PauseAgentThenKillWorker,
    StormStrike::StopWorker,
];

fn steps(kind: WorkerKind) -> u64 {
    match kind {
        WorkerKind::Quick => 400,
        WorkerKind::Gpt2 => 100,
    }
}

/// The longest time between two strikes.
fn respite(kind: WorkerKind) -> Duration {
    match kind {
        WorkerKind::Quick => Duration::from_millis(400),
        WorkerKind::Gpt2 => Duration::from_millis(3500),
    }
}

pub fn campaign(kind: WorkerKind, strikes: u64, seed: u64) -> Result<CampaignRow> {
    let name = match kind {
        WorkerKind::Quick => "program kills (quick worker)",
        WorkerKind::Gpt2 => "program kills (GPT-2)",
    };
    let mut tally = CampaignTally::new(name, seed);
    let mut random = SeededRandom::new(seed);
    let folder = place::on_disk()?;
    let quiet = ChaosJob::new(&folder.path().join("undisturbed"), kind, steps(kind), &[], "")?;
    let undisturbed = quiet.run_to_end()?;
    let mut number = 0;
    while tally.points() < strikes {
        number += 1;
        let job = ChaosJob::new(&folder.path().join(format!("job-{number}")), kind, steps(kind), &[], "")?;
        let root = under_fire(&job, kind, strikes, &mut random, &mut tally)?;
        tally.require(root == undisturbed, || {
            let parting = parting(&quiet, &job);
            format!("job {number} ended in another state than an undisturbed run; {parting}; its log:\n{}", job.log())
        });
    }
    Ok(tally.row())
}

/// The first steps that were computed differently.
fn parting(quiet: &ChaosJob, job: &ChaosJob) -> String {
    let computed: BTreeMap<u64, String> = quiet.steps().into_iter().collect();
    let differ = job.steps().into_iter().filter(|(step, what)| computed.get(step).is_some_and(|was| was != what));
    let differ: Vec<String> =
        differ.take(5).map(|(step, what)| format!("step {step}: {what}, undisturbed {}", computed[&step])).collect();
    format!("steps that differ: [{}]", differ.join("; "))
}

/// Trains to the end, struck until the campaign has its points. Returns the root.
fn under_fire(
    job: &ChaosJob,
    kind: WorkerKind,
    strikes: u64,
    random: &mut SeededRandom,
    tally: &mut CampaignTally,
) -> Result<String> {
    let mut agent = job.start()?;
    loop {
        let respite = if tally.points() < strikes { random.up_to(respite(kind)) } else { PATIENCE };
        if let Some(code) = agent.ends_within(respite)? {
            tally.require(code == Some(0), || format!("it ended with {code:?}; its log:\n{}", job.log()));
            job.check(tally)?;
            return job.root();
        }
        ensure!(tally.points() < strikes, "the last run never ended; its log:\n{}", job.log());
        let strike = STRIKES[random.below(STRIKES.len() as u64) as usize];
        let at = job.json("status").ok().and_then(|status| status["step"].as_u64());
        tally.tried((strike, at));
        if hit(&mut agent, strike, random, tally)? {
            drop(agent);
            agent = job.start()?;
        }
        job.check(tally)?;
    }
}

/// Strikes once; whether the agent has to be started again.
pub fn hit(
    agent: &mut ChaosAgent,
    strike: StormStrike,
    random: &mut SeededRandom,
    tally: &mut CampaignTally,
) -> Result<bool> {
    let (pid, worker) = (agent.pid(), agent.worker());
    let to_worker = |signal| worker.into_iter().for_each(|worker| job::signal(worker, signal));
    match strike {
        StormStrike::KillAgent => job::signal(pid, Signal::KILL),
        StormStrike::KillWorker => to_worker(Signal::KILL),
        StormStrike::KillBoth => {
            job::signal(pid, Signal::KILL);
            to_worker(Signal::KILL);
        }
        StormStrike::PauseAgent | StormStrike::PauseAgentThenKillWorker => {
            job::signal(pid, Signal::STOP);
            std::thread::sleep(random.up_to(Duration::from_millis(1500)));
            if strike == StormStrike::PauseAgentThenKillWorker {
                to_worker(Signal::KILL);
            }
            job::signal(pid, Signal::CONT);
        }
        StormStrike::StopWorker => {
            to_worker(Signal::STOP);
            let noticed = worker.is_none_or(ends);
            tally.require(noticed, || "a worker that hangs was not noticed".to_owned());
            if !noticed {
                to_worker(Signal::KILL);
            }
        }
    }
    Ok(matches!(strike, StormStrike::KillAgent | StormStrike::KillBoth))
}

/// Whether a process that this one did not start ends in time.
fn ends(pid: u32) -> bool {
    let began = Instant::now();
    while job::runs(pid) {
        if began.elapsed() > PATIENCE {
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    true
}
