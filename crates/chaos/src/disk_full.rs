//! The disk fills up under a training of GPT-2, and is freed again: the training goes on all the while, the user is
//! told once, nothing that is verified is lost, and the first snapshot for which there is room is verified.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;

use crate::job::{self, ChaosAgent, ChaosJob, LogMessage, PATIENCE, WorkerKind};
use crate::place;
use crate::row::{CampaignRow, CampaignTally};

const KIND: &str = "disk full under GPT-2";
/// Room for four snapshots of the small GPT-2.
const SIZE_MIB: u64 = 120;
/// Snapshots that must fail before there is room again.
const FAILURES: u64 = 3;

pub fn campaign(rounds: u64, seed: u64) -> Result<CampaignRow> {
    let mut tally = CampaignTally::new(KIND, seed);
    let folder = place::on_disk()?;
    let mut missing = None;
    for n in 0..rounds {
        let system = if n % 2 == 0 { "tmpfs" } else { "ext4" };
        let round_folder = folder.path().join(n.to_string());
        std::fs::create_dir(&round_folder)?;
        match MountedDisk::new(&round_folder, system) {
            Ok(disk) => round(&round_folder, system, &disk.path, &mut tally)?,
            Err(e) => {
                let why = format!("{system} cannot be mounted: {e:#}");
                eprintln!("{KIND}: {why}");
                missing = Some(why);
            }
        }
    }
    Ok(match missing {
        Some(why) if tally.points() == 0 => CampaignRow::not_run(KIND, seed, why),
        _ => tally.row(),
    })
}

fn round(folder: &Path, system: &'static str, disk: &Path, tally: &mut CampaignTally) -> Result<()> {
    tally.tried(system);
    let job = ChaosJob::new(folder, WorkerKind::Gpt2, 100_000, &[], "[retention]\nkeep_last = 2\nkeep_best = 0\n")?;
    let mut agent = job.start()?;
    job.wait_for(&mut agent, "a verified snapshot", |log| log.iter().any(|m| m.verified.is_some()))?;
    // At the worst moment: the second one is written, and there will be no room for its receipt.
    let before = job.messages().len();
    let written = |m: &LogMessage| m.text.starts_with("step ") && m.text.ends_with(" is written");
    job.wait_for(&mut agent, "one more snapshot", |log| log.iter().skip(before).any(written))?;
    let ballast = disk.join("ballast");
    fill(&ballast)?;
    // Rotation may free the room of one snapshot, and that is room for the next unless it is a little larger.
    let full = until(&job, &mut agent, |status| {
        fill(&ballast)?;
        Ok(failed(status) >= 1)
    })?;
    let later = until(&job, &mut agent, |status| {
        fill(&ballast)?;
        Ok(failed(status) >= FAILURES + count(&job, "INFO", "snapshots work again"))
    })?;
    let times = 1 + count(&job, "INFO", "snapshots work again");
    tally.require(later["step"].as_u64() > full["step"].as_u64(), || format!("no step while it is full: {later}"));
    let told = count(&job, "WARN", "no space left");
    tally.require(told == times, || format!("it was full {times} times, the user was told {told}:\n{}", job.log()));
    let problem = later["problem"].as_str().unwrap_or_default();
    tally.require(problem.contains("no space left"), || format!("the status does not say so: {later}"));
    job.check_on_full_disk(tally)?;
    std::fs::remove_file(&ballast)?;
    let again = |m: &LogMessage| m.text.starts_with("snapshots work again");
    job.wait_for(&mut agent, "a verified snapshot after there was room again", |log| {
        log.iter().skip_while(|m| !again(m)).any(|m| m.verified.is_some())
    })?;
    let status = until(&job, &mut agent, |status| Ok(status["problem"].is_null()))?;
    tally.require(status["state"] == "training", || format!("it does not train: {status}"));
    let restarts = status["worker"]["restarts"].as_u64();
    tally.require(restarts == Some(0), || format!("the worker was restarted {restarts:?} times"));
    job::signal(agent.pid(), Signal::TERM);
    let code = agent.wait()?;
    tally.require(code == Some(75), || format!("it ended with {code:?}:\n{}", job.log()));
    job.check(tally)
}

fn count(job: &ChaosJob, level: &str, text: &str) -> u64 {
    job.messages().iter().filter(|m| m.level == level && m.text.contains(text)).count() as u64
}

fn failed(status: &serde_json::Value) -> u64 {
    status["snapshots"]["failed"].as_u64().unwrap_or(0)
}

/// Asks until the status is what is wanted.
fn until(
    job: &ChaosJob,
    agent: &mut ChaosAgent,
    wanted: impl Fn(&serde_json::Value) -> Result<bool>,
) -> Result<serde_json::Value> {
    let began = std::time::Instant::now();
    loop {
        let status = job.json("status")?;
        if wanted(&status)? {
            return Ok(status);
        }
        if let Some(status) = agent.child.try_wait()? {
            bail!("ckptd ended ({status}):\n{}", job.log());
        }
        ensure!(began.elapsed() < PATIENCE, "the status stays {status}:\n{}", job.log());
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}

/// Appends until nothing fits any more.
fn fill(path: &Path) -> Result<()> {
    let mut file = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .with_context(|| format!("filling the disk with {}", path.display()))?;
    for size in [1 << 20, 1 << 12] {
        let block = vec![0x5a; size];
        while file.write_all(&block).is_ok() {}
    }
    Ok(())
}

/// A small file system of its own at the place of the job's store.
struct MountedDisk {
    path: PathBuf,
}

impl MountedDisk {
    fn new(folder: &Path, system: &str) -> Result<MountedDisk> {
        let path = folder.join("store");
        std::fs::create_dir(&path)?;
        match system {
            "tmpfs" => {
                run(Command::new("mount")
                    .args(["-t", "tmpfs", "-o", &format!("size={SIZE_MIB}m"), "none"])
                    .arg(&path))?;
            }
            _ => {
                let image = folder.join("image");
                std::fs::File::create(&image)?.set_len(SIZE_MIB << 20)?;
                run(Command::new("mkfs.ext4").arg("-q").arg(&image))?;
                run(Command::new("mount").args(["-o", "loop"]).args([&image, &path]))?;
            }
        }
        Ok(MountedDisk { path })
    }
}

impl Drop for MountedDisk {
    fn drop(&mut self) {
        // Lazily: a worker that was just killed may still be on its way out.
        let _ = Command::new("umount").arg("-l").arg(&self.path).status();
    }
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output().map_err(|e| anyhow::anyhow!("{:?}: {e}", command.get_program()))?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}
