//! Training scripts that use the Python package `ckptd`, under the real torch: killed at random moments, script, daemon
//! or both, they end in the bits of the run that nobody disturbed; their streams are their own; what they write behind
//! the package's back is in no verified snapshot.
//!
//! `make python-kills` kills more often, and at any moment.
#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use ckptd_core::ids::StateRoot;
use ckptd_core::store::SnapshotState;
use ckptd_testkit::job::{EndedRun, JobFolder, PATIENCE, RunningAgent, signal};
use ckptd_testkit::python;
use ckptd_testkit::random::SeededRandom;
use rustix::process::Signal;

const CKPTD: &str = env!("CARGO_BIN_EXE_ckptd");
/// How often each loop is killed.
const KILLS: u64 = 2;

/// A job that runs a script of `examples/python` or `tests/python`.
struct ScriptJob {
    folder: JobFolder,
    launcher: Vec<String>,
    script: PathBuf,
    arguments: Vec<String>,
    package: tempfile::TempDir,
}

impl ScriptJob {
    fn new(script: &str, arguments: &[&str], config: &str) -> ScriptJob {
        ScriptJob {
            folder: JobFolder::new(config),
            launcher: vec![python::interpreter().to_string_lossy().into_owned()],
            script: python::root().join(script),
            arguments: arguments.iter().map(|argument| (*argument).to_owned()).collect(),
            package: python::package(Path::new(CKPTD)),
        }
    }

    /// The same on `ranks` ranks of torchrun.
    fn on_ranks(self, ranks: usize) -> ScriptJob {
        let torchrun = python::interpreter().with_file_name("torchrun").to_string_lossy().into_owned();
        let count = format!("--nproc-per-node={ranks}");
        ScriptJob { launcher: vec![torchrun, "--standalone".to_owned(), count], ..self }
    }

    fn command(&self, options: &[&str]) -> Command {
        let mut command = Command::new(CKPTD);
        command.args(["run", "--config"]).arg(self.folder.config()).args(options).arg("--");
        command.args(&self.launcher).arg(&self.script).args(&self.arguments);
        command.env("PYTHONPATH", self.package.path()).current_dir(self.folder.path(""));
        command
    }

    fn start(&self) -> RunningAgent {
        RunningAgent::start(self.command(&["--log-format", "json", "--log-every", "1"]))
    }

    fn run(&self) -> EndedRun {
        self.start().wait()
    }

    /// What `odd_script.py` says of the store in another mode.
    fn says(&self, mode: &[&str]) -> String {
        let programs = Path::new(CKPTD).parent().unwrap();
        let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap_or_default());
        let output = Command::new(python::interpreter())
            .arg(&self.script)
            .args(mode)
            .env("PATH", path)
            .env("PYTHONPATH", self.package.path())
            .current_dir(self.folder.path(""))
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
        said
    }

    /// The root of the last step, which must be verified.
    fn complete(&self) -> StateRoot {
        let run = self.run();
        assert_eq!(run.code, Some(0), "{}", run.log);
        self.folder.root()
    }
}

/// Kills a job's script, its daemon or both at random moments, at most so often, and lets it end. Returns how often it
/// was killed before all was done.
fn killed(job: &ScriptJob, most: u64, random: &mut SeededRandom) -> u64 {
    let mut agent = job.start();
    for made in 0..most {
        if (0..random.below(20) + 3).any(|_| !agent.comes("learning rate")) {
            assert_eq!(agent.wait().code, Some(0));
            return made;
        }
        std::thread::sleep(Duration::from_millis(random.below(60)));
        let worker = agent.worker();
        let (script, daemon) = [(true, false), (false, true), (true, true)][random.below(3) as usize];
        if daemon {
            agent.signal(Signal::KILL);
        }
        worker.into_iter().filter(|_| script).for_each(|worker| signal(worker, Signal::KILL));
        // A script that was killed is started again by its daemon.
        if daemon {
            agent.wait();
            agent = job.start();
        }
    }
    let run = agent.wait();
    assert_eq!(run.code, Some(0), "{}", run.log);
    most
}

