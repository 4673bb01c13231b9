//! Times training steps on random tokens: `step PRESET ROWS POSITIONS STEPS THREADS [SNAPSHOT_EVERY [bf16]]`. Prints
//! one JSON line: milliseconds of the passes and of the update per step, minor page faults per step, the last loss.
//!
//! With SNAPSHOT_EVERY a capture is held from another thread through every n-th update, so that it is out of place.

use std::time::Instant;

use ckptd_core::config::{ComputePrecision, Config, TrainSection};
use ckptd_core::snapshot::TrainState;
use ckptd_gpt2::capture::TrainingState;
use ckptd_gpt2::gpt2::{Gpt2Config, Gpt2Model, ModelGradients, ProductCasts, TokenBatch, init};
use ckptd_gpt2::optim::{ModelOptimizer, UpdateStep};
use ckptd_gpt2::process;

fn main() -> ckptd_core::Result<()> {
    process::tune_malloc();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |index: usize, default: usize| arguments.get(index).and_then(|a| a.parse().ok()).unwrap_or(default);
    let preset = arguments.first().map_or("gpt2", String::as_str);
    let (rows, positions, steps) = (number(1, 1), number(2, 128), number(3, 10));
    let (threads, every) = (process::set_threads(number(4, 2))?, number(5, 0));
    let is_bf16 = arguments.get(6).is_some_and(|precision| precision == "bf16");
    let mut casts = ProductCasts::new(if is_bf16 { ComputePrecision::Bf16 } else { ComputePrecision::Float32 });

    let config = Gpt2Config::preset(preset)?.with_dropout(0.0);
    let train = TrainSection { grad_clip: 0.0, ..Config::default().train };
    let optimizer = ModelOptimizer::new(&train, threads)?;
    let cpu = tch::Device::Cpu;
    let mut state = TrainingState::new(&config.parameters(), optimizer.roles(), cpu, begin())?;
    let began = Instant::now();
    state.fill(|destinations| init::random(&config, 1, destinations))?;
    eprintln!("initialised in {:.0} ms", began.elapsed().as_secs_f64() * 1e3);

    let capturer = state.capturer();
    let mut model = Gpt2Model::new(config.clone(), cpu);
    let mut gradients = ModelGradients::default();
    let (mut passes_cpu, mut updates_cpu, mut stall) = (vec![], vec![], 0f64);
    let (mut passes, mut updates, mut outside, mut faults, mut loss) = (vec![], vec![], vec![], vec![], 0.0);
    for step in 1..=steps {
        let ids: Vec<i64> =
            (0..=rows * positions).map(|i| (i * i * 31 + step * 17) as i64 % config.vocab_size).collect();
        let (before, cpu_before, began) = (minor_faults(), cpu_ms(), Instant::now());
        let batch = TokenBatch::new(&ids[..ids.len() - 1], &ids[1..], rows, cpu)?;
        gradients.clear();
        let weights = casts.views(&config, state.params())?;
        loss = model.loss_and_grads(weights, &batch, 1.0, &mut gradients)?;
        passes.push(began.elapsed().as_secs_f64() * 1e3);
        passes_cpu.push(cpu_ms() - cpu_before);
        let capture = if every > 0 && step % every == 0 { capturer.capture()? } else { None };
        let (cpu_before, began) = (cpu_ms(), Instant::now());
        let figures = UpdateStep { number: step as u64, learning_rate: 1e-4 };
        optimizer.step(&mut state, gradients.tensors(), figures, |train, _| train.step += 1)?;
        if let Some(capture) = &capture {
            stall = stall.max(capture.stall_meter().stall().as_secs_f64() * 1e3);
        }
        let spent = began.elapsed().as_secs_f64() * 1e3;
        if capture.is_some() { &mut outside } else { &mut updates }.push(spent);
        updates_cpu.push(cpu_ms() - cpu_before);
        faults.push((minor_faults() - before) as f64);
    }
    println!(
        "{}",
        serde_json::json!({
            "pass_ms": median(passes), "update_ms": median(updates), "update_outside_ms": median(outside),
            "pass_cpu_ms": median(passes_cpu), "update_cpu_ms": median(updates_cpu), "faults": median(faults),
            "largest_stall_ms": stall, "loss": loss,
        })
    );
    Ok(())
}

fn begin() -> TrainState {
    TrainState::default()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

fn minor_faults() -> i64 {
    usage().ru_minflt
}

fn cpu_ms() -> f64 {
    let usage = usage();
    let ms = |time: libc::timeval| time.tv_sec as f64 * 1e3 + time.tv_usec as f64 / 1e3;
    ms(usage.ru_utime) + ms(usage.ru_stime)
}

fn usage() -> libc::rusage {
    // SAFETY: getrusage fills the structure that it is given.
    unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &mut usage);
        usage
    }
}
