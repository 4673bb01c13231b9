//! The model and the optimisers agree with transformers and PyTorch on the same weights and tokens.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use ckptd_core::config::{ComputePrecision as Precision, Config, OptimizerKind as Kind, TrainSection};
use ckptd_core::dtype::DType;
use ckptd_core::snapshot::{Role, Tensor, TensorMeta, TrainState};
use ckptd_gpt2::capture::TrainingState;
use ckptd_gpt2::gpt2::{Bf16Products, Gpt2Config, Gpt2Model, ModelGradients, ProductCasts, TokenBatch, init};
use ckptd_gpt2::optim::{ModelOptimizer, UpdateStep};
use ckptd_testkit::python;
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;

const CPU: tch::Device = tch::Device::Cpu;

/// What tests/python/parity.py writes.
#[derive(Deserialize)]
struct Case {
    clip: f64,
    decay: f64,
    sgd_lr: f64,
    momentum: f64,
    adamw_lr: f64,
    betas: [f64; 2],
    eps: f64,
    /// [step][micro-batch][row][position + 1]
    tokens: Vec<Vec<Vec<Vec<i64>>>>,
    sgd: Vec<f64>,
    adamw: Vec<f64>,
    sgd_bf16: Vec<f64>,
    adamw_bf16: Vec<f64>,
}

#[test]
fn logits_and_losses_agree_with_transformers() {
    let folder = tempfile::tempdir().unwrap();
    python::run("parity.py", &[folder.path()]);

    ckptd_gpt2::process::set_threads(1).unwrap();
    let mut cases = 0;
    for entry in std::fs::read_dir(folder.path()).unwrap() {
        compare(&entry.unwrap().path());
        cases += 1;
    }
    assert!(cases >= 4);
}

fn compare(folder: &Path) {
    let name = folder.file_name().unwrap().to_str().unwrap();
    let json = std::fs::read_to_string(folder.join("config.json")).unwrap();
    let config = Gpt2Config::from_json(&json, "config.json").unwrap().with_dropout(0.0);
    let case: Case = serde_json::from_str(&std::fs::read_to_string(folder.join("case.json")).unwrap()).unwrap();
    let tensors = read_safetensors(&folder.join("model.safetensors"));

    let state = state(&config, &[], &tensors);
    let batch = batch(&case.tokens[0][0]);
    let logits = |mut casts: ProductCasts| {
        let weights = casts.views(&config, state.params()).unwrap();
        let logits = Gpt2Model::new(config.clone(), CPU).logits(weights, &batch.inputs).unwrap();
        let mut ours = vec![0f32; logits.numel()];
        logits.copy_data(&mut ours, logits.numel());
        ours
    };
    let [theirs, theirs_rounded] = ["logits.f32", "logits-bf16.f32"].map(|file| read_floats(&folder.join(file)));
    let difference = largest_difference(&logits(ProductCasts::new(Precision::Float32)), &theirs);
    assert!(difference <= 1e-4, "{name}: logits differ by {difference}");
    let rounding = distance(&theirs_rounded, &theirs);
    for bf16 in [Bf16Products::Native, Bf16Products::Widened] {
        let ours = logits(ProductCasts::new(Precision::Bf16).computing(bf16));
        let (from_autocast, rounded) =
            (distance(&ours, &theirs_rounded) / rounding, distance(&ours, &theirs) / rounding);
        println!(
            "{name} bf16, {bf16:?}, by what autocast rounds: {rounded:.2} rounded, {from_autocast:.2} from autocast"
        );
        assert!(rounded >= 0.1, "{name}, {bf16:?}: nothing was rounded");
        match bf16 {
            // Autocast rounds more often in some activations.
            Bf16Products::Native => assert!(from_autocast <= 1.0, "{name}: by {from_autocast}"),
            // And probabilities of attention, so that these two part as two roundings of one value.
            Bf16Products::Widened => assert!(rounded <= 1.2, "{name}: {rounded}"),
        }
    }

    for (kind, precision, expected, tolerance) in [
        (Kind::Sgd, Precision::Float32, &case.sgd, 1e-3),
        (Kind::Adamw, Precision::Float32, &case.adamw, 1e-3),
        (Kind::Sgd, Precision::Bf16, &case.sgd_bf16, 2e-2),
        (Kind::Adamw, Precision::Bf16, &case.adamw_bf16, 2e-2),
    ] {
        let losses = train(&config, &case, (kind, precision), &tensors);
        assert_eq!(losses.len(), expected.len());
        let lowest = losses.iter().copied().fold(f64::INFINITY, f64::min);
        let how = format!("{name}: {kind:?}, {precision:?}");
        assert!(lowest < 0.95 * losses[0], "{how} learns too little for a comparison: {losses:?}");
        let difference = losses.iter().zip(expected).map(|(a, b)| (a - b).abs() / b).fold(0.0, f64::max);
        println!("{how}: losses {:.4} to {:.4}, relative difference {difference:.1e}", losses[0], losses[19]);
        assert!(difference <= tolerance, "{how}: ours {losses:?}, PyTorch's {expected:?}");
    }
}

