//! What does not belong to a job, or would compute something else, is refused by name before the first step.

use std::io::Write;
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use ckptd_core::protocol::{WorkerEvent, WorkerFailure};
use ckptd_testkit::servers::free_port;

use super::harness::{PATIENCE, RankJob, Ranks, SECRET, SHARDED, command, failure, is_failed, spawn};

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
    // Ranks may share their standard error: what one says is one write, which another one's cannot come between.
    let (own, theirs) = UnixDatagram::pair().unwrap();
    let mut stranger = command(&job.path("job.toml"), 1, 2, port, "another secret");
    let mut stranger = stranger.stderr(OwnedFd::from(theirs)).spawn().unwrap();
    let mut told = vec![0; 4096];
    let length = own.recv(&mut told).unwrap();
    let told = String::from_utf8_lossy(&told[..length]);
    assert!(told.starts_with("ckptd-gpt2 rank 1: ") && told.contains("CKPTD_RANKS_SECRET"), "{told}");
    assert!(told.ends_with('\n'), "{told}");
    assert_eq!(stranger.wait().unwrap().code(), Some(78));
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
