//! Chaos for hours: a small GPT-2 is trained to its end over and over, under kills, stops, damage, requests and stuck
//! clients, while memory and descriptors of agent and worker are sampled.
//!
//! Invariant: every training ends in the state of an undisturbed one; nothing grows: the slope of memory is within what
//! its own scatter explains or below a megabyte an hour, that of descriptors below one in two hours. Slopes of less than
//! half an hour are told and not judged.

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use ckptd::store::Store;
use rustix::process::Signal;

use crate::footprint;
use crate::job::{self, Agent, Job, Kind};
use crate::place;
use crate::random::Random;
use crate::row::{Row, Tally};
use crate::slope::Slope;
use crate::storm::{self, Strike};

const STEPS: u64 = 8000;
const SAMPLE: Duration = Duration::from_secs(1);
/// A process that is younger still faults its memory in.
const WARM_UP: Duration = Duration::from_secs(30);
const LONGEST_RESPITE: Duration = Duration::from_secs(90);
/// What is shorter says nothing about growth.
const LEAST_HOURS: f64 = 0.5;
/// Growth that is too small to mean anything, an hour.
const KIB_PER_HOUR: f64 = 1024.0;
const DESCRIPTORS_PER_HOUR: f64 = 0.5;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Nuisance {
    Strike(Kick),
    /// A bit of the newest snapshot is flipped under the running job.
    Damage,
    /// SIGUSR1 again and again.
    Snapshots,
    /// Clients that connect and say nothing.
    StuckClients,
}

/// The strikes, few of which hit the agent: its slope needs long lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Kick {
    Agent,
    Worker,
    Stop,
    Pause,
}

struct Soak {
    job: Job,
    agent: Agent,
    began: Instant,
    random: Random,
    births: BTreeMap<u32, Instant>,
    agent_memory: Slope,
    agent_descriptors: Slope,
    worker_memory: Slope,
    worker_descriptors: Slope,
    counts: BTreeMap<Nuisance, u64>,
    stuck: Vec<UnixStream>,
}

pub fn campaign(hours: f64, seed: u64) -> Result<Row> {
    let mut tally = Tally::new("soak", seed);
    let folder = place::on_disk()?;
    let make = |name: &str| Job::new(&folder.path().join(name), Kind::Gpt2, STEPS, &[], "");
    let undisturbed = make("undisturbed")?.run_to_end()?;
    let job = make("job-0")?;
    let mut soak = Soak {
        agent: job.start()?,
        job,
        began: Instant::now(),
        random: Random::new(seed),
        births: BTreeMap::new(),
        agent_memory: Slope::default(),
        agent_descriptors: Slope::default(),
        worker_memory: Slope::default(),
        worker_descriptors: Slope::default(),
        counts: BTreeMap::new(),
        stuck: Vec::new(),
    };
    let end = soak.began + Duration::try_from_secs_f64(hours * 3600.0).context("a number of hours")?;
    let mut trainings = 0;
    while Instant::now() < end {
        let respite = soak.random.up_to(LONGEST_RESPITE);
        if let Some(code) = soak.watch(respite, end)? {
            trainings += 1;
            tally.require(code == Some(0), || format!("it ended with {code:?}:\n{}", soak.job.log()));
            soak.job.check(&mut tally)?;
            let same = soak.job.root()? == undisturbed;
            tally
                .require(same, || format!("training {trainings} ended in another state; its log:\n{}", soak.job.log()));
            std::fs::remove_dir_all(folder.path().join(format!("job-{}", trainings - 1)))?;
            soak.job = make(&format!("job-{trainings}"))?;
            soak.agent = soak.job.start()?;
        } else if Instant::now() < end {
            soak.annoy(&mut tally)?;
        }
    }
    soak.report(trainings, &mut tally);
    Ok(tally.row())
}

impl Soak {
    /// Samples for so long, or until the training is over: then its exit code.
    fn watch(&mut self, time: Duration, end: Instant) -> Result<Option<Option<i32>>> {
        let until = end.min(Instant::now() + time);
        while Instant::now() < until {
            self.sample();
            let left = until.saturating_duration_since(Instant::now());
            if let Some(code) = self.agent.ends_within(SAMPLE.min(left))? {
                return Ok(Some(code));
            }
        }
        Ok(None)
    }

