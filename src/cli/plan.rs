//! `ckptd plan`

use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use super::plan_figures::{self, MeasuredFigures};
use super::{exit_code, output};
use crate::session::scale::{MachineRates, ScaledCosts, ScaledTraining};
use ckptd_core::error::Result;
use ckptd_core::text::rough_duration;

/// Tell what a training on many ranks will need and cost, from figures measured on this machine.
///
/// Writes, reads back and removes a snapshot of 256 MiB below the folder, and sends as much over this machine's
/// loopback.
#[derive(clap::Args)]
pub(super) struct PlanArgs {
    /// Parameters of the model: 124e6, 7e9.
    #[arg(long, value_parser = parse_count)]
    params: f64,
    /// Ranks that compute the training.
    #[arg(long, default_value_t = 1)]
    ranks: u32,
    /// Ranks of a node, which share its network.
    #[arg(long, default_value_t = 8)]
    ranks_per_node: u32,
    /// Each rank holds only its shard of the moments: `[ranks] shard_optimizer`.
    #[arg(long)]
    shard_optimizer: bool,
    /// Moments per parameter: 2 for AdamW, 1 for SGD with momentum, 0 without.
    #[arg(long, default_value_t = 2)]
    moments: u32,
    /// Sudden ends per day.
    #[arg(long, default_value_t = 6.0)]
    preemptions: f64,
    /// Gigabits that a node sends per second. Without it, what this machine's loopback does.
    #[arg(long, value_name = "GBIT")]
    network: Option<f64>,
    /// Where snapshots will lie: its disk is measured.
    #[arg(long, value_name = "DIR", default_value = ".")]
    store: PathBuf,
    #[arg(long)]
    json: bool,
}

/// What is printed.
#[derive(Serialize)]
struct PlanReport {
    training: ScaledTraining,
    measured: MeasuredFigures,
    rates: MachineRates,
    costs: ScaledCosts,
    notes: Vec<String>,
}

pub(super) fn execute(args: &PlanArgs) -> Result<u8> {
    let measured = plan_figures::measure(&args.store)?;
    let raw = measured.raw_bytes as f64;
    let rates = MachineRates {
        commit: raw / measured.commit_seconds,
        stored: measured.stored_bytes as f64 / raw,
        read_back: raw / measured.read_back_seconds,
        network: args.network.map_or(measured.loopback_bytes_per_second, |gigabits| gigabits * 1e9 / 8.0),
    };
    let training = ScaledTraining {
        params: args.params,
        moments: f64::from(args.moments),
        ranks: f64::from(args.ranks.max(1)),
        ranks_per_node: f64::from(args.ranks_per_node.max(1)),
        shards_optimizer: args.shard_optimizer,
        preemptions_per_day: args.preemptions,
    };
    let costs = training.costs(&rates);
    let notes = notes(args, &training, &costs);
    output::show(args.json, &PlanReport { training, measured, rates, costs, notes }, describe)?;
    Ok(exit_code::DONE)
}

/// What the figures do not say by themselves.
fn notes(args: &PlanArgs, training: &ScaledTraining, costs: &ScaledCosts) -> Vec<String> {
    let mut notes = Vec::new();
    if args.network.is_none() && args.ranks > 1 {
        notes.push("the exchange is at the speed of this machine's loopback; --network says what nodes do".to_owned());
    }
    let holds = training.ranks.min(training.ranks_per_node) * costs.rank_bytes;
    if let Some(here) = ckptd_core::os::process::available_memory().filter(|here| holds > *here as f64) {
        let size = |bytes: f64| output::size(bytes as u64);
        let each = if args.shard_optimizer {
            "every rank holds all parameters and gradients"
        } else {
            "every rank holds the whole state, or a shard of the moments with --shard-optimizer"
        };
        let (holds, here) = (size(holds), size(here as f64));
        notes.push(format!("the ranks of one node hold {holds}, and this machine has {here} free: {each}"));
    }
    notes
}

fn describe(report: &PlanReport) -> String {
    let PlanReport { training, measured, rates, costs, notes } = report;
    let size = |bytes: f64| output::size(bytes as u64);
    let time = |seconds: f64| match seconds {
        short if short < 10.0 => format!("{short:.2} s"),
        long => rough_duration(Duration::try_from_secs_f64(long).unwrap_or(Duration::MAX)),
    };
    let mut rows = vec![
        ("a state, raw", format!("{} ({:.0} parameters)", size(costs.state_bytes), training.params)),
        ("a snapshot, stored", format!("{} ({:.0} % of raw here)", size(costs.stored_bytes), 100.0 * rates.stored)),
        ("memory of a rank", format!("{} and what activations take", size(costs.rank_bytes))),
        ("until it is durable", format!("{} at {}/s", time(costs.durable_seconds), size(rates.commit))),
        ("read back", format!("{} at {}/s", time(costs.read_back_seconds), size(rates.read_back))),
        ("between snapshots", format!("{}, one behind the other", time(costs.interval_seconds))),
        ("a sudden end loses", format!("{} on average", time(costs.lost_seconds_per_sudden_end))),
        ("and per day", format!("{} at {} ends", time(costs.lost_seconds_per_day), training.preemptions_per_day)),
    ];
    if training.ranks > 1.0 {
        let what = format!(
            "{} per step on {} ranks, a node sending {}/s",
            time(costs.exchange_seconds),
            training.ranks,
            size(rates.network)
        );
        rows.push(("the exchange", what));
    }
    let measured = format!(
        "measured here: {} in {:.2} s to the disk, {:.2} s back; loopback {}/s each way",
        size(measured.raw_bytes as f64),
        measured.commit_seconds,
        measured.read_back_seconds,
        size(measured.loopback_bytes_per_second)
    );
    let lines = rows.into_iter().map(|(what, text)| format!("{what:20} {text}"));
    lines.chain([measured]).chain(notes.iter().cloned()).map(|line| line + "\n").collect()
}

/// "7e9", "124_000_000".
fn parse_count(text: &str) -> Result<f64, String> {
    let count: f64 = text.replace('_', "").parse().map_err(|_| "a number such as 7e9".to_owned())?;
    if count.is_finite() && count >= 1.0 { Ok(count) } else { Err("a number such as 7e9".to_owned()) }
}
