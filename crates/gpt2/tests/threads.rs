//! Under the newest arithmetic the bits of a step do not depend on the number of threads, for the shapes that
//! docs/ranks.md names; under the ones before it they do.
#![allow(clippy::unwrap_used)]

use ckptd_core::arithmetic::ArithmeticNumber;
use ckptd_core::snapshot::TrainState;
use ckptd_gpt2::capture::TrainingState;
use ckptd_gpt2::gpt2::{Gpt2Config, Gpt2Model, ModelGradients, TokenBatch, init};
use ckptd_gpt2::reduction::{ARITHMETIC, norm_gradients};

const CPU: tch::Device = tch::Device::Cpu;

/// (layers, width, heads, vocabulary, rows, tokens, dropout)
type Shape = (i64, i64, i64, i64, usize, usize, f64);

const SHAPES: [Shape; 7] = [
    (2, 64, 2, 1000, 1, 64, 0.0),
    (2, 128, 4, 1000, 2, 64, 0.1),
    (2, 192, 6, 4096, 2, 128, 0.1),
    (2, 256, 4, 4096, 1, 256, 0.0),
    (1, 384, 6, 4096, 2, 256, 0.1),
    (1, 768, 12, 8192, 1, 512, 0.1),
    (1, 768, 12, 8192, 1, 1024, 0.0),
];

/// The loss and all gradients of one micro-batch, by name, as bits.
fn gradients(shape: Shape, arithmetic: ArithmeticNumber, threads: i32) -> Vec<(String, Vec<u32>)> {
    let (n_layer, n_embd, n_head, vocab_size, rows, tokens, dropout) = shape;
    let json = format!(
        "{{\"n_layer\": {n_layer}, \"n_embd\": {n_embd}, \"n_head\": {n_head}, \"vocab_size\": {vocab_size}, \
         \"n_positions\": 1024, \"model_type\": \"gpt2\"}}"
    );
    let config = Gpt2Config::from_json(&json, "config.json").unwrap().with_dropout(dropout);
    let mut state = TrainingState::new(&config.parameters(), &[], CPU, TrainState::default()).unwrap();
    state.fill(|destinations| init::random(&config, 5, destinations)).unwrap();
    let ids = |salt: usize| (0..rows * tokens).map(move |i| ((i * 7919 + salt) % vocab_size as usize) as i64);
    let (inputs, targets): (Vec<i64>, Vec<i64>) = (ids(1).collect(), ids(8).collect());
    let batch = TokenBatch::new(&inputs, &targets, rows, CPU).unwrap();
    tch::set_num_threads(threads);
    tch::manual_seed(3);
    let mut model = Gpt2Model::new(config.clone(), CPU).adding_norms(norm_gradients(arithmetic));
    let mut gradients = ModelGradients::default();
    let loss = model.loss_and_grads(state.params(), &batch, 0.5, &mut gradients).unwrap();
    let values = |tensor: &tch::Tensor| Vec::<f32>::try_from(tensor.reshape(-1)).unwrap();
    let bits = |tensor: &tch::Tensor| values(tensor).into_iter().map(f32::to_bits).collect();
    let named = config.parameters().into_iter().zip(gradients.tensors());
    let named = named.map(|(meta, tensor)| (meta.name, bits(tensor)));
    [("loss".to_owned(), vec![(loss as f32).to_bits()])].into_iter().chain(named).collect()
}

/// The names of what differs.
fn differences(one: &[(String, Vec<u32>)], other: &[(String, Vec<u32>)]) -> Vec<String> {
    one.iter().zip(other).filter(|(one, other)| one != other).map(|((name, _), _)| name.clone()).collect()
}

#[test]
fn threads_do_not_change_the_bits_under_the_newest_arithmetic_and_did_before_it() {
    ckptd_gpt2::process::set_threads(1).unwrap();
    let (mut found, mut depended) = (Vec::new(), false);
    for shape in SHAPES {
        let expected = gradients(shape, ARITHMETIC.newest, 1);
        for threads in [2, 3, 4] {
            // gelu computes what is left beyond whole vectors otherwise: a third of the values must be whole vectors.
            if threads == 3 && shape.1 % 192 != 0 {
                continue;
            }
            let differ = differences(&gradients(shape, ARITHMETIC.newest, threads), &expected);
            if !differ.is_empty() {
                found.push(format!("{shape:?} with {threads} threads: {}", differ.join(", ")));
            }
        }
        let before = ArithmeticNumber::new(2);
        depended |= gradients(shape, before, 1) != gradients(shape, before, 3);
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
    assert!(depended, "these shapes would show it");
}
