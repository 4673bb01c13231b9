//! `chaos`: fault campaigns on ckptd's programs. Each tries so many points from a seed, holds ckptd to its promises
//! after every one, and prints one line of JSON: what was tried, how much of it was distinct, and what broke.
//!
//! Invariant: a campaign that cannot run on this machine says so and why in `not_run`, and counts nothing; the same
//! seed makes the same plan. Deliberately not here: faults below the store's system calls, and the table of all rows.

mod damage;
mod disk_full;
mod footprint;
mod job;
mod kills;
mod links;
mod memory;
mod place;
mod race;
mod retention;
mod row;
mod slope;
mod soak;
mod storm;
mod worker;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use row::CampaignRow;

/// Fault campaigns on ckptd's programs. Prints one line of JSON; exits with 1 if a promise was broken.
#[derive(Parser)]
#[command(version)]
struct ChaosCli {
    #[command(subcommand)]
    campaign: Campaign,
}

/// How much is tried, and from which seed.
#[derive(Clone, Copy, clap::Args)]
struct CampaignSize {
    #[arg(long)]
    points: Option<u64>,
    /// The same seed tries the same; by default the clock's.
    #[arg(long)]
    seed: Option<u64>,
}

impl CampaignSize {
    fn points(self, default: u64) -> u64 {
        self.points.unwrap_or(default)
    }

    fn seed(self) -> u64 {
        self.seed.unwrap_or_else(|| jiff::Timestamp::now().as_nanosecond() as u64 % 1_000_000_000)
    }
}

#[derive(Subcommand)]
enum Campaign {
    /// SIGKILL a process that saves, verifies, pins, quarantines and rotates, at random moments.
    Kills(CampaignSize),
    /// Kill and stop whole programs: ckptd, its worker, both.
    Storm {
        #[command(flatten)]
        size: CampaignSize,
        /// Train GPT-2 through libtorch instead of a worker that only keeps to the protocol.
        #[arg(long)]
        real: bool,
    },
    /// Eight daemons race for one store.
    Race(CampaignSize),
    /// Let the kernel kill the worker for lack of memory.
    Memory(CampaignSize),
    /// Fill the disk under a training of GPT-2, and free it again.
    DiskFull(CampaignSize),
    /// Flip bits, cut, swap, copy: nothing that is not what was written may be accepted.
    Damage(CampaignSize),
    /// Plant links at every name of a store: nothing outside may change.
    Links(CampaignSize),
    /// SeededRandom lives of a store against a model of what retention may take.
    Retention(CampaignSize),
    /// Chaos for hours: memory and descriptors of agent and worker must not grow.
    Soak {
        #[command(flatten)]
        arguments: soak::SoakArgs,
        #[arg(long)]
        seed: Option<u64>,
    },
    /// The worker that trains nothing.
    #[command(hide = true)]
    Worker(worker::WorkerArgs),
    /// The process that the kills are meant for.
    #[command(hide = true)]
    Victim { store: PathBuf, seed: u64 },
}

fn main() -> ExitCode {
    match run(ChaosCli::parse().campaign) {
        Ok(None) => ExitCode::SUCCESS,
        Ok(Some(row)) => {
            println!("{}", row.to_json());
            ExitCode::from(u8::from(row.violations > 0))
        }
        Err(error) => {
            eprintln!("chaos: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(campaign: Campaign) -> Result<Option<CampaignRow>> {
    let row = match campaign {
        Campaign::Kills(size) => kills::campaign(size.points(2000), size.seed())?,
        Campaign::Storm { size, real: false } => {
            storm::campaign(storm::WorkerKind::Quick, size.points(60), size.seed())?
        }
        Campaign::Storm { size, real: true } => storm::campaign(storm::WorkerKind::Gpt2, size.points(25), size.seed())?,
        Campaign::Race(size) => race::campaign(size.points(50), size.seed())?,
        Campaign::Memory(size) => memory::campaign(size.points(4), size.seed())?,
        Campaign::DiskFull(size) => disk_full::campaign(size.points(2), size.seed())?,
        Campaign::Damage(size) => damage::campaign(size.points(20_000), size.seed())?,
        Campaign::Links(size) => links::campaign(size.points(60), size.seed())?,
        Campaign::Retention(size) => retention::campaign(size.points(1_000_000), size.seed()),
        Campaign::Soak { arguments, seed } => soak::campaign(&arguments, CampaignSize { points: None, seed }.seed())?,
        Campaign::Worker(arguments) => return worker::run(arguments).map(|()| None),
        Campaign::Victim { store, seed } => return kills::victim(&store, seed).map(|()| None),
    };
    Ok(Some(row))
}
