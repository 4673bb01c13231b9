//! `every = "auto"` against the best fixed interval, found by search over the same failures: `make interval` prints the
//! table.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use ckptd::session::costs::LearnedCosts;
use ckptd::session::interval::{IntervalInputs, choose};
use ckptd_testkit::random::SeededRandom;

/// Failures of one simulated training.
const FAILURES: usize = 400;
/// What a restart takes, in seconds.
const RESTART: f64 = 20.0;

/// What a snapshot costs the training, and how long one takes until it is durable, in seconds.
const SNAPSHOTS: [(f64, f64); 3] = [(0.02, 0.5), (0.2, 3.0), (1.0, 15.0)];
/// Mean times between failures, in seconds.
const MTBFS: [(f64, &str); 6] =
    [(900.0, "15m"), (3600.0, "1h"), (4.0 * 3600.0, "4h"), (12.0 * 3600.0, "12h"), (86400.0, "1d"), (604_800.0, "7d")];

/// What of `uptime` until a failure is kept, at this interval: the work up to the last snapshot that became durable.
fn kept(uptime: f64, every: f64, (cost, time): (f64, f64)) -> f64 {
    let durable = ((uptime - time) / every).floor().max(0.0);
    durable * (every - cost).max(0.0)
}

fn uniform(random: &mut SeededRandom) -> f64 {
    (random.below(1 << 40) as f64 + 0.5) / (1u64 << 40) as f64
}

/// Goodput at a fixed interval.
fn fixed(uptimes: &[f64], every: f64, snapshot: (f64, f64)) -> f64 {
    let useful: f64 = uptimes.iter().map(|uptime| kept(*uptime, every, snapshot)).sum();
    useful / uptimes.iter().map(|uptime| uptime + RESTART).sum::<f64>()
}

/// Goodput of the automatic interval, which knows nothing at the beginning, and the interval that it ends with.
fn auto(uptimes: &[f64], snapshot: (f64, f64), random: &mut SeededRandom) -> (f64, f64) {
    let mut costs = LearnedCosts::default();
    let (mut useful, mut total, mut every) = (0.0, 0.0, 0.0);
    for uptime in uptimes {
        let inputs = IntervalInputs {
            lost: costs.lost(),
            time: costs.snapshot_time().unwrap_or_default(),
            mtbf: costs.mtbf(),
            mtbf_is_given: false,
            failures: costs.failures,
        };
        every = choose(&inputs, 0.01).every.as_secs_f64();
        useful += kept(*uptime, every, snapshot);
        total += uptime + RESTART;
        costs.uptime_seconds += uptime;
        costs.failures += 1;
        // What is measured scatters.
        for _ in 0..((uptime / every) as usize).min(8) {
            let scatter = 0.7 + 0.6 * uniform(random);
            costs.lost_ms.push(Duration::from_secs_f64(snapshot.0 * scatter));
            costs.snapshots_ms.push(Duration::from_secs_f64(snapshot.1 * scatter));
        }
    }
    (useful / total, every)
}

#[test]
fn auto_reaches_95_percent_of_the_best_fixed_intervals_goodput() {
    let mut random = SeededRandom::new(5);
    println!("time between  a snapshot  is durable    best fixed  goodput     auto at  goodput  auto/best  5m fixed");
    println!("failures      costs       after         interval                the end");
    let mut worst = f64::MAX;
    for (mtbf, name) in MTBFS {
        let uptimes: Vec<f64> = (0..FAILURES).map(|_| -mtbf * uniform(&mut random).ln()).collect();
        for snapshot in SNAPSHOTS {
            let intervals =
                (0..400).map(|i| (snapshot.1 + 1.0) * 1.025f64.powi(i)).take_while(|every| *every < 50_000.0);
            let of = |every: f64| (fixed(&uptimes, every, snapshot), every);
            let (best, best_every) = intervals.map(of).max_by(|a, b| a.0.total_cmp(&b.0)).unwrap();
            let (goodput, every) = auto(&uptimes, snapshot, &mut random);
            let usual = fixed(&uptimes, 300.0, snapshot);
            println!(
                "{name:>8} {:>12.2} s {:>10.1} s {best_every:>11.0} s {:>7.2} % {every:>9.0} s {:>6.2} % {:>8.2} % \
                 {:>7.2} %",
                snapshot.0,
                snapshot.1,
                100.0 * best,
                100.0 * goodput,
                100.0 * goodput / best,
                100.0 * usual,
            );
            worst = worst.min(goodput / best);
        }
    }
    println!("auto reaches at least {:.2} % of the best", 100.0 * worst);
    assert!(worst >= 0.95, "{worst}");
}