#[track_caller]
fn ends_in_the_same_bits(script: &str, seed: u64) {
    let config = "[snapshot]\nevery = \"200ms\"\n";
    let undisturbed = ScriptJob::new(script, &[], config).complete();
    let (mut random, mut left, mut jobs) = (SeededRandom::new(seed), KILLS, 5 * KILLS);
    while left > 0 {
        assert!(jobs > 0, "{script} is over before it can be killed");
        jobs -= 1;
        let job = ScriptJob::new(script, &[], config);
        left -= killed(&job, left, &mut random);
        assert_eq!(job.folder.root(), undisturbed, "{script}");
    }
}

#[test]
fn a_loop_in_nanogpts_shape_that_is_killed_ends_in_the_same_bits() {
    ends_in_the_same_bits("examples/python/nanogpt.py", 1);
}

#[test]
fn sgd_with_batchnorm_and_a_shuffled_loader_that_is_killed_ends_in_the_same_bits() {
    ends_in_the_same_bits("examples/python/resnet.py", 2);
}

#[test]
fn an_average_with_forked_workers_that_is_killed_ends_in_the_same_bits() {
    ends_in_the_same_bits("examples/python/ema.py", 3);
}

#[test]
fn the_trainer_of_transformers_that_is_killed_ends_in_the_same_bits() {
    ends_in_the_same_bits("examples/python/trainer.py", 4);
}

#[test]
fn a_fit_of_lightning_that_is_killed_ends_in_the_same_bits() {
    ends_in_the_same_bits("examples/python/lightning_fit.py", 10);
}

#[test]
fn adapters_of_peft_that_are_killed_end_in_the_same_bits() {
    ends_in_the_same_bits("examples/python/lora.py", 5);
}

#[test]
fn muon_beside_adamw_that_is_killed_ends_in_the_same_bits() {
    ends_in_the_same_bits("examples/python/muon.py", 6);
}

#[test]
fn two_models_with_two_optimizers_under_autocast_that_are_killed_end_in_the_same_bits() {
    ends_in_the_same_bits("examples/python/gan.py", 7);
}

#[test]
fn a_schedule_free_optimizer_that_is_killed_ends_in_the_same_bits() {
    ends_in_the_same_bits("examples/python/schedule_free.py", 8);
}

#[test]
fn a_loop_of_accelerate_that_is_killed_ends_in_the_same_bits() {
    ends_in_the_same_bits("examples/python/accelerated.py", 9);
}

/// The process of `rank` below the launcher that `agent` has started.
fn rank(agent: &RunningAgent, rank: usize) -> u32 {
    let launcher = agent.worker().unwrap();
    let children = std::fs::read_to_string(format!("/proc/{launcher}/task/{launcher}/children")).unwrap();
    let is_wanted = |pid: &&str| {
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|variable| variable == format!("RANK={rank}").as_bytes())
    };
    children.split_whitespace().find(is_wanted).unwrap().parse().unwrap()
}

#[test]
fn ranks_of_which_one_is_killed_end_in_the_same_bits_and_as_many_go_on() {
    let (script, config) = ("examples/python/ddp.py", "[snapshot]\nevery = \"200ms\"\n");
    let undisturbed = ScriptJob::new(script, &[], config).on_ranks(2).complete();
    let job = ScriptJob::new(script, &[], config).on_ranks(2);
    let mut agent = job.start();
    for killed in [1, 0] {
        agent.wait_for("verified step");
        signal(rank(&agent, killed), Signal::KILL);
        agent.wait_for("restarting it");
        agent.wait_for("learning rate");
    }
    let run = agent.wait();
    assert_eq!(run.code, Some(0), "{}", run.log);
    assert_eq!(job.folder.root(), undisturbed, "{}", run.log);

    let run = job.on_ranks(1).run();
    assert_eq!(run.code, Some(1), "{}", run.log);
    assert!(run.log.contains("the snapshot is of 2 ranks, and this training has 1 process"), "{}", run.log);
}

