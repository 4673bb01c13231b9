//! Any number of ranks, in any order of sessions, ends in the result of one.

use rustix::process::Signal;

use ckptd_core::protocol::WorkerEvent;

use super::harness::{MOMENTUM, RankJob, SHARDED};

#[test]
fn any_number_of_ranks_ends_in_one_root() {
    for (accumulation, sizes) in [(8, [2, 3]), (6, [3, 4])] {
        let expected = RankJob::new(accumulation, 3, "").run(1);
        for size in sizes {
            let root = RankJob::new(accumulation, 3, "").run(size);
            assert_eq!(root, expected, "{accumulation} micro-batches on {size} ranks");
        }
    }
    let expected = RankJob::new(7, 3, "").run(1);
    assert_eq!(RankJob::new(7, 3, "[ranks]\ncount = 3\n").run(1), expected, "on ranks that rank 0 has started");
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
fn a_sharded_optimizer_makes_the_same_snapshots_on_any_number_of_ranks() {
    let trainings: [(u64, &str, &[usize]); 4] =
        [(6, "", &[1, 2, 3, 4]), (1, "", &[3]), (6, MOMENTUM, &[2, 4]), (2, "optimizer = \"sgd\"\n", &[3])];
    for (accumulation, train, sizes) in trainings {
        let alone = RankJob::new(accumulation, 3, train);
        alone.run(1);
        for &size in sizes {
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
fn ranks_whose_updates_wait_for_the_snapshot_in_flight_end_in_the_same_root() {
    let expected = RankJob::new(6, 3, "").run(1);
    for more in ["", SHARDED] {
        let job = RankJob::new(6, 3, more);
        let text = std::fs::read_to_string(job.path("job.toml")).unwrap();
        std::fs::write(job.path("job.toml"), text.replace("[snapshot]\n", "[snapshot]\nmemory = \"0B\"\n")).unwrap();
        assert_eq!(job.run(3), expected, "{more}");
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
