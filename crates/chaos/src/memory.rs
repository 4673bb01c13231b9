//! The kernel kills the worker for lack of memory: the user is told so, and what to do; nothing saved is lost.
//!
//! A memory group of the kernel's (cgroup version 1 or 2, whichever this machine has) sets the limit. Four cases: once
//! in a step, after which the training goes on; in the same step again and again, which ends the run; GPT-2 that does
//! not fit from the start; GPT-2 on a store that has snapshots already.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::job::{ChaosAgent, ChaosJob, WorkerKind};
use crate::place;
use crate::row::{CampaignRow, CampaignTally};

const KIND: &str = "out of memory";
const STEPS: u64 = 40;
const LIMIT: u64 = 96 << 20;

pub fn campaign(cases: u64, seed: u64) -> Result<CampaignRow> {
    let group = match MemoryGroup::new() {
        Ok(group) => group,
        Err(e) => return Ok(CampaignRow::not_run(KIND, seed, format!("no memory group can be made: {e:#}"))),
    };
    let mut tally = CampaignTally::new(KIND, seed);
    let folder = place::on_disk()?;
    for case in 0..cases {
        let folder = folder.path().join(case.to_string());
        match case % 4 {
            0 => once(&folder, &group, &mut tally)?,
            1 => always(&folder, &group, &mut tally)?,
            2 => never_fits(&folder, &group, &mut tally)?,
            _ => does_not_fit_any_more(&folder, &group, &mut tally)?,
        }
    }
    Ok(tally.row())
}

const TOLD: &str = "the kernel killed it for lack of memory; lower [train] batch_size";

fn hungry(folder: &Path, times: u64) -> Result<ChaosJob> {
    std::fs::create_dir_all(folder)?;
    // The worker takes memory without end in its step 12, so many times.
    std::fs::write(folder.join("eat-in-12"), times.to_string())?;
    let script = folder.to_str().context("the path is not UTF-8")?;
    ChaosJob::new(folder, WorkerKind::Quick, STEPS, &["--script", script], "")
}

fn once(folder: &Path, group: &MemoryGroup, tally: &mut CampaignTally) -> Result<()> {
    tally.tried("once in a step");
    let undisturbed = hungry(&folder.join("undisturbed"), 0)?.run_to_end()?;
    let job = hungry(folder, 1)?;
    let code = group.start(&job)?.wait()?;
    tally.require(code == Some(0), || format!("it ended with {code:?}:\n{}", job.log()));
    told(&job, tally);
    job.check(tally)?;
    let root = job.root()?;
    tally.require(root == undisturbed, || "it ended in another state than an undisturbed run".into());
    Ok(())
}

fn always(folder: &Path, group: &MemoryGroup, tally: &mut CampaignTally) -> Result<()> {
    tally.tried("again and again in one step");
    let job = hungry(folder, 100)?;
    let code = group.start(&job)?.wait()?;
    tally.require(code == Some(1), || format!("it ended with {code:?}:\n{}", job.log()));
    told(&job, tally);
    let given_up = "failed 3 times in a row in step 12";
    tally.require(job.log().contains(given_up), || format!("it does not say that it {given_up}:\n{}", job.log()));
    tally.require(job.log().contains("step 10 is saved and verified"), || "it does not say what is saved".into());
    job.check(tally)
}

fn never_fits(folder: &Path, group: &MemoryGroup, tally: &mut CampaignTally) -> Result<()> {
    tally.tried("GPT-2 that does not fit");
    let job = ChaosJob::new(folder, WorkerKind::Gpt2, 6, &[], "")?;
    let code = group.start(&job)?.wait()?;
    tally.require(code == Some(1), || format!("it ended with {code:?}:\n{}", job.log()));
    told(&job, tally);
    Ok(())
}

fn does_not_fit_any_more(folder: &Path, group: &MemoryGroup, tally: &mut CampaignTally) -> Result<()> {
    tally.tried("GPT-2 that does not fit any more");
    let undisturbed = ChaosJob::new(&folder.join("undisturbed"), WorkerKind::Gpt2, 60, &[], "")?.run_to_end()?;
    let job = ChaosJob::new(folder, WorkerKind::Gpt2, 60, &[], "")?;
    let mut agent = job.start()?;
    job.wait_for(&mut agent, "a verified snapshot", |log| log.iter().any(|m| m.verified.is_some()))?;
    drop(agent);
    let code = group.start(&job)?.wait()?;
    let finished = job.root()? == undisturbed;
    tally.require(code == Some(1) || finished, || format!("it ended with {code:?}:\n{}", job.log()));
    job.check(tally)?;
    let root = job.run_to_end()?;
    tally.require(root == undisturbed, || "it ended in another state than an undisturbed run".into());
    Ok(())
}

fn told(job: &ChaosJob, tally: &mut CampaignTally) {
    tally.require(job.log().contains(TOLD), || format!("it does not say {TOLD:?}:\n{}", job.log()));
}

/// A group of processes with a limit; gone with this.
struct MemoryGroup {
    folder: PathBuf,
}

impl MemoryGroup {
    fn new() -> Result<MemoryGroup> {
        let name = format!("ckptd-chaos-{}", std::process::id());
        let (one, two) = (Path::new("/sys/fs/cgroup/memory"), Path::new("/sys/fs/cgroup"));
        if one.join("memory.limit_in_bytes").exists() {
            let group = MemoryGroup::make(one.join(&name))?;
            group.set("memory.limit_in_bytes", LIMIT)?;
            return Ok(group);
        }
        let controllers = std::fs::read_to_string(two.join("cgroup.subtree_control")).unwrap_or_default();
        ensure!(controllers.split_whitespace().any(|c| c == "memory"), "the kernel has no memory controller to lend");
        let group = MemoryGroup::make(two.join(&name))?;
        group.set("memory.max", LIMIT)?;
        // Where there is no swap there is no such file.
        let _ = group.set("memory.swap.max", 0);
        Ok(group)
    }

    fn make(folder: PathBuf) -> Result<MemoryGroup> {
        std::fs::create_dir(&folder).with_context(|| format!("making {}", folder.display()))?;
        Ok(MemoryGroup { folder })
    }

    fn set(&self, file: &str, value: u64) -> Result<()> {
        let path = self.folder.join(file);
        std::fs::write(&path, value.to_string()).with_context(|| format!("writing {}", path.display()))
    }

    /// `ckptd run` in the group: a shell enters it and becomes ckptd.
    fn start(&self, job: &ChaosJob) -> Result<ChaosAgent> {
        let ckptd = job.command()?;
        let log = std::fs::File::options().append(true).open(job.log_path())?;
        let child = std::process::Command::new("/bin/sh")
            .args(["-c", r#"echo $$ > "$0" && exec "$@""#])
            .arg(self.folder.join("cgroup.procs"))
            .arg(ckptd.get_program())
            .args(ckptd.get_args())
            .stdin(std::process::Stdio::null())
            .stdout(std::process::Stdio::null())
            .stderr(log)
            .spawn()
            .context("starting ckptd in the memory group")?;
        Ok(ChaosAgent { child })
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        // Its last process may need a moment to be gone.
        for _ in 0..100 {
            if std::fs::remove_dir(&self.folder).is_ok() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }
}
