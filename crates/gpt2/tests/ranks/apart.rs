//! Ranks that share no folder get state and tokens from rank 0.

use std::process::Command;

use ckptd_core::ids::StateRoot;
use ckptd_core::protocol::{WorkerEvent, WorkerFailure};
use ckptd_testkit::servers::free_port;
use rustix::process::Signal;

use super::harness::{RankJob, Ranks, SECRET, SHARDED, failure, is_failed, spawn, told};

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