    fn sample(&mut self) {
        let now = Instant::now();
        let seconds = (now - self.began).as_secs_f64();
        let (agent, worker) = (Some(self.agent.pid()), self.agent.worker());
        for (pid, memory, descriptors) in [
            (agent, &mut self.agent_memory, &mut self.agent_descriptors),
            (worker, &mut self.worker_memory, &mut self.worker_descriptors),
        ] {
            let Some(pid) = pid else { continue };
            let born = *self.births.entry(pid).or_insert(now);
            let Some(print) = footprint::of(pid).filter(|_| now - born > WARM_UP) else { continue };
            memory.add(pid, seconds, print.rss_kib as f64);
            descriptors.add(pid, seconds, print.descriptors as f64);
        }
    }

    fn annoy(&mut self, tally: &mut Tally) -> Result<()> {
        let nuisance = match self.random.below(20) {
            0 => Nuisance::Strike(Kick::Agent),
            1..6 => Nuisance::Strike(Kick::Worker),
            6 => Nuisance::Strike(Kick::Stop),
            7..9 => Nuisance::Strike(Kick::Pause),
            9..12 => Nuisance::Damage,
            12..16 => Nuisance::Snapshots,
            _ => Nuisance::StuckClients,
        };
        *self.counts.entry(nuisance).or_default() += 1;
        tally.tried((nuisance, tally.points()));
        match nuisance {
            Nuisance::Strike(kick) => {
                let strike = match kick {
                    Kick::Agent => Strike::KillAgent,
                    Kick::Worker => Strike::KillWorker,
                    Kick::Stop => Strike::StopWorker,
                    Kick::Pause => Strike::PauseAgent,
                };
                if storm::hit(&mut self.agent, strike, &mut self.random, tally)? {
                    self.agent = self.job.start()?;
                }
            }
            Nuisance::Damage => self.damage(),
            Nuisance::Snapshots => {
                for _ in 0..20 {
                    job::signal(self.agent.pid(), Signal::USR1);
                    std::thread::sleep(Duration::from_millis(20));
                }
            }
            Nuisance::StuckClients => {
                let socket = self.job.store().join("status.sock");
                self.stuck = (0..30).filter_map(|_| UnixStream::connect(&socket).ok()).collect();
                let _ = self.job.json("status");
            }
        }
        Ok(())
    }

    /// Flips a bit in the newest snapshot, where there is one.
    fn damage(&mut self) {
        let Ok(newest) = Store::open(self.job.store()).and_then(|store| store.find("latest")) else { return };
        let Ok(file) = std::fs::File::options().read(true).write(true).open(&newest.path) else { return };
        let (mut byte, at) = ([0], self.random.below(newest.bytes));
        if file.read_exact_at(&mut byte, at).is_ok() {
            let _ = file.write_all_at(&[byte[0] ^ 4], at);
        }
    }

    fn report(&self, trainings: u64, tally: &mut Tally) {
        let hours = self.began.elapsed().as_secs_f64() / 3600.0;
        eprintln!("soak: {hours:.2} h, {trainings} trainings of {STEPS} steps completed, {:?}", self.counts);
        for (what, slope, unit, limit) in [
            ("agent's memory", &self.agent_memory, "KiB", KIB_PER_HOUR),
            ("agent's descriptors", &self.agent_descriptors, "", DESCRIPTORS_PER_HOUR),
            ("worker's memory", &self.worker_memory, "KiB", KIB_PER_HOUR),
            ("worker's descriptors", &self.worker_descriptors, "", DESCRIPTORS_PER_HOUR),
        ] {
            let (samples, largest) = (slope.samples(), slope.largest());
            let Some((slope, error)) = slope.per_hour() else {
                eprintln!("soak: {what}: {samples} samples are too few for a slope");
                continue;
            };
            eprintln!(
                "soak: {what}: {slope:+.1} ± {error:.1} {unit}/h over {samples} samples, at most {largest:.0} {unit}"
            );
            let grows = hours >= LEAST_HOURS && slope > limit && slope > 4.0 * error;
            tally.require(!grows, || format!("the {what} grows by {slope:.1} {unit} an hour"));
        }
    }
}
