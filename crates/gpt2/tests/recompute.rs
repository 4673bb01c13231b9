//! With activation checkpointing loss, gradients and roots are those without it, bit for bit, also where it is switched
//! on and off between sessions.
#![allow(clippy::unwrap_used)]

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use ckptd_core::config::ComputePrecision;
use ckptd_core::ids::StateRoot;
use ckptd_core::snapshot::TrainState;
use ckptd_core::store::Store;
use ckptd_gpt2::capture::TrainingState;
use ckptd_gpt2::gpt2::{Activations, Gpt2Config, Gpt2Model, ModelGradients, ProductCasts, TokenBatch, init};
use ckptd_gpt2::reduction::{ARITHMETIC, norm_gradients};

const CPU: tch::Device = tch::Device::Cpu;

/// Loss and gradients of two micro-batches that are added, as bits, and what the generator gives after them.
fn gradients(config: &Gpt2Config, precision: ComputePrecision, activations: Activations) -> Vec<Vec<u32>> {
    let mut state = TrainingState::new(&config.parameters(), &[], CPU, TrainState::default()).unwrap();
    state.fill(|destinations| init::random(config, 5, destinations)).unwrap();
    let mut model =
        Gpt2Model::new(config.clone(), CPU).adding_norms(norm_gradients(ARITHMETIC.newest)).keeping(activations);
    let (mut casts, mut gradients) = (ProductCasts::new(precision), ModelGradients::default());
    tch::manual_seed(3);
    let mut found = Vec::new();
    for salt in [1, 5] {
        let ids = |salt: usize| (0..2 * 64).map(move |i| ((i * 7919 + salt) % 1000) as i64);
        let (inputs, targets): (Vec<i64>, Vec<i64>) = (ids(salt).collect(), ids(salt + 7).collect());
        let batch = TokenBatch::new(&inputs, &targets, 2, CPU).unwrap();
        let weights = casts.views(config, state.params()).unwrap();
        let loss = model.loss_and_grads(weights, &batch, 0.5, &mut gradients).unwrap();
        found.push(vec![(loss as f32).to_bits()]);
    }
    let values = |tensor: &tch::Tensor| Vec::<f32>::try_from(tensor.reshape(-1)).unwrap();
    let next = tch::Tensor::rand([4], (tch::Kind::Float, CPU));
    let tensors = gradients.tensors().iter().chain([&next]);
    found.extend(tensors.map(|tensor| values(tensor).into_iter().map(f32::to_bits).collect()));
    found
}

#[test]
fn recomputed_activations_give_the_same_bits() {
    ckptd_gpt2::process::set_threads(2).unwrap();
    for (dropout, tied) in [(0.0, true), (0.1, true), (0.1, false)] {
        let json = format!(
            "{{\"n_layer\": 3, \"n_embd\": 128, \"n_head\": 4, \"vocab_size\": 1000, \"n_positions\": 64, \
             \"model_type\": \"gpt2\", \"tie_word_embeddings\": {tied}}}"
        );
        let config = Gpt2Config::from_json(&json, "config.json").unwrap().with_dropout(dropout);
        for precision in [ComputePrecision::Float32, ComputePrecision::Bf16] {
            let kept = gradients(&config, precision, Activations::Kept);
            let recomputed = gradients(&config, precision, Activations::Recomputed);
            assert_eq!(kept.len(), recomputed.len());
            for (index, (kept, recomputed)) in kept.iter().zip(&recomputed).enumerate() {
                assert_eq!(kept, recomputed, "{index} under dropout {dropout}, {precision:?}");
            }
        }
    }
}

/// A job of 12 steps, a snapshot after each, with activations kept or recomputed.
struct RecomputeJob {
    folder: tempfile::TempDir,
}

impl RecomputeJob {
    fn new() -> RecomputeJob {
        let folder = tempfile::tempdir().unwrap();
        let tokens: Vec<u8> = (0..3_000u16).flat_map(|n| (n.wrapping_mul(40_503) >> 4).to_le_bytes()).collect();
        std::fs::write(folder.path().join("tokens.bin"), tokens).unwrap();
        RecomputeJob { folder }
    }

    fn start(&self, activations: Activations) -> Child {
        let job = self.folder.path().join("job.toml");
        let text = format!(
            "[job]\nstore = \"store\"\nthreads = 1\n[model]\npreset = \"gpt2-mini\"\ndropout = 0.1\n\
             [data]\ntokens = \"tokens.bin\"\n[snapshot]\nevery_steps = 1\n\
             [train]\nsteps = 12\nbatch_size = 2\nsequence_length = 32\nwarmup_steps = 1\neval_every = 4\n\
             activation_checkpointing = {}\n",
            activations == Activations::Recomputed
        );
        std::fs::write(&job, text).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_ckptd-gpt2"));
        command.arg("--config").arg(&job).stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap()
    }

    /// Steps and root of the newest snapshot.
    fn newest(&self) -> Option<(u64, StateRoot)> {
        let entries = Store::open(&self.folder.path().join("store")).ok()?.entries().unwrap();
        let manifests = entries.into_iter().filter_map(|entry| entry.manifest);
        manifests.map(|manifest| (manifest.train.step, manifest.root)).max_by_key(|(step, _)| *step)
    }

    /// Kills a session as soon as a snapshot of `step` or more is there.
    fn killed_after(&self, activations: Activations, step: u64) {
        let mut worker = self.start(activations);
        while self.newest().is_none_or(|(newest, _)| newest < step) {
            assert!(worker.try_wait().unwrap().is_none(), "the session ended before step {step}");
            std::thread::sleep(Duration::from_millis(2));
        }
        worker.kill().unwrap();
        worker.wait().unwrap();
    }

    fn complete(&self, activations: Activations) -> StateRoot {
        assert!(self.start(activations).wait().unwrap().success());
        let (step, root) = self.newest().unwrap();
        assert_eq!(step, 12);
        root
    }
}

#[test]
fn activation_checkpointing_may_be_switched_between_sessions_and_ends_in_the_same_root() {
    let expected = RecomputeJob::new().complete(Activations::Kept);
    let job = RecomputeJob::new();
    job.killed_after(Activations::Recomputed, 2);
    job.killed_after(Activations::Kept, 5);
    assert_eq!(job.complete(Activations::Recomputed), expected);
}
