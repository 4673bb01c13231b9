//! Times the exchange of a step's gradient between ranks: `exchange PRESET ROUNDS [gloo|mpi|allreduce]`, one process
//! per rank, each with the environment of docs/ranks.md. Rank 0 prints one JSON line with the seconds of each round.
//!
//! Each rank has one micro-batch's gradient; a round is over when it has the sum of all. `allreduce`, in a program that
//! was built with MPI: MPI's own sum of as many values.

use std::time::{Duration, Instant};

use ckptd_core::config::{Config, RankBackend, TrainSection};
use ckptd_core::protocol::{Start, VERSION};
use ckptd_core::snapshot::TrainState;
use ckptd_core::{Error, Result};
use ckptd_gpt2::capture::TrainingState;
use ckptd_gpt2::events::EventSender;
use ckptd_gpt2::gpt2::{Gpt2Config, Gpt2Model, TokenBatch, init};
use ckptd_gpt2::optim::ModelOptimizer;
use ckptd_gpt2::process;
use ckptd_gpt2::ranks::{self, Follower, Leader, RankGroup, RankPlace};
use ckptd_gpt2::reduction::{Gathers, StepGradient, SumOrder};

fn main() -> Result<()> {
    process::settle_openmp();
    process::tune_malloc();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let preset = arguments.first().map_or("gpt2", String::as_str);
    let rounds = arguments.get(1).and_then(|rounds| rounds.parse().ok()).unwrap_or(5);
    let way = arguments.get(2).map_or("gloo", String::as_str);
    process::set_threads(1)?;
    let place = RankPlace::from_environment()?.ok_or_else(|| Error::Config("it takes two ranks or more".into()))?;
    let config = Gpt2Config::preset(preset)?.with_dropout(0.0);
    let seconds = if way == "allreduce" {
        allreduce(config.parameter_count() as usize, rounds)
    } else {
        let mut group = connect(&place, way)?;
        exchange(&config, group.as_mut(), rounds)?
    };
    if place.rank == 0 {
        println!("{}", serde_json::json!({ "ranks": place.size, "way": way, "seconds": seconds }));
    }
    ranks::finish();
    process::leave(0)
}

fn connect(place: &RankPlace, way: &str) -> Result<Box<dyn RankGroup>> {
    if place.rank > 0 {
        let mut follower = Follower::join(place)?;
        follower.begin()?;
        return Ok(Box::new(follower));
    }
    let mut config = Config::default();
    config.ranks.backend = if way == "mpi" { RankBackend::Mpi } else { RankBackend::Gloo };
    let (run_id, next_seq) = ("0123456789abcdef0123456789abcdef".into(), 1);
    let start =
        Start { protocol: VERSION, config, run_id, next_seq, resume: None, accept_changes: true, dispute: None };
    let mut leader = Leader::listen(place, Duration::from_secs(600), &EventSender::unheard())?;
    leader.begin(&start)?;
    Ok(Box::new(leader))
}

fn exchange(config: &Gpt2Config, group: &mut dyn RankGroup, rounds: usize) -> Result<Vec<f64>> {
    let optimizer = ModelOptimizer::new(&TrainSection { grad_clip: 0.0, ..Config::default().train }, 1)?;
    let cpu = tch::Device::Cpu;
    let mut state = TrainingState::new(&config.parameters(), optimizer.roles(), cpu, TrainState::default())?;
    state.fill(|destinations| init::random(config, 1, destinations))?;
    let mut model = Gpt2Model::new(config.clone(), cpu);
    let (rank, leaves) = (group.rank() as u64, group.size() as u64);
    let mut gradient = StepGradient::new(SumOrder::Tree, leaves, state.params(), Gathers::Gradients, group)?;
    let mut seconds = Vec::new();
    for round in 0..=rounds {
        let ids: Vec<i64> = (0..9).map(|index| (index * 31 + rank as i64 * 7) % config.vocab_size).collect();
        let batch = TokenBatch::new(&ids[..8], &ids[1..], 1, cpu)?;
        gradient.begin();
        model.loss_and_grads(state.params(), &batch, 1.0, gradient.micro_batch())?;
        gradient.add(rank)?;
        group.gather(&[])?;
        let began = Instant::now();
        gradient.finish(group, &optimizer)?;
        group.gather(&[])?;
        // The first one finds memory that was not touched before.
        seconds.extend((round > 0).then(|| began.elapsed().as_secs_f64()));
    }
    Ok(seconds)
}

#[cfg(feature = "mpi")]
fn allreduce(values: usize, rounds: usize) -> Vec<f64> {
    use mpi::collective::SystemOperation;
    use mpi::traits::CommunicatorCollectives;
    let Some(universe) = mpi::initialize() else { return Vec::new() };
    let (own, mut sum) = (vec![1f32; values], vec![0f32; values]);
    let round = |index: usize| {
        universe.world().barrier();
        let began = Instant::now();
        universe.world().all_reduce_into(&own, &mut sum, SystemOperation::sum());
        universe.world().barrier();
        (index > 0).then(|| began.elapsed().as_secs_f64())
    };
    (0..=rounds).filter_map(round).collect()
}

#[cfg(not(feature = "mpi"))]
fn allreduce(_values: usize, _rounds: usize) -> Vec<f64> {
    Vec::new()
}
