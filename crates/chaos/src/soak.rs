//! Chaos for hours: a small GPT-2 is trained to its end over and over, under kills, stops, damage, requests and stuck
//! clients, while memory and descriptors of agent and worker are sampled.
//!
//! Invariant: every training ends in the state of an undisturbed one; nothing grows: most moments of a life do not have
//! more than earlier ones of the same life, or less than a megabyte an hour, and a descriptor in two. Slopes of less
//! than half an hour are told and not judged.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use ckptd_core::store::Store;
use rustix::process::Signal;

use crate::footprint::{self, ProcessFootprint};
use crate::job::{self, ChaosAgent, ChaosJob, WorkerKind};
use crate::place;
use crate::row::{CampaignRow, CampaignTally};
use crate::slope::{HourlyGrowth, LifeSeries};
use crate::storm::{self, StormStrike};
use ckptd_testkit::random::SeededRandom;

/// Short, because a snapshot is in flight most of the time, and the moments between two of them are what counts.
const SAMPLE: Duration = Duration::from_millis(200);
/// A process that is younger still takes memory that it keeps: for its first restart of the worker, its first damage; a
/// worker some megabytes, a little later on a busy machine.
const WARM_UP: Duration = Duration::from_secs(240);
const LONGEST_RESPITE: Duration = Duration::from_secs(60);
/// What is shorter says nothing about growth.
const LEAST_HOURS: f64 = 0.5;
/// Growth that is too small to mean anything, an hour.
const KIB_PER_HOUR: f64 = 1024.0;
const DESCRIPTORS_PER_HOUR: f64 = 0.5;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Nuisance {
    Strike(SoakStrike),
    /// A bit of the newest snapshot is flipped under the running job.
    Damage,
    /// SIGUSR1 again and again.
    Snapshots,
    /// Clients that connect and say nothing.
    StuckClients,
}

/// The strikes, few of which are deadly: a slope needs long lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum SoakStrike {
    Agent,
    Worker,
    Stop,
    Pause,
}

/// What a soak is asked for.
#[derive(clap::Args)]
pub struct SoakArgs {
    /// How long, in hours.
    #[arg(long, default_value_t = 2.0)]
    hours: f64,
    /// Steps of each training; the more, the longer the lives that are measured.
    #[arg(long, default_value_t = 20_000)]
    steps: u64,
    /// Writes every sample into this file, as CSV.
    #[arg(long)]
    samples: Option<PathBuf>,
}

struct SoakRun {
    job: ChaosJob,
    agent: ChaosAgent,
    began: Instant,
    random: SeededRandom,
    births: BTreeMap<u32, Instant>,
    agent_memory: LifeSeries,
    agent_descriptors: LifeSeries,
    worker_memory: LifeSeries,
    worker_descriptors: LifeSeries,
    counts: BTreeMap<Nuisance, u64>,
    stuck: Vec<UnixStream>,
    samples: Option<File>,
}