#[test]
fn ranks_that_are_stopped_end_after_the_same_step_and_rank_0_is_the_worker() {
    let job = ScriptJob::new("tests/python/odd_script.py", &["ranks"], "").on_ranks(2);
    let mut agent = job.start();
    agent.wait_for("step 20,");
    let status = Command::new(CKPTD).args(["status", "--json"]).arg(job.folder.config()).output().unwrap();
    let status: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
    assert_eq!(status["worker"]["pid"], rank(&agent, 0), "{status}");
    agent.signal(Signal::TERM);
    let run = agent.wait();
    assert_eq!(run.code, Some(75), "{}", run.log);
    let newest = job.folder.newest().unwrap();
    assert_eq!(newest.state, SnapshotState::Verified);
    let step = newest.manifest.unwrap().train.step;
    for rank in 0..2 {
        assert!(run.log.contains(&format!("rank {rank} ends after step {step}")), "{step}: {}", run.log);
    }
}

#[test]
fn ranks_that_have_not_begun_are_gone_with_the_session() {
    let job = ScriptJob::new("tests/python/odd_script.py", &["early"], "").on_ranks(2);
    let agent = job.start();
    let pid = |rank: usize| std::fs::read_to_string(job.folder.path(&format!("rank-{rank}"))).ok()?.parse::<u32>().ok();
    let until = Instant::now() + PATIENCE;
    let pids = loop {
        if let (Some(zero), Some(one)) = (pid(0), pid(1)) {
            break [zero, one];
        }
        assert!(Instant::now() < until, "no ranks: {}", agent.log());
        std::thread::sleep(Duration::from_millis(20));
    };
    agent.signal(Signal::TERM);
    let run = agent.wait();
    assert_eq!(run.code, Some(75), "{}", run.log);
    // They are nobody's children any more; what reaps them may take a moment.
    let is_there = |pid: &u32| {
        let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        state.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
    };
    while pids.iter().any(is_there) {
        assert!(Instant::now() < until, "{pids:?} are still there: {}", run.log);
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn ranks_that_train_a_model_each_or_by_a_trainer_are_refused_at_once() {
    let cases = [
        ("apart", "after step 1 param 0.weight is not the same on rank 1 as on rank 0"),
        ("trainer", "trainings by Lightning are saved on one process only"),
    ];
    for (mode, expected) in cases {
        let run = ScriptJob::new("tests/python/odd_script.py", &[mode], "").on_ranks(2).run();
        assert_eq!(run.code, Some(78), "{}", run.log);
        assert!(run.log.contains(expected), "{}", run.log);
    }
}

#[test]
fn a_session_that_ends_between_two_optimizers_steps_saves_the_step_they_make_together() {
    let job = ScriptJob::new("tests/python/odd_script.py", &["between"], "");
    let run = job.run();
    assert_eq!(run.code, Some(75), "{}", run.log);
    let newest = job.folder.newest().unwrap();
    assert_eq!(newest.state, SnapshotState::Verified);
    assert_eq!(newest.manifest.unwrap().train.step, 6, "{}", run.log);
}

#[test]
fn weights_that_are_loaded_after_the_last_step_are_told_and_save_keeps_that_step() {
    for (arguments, is_last) in [(&["best"][..], "False"), (&["best", "save"], "True")] {
        let job = ScriptJob::new("tests/python/odd_script.py", arguments, "");
        let run = job.run();
        assert_eq!(run.code, Some(0), "{}", run.log);
        assert_eq!(run.log.contains("the model was written after step 10"), is_last == "False", "{}", run.log);
        let said = job.says(&["is_last"]);
        assert_eq!(said.trim(), is_last, "{}", run.log);
    }
}

#[test]
fn what_a_script_prints_is_its_own_and_a_signal_ends_it_with_75() {
    let job = ScriptJob::new("tests/python/odd_script.py", &["streams"], "");
    let mut command = job.command(&["--budget", "1h"]);
    let mut agent = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stderr = agent.stderr.take().unwrap();
    let errors = std::thread::spawn(move || std::io::read_to_string(&mut stderr).unwrap());
    let mut out = String::new();
    for line in BufReader::new(agent.stdout.take().unwrap()).lines() {
        let line = line.unwrap();
        if line == "printed 40" {
            signal(agent.id(), Signal::TERM);
        }
        out += &format!("{line}\n");
    }
    let (status, err) = (agent.wait().unwrap(), errors.join().unwrap());
    assert_eq!(status.code(), Some(75), "{err}");
    // What the script wrote, a child of it and a bar of tqdm; nothing of the protocol.
    assert!(out.lines().all(|line| line.starts_with("printed ") || line == "a child's line"), "{out}");
    assert!(out.contains("printed 1\n") && out.contains("a child's line\n"), "{out}");
    assert!(err.contains("it/s]") && err.contains("session over (SIGTERM)"), "{err}");
    let newest = job.folder.newest().unwrap();
    assert_eq!(newest.state, SnapshotState::Verified);
}

#[test]
fn a_script_that_starts_slowly_is_waited_for_and_one_that_hangs_between_steps_is_started_again() {
    let job = ScriptJob::new("tests/python/odd_script.py", &["hang"], "[worker]\nhang_timeout = \"5s\"\n");
    let run = job.run();
    assert_eq!(run.code, Some(0), "{}", run.log);
    assert!(run.log.contains("it said nothing for 5 s"), "{}", run.log);
    assert!(run.log.contains("restarting it"), "{}", run.log);
}

#[test]
fn what_is_written_between_two_steps_is_in_no_verified_snapshot() {
    let config = "[snapshot]\nevery_steps = 1\n[retention]\nkeep_last = 1000\n";
    let job = ScriptJob::new("tests/python/odd_script.py", &["unannounced"], config);
    let run = job.run();
    assert_eq!(run.code, Some(0), "{}", run.log);
    for tensor in ["param 0.weight", "param 2.bias"] {
        let told = format!("{tensor}: written between a step boundary and the optimiser's step");
        assert!(run.log.contains(&told), "{}", run.log);
    }
    let compared: u64 = job.says(&["compare"]).trim().parse().unwrap();
    assert!(compared > 5, "{compared} snapshots\n{}", run.log);
}

#[test]
fn the_newest_snapshot_of_a_remote_is_read_by_its_url() {
    let job = ScriptJob::new("tests/python/odd_script.py", &["best", "save"], "");
    let url = format!("file://{}", job.folder.path("remote").display());
    std::fs::create_dir(job.folder.path("remote")).unwrap();
    let run = RunningAgent::start(job.command(&["--remote", &url])).wait();
    assert_eq!(run.code, Some(0), "{}", run.log);
    let said = job.says(&["fetched", &url]);
    assert!(said.starts_with("[10, 10] ") && said.contains("/nowhere/at/all"), "{said}");
}

#[test]
fn a_state_that_cannot_be_saved_ends_the_run_at_once_with_its_path() {
    for (mode, expected) in [("refused", "extra['words']"), ("unused", "never called ckptd.attach")] {
        let run = ScriptJob::new("tests/python/odd_script.py", &[mode], "").run();
        assert_eq!(run.code, Some(78), "{}", run.log);
        assert!(run.log.contains(expected), "{}", run.log);
    }
}

/// Runs a program of `tests/python` that imports the package, and finds nothing wrong.
#[track_caller]
fn passes(script: &str) {
    let package = python::package(Path::new(CKPTD));
    let output = Command::new(python::interpreter())
        .arg(python::root().join("tests/python").join(script))
        .env("PYTHONPATH", package.path())
        .output()
        .unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}{err}");
    println!("{out}");
}

#[test]
fn every_kind_of_state_comes_back_bit_for_bit_and_a_changed_bit_changes_the_root() {
    passes("state_kinds.py");
}

#[test]
fn the_samplers_order_is_a_permutation_and_the_same_wherever_it_is_entered() {
    passes("sampler.py");
}

#[test]
fn copies_of_a_gpus_tensors_are_of_their_boundary_in_whatever_order_it_works() {
    passes("device_copies.py");
}

#[test]
fn what_a_resume_could_not_follow_is_refused_and_nothing_that_fails_hangs() {
    passes("script_rules.py");
}
