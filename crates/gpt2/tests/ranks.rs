//! Many ranks, one result: plain processes that find one another through the environment, as any launcher sets it.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::time::{Duration, Instant};

use ckptd_core::ids::StateRoot;
use ckptd_core::protocol::{self, WorkerEvent, WorkerFailure};
use ckptd_core::store::Store;
use ckptd_testkit::servers::free_port;
use rustix::process::{Pid, Signal, kill_process};

const SECRET: &str = "a secret of this test alone";

/// A test that waits for longer has failed.
const PATIENCE: Duration = Duration::from_secs(120);

struct RankJob {
    folder: tempfile::TempDir,
}

impl RankJob {
    /// Dropout, AdamW, clipping, evaluations, and the lines of `more`: sections whose keys are not there yet.
    fn new(accumulation: u64, steps: u64, more: &str) -> RankJob {
        let folder = tempfile::tempdir().unwrap();
        let tokens: Vec<u8> =
            (0..30_000u32).flat_map(|n| ((n.wrapping_mul(2_654_435_761) >> 20) as u16).to_le_bytes()).collect();
        std::fs::write(folder.path().join("tokens.bin"), tokens).unwrap();
        let text = format!(
            "[job]\nstore = \"store\"\nthreads = 1\n[model]\npreset = \"gpt2-mini\"\ndropout = 0.1\n\
             [data]\ntokens = \"tokens.bin\"\n[snapshot]\nevery_steps = 1\n[retention]\nkeep_last = 100\n\
             [train]\nsteps = {steps}\nbatch_size = 2\nsequence_length = 32\ngrad_accumulation = {accumulation}\n\
             warmup_steps = 1\ngrad_clip = 0.5\neval_every = 2\neval_batches = 5\n{more}"
        );
        std::fs::write(folder.path().join("job.toml"), text).unwrap();
        RankJob { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Starts rank 0 to `size` - 1; each but the first may get another job file.
    fn start(&self, size: usize) -> Ranks {
        let port = free_port();
        let children = (0..size).map(|rank| spawn(&self.path("job.toml"), rank, size, port, SECRET)).collect();
        Ranks::of(children)
    }

    fn run(&self, size: usize) -> StateRoot {
        let mut ranks = self.start(size);
        let last = ranks.events_until(|event| matches!(event, WorkerEvent::Done { finished: true, .. }));
        assert!(last.is_some(), "{:?}", ranks.end());
        let ended = ranks.end();
        assert!(ended.iter().all(|output| output.status.success()), "{ended:?}");
        self.newest().1
    }

    /// Steps and root of the newest snapshot, verified or not: there is no daemon.
    fn newest(&self) -> (u64, StateRoot) {
        let entries = Store::open(&self.path("store")).unwrap().entries().unwrap();
        let manifests = entries.into_iter().map(|entry| entry.manifest.unwrap());
        let newest = manifests.max_by_key(|manifest| manifest.seq).unwrap();
        (newest.train.step, newest.root)
    }

    /// What each snapshot holds, by step.
    fn roots(&self) -> BTreeMap<u64, StateRoot> {
        let entries = Store::open(&self.path("store")).unwrap().entries().unwrap();
        let manifests = entries.into_iter().map(|entry| entry.manifest.unwrap());
        manifests.map(|manifest| (manifest.train.step, manifest.root)).collect()
    }
}

/// Processes of one job; what is left of them is killed.
struct Ranks {
    children: Vec<Child>,
    said: BufReader<ChildStdout>,
    log: String,
}

impl Ranks {
    fn of(mut children: Vec<Child>) -> Ranks {
        let said = BufReader::new(children[0].stdout.take().unwrap());
        Ranks { children, said, log: String::new() }
    }

    /// The first event of rank 0 that `wanted` wants; `None` at the end of what it says.
    fn events_until(&mut self, wanted: impl Fn(&WorkerEvent) -> bool) -> Option<WorkerEvent> {
        loop {
            let mut line = String::new();
            if self.said.read_line(&mut line).unwrap() == 0 {
                return None;
            }
            self.log.push_str(&line);
            let event: WorkerEvent = protocol::parse(line.trim()).unwrap();
            if wanted(&event) {
                return Some(event);
            }
        }
    }

    fn committed(&mut self, least: u64) {
        let event = self.events_until(|event| matches!(event, WorkerEvent::Committed { step, .. } if *step >= least));
        assert!(event.is_some(), "{}", self.log);
    }

    /// Those that rank 0 has told so far.
    fn steps(&self) -> impl Iterator<Item = u64> {
        let events = self.log.lines().filter_map(|line| protocol::parse::<WorkerEvent>(line).ok());
        events.filter_map(|event| match event {
            WorkerEvent::Step { step, .. } => Some(step),
            _ => None,
        })
    }

    fn signal(&self, rank: usize, signal: Signal) {
        kill_process(Pid::from_child(&self.children[rank]), signal).unwrap();
    }

    /// Waits for all of them.
    fn end(&mut self) -> Vec<Output> {
        let by = Instant::now() + PATIENCE;
        for child in &mut self.children {
            while child.try_wait().unwrap().is_none() {
                assert!(Instant::now() < by, "a rank does not leave; {}", self.log);
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        let children = std::mem::take(&mut self.children);
        children.into_iter().map(|child| child.wait_with_output().unwrap()).collect()
    }
}

impl Drop for Ranks {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn spawn(job: &Path, rank: usize, size: usize, port: u16, secret: &str) -> Child {
    command(job, rank, size, port, secret).spawn().unwrap()
}

fn command(job: &Path, rank: usize, size: usize, port: u16, secret: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ckptd-gpt2"));
    command.arg("--config").arg(job).stdin(Stdio::null()).stderr(Stdio::piped());
    command.stdout(if rank == 0 { Stdio::piped() } else { Stdio::null() });
    if size > 1 {
        command.env("RANK", rank.to_string()).env("WORLD_SIZE", size.to_string());
        command.env("MASTER_ADDR", "127.0.0.1").env("MASTER_PORT", port.to_string());
        command.env("CKPTD_RANKS_SECRET", secret);
    }
    command
}

fn failure(event: Option<WorkerEvent>) -> (WorkerFailure, String) {
    match event {
        Some(WorkerEvent::Failed { failure, what }) => (failure, what),
        other => panic!("{other:?}"),
    }
}

fn is_failed(event: &WorkerEvent) -> bool {
    matches!(event, WorkerEvent::Failed { .. })
}

#[test]
fn any_number_of_ranks_ends_in_one_root() {
    for accumulation in [8, 6] {
        let expected = RankJob::new(accumulation, 3, "").run(1);
        for size in [2, 3, 4] {
            let root = RankJob::new(accumulation, 3, "").run(size);
            assert_eq!(root, expected, "{accumulation} micro-batches on {size} ranks");
        }
        let root = RankJob::new(accumulation, 3, "[ranks]\ncount = 3\n").run(1);
        assert_eq!(root, expected, "{accumulation} micro-batches on ranks that rank 0 has started");
    }
}

#[test]
fn bf16_ends_in_one_root_on_any_number_of_ranks_and_in_another_than_float32() {
    const BF16: &str = "precision = \"bf16\"\n";
    let expected = RankJob::new(6, 3, BF16).run(1);
    for size in [2, 3] {
        assert_eq!(RankJob::new(6, 3, BF16).run(size), expected, "on {size} ranks");
    }
    assert_ne!(RankJob::new(6, 3, "precision = \"float32\"\n").run(1), expected);
}

#[test]
fn ranks_without_a_micro_batch_and_a_single_micro_batch_change_nothing() {
    let expected = RankJob::new(1, 3, "").run(1);
    assert_eq!(RankJob::new(1, 3, "").run(3), expected);
}

#[test]
fn a_chain_of_sessions_on_four_one_and_three_ranks_ends_in_the_same_root() {
    let expected = RankJob::new(6, 24, "optimizer = \"sgd\"\nmomentum = 0.9\n").run(2);
    let job = RankJob::new(6, 24, "optimizer = \"sgd\"\nmomentum = 0.9\n");
    for (size, step) in [(4, 2), (1, 4)] {
        let mut ranks = job.start(size);
        ranks.committed(step);
        // The others leave when rank 0 is gone.
        ranks.signal(0, Signal::KILL);
        ranks.end();
    }
    assert_eq!(job.run(3), expected);
}

#[test]
fn a_rank_that_dies_or_stops_is_named_and_the_newest_state_is_saved() {
    let job = RankJob::new(6, 400, "[worker]\nhang_timeout = \"16s\"\n");
    for (signal, rank, told) in [(Signal::KILL, 1, "rank 1 is gone"), (Signal::STOP, 2, "rank 2 gives no sign of life")]
    {
        let mut ranks = job.start(3);
        // The session after a lost rank may take a snapshot before its first step.
        assert!(ranks.events_until(|event| matches!(event, WorkerEvent::Step { .. })).is_some());
        ranks.committed(1);
        ranks.signal(rank, signal);
        let began = Instant::now();
        let (failure, what) = failure(ranks.events_until(is_failed));
        assert!(failure == WorkerFailure::Other && what.contains(told), "{what}");
        assert!(began.elapsed() < PATIENCE / 2);
        assert_eq!(Some(job.newest().0), ranks.steps().max(), "{}", ranks.log);
        if signal == Signal::STOP {
            ranks.signal(rank, Signal::KILL);
        }
        ranks.end();
    }
}

#[test]
fn strangers_and_ranks_that_would_compute_something_else_do_not_get_in() {
    for more in ["", SHARDED] {
        stay_out(&RankJob::new(2, 2, more));
    }
}

fn stay_out(job: &RankJob) {
    let other = std::fs::read_to_string(job.path("job.toml")).unwrap().replace("grad_clip = 0.5", "grad_clip = 0.25");
    std::fs::write(job.path("other.toml"), other).unwrap();
    let port = free_port();
    let zero = spawn(&job.path("job.toml"), 0, 2, port, SECRET);
    let mut ranks = Ranks::of(vec![zero]);
    // One that is silent, one that talks nonsense.
    let silent = connect(port);
    let mut loud = connect(port);
    loud.write_all(&[b"GET / HTTP/1.1\r\n\r\n".as_slice(), &[0xff; 4096]].concat()).unwrap();
    let refused =
        |event: &WorkerEvent| matches!(event, WorkerEvent::Log { message, .. } if message.contains("refused"));
    assert!(ranks.events_until(refused).is_some());
    let mut stranger = spawn(&job.path("job.toml"), 1, 2, port, "another secret");
    let mut told = String::new();
    stranger.stderr.take().unwrap().read_to_string(&mut told).unwrap();
    assert_eq!(stranger.wait().unwrap().code(), Some(78));
    assert!(told.contains("rank 1") && told.contains("CKPTD_RANKS_SECRET"), "{told}");
    assert!(ranks.events_until(refused).is_some());

    ranks.children.push(spawn(&job.path("other.toml"), 1, 2, port, SECRET));
    let (failure, what) = failure(ranks.events_until(is_failed));
    assert_eq!(failure, WorkerFailure::Config);
    assert!(what.contains("rank 1: job file ") && what.contains("as on rank 0"), "{what}");
    let ended = ranks.end();
    assert!(ended.iter().all(|output| output.status.code() == Some(78)), "{ended:?}");
    assert!(!ranks.log.contains("\"event\":\"step\""), "nothing was trained");
    drop(silent);
}

#[test]
fn ranks_on_other_processors_or_with_other_jobs_are_named_before_the_first_step() {
    for more in ["", SHARDED] {
        let job = RankJob::new(3, 2, more);
        let text = std::fs::read_to_string(job.path("job.toml")).unwrap();
        std::fs::write(job.path("seed.toml"), text.replace("[job]\n", "[job]\nseed = 7\n")).unwrap();
        // Rank 0 settles the threads for all.
        std::fs::write(job.path("threads.toml"), text.replace("threads = 1", "threads = 2")).unwrap();
        let port = free_port();
        let mut older = command(&job.path("threads.toml"), 2, 3, port, SECRET);
        // How libtorch is told to do without what a processor has.
        older.env("ATEN_CPU_CAPABILITY", "default");
        let zero = spawn(&job.path("job.toml"), 0, 3, port, SECRET);
        let one = spawn(&job.path("seed.toml"), 1, 3, port, SECRET);
        let mut ranks = Ranks::of(vec![zero, one, older.spawn().unwrap()]);
        let (failure, what) = failure(ranks.events_until(is_failed));
        assert_eq!(failure, WorkerFailure::Config, "{what}");
        for told in
            ["rank 1: job file ", "rank 2: processor ", "ATEN_CPU_CAPABILITY=default, not ", "rank 2: libtorch "]
        {
            assert!(what.contains(told), "{told}: {what}");
        }
        assert!(!what.contains("threads") && !what.contains("rank 1: processor"), "{what}");
        let ended = ranks.end();
        assert!(ended.iter().all(|output| output.status.code() == Some(78)), "{ended:?}");
        assert!(!ranks.log.contains("\"event\":\"step\""), "nothing was trained");
    }
}

#[test]
fn a_backend_that_the_worker_was_built_without_is_refused_with_how_to_build_it() {
    if cfg!(feature = "mpi") {
        return;
    }
    let job = RankJob::new(2, 2, "[ranks]\nlauncher = \"mpirun\"\ncount = 2\nbackend = \"mpi\"\n");
    let mut ranks = job.start(2);
    let (failure, what) = failure(ranks.events_until(is_failed));
    assert_eq!(failure, WorkerFailure::Config);
    assert!(what.contains("[ranks] backend") && what.contains("--features ckptd-gpt2/mpi"), "{what}");
    ranks.end();
}

/// A connection to a port where somebody will listen.
fn connect(port: u16) -> TcpStream {
    let by = Instant::now() + PATIENCE;
    loop {
        match TcpStream::connect(("127.0.0.1", port)) {
            Ok(stream) => return stream,
            Err(e) => assert!(Instant::now() < by, "{e}"),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// What each of these processes has written on its standard error.
fn told(ended: &[Output]) -> Vec<String> {
    ended.iter().map(|output| String::from_utf8_lossy(&output.stderr).into_owned()).collect()
}

#[test]
fn ranks_that_see_neither_store_nor_data_get_them_from_rank_zero() {
    let expected = RankJob::new(6, 5, "").run(1);
    for more in ["", SHARDED] {
        from_rank_zero(more, &expected);
    }
}

fn from_rank_zero(more: &str, expected: &StateRoot) {
    const STATE: &str = "the state came from rank 0";
    const TOKENS: &str = "the tokens came from rank 0 (60,000 bytes)";
    // Each rank in a folder of its own, as on a machine of its own; only rank 0's has the tokens.
    let jobs: Vec<RankJob> = (0..4).map(|_| RankJob::new(6, 5, more)).collect();
    jobs[1..].iter().for_each(|job| std::fs::remove_file(job.path("tokens.bin")).unwrap());
    let start = || {
        let port = free_port();
        let spawn = |(rank, job): (usize, &RankJob)| spawn(&job.path("job.toml"), rank, jobs.len(), port, SECRET);
        Ranks::of(jobs.iter().enumerate().map(spawn).collect())
    };
    let mut ranks = start();
    ranks.committed(2);
    ranks.signal(0, Signal::KILL);
    for said in &told(&ranks.end())[1..] {
        assert!(said.contains(TOKENS) && !said.contains(STATE), "{said}");
    }

    // Two have copies of the store, one of them a damaged one.
    for job in &jobs[2..] {
        let copied = Command::new("cp").arg("-r").arg(jobs[0].path("store")).arg(job.path("")).status().unwrap();
        assert!(copied.success());
    }
    let snapshots = std::fs::read_dir(jobs[3].path("store/snapshots")).unwrap();
    for path in snapshots.map(|entry| entry.unwrap().path()) {
        let mut bytes = std::fs::read(&path).unwrap();
        // Within the parameters, which each rank reads; of a sharded optimizer's moments it reads its own.
        let at = bytes.len() / 8;
        bytes[at] ^= 1;
        std::fs::write(&path, bytes).unwrap();
    }
    let mut ranks = start();
    assert!(ranks.events_until(|event| matches!(event, WorkerEvent::Done { finished: true, .. })).is_some());
    let told = told(&ranks.end());
    assert!(told.iter().all(|said| !said.contains(TOKENS)), "they keep the tokens: {told:?}");
    let states: Vec<bool> = told.iter().map(|said| said.contains(STATE)).collect();
    assert_eq!(states, [false, true, false, true], "{told:?}");
    assert_eq!(jobs[0].newest(), (5, expected.clone()));

    // Other tokens at the place that the job names are no copy.
    std::fs::write(jobs[1].path("tokens.bin"), vec![1; 60_000]).unwrap();
    let (failure, what) = failure(start().events_until(is_failed));
    assert!(failure == WorkerFailure::Config && what.contains("rank 1: data "), "{what}");
}

const SHARDED: &str = "[ranks]\nshard_optimizer = true\n";
const MOMENTUM: &str = "optimizer = \"sgd\"\nmomentum = 0.9\n";

#[test]
fn a_sharded_optimizer_makes_the_same_snapshots_on_any_number_of_ranks() {
    for (accumulation, train) in [(6, ""), (1, ""), (6, MOMENTUM), (2, "optimizer = \"sgd\"\n")] {
        let alone = RankJob::new(accumulation, 3, train);
        alone.run(1);
        for size in [1, 2, 3, 4] {
            let job = RankJob::new(accumulation, 3, &format!("{train}{SHARDED}"));
            job.run(size);
            let (found, expected) = (job.roots(), alone.roots());
            // A step that ends before the snapshot before it is written has none.
            assert!(found.len() > 1 && found.last_key_value() == expected.last_key_value(), "{found:?} {expected:?}");
            let alike = found.iter().all(|(step, root)| expected.get(step).is_none_or(|other| other == root));
            assert!(alike, "{accumulation} micro-batches on {size} ranks, {train}: {found:?} and not {expected:?}");
        }
    }
}

#[test]
fn sessions_with_and_without_a_sharded_optimizer_follow_one_another() {
    let expected = RankJob::new(6, 40, MOMENTUM).run(1);
    let job = RankJob::new(6, 40, MOMENTUM);
    let alone = std::fs::read_to_string(job.path("job.toml")).unwrap();
    for (size, killed, more) in [(4, 0, SHARDED), (1, 0, ""), (3, 1, SHARDED), (2, 1, ""), (2, 0, SHARDED)] {
        std::fs::write(job.path("job.toml"), format!("{alone}{more}")).unwrap();
        let mut ranks = job.start(size);
        assert!(ranks.events_until(|event| matches!(event, WorkerEvent::Step { .. })).is_some(), "{}", ranks.log);
        ranks.committed(1);
        ranks.signal(killed, Signal::KILL);
        ranks.end();
    }
    assert_eq!(job.run(3), expected);
}

#[test]
fn a_lost_rank_costs_a_sharded_optimizer_the_steps_since_the_last_snapshot() {
    let expected = RankJob::new(6, 60, "").run(1);
    let job = RankJob::new(6, 60, &format!("[worker]\nhang_timeout = \"16s\"\n{SHARDED}"));
    let lost = [(3, 1, Signal::KILL, "rank 1 is gone"), (3, 2, Signal::STOP, "rank 2 gives no sign of life")];
    for (size, rank, signal, told) in lost {
        let mut ranks = job.start(size);
        assert!(ranks.events_until(|event| matches!(event, WorkerEvent::Step { .. })).is_some());
        ranks.committed(1);
        ranks.signal(rank, signal);
        let (failure, what) = failure(ranks.events_until(is_failed));
        assert!(failure == WorkerFailure::Other && what.contains(told), "{what}");
        // Either its shard is lost, or the newest state was durable by then.
        let is_lost = ranks.log.contains("the steps since the newest snapshot are computed again");
        assert!(is_lost || ranks.steps().max() == Some(job.newest().0), "{}", ranks.log);
        if signal == Signal::STOP {
            ranks.signal(rank, Signal::KILL);
        }
        ranks.end();
    }
    assert_eq!(job.run(3), expected);
}

#[test]
fn a_training_in_sequential_order_stays_on_one_rank() {
    let folder = tempfile::tempdir().unwrap();
    let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/kept");
    let status = Command::new("cp").arg("-r").arg(kept.join(".")).arg(folder.path()).status().unwrap();
    assert!(status.success());
    let port = free_port();
    let children = (0..2).map(|rank| spawn(&folder.path().join("adamw.toml"), rank, 2, port, SECRET)).collect();
    let mut ranks = Ranks::of(children);
    let (failure, what) = failure(ranks.events_until(is_failed));
    assert_eq!(failure, WorkerFailure::Config);
    assert!(what.contains("arithmetic 1") && what.contains("--accept-changes"), "{what}");
    ranks.end();
}
