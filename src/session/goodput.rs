//! Days of a training that is preempted again and again: which share of the time ends in the result.
//!
//! One schedule of steps, exchanges, snapshots and ends, second by second where something happens. Invariant: pure, and
//! the same for the same seed. Deliberately not here: where the costs come from (`scale`; docs/ranks.md).

const DAY: f64 = 86400.0;
/// As `[session] margin`.
const LAST_SNAPSHOT_MARGIN: f64 = 1.5;

/// How a training saves.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SavingPolicy {
    /// Seconds that the training stands still per snapshot.
    pub held_up: f64,
    /// Seconds from the cut until it is durable.
    pub durable: f64,
    /// Seconds between two cuts, at least; a cut is taken only when the one before is durable.
    pub interval: f64,
    /// A last snapshot is taken after a notice.
    pub heeds_notices: bool,
}

/// What it is run on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PreemptedCluster {
    /// Seconds of computing per step, and of exchanging.
    pub compute: f64,
    pub exchange: f64,
    pub ends_per_day: f64,
    /// Seconds from a notice to the end; 0: none comes.
    pub notice: f64,
    /// Seconds from an end to the first step: new machines, processes, and the state read.
    pub restart: f64,
}

/// What became of the time.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct TimeSpent {
    /// Share that was spent computing steps which are in the result.
    pub goodput: f64,
    /// Minutes per day of steps that had to be made again.
    pub lost_minutes: f64,
}

/// Uniform numbers, the same for the same seed.
struct UniformNumbers(u64);

impl UniformNumbers {
    fn next(&mut self) -> f64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        ((self.0 >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    }
}

/// One session: steps from `began` to its end at `ends`.
struct SessionRun {
    now: f64,
    /// Steps of this session, and those that are durable.
    steps: u64,
    saved: u64,
    /// The cut in flight: when it is durable, and its steps.
    in_flight: Option<(f64, u64)>,
    last_cut: f64,
}

impl SessionRun {
    fn land(&mut self) {
        if let Some((_, steps)) = self.in_flight.filter(|(at, _)| *at <= self.now) {
            self.saved = steps;
            self.in_flight = None;
        }
    }