fn read_floats(path: &Path) -> Vec<f32> {
    let bytes = std::fs::read(path).unwrap();
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// ||a - b||_2
fn distance(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>().sqrt()
}

fn train(config: &Gpt2Config, case: &Case, (kind, precision): (Kind, Precision), tensors: &[Tensor]) -> Vec<f64> {
    let learning_rate = if kind == Kind::Sgd { case.sgd_lr } else { case.adamw_lr };
    let settings = TrainSection {
        optimizer: kind,
        grad_clip: case.clip,
        weight_decay: case.decay,
        momentum: case.momentum,
        betas: case.betas,
        eps: case.eps,
        ..Config::default().train
    };
    let optimizer = ModelOptimizer::new(&settings, 2).unwrap();
    let mut state = state(config, optimizer.roles(), tensors);
    let (mut model, mut casts) = (Gpt2Model::new(config.clone(), CPU), ProductCasts::new(precision));
    let mut gradients = ModelGradients::default();
    let mut losses = Vec::new();
    for (index, micro_batches) in case.tokens.iter().enumerate() {
        gradients.clear();
        let weight = 1.0 / micro_batches.len() as f64;
        let weights = casts.views(config, state.params()).unwrap();
        let loss = micro_batches
            .iter()
            .map(|tokens| weight * model.loss_and_grads(weights, &batch(tokens), weight, &mut gradients).unwrap());
        losses.push(loss.sum());
        let step = UpdateStep { number: index as u64 + 1, learning_rate };
        optimizer.step(&mut state, gradients.tensors(), step, |train, _| train.step += 1).unwrap();
    }
    losses
}

fn state(config: &Gpt2Config, roles: &[Role], tensors: &[Tensor]) -> TrainingState {
    let train = TrainState::default();
    let mut state = TrainingState::new(&config.parameters(), roles, CPU, train).unwrap();
    state.fill(|destinations| init::from_tensors(config, tensors, &[], "the test's folder", destinations)).unwrap();
    state
}

fn batch(tokens: &[Vec<i64>]) -> TokenBatch {
    let inputs: Vec<i64> = tokens.iter().flat_map(|row| &row[..row.len() - 1]).copied().collect();
    let targets: Vec<i64> = tokens.iter().flat_map(|row| &row[1..]).copied().collect();
    TokenBatch::new(&inputs, &targets, tokens.len(), CPU).unwrap()
}

fn read_safetensors(path: &Path) -> Vec<Tensor> {
    let bytes = std::fs::read(path).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let tensor = |(name, view): (&str, safetensors::tensor::TensorView<'_>)| {
        let dtype = match view.dtype() {
            Dtype::F32 => DType::F32,
            Dtype::BF16 => DType::BF16,
            other => panic!("{other:?}"),
        };
        let shape = view.shape().iter().map(|&d| d as u64).collect();
        Tensor::new(TensorMeta { role: Role::Param, name: name.into(), dtype, shape }, view.data().to_vec())
    };
    tensors.iter().map(tensor).collect()
}
