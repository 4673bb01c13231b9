//! The store's exerciser: drives the real store through all that a job does with it, under faults, and holds what is
//! left against what was announced. `faults/README.md` says how the campaign uses it.
//!
//! Reading order: [`states`] (what is saved), [`drive`] (what is done), [`announce`] (what it says), [`promises`] (what
//! must hold), [`judge`] (whether it does), [`hooks`] (what goes wrong), then the parts: [`sweep`], [`crash`] on
//! [`disk`], [`damage`], [`contend`]; and [`replica`], the same for snapshots at a remote.

mod announce;
mod campaign;
mod contend;
mod crash;
mod damage;
mod disk;
mod drive;
mod hooks;
mod judge;
mod power_loss;
mod prepare;
mod promises;
mod replica;
mod states;
mod sweep;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand};

use hooks::{CallFault, FaultInjector};
use judge::{AfterCheck, FailedSaves};
use promises::Promises;

#[derive(Parser)]
#[command(about = "Drives a ckptd store under faults", disable_help_subcommand = true)]
struct FaultsCli {
    #[command(subcommand)]
    command: FaultsCommand,
}

#[derive(Args)]
struct CommonArgs {
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// A folder for what is tried; best on a RAM disk.
    #[arg(long)]
    scratch: PathBuf,
    /// A share of it, for a quick look.
    #[arg(long)]
    short: bool,
    /// Ends after the first violation.
    #[arg(long)]
    first: bool,
}

#[derive(Subcommand)]
enum FaultsCommand {
    /// One session on a store; prints an announcement a line.
    Session {
        store: PathBuf,
        #[arg(long, default_value_t = 1)]
        seed: u64,
        #[arg(long, default_value_t = 6)]
        rounds: u32,
        /// SIGKILL before the file-system call of this number.
        #[arg(long)]
        kill_before: Option<u64>,
        #[arg(long)]
        kill_after: Option<u64>,
        /// After each announcement waits for a line on stdin; its end ends the session.
        #[arg(long)]
        in_step: bool,
        /// At the end tells stderr how many calls of each kind passed the seam.
        #[arg(long)]
        count: bool,
    },
    /// A store whose writer was killed and whose newest snapshot rotted; prints what was announced.
    Past {
        store: PathBuf,
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    /// Holds a store against announcements (a file of lines); prints what is broken.
    Check {
        store: PathBuf,
        announced: PathBuf,
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Save once more, too.
        #[arg(long)]
        go_on: bool,
    },
    /// Every legal disk after a power loss.
    CrashStates {
        #[command(flatten)]
        common: CommonArgs,
    },
    /// Every call fails once, in this process.
    Sweep {
        #[command(flatten)]
        common: CommonArgs,
    },
    /// SIGKILL before and after every call.
    Kills {
        #[command(flatten)]
        common: CommonArgs,
    },
    /// Flipped bits, cuts, swaps and stale receipts.
    Damage {
        #[command(flatten)]
        common: CommonArgs,
    },
    /// Sessions that race for one store.
    Contenders {
        #[command(flatten)]
        common: CommonArgs,
    },
    /// A machine that replicates is killed at each of its requests.
    ReplicaKills {
        #[command(flatten)]
        common: CommonArgs,
    },
    /// The same for an upload in parts, which is gone on with.
    ReplicaParts {
        #[command(flatten)]
        common: CommonArgs,
    },
    /// Each request of a machine that replicates fails.
    ReplicaErrors {
        #[command(flatten)]
        common: CommonArgs,
    },
    /// What a dead machine sent lands after another one took over.
    ReplicaLate {
        #[command(flatten)]
        common: CommonArgs,
    },
    /// Snapshots at a remote that were only sampled rot.
    ReplicaRot {
        #[command(flatten)]
        common: CommonArgs,
    },
    /// Data at a remote is removed, an hour after its marker.
    ReplicaTrash {
        #[command(flatten)]
        common: CommonArgs,
    },
    /// A snapshot goes up and comes down through a storm.
    ReplicaStorms {
        #[command(flatten)]
        common: CommonArgs,
    },
    /// Random schedules of the lease.
    ReplicaSchedules {
        #[command(flatten)]
        common: CommonArgs,
    },
}

fn main() -> ExitCode {
    ckptd_core::os::fs::refuse_size_limit_signal();
    match run(FaultsCli::parse().command) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("exerciser: {e:#}");
            ExitCode::from(2)
        }
    }
}

