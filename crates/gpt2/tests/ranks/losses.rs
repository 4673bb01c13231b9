//! A rank that is lost is named; what is saved then, and what it costs.

use std::time::Instant;

use ckptd_core::protocol::{WorkerEvent, WorkerFailure};
use rustix::process::Signal;

use super::harness::{PATIENCE, RankJob, SHARDED, failure, is_failed};

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
fn a_lost_rank_costs_a_sharded_optimizer_the_steps_since_the_last_snapshot() {
    let expected = RankJob::new(6, 36, "").run(1);
    let job = RankJob::new(6, 36, &format!("[worker]\nhang_timeout = \"16s\"\n{SHARDED}"));
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