pub fn campaign(arguments: &SoakArgs, seed: u64) -> Result<CampaignRow> {
    let &SoakArgs { hours, steps, .. } = arguments;
    let mut tally = CampaignTally::new("soak", seed);
    let folder = place::on_disk()?;
    let make = |name: &str| ChaosJob::new(&folder.path().join(name), WorkerKind::Gpt2, steps, &[], "");
    let undisturbed = make("undisturbed")?.run_to_end()?;
    let job = make("job-0")?;
    let mut soak = SoakRun {
        agent: job.start()?,
        job,
        began: Instant::now(),
        random: SeededRandom::new(seed),
        births: BTreeMap::new(),
        agent_memory: LifeSeries::default(),
        agent_descriptors: LifeSeries::default(),
        worker_memory: LifeSeries::default(),
        worker_descriptors: LifeSeries::default(),
        counts: BTreeMap::new(),
        stuck: Vec::new(),
        samples: arguments.samples.as_deref().map(samples).transpose()?,
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
    soak.report(trainings, steps, &mut tally);
    Ok(tally.row())
}

/// The file for the samples, begun.
fn samples(path: &Path) -> Result<File> {
    let mut file = File::create(path).with_context(|| format!("creating {}", path.display()))?;
    writeln!(file, "seconds,process,pid,age_seconds,own_kib,file_kib,descriptors")?;
    Ok(file)
}

impl SoakRun {
    /// Samples for so long, or until the training is over: then its exit code.
    fn watch(&mut self, time: Duration, end: Instant) -> Result<Option<Option<i32>>> {
        let until = end.min(Instant::now() + time);
        while Instant::now() < until {
            self.sample()?;
            let left = until.saturating_duration_since(Instant::now());
            if let Some(code) = self.agent.ends_within(SAMPLE.min(left))? {
                return Ok(Some(code));
            }
        }
        Ok(None)
    }

    fn sample(&mut self) -> Result<()> {
        let now = Instant::now();
        let seconds = (now - self.began).as_secs_f64();
        let (agent, worker) = (Some(self.agent.pid()), self.agent.worker());
        for (who, pid, memory, descriptors) in [
            ("agent", agent, &mut self.agent_memory, &mut self.agent_descriptors),
            ("worker", worker, &mut self.worker_memory, &mut self.worker_descriptors),
        ] {
            let Some((pid, print)) = pid.and_then(|pid| Some((pid, footprint::of(pid)?))) else { continue };
            let age = now - *self.births.entry(pid).or_insert(now);
            if let Some(file) = &mut self.samples {
                let ProcessFootprint { own_kib, file_kib, descriptors } = print;
                let age = age.as_secs_f64();
                writeln!(file, "{seconds:.1},{who},{pid},{age:.1},{own_kib},{file_kib},{descriptors}")?;
            }
            if age < WARM_UP {
                continue;
            }
            memory.add(pid, seconds, print.own_kib as f64);
            descriptors.add(pid, seconds, print.descriptors as f64);
        }
        Ok(())
    }

    fn annoy(&mut self, tally: &mut CampaignTally) -> Result<()> {
        let nuisance = match self.random.below(20) {
            0 => Nuisance::Strike(SoakStrike::Agent),
            1 => Nuisance::Strike(SoakStrike::Worker),
            2 => Nuisance::Strike(SoakStrike::Stop),
            3..6 => Nuisance::Strike(SoakStrike::Pause),
            6..10 => Nuisance::Damage,
            10..15 => Nuisance::Snapshots,
            _ => Nuisance::StuckClients,
        };
        *self.counts.entry(nuisance).or_default() += 1;
        tally.tried((nuisance, tally.points()));
        match nuisance {
            Nuisance::Strike(kick) => {
                let strike = match kick {
                    SoakStrike::Agent => StormStrike::KillAgent,
                    SoakStrike::Worker => StormStrike::KillWorker,
                    SoakStrike::Stop => StormStrike::StopWorker,
                    SoakStrike::Pause => StormStrike::PauseAgent,
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
        let Ok(file) = File::options().read(true).write(true).open(&newest.path) else { return };
        let (mut byte, at) = ([0], self.random.below(newest.bytes));
        if file.read_exact_at(&mut byte, at).is_ok() {
            let _ = file.write_all_at(&[byte[0] ^ 4], at);
        }
    }

    fn report(&self, trainings: u64, steps: u64, tally: &mut CampaignTally) {
        let hours = self.began.elapsed().as_secs_f64() / 3600.0;
        eprintln!("soak: {hours:.2} h, {trainings} trainings of {steps} steps completed, {:?}", self.counts);
        for (what, slope, unit, limit) in [
            ("agent's memory", &self.agent_memory, "KiB", KIB_PER_HOUR),
            ("agent's descriptors", &self.agent_descriptors, "", DESCRIPTORS_PER_HOUR),
            ("worker's memory", &self.worker_memory, "KiB", KIB_PER_HOUR),
            ("worker's descriptors", &self.worker_descriptors, "", DESCRIPTORS_PER_HOUR),
        ] {
            let largest = slope.largest();
            let Some(HourlyGrowth { median, most }) = slope.per_hour() else {
                eprintln!("soak: {what}: too few samples for a slope");
                continue;
            };
            eprintln!(
                "soak: {what}: {median:+.1} {unit}/h, in three quarters {most:+.1} or more; at most {largest:.0} {unit}"
            );
            let grows = hours >= LEAST_HOURS && median > limit && most > 0.0;
            tally.require(!grows, || format!("the {what} grows by {median:.1} {unit} an hour"));
        }
    }
}
