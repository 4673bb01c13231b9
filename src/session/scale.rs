//! What a training on many ranks needs and costs: bytes, seconds until a state is durable, what a sudden end loses, the
//! exchange of gradients.
//!
//! Invariant: pure arithmetic over figures that the caller has measured or assumed; docs/ranks.md gives its sources.
//! Deliberately not here: measuring, and a day with its preemptions (`goodput`).

use serde::Serialize;

/// Bytes of a float32.
const FLOAT: f64 = 4.0;
/// What a message between two ranks takes beside its bytes, in seconds: TCP within a data centre.
const MESSAGE: f64 = 20e-6;
/// What a sudden end loses on average: half of the time between two snapshots, and all of the time that one takes. One
/// behind the other they are the same.
const LOST_SHARE: f64 = 1.5;
const DAY: f64 = 86400.0;

/// A training.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct ScaledTraining {
    pub params: f64,
    /// Moments per parameter: 2 for AdamW, 1 for SGD with momentum, 0 without.
    pub moments: f64,
    pub ranks: f64,
    pub ranks_per_node: f64,
    /// Each rank holds only its shard of the moments.
    pub shards_optimizer: bool,
    pub preemptions_per_day: f64,
}

/// What the machines do per second, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct MachineRates {
    /// A snapshot from memory until it is durable, encoding included: the raw bytes.
    pub commit: f64,
    /// Stored bytes per raw byte.
    pub stored: f64,
    /// A snapshot read back and checked: the raw bytes.
    pub read_back: f64,
    /// What a node sends, and receives at the same time.
    pub network: f64,
}

/// What it comes to.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct ScaledCosts {
    pub state_bytes: f64,
    pub stored_bytes: f64,
    /// What every rank holds: parameters, moments or its shard of them, and two buffers of gradients.
    pub rank_bytes: f64,
    pub durable_seconds: f64,
    pub read_back_seconds: f64,
    /// Between two snapshots, where the store takes one behind the other.
    pub interval_seconds: f64,
    pub lost_seconds_per_sudden_end: f64,
    pub lost_seconds_per_day: f64,
    pub exchange_seconds: f64,
}

impl ScaledTraining {
    /// Bytes of parameters and moments.
    pub fn state_bytes(&self) -> f64 {
        FLOAT * self.params * (1.0 + self.moments)
    }

    /// Bytes that a rank holds.
    pub fn rank_bytes(&self) -> f64 {
        const GRADIENTS: f64 = 2.0;
        let ranks = if self.shards_optimizer { self.ranks.max(1.0) } else { 1.0 };
        FLOAT * self.params * (1.0 + GRADIENTS + self.moments / ranks)
    }

    /// Seconds until a state is durable that rank 0 writes, which gets the other ranks' shards meanwhile.
    fn durable_seconds(&self, rates: &MachineRates) -> f64 {
        let writing = self.state_bytes() / rates.commit;
        let shards = FLOAT * self.params * self.moments * (1.0 - 1.0 / self.ranks.max(1.0));
        if self.shards_optimizer { writing.max(shards / rates.network) } else { writing }
    }

    /// Seconds that one exchange of gradients takes: each rank sends its share to every owner, and every owner its sums
    /// to all. Ranks of one node share its network.
    pub fn exchange_seconds(&self, rates: &MachineRates) -> f64 {
        let others = (self.ranks - 1.0).max(0.0);
        let per_rank = rates.network / self.ranks_per_node.min(self.ranks).max(1.0);
        2.0 * others / self.ranks.max(1.0) * FLOAT * self.params / per_rank + 2.0 * others * MESSAGE
    }

    /// All figures, rank 0 being the one that writes.
    pub fn costs(&self, rates: &MachineRates) -> ScaledCosts {
        let state_bytes = self.state_bytes();
        let durable_seconds = self.durable_seconds(rates);
        // A snapshot does not hold up the training, so that nothing speaks for a longer interval than it takes.
        let interval_seconds = durable_seconds;
        let lost = LOST_SHARE * interval_seconds;
        ScaledCosts {
            state_bytes,
            stored_bytes: state_bytes * rates.stored,
            rank_bytes: self.rank_bytes(),
            durable_seconds,
            read_back_seconds: state_bytes / rates.read_back,
            interval_seconds,
            lost_seconds_per_sudden_end: lost,
            lost_seconds_per_day: (lost * self.preemptions_per_day).min(DAY),
            exchange_seconds: self.exchange_seconds(rates),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATES: MachineRates = MachineRates { commit: 1.875e9, stored: 0.8, read_back: 2e9, network: 12.5e9 };

    fn near(found: f64, expected: f64) -> bool {
        (found / expected - 1.0).abs() < 0.01
    }

    #[test]
    fn seven_billion_parameters_on_four_nodes_cost_what_the_table_of_the_design_says() {
        let training = ScaledTraining {
            params: 7e9,
            moments: 2.0,
            ranks: 4.0,
            ranks_per_node: 1.0,
            shards_optimizer: false,
            preemptions_per_day: 6.0,
        };
        let costs = training.costs(&RATES);
        // 84 GB raw, 67 stored, 45 s at 1.5 GB/s of stored bytes, 67 s per sudden end.
        assert!(near(costs.state_bytes, 84e9) && near(costs.stored_bytes, 67.2e9));
        assert!(near(costs.durable_seconds, 44.8) && near(costs.lost_seconds_per_sudden_end, 67.2));
        assert!(near(costs.lost_seconds_per_day, 403.2) && near(costs.read_back_seconds, 42.0));
        // 3.4 s a step at 100 Gb/s.
        assert!(near(costs.exchange_seconds, 3.36));
        assert!(near(ScaledTraining { ranks_per_node: 4.0, ..training }.exchange_seconds(&RATES), 13.44));
        assert!(near(costs.rank_bytes, 140e9));
        // A shard is a quarter of 56 GB, and the other 42 GB come over the network while rank 0 writes.
        let sharded = ScaledTraining { shards_optimizer: true, ..training };
        assert!(near(sharded.costs(&RATES).rank_bytes, 98e9) && near(sharded.costs(&RATES).durable_seconds, 44.8));
        let slow = MachineRates { network: 0.42e9, ..RATES };
        assert!(near(sharded.costs(&slow).durable_seconds, 100.0) && near(training.costs(&slow).durable_seconds, 44.8));
    }

    #[test]
    fn one_rank_exchanges_nothing() {
        let training = ScaledTraining {
            params: 1e9,
            moments: 1.0,
            ranks: 1.0,
            ranks_per_node: 8.0,
            shards_optimizer: true,
            preemptions_per_day: 0.0,
        };
        let costs = training.costs(&RATES);
        assert_eq!((costs.exchange_seconds, costs.lost_seconds_per_day), (0.0, 0.0));
    }
}