/// Whether all invariants held.
fn run(command: FaultsCommand) -> Result<bool> {
    let rows = match command {
        FaultsCommand::Session { store, seed, rounds, kill_before, kill_after, in_step, count } => {
            let kill =
                kill_before.map(|at| (at, CallFault::KillBefore)).or(kill_after.map(|at| (at, CallFault::KillAfter)));
            let seen = FaultInjector::install(kill.map_or(0, |(at, _)| at), kill.map(|(_, fault)| fault));
            session(&store, seed, rounds, in_step)?;
            if count {
                let seen = seen.lock().unwrap_or_else(|e| e.into_inner());
                eprintln!("{}", serde_json::to_string(&seen.kinds)?);
            }
            return Ok(true);
        }
        FaultsCommand::Past { store, seed } => {
            prepare::past(&store, seed)?.iter().try_for_each(|ack| announce(ack, false))?;
            return Ok(true);
        }
        FaultsCommand::Check { store, announced, seed, go_on } => return check(&store, &announced, seed, go_on),
        FaultsCommand::CrashStates { common } => crash::run(&common.scratch, common.seed, &crash_effort(&common))?,
        FaultsCommand::Sweep { common } => sweep::errors(&common.scratch, common.seed, &sweep_effort(&common, 3))?,
        FaultsCommand::Kills { common } => sweep::kills(&common.scratch, common.seed, &sweep_effort(&common, 2))?,
        FaultsCommand::Contenders { common } => contend::run(&common.scratch, common.seed, common.short)?,
        FaultsCommand::Damage { common } => damage::run(&common.scratch, common.seed, common.short)?,
        FaultsCommand::ReplicaKills { common } => {
            replica::requests::kills(&common.scratch, common.seed, request_effort(&common, 3))?
        }
        FaultsCommand::ReplicaParts { common } => {
            replica::parts::run(&common.scratch, common.seed, request_effort(&common, 11))?
        }
        FaultsCommand::ReplicaErrors { common } => {
            replica::requests::errors(&common.scratch, common.seed, request_effort(&common, 9))?
        }
        FaultsCommand::ReplicaLate { common } => {
            replica::requests::late(&common.scratch, common.seed, request_effort(&common, 3))?
        }
        FaultsCommand::ReplicaRot { common } => replica::sampled::run(&common.scratch, common.seed, common.short)?,
        FaultsCommand::ReplicaTrash { common } => replica::trash::run(&common.scratch, common.seed)?,
        FaultsCommand::ReplicaStorms { common } => replica::storm::run(&common.scratch, common.seed, common.short)?,
        FaultsCommand::ReplicaSchedules { common } => replica::schedules::run(common.seed, common.short),
    };
    rows.iter().for_each(campaign::FaultRow::print);
    Ok(rows.iter().all(|row| row.violations == 0))
}

fn crash_effort(common: &CommonArgs) -> crash::CrashEffort {
    let (rounds, random, crash_again) = if common.short { (4, 3, 301) } else { (8, 12, 101) };
    crash::CrashEffort { rounds, random, crash_again, first: common.first }
}

/// Every `stride`-th call, for a quick look fewer.
fn sweep_effort(common: &CommonArgs, stride: u64) -> sweep::SweepEffort {
    sweep::SweepEffort { rounds: 7, stride: if common.short { 13 } else { stride }, first: common.first }
}

/// Every point, for a quick look every `stride`-th.
fn request_effort(common: &CommonArgs, stride: u64) -> replica::requests::RequestEffort {
    replica::requests::RequestEffort { stride: if common.short { stride } else { 1 }, first: common.first }
}

fn session(store: &std::path::Path, seed: u64, rounds: u32, in_step: bool) -> Result<()> {
    let mut failed = None;
    drive::session(store, seed, rounds, &mut |ack| {
        if let Err(e) = announce(&ack, in_step) {
            failed.get_or_insert(e);
        }
    });
    match failed {
        Some(e) => Err(e.context("announcing")),
        None => Ok(()),
    }
}

/// One write a line: what was announced before a kill has been announced.
fn announce(ack: &announce::StoreAck, in_step: bool) -> Result<()> {
    let line = serde_json::to_string(ack)? + "\n";
    std::io::stdout().write_all(line.as_bytes())?;
    if in_step && std::io::stdin().read_line(&mut String::new())? == 0 {
        bail!("stdin ended");
    }
    Ok(())
}

fn check(store: &std::path::Path, announced: &std::path::Path, seed: u64, go_on: bool) -> Result<bool> {
    let text = std::fs::read_to_string(announced).with_context(|| format!("reading {}", announced.display()))?;
    let mut promises = Promises::new(seed);
    for line in text.lines() {
        match serde_json::from_str(line) {
            Ok(ack) => promises.note(&ack),
            Err(e) => bail!("{line:?} is no announcement: {e}"),
        }
    }
    let then = if go_on { AfterCheck::SaveOnceMore } else { AfterCheck::Nothing };
    let broken = promises.check(store, FailedSaves::MayBeThere, then);
    broken.iter().for_each(|what| println!("{what}"));
    Ok(broken.is_empty())
}