    /// Saved and completed steps when the machines end.
    fn run(mut self, cluster: &PreemptedCluster, policy: &SavingPolicy, ends: f64) -> (u64, u64) {
        // As late as the planner dares; a notice that is too short for a snapshot changes nothing.
        let last_cut = LAST_SNAPSHOT_MARGIN * policy.durable;
        let is_in_time = policy.heeds_notices && cluster.notice >= policy.durable;
        let stops = ends - if is_in_time { cluster.notice.min(last_cut) } else { 0.0 };
        loop {
            self.land();
            if self.in_flight.is_none() && self.now - self.last_cut >= policy.interval && self.steps > self.saved {
                self.last_cut = self.now;
                self.now += policy.held_up;
                self.in_flight = Some((self.last_cut + policy.durable, self.steps));
            }
            let step_ends = self.now + cluster.compute + cluster.exchange;
            if step_ends > stops {
                break;
            }
            (self.now, self.steps) = (step_ends, self.steps + 1);
        }
        if let Some((_, steps)) = self.in_flight.filter(|(durable, _)| *durable <= ends) {
            self.saved = steps;
        }
        if is_in_time {
            // One in flight is given up for it.
            self.saved = self.steps;
        }
        (self.saved, self.steps)
    }
}

/// Plays `days` of a training.
pub fn play(cluster: &PreemptedCluster, policy: &SavingPolicy, days: f64, seed: u64) -> TimeSpent {
    let mut numbers = UniformNumbers(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let (mut now, mut kept, mut lost) = (0.0, 0u64, 0u64);
    while now < days * DAY {
        let began = now + cluster.restart;
        let ends = now - numbers.next().ln() * DAY / cluster.ends_per_day;
        if ends > began {
            let session = SessionRun { now: began, steps: 0, saved: 0, in_flight: None, last_cut: began };
            let (saved, steps) = session.run(cluster, policy, ends);
            kept += saved;
            lost += steps - saved;
        }
        now = ends;
    }
    TimeSpent {
        goodput: kept as f64 * cluster.compute / now,
        lost_minutes: lost as f64 * (cluster.compute + cluster.exchange) / 60.0 / (now / DAY),
    }
}

/// The interval of Young: the square root of twice what a snapshot costs times the time between ends.
pub fn young(held_up: f64, ends_per_day: f64) -> f64 {
    (2.0 * held_up * DAY / ends_per_day).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::scale::{MachineRates, ScaledTraining};

    const DAYS: f64 = 400.0;
    const ENDS: f64 = 6.0;
    /// PyTorch's blog of 2024-06, 7B parameters: a checkpoint holds the training up for 148.8 s, an asynchronous one
    /// for 6.3 s. Larger states are taken to cost in proportion.
    const DCP: (f64, f64) = (148.8, 6.3);
    const DCP_PARAMS: f64 = 7e9;

    /// SCALE: encode and write 1.5 GB/s of stored bytes, nodes of 8 ranks with 400 Gb/s.
    const RATES: MachineRates = MachineRates { commit: 1.875e9, stored: 0.8, read_back: 2e9, network: 50e9 };

    fn row(params: f64, notice: f64, compute: f64) -> [(&'static str, TimeSpent); 3] {
        let training = ScaledTraining {
            params,
            moments: 2.0,
            ranks: 1000.0,
            ranks_per_node: 8.0,
            shards_optimizer: false,
            preemptions_per_day: ENDS,
        };
        let costs = training.costs(&RATES);
        let (sync, async_) = (DCP.0 * params / DCP_PARAMS, DCP.1 * params / DCP_PARAMS);
        let play = |policy: SavingPolicy| {
            let restart = 120.0 + costs.read_back_seconds;
            let cluster =
                PreemptedCluster { compute, exchange: costs.exchange_seconds, ends_per_day: ENDS, notice, restart };
            play(&cluster, &policy, DAYS, 7)
        };
        let durable = costs.durable_seconds;
        let ours = SavingPolicy { held_up: 0.0, durable, interval: durable, heeds_notices: true };
        let blocking = SavingPolicy { held_up: sync, durable: sync, interval: young(sync, ENDS), heeds_notices: false };
        let background = SavingPolicy {
            held_up: async_,
            durable: sync,
            interval: young(async_, ENDS).max(sync),
            heeds_notices: false,
        };
        [("ckptd", play(ours)), ("DCP", play(blocking)), ("DCP, asynchronous", play(background))]
    }

    fn table() -> String {
        let mut table = String::new();
        for (model, params, compute) in [("7B", 7e9, 30.0), ("70B", 70e9, 300.0)] {
            for notice in [0.0, 30.0, 120.0] {
                let cells = row(params, notice, compute);
                let cell = |spent: &TimeSpent| format!("{:.1} % ({:.0})", 100.0 * spent.goodput, spent.lost_minutes);
                let cells: Vec<String> = cells.iter().map(|(_, spent)| cell(spent)).collect();
                let notice = if notice == 0.0 { "none".to_owned() } else { format!("{notice:.0} s") };
                table += &format!("| {model} | {notice} | {} |\n", cells.join(" | "));
            }
        }
        table
    }

    #[test]
    fn the_table_in_the_document_is_that_of_the_simulation() {
        let page = include_str!("../../docs/ranks.md");
        let table = table();
        assert!(page.contains(&table), "docs/ranks.md does not hold this table:\n{table}");
    }

    #[test]
    fn nothing_is_lost_where_the_notice_is_long_enough_and_all_without_a_snapshot() {
        let cluster = PreemptedCluster { compute: 10.0, exchange: 0.0, ends_per_day: 6.0, notice: 60.0, restart: 0.0 };
        let policy = SavingPolicy { held_up: 0.0, durable: 20.0, interval: 1e9, heeds_notices: true };
        let spent = play(&cluster, &policy, 100.0, 1);
        assert!(spent.lost_minutes < 0.5 && spent.goodput > 0.97, "{spent:?}");
        let deaf = SavingPolicy { heeds_notices: false, ..policy };
        assert_eq!(play(&cluster, &deaf, 100.0, 1).goodput, 0.0);
    }

    #[test]
    fn what_a_sudden_end_loses_is_what_the_model_says() {
        let cluster = PreemptedCluster { compute: 1.0, exchange: 0.0, ends_per_day: 6.0, notice: 0.0, restart: 0.0 };
        let policy = SavingPolicy { held_up: 0.0, durable: 60.0, interval: 60.0, heeds_notices: true };
        let spent = play(&cluster, &policy, 2000.0, 3);
        // Six times 1.5 minutes per day; sessions shorter than a snapshot lose less.
        assert!((8.3..9.2).contains(&spent.lost_minutes), "{spent:?}");
        assert_eq!(young(2.0, 6.0).round(), 240.0);
    }
}
