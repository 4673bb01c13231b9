//! What the estimate of a worker's memory says, and what one really holds at its peak.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use ckptd_core::config::Config;
use ckptd_interop::footprint::ModelShape;

/// How far the estimate may be off: allocators and numbers of threads differ.
const LEAST: f64 = 0.7;
const MOST: f64 = 1.4;

/// The most memory that the worker of the job at `config` held, in bytes.
fn peak(config: &Path) -> u64 {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ckptd-gpt2"));
    let mut worker = command.arg("--config").arg(config).stdout(Stdio::null()).spawn().unwrap();
    let status = format!("/proc/{}/status", worker.id());
    let mut peak = 0;
    while worker.try_wait().unwrap().is_none() {
        let text = std::fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
        peak = peak.max(kib.unwrap_or(0) << 10);
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(worker.wait().unwrap().success());
    peak
}

#[test]
fn the_estimate_of_a_workers_memory_is_roughly_what_it_holds() {
    let folder = tempfile::tempdir().unwrap();
    let tokens: Vec<u8> =
        (0..200_000u32).flat_map(|n| ((n.wrapping_mul(2_654_435_761) >> 20) as u16).to_le_bytes()).collect();
    std::fs::write(folder.path().join("tokens.bin"), tokens).unwrap();
    let mut held = Vec::new();
    for (batch, length, dropout, micro_batches, is_recomputed) in
        [(1, 32, 0.0, 8, false), (48, 256, 0.0, 1, false), (16, 256, 0.1, 1, false), (48, 256, 0.0, 1, true)]
    {
        let config = folder.path().join(format!("job-{}.toml", held.len()));
        let text = format!(
            "[job]\nthreads = 2\n[model]\npreset = \"gpt2-mini\"\ndropout = {dropout:?}\n\
             [data]\ntokens = \"tokens.bin\"\nvalidation = 0.0\n\
             [train]\nsteps = 2\nwarmup_steps = 1\nbatch_size = {batch}\nsequence_length = {length}\neval_every = 0\n\
             grad_accumulation = {micro_batches}\nactivation_checkpointing = {is_recomputed}\n\
             [snapshot]\nevery_steps = 1\n"
        );
        std::fs::write(&config, text).unwrap();
        let train = Config::load(&config).unwrap().train;
        let shape = ModelShape { drops_attention: dropout > 0.0, ..ModelShape::of_preset("gpt2-mini").unwrap() };
        let (estimate, real) = (shape.peak_bytes(&train), peak(&config));
        let ratio = estimate as f64 / real as f64;
        eprintln!("{batch} x {length}, dropout {dropout}: estimated {} MiB, held {} MiB", estimate >> 20, real >> 20);
        assert!((LEAST..=MOST).contains(&ratio), "{batch} x {length}: estimated {estimate}, held {real}");
        held.push(real);
    }
    assert!(held[3] < held[1] / 10 * 9, "activation checkpointing: {} bytes instead of {}", held[3], held[1]);
}
