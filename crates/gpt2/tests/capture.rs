//! Captures at random moments are whole, whatever the training does meanwhile.
#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use ckptd_core::config::{Config, OptimizerKind as Kind, SnapshotMemory, TrainSection};
use ckptd_core::dtype::DType;
use ckptd_core::snapshot::{Role, TensorMeta, TrainState};
use ckptd_gpt2::capture::{StateCapture, TrainingState, UpdatePlace};
use ckptd_gpt2::optim::{ModelOptimizer, UpdateStep};
use ckptd_testkit::random::SeededRandom;

/// Of each optimiser, without a bound on memory and with each of two.
const CAPTURES: u64 = 150;
const BOUNDED_CAPTURES: u64 = 50;

fn metas() -> Vec<TensorMeta> {
    let shapes: [&[u64]; 6] = [&[300, 170], &[1], &[64, 64], &[5_000], &[17], &[3, 5, 7]];
    let meta = |i: usize| TensorMeta {
        role: Role::Param,
        name: format!("tensor.{i}"),
        dtype: DType::F32,
        shape: shapes[i % shapes.len()].to_vec(),
    };
    (0..24).map(meta).collect()
}

fn state(optimizer: &ModelOptimizer) -> TrainingState {
    let train = TrainState::default();
    let mut state = TrainingState::new(&metas(), optimizer.roles(), tch::Device::Cpu, train).unwrap();
    let fill = |destinations: &mut [ckptd_gpt2::capture::TensorDestination<'_>]| {
        let mut random = SeededRandom::new(7);
        for destination in destinations.iter_mut().filter(|d| d.meta.role == Role::Param) {
            for value in destination.bytes.chunks_exact_mut(4) {
                value.copy_from_slice(&(random.below(2000) as f32 / 1000.0 - 1.0).to_le_bytes());
            }
        }
        Ok(())
    };
    state.fill(fill).unwrap();
    state
}

fn optimizer(kind: Kind) -> ModelOptimizer {
    let train = TrainSection { optimizer: kind, momentum: 0.9, grad_clip: 1.0, ..Config::default().train };
    ModelOptimizer::new(&train, 2).unwrap()
}

fn gradients(step: u64) -> Vec<tch::Tensor> {
    let mut random = SeededRandom::new(step * 977 + 1);
    let gradient = |meta: TensorMeta| {
        let shift = random.below(1000) as f32;
        let values: Vec<f32> = (0..meta.elements().unwrap()).map(|i| ((i as f32 + shift) * 0.37).sin()).collect();
        let shape: Vec<i64> = meta.shape.iter().map(|&d| d as i64).collect();
        tch::Tensor::from_slice(&values).view(shape.as_slice())
    };
    metas().into_iter().map(gradient).collect()
}

fn update(state: &mut TrainingState, optimizer: &ModelOptimizer, gradients: &[tch::Tensor]) {
    let step = state.train().0.step + 1;
    let figures = UpdateStep { number: step, learning_rate: 1e-2 };
    let advance = |train: &mut TrainState, metrics: &mut ckptd_core::snapshot::Metrics| {
        train.step = step;
        train.tokens_seen = 100 * step;
        metrics.train_loss = Some(step as f64);
    };
    optimizer.step(state, gradients, figures, advance).unwrap();
}

/// Every tensor's bytes, copied.
fn copy(capture: &StateCapture) -> Vec<Vec<u8>> {
    capture.tensors.iter().map(|tensor| (*tensor.bytes).as_ref().to_vec()).collect()
}

#[test]
fn a_changed_bit_of_a_shard_is_seen_by_the_rank_that_holds_it() {
    let (optimizer, metas) = (optimizer(Kind::Adamw), metas());
    let half = |meta: &TensorMeta| 0..meta.elements().unwrap() as usize / 2;
    let owned: Vec<_> = metas.iter().map(half).collect();
    let (cpu, train) = (tch::Device::Cpu, TrainState::default());
    let mut state = TrainingState::sharded(&metas, optimizer.roles(), cpu, train, &owned).unwrap();
    let (params, shard): (u64, usize) =
        (metas.iter().filter_map(TensorMeta::bytes).sum(), owned.iter().map(ExactSizeIterator::len).sum());
    assert_eq!(state.capturer().memory().state, params + 2 * 4 * shard as u64);
    state.seal().unwrap();
    let hash = state.hash().unwrap();
    state
        .fill(|tensors| {
            tensors.last_mut().unwrap().bytes[0] ^= 1;
            Ok(())
        })
        .unwrap();
    assert!(!state.is_as_sealed().unwrap());
    assert_eq!(state.hash().unwrap(), hash, "nobody else holds it");
    state.seal().unwrap();
    assert!(state.is_as_sealed().unwrap());
    let capture = state.capturer().capture().unwrap().unwrap();
    assert_eq!((capture.tensors.len(), capture.shards.len()), (metas.len(), 2 * metas.len()));
}

#[test]
fn a_capture_at_any_moment_equals_a_full_copy_made_at_the_same_cut() {
    for kind in [Kind::Adamw, Kind::Sgd] {
        let state = state(&optimizer(kind)).capturer().memory().state;
        for memory in [SnapshotMemory::Unlimited, SnapshotMemory::Bytes(state / 3), SnapshotMemory::Bytes(0)] {
            let captures = if memory == SnapshotMemory::Unlimited { CAPTURES } else { BOUNDED_CAPTURES };
            stress(kind, memory, captures);
        }
    }
}

/// A twin that nobody captures concurrently takes every update first, and a full copy of it is kept. Meanwhile two
/// threads capture the real state at random moments and compare tensor by tensor, late and in random order.
fn stress(kind: Kind, bound: SnapshotMemory, captures: u64) {
    let optimizer = optimizer(kind);
    let (mut real, mut twin) = (state(&optimizer).sparing(bound), state(&optimizer));
    let twins_capturer = twin.capturer();
    let first = copy(&twins_capturer.capture().unwrap().unwrap());
    let copies = Mutex::new(HashMap::from([(0, first)]));
    let ending = AtomicBool::new(false);
    let compared = AtomicU64::new(0);
    let capturer = real.capturer();

    thread::scope(|scope| {
        let threads = [3, 5].map(|seed| {
            let (capturer, copies, ending, compared) = (capturer.clone(), &copies, &ending, &compared);
            scope.spawn(move || {
                let mut random = SeededRandom::new(seed);
                while !ending.load(Ordering::Relaxed) {
                    pause(&mut random, 1500);
                    if let Some(capture) = capturer.capture().unwrap() {
                        compare(capture, copies, &mut random);
                        compared.fetch_add(1, Ordering::Relaxed);
                    }
                }
            })
        });
        for step in 1.. {
            // A thread that found a difference has panicked; the scope reports it.
            if compared.load(Ordering::Relaxed) >= captures || threads.iter().any(|thread| thread.is_finished()) {
                break;
            }
            let gradients = gradients(step);
            update(&mut twin, &optimizer, &gradients);
            let copied = copy(&twins_capturer.capture().unwrap().unwrap());
            let mut kept = copies.lock().unwrap();
            kept.insert(step, copied);
            kept.retain(|&old, _| old + 50 > step);
            drop(kept);
            update(&mut real, &optimizer, &gradients);
        }
        ending.store(true, Ordering::Relaxed);
    });

    let memory = capturer.memory();
    let allowed = bound.bytes(memory.state);
    assert!(memory.extra_peak > 0 || allowed == 0, "no update had to leave a captured tensor alone");
    assert!(memory.extra_peak <= allowed, "{bound:?}: {memory:?}");
    assert_eq!(memory.waits > 0, allowed < memory.state, "{bound:?}: {memory:?}");
    assert_eq!(memory.extra, 0, "every handle is dropped: {memory:?}");
}

fn compare(capture: StateCapture, copies: &Mutex<HashMap<u64, Vec<Vec<u8>>>>, random: &mut SeededRandom) {
    let step = capture.train.step;
    assert_eq!(capture.train.tokens_seen, 100 * step);
    assert_eq!(capture.metrics.train_loss.unwrap_or(0.0), step as f64);
    let expected = copies.lock().unwrap()[&step].clone();
    let mut tensors: Vec<_> = capture.tensors.into_iter().zip(expected).collect();
    assert_eq!(tensors.len() % 24, 0);
    while !tensors.is_empty() {
        let (tensor, expected) = tensors.swap_remove(random.below(tensors.len() as u64) as usize);
        pause(random, 100);
        assert!((*tensor.bytes).as_ref() == expected, "step {step}: {} is not what it was", tensor.meta.label());
    }
}

/// Up to so many microseconds, now and then much longer.
fn pause(random: &mut SeededRandom, most_us: u64) {
    let factor = if random.below(100) == 0 { 20 } else { 1 };
    let until = Instant::now() + Duration::from_micros(random.below(most_us * factor));
    while Instant::now() < until {
        thread::yield_now();
    }
}

#[test]
fn a_second_capture_waits_until_the_first_is_dropped() {
    let optimizer = optimizer(Kind::Adamw);
    let mut state = state(&optimizer);
    let capturer = state.capturer();
    let mut capture = capturer.capture().unwrap().unwrap();
    assert!(capturer.capture().unwrap().is_none());
    assert!(state.fill(|_| Ok(())).is_err(), "a captured state is not refilled");
    for step in 1..4 {
        update(&mut state, &optimizer, &gradients(step));
    }
    // One handle keeps the snapshot in flight; the rest of it is given back.
    let last = capture.tensors.pop().unwrap();
    let meter = capture.stall_meter();
    drop(capture);
    assert!(capturer.capture().unwrap().is_none());
    let memory = capturer.memory();
    assert_eq!(memory.extra, last.meta.bytes().unwrap());
    assert_eq!(memory.extra_peak, memory.state);
    drop(last);
    assert!(capturer.capture().unwrap().is_some());
    assert!(meter.stall() < Duration::from_millis(500));
}

/// One parameter of so many floats, without moments.
fn one_tensor(floats: u64, memory: SnapshotMemory) -> TrainingState {
    let meta = TensorMeta { shape: vec![floats], ..metas()[0].clone() };
    TrainingState::new(&[meta], &[], tch::Device::Cpu, TrainState::default()).unwrap().sparing(memory)
}

/// Writes `value` to every element.
fn write(state: &mut TrainingState, value: f32) {
    let apply = |places: &[UpdatePlace]| {
        for place in places {
            let UpdatePlace::Host(span) = place else { unreachable!("there is no device") };
            // SAFETY: a target is of so many elements, and this update's alone.
            unsafe { std::slice::from_raw_parts_mut(span.target, span.elements) }.fill(value);
        }
        Ok(())
    };
    state.update(apply, |train, _| train.step += 1).unwrap();
}

/// The one value that all elements have.
fn value(capture: &StateCapture) -> f32 {
    let bytes = (*capture.tensors[0].bytes).as_ref();
    assert!(bytes.chunks_exact(4).all(|element| element == &bytes[..4]), "half of an update");
    f32::from_le_bytes(bytes[..4].try_into().unwrap())
}

#[test]
fn an_update_under_auto_waits_for_about_a_step_and_then_takes_memory_that_is_given_back() {
    let mut state = one_tensor(20 << 20, SnapshotMemory::Auto);
    let capturer = state.capturer();
    for round in 1..4u8 {
        let before = 2.0 * f32::from(round);
        write(&mut state, before);
        let held = capturer.capture().unwrap().unwrap();
        write(&mut state, before + 1.0);
        let memory = capturer.memory();
        assert_eq!((memory.waits, memory.extra), (u64::from(round), memory.state));
        assert_eq!(value(&held), before);
        drop(held);
        assert_eq!(value(&capturer.capture().unwrap().unwrap()), before + 1.0);
    }
    assert!(capturer.memory().waited >= Duration::from_secs(3), "{:?}", capturer.memory());
}

#[test]
fn an_update_that_waits_for_memory_begins_when_the_snapshot_lets_go_and_not_at_all_when_the_session_ends() {
    let mut state = one_tensor(1000, SnapshotMemory::Bytes(0));
    let capturer = state.capturer();
    let held = capturer.capture().unwrap().unwrap();
    let updating = thread::spawn(move || {
        write(&mut state, 1.0);
        state
    });
    thread::sleep(Duration::from_millis(50));
    assert_eq!(capturer.step(), 0, "it waits");
    drop(held);
    let mut state = updating.join().unwrap();
    assert_eq!((capturer.step(), capturer.memory().waits), (1, 1));

    let held = capturer.capture().unwrap().unwrap();
    // Parked for ever, as in a process that is about to end.
    thread::spawn(move || write(&mut state, 2.0));
    thread::sleep(Duration::from_millis(50));
    capturer.freeze();
    drop(held);
    thread::sleep(Duration::from_millis(50));
    assert_eq!(value(&capturer.capture().unwrap().unwrap()), 1.0);
}

#[test]
fn an_update_that_fails_half_way_leaves_no_state_to_capture() {
    let optimizer = optimizer(Kind::Adamw);
    let mut state = state(&optimizer);
    let capturer = state.capturer();
    let failed =
        state.update(|_| Err::<(), _>(ckptd_core::Error::Other("out of memory".into())), |train, _| train.step = 1);
    assert!(failed.is_err());
    assert_eq!(state.train().0.step, 0);
    assert!(capturer.capture().is_err());
    assert!(
        optimizer.step(&mut state, &gradients(1), UpdateStep { number: 1, learning_rate: 0.1 }, |_, _| ()).is_err()
    );
}

#[test]
fn the_parameters_follow_their_tensors_to_another_home() {
    let optimizer = optimizer(Kind::Adamw);
    let mut state = state(&optimizer);
    let capturer = state.capturer();
    for step in 1..6 {
        let held = if step % 2 == 0 { capturer.capture().unwrap() } else { None };
        update(&mut state, &optimizer, &gradients(step));
        drop(held);
        let now = capturer.capture().unwrap().unwrap();
        for (leaf, tensor) in state.params().iter().zip(&now.tensors) {
            assert!(leaf.requires_grad());
            let mut bytes = vec![0; 4 * leaf.numel()];
            leaf.detach().copy_data_u8(&mut bytes, leaf.numel());
            assert!(bytes == (*tensor.bytes).as_ref(), "step {step}: {}", tensor.meta.name);
        }
    }
}

#[test]
fn gradients_that_do_not_fit_are_refused_before_anything_changes() {
    let optimizer = optimizer(Kind::Adamw);
    let mut state = state(&optimizer);
    let step = UpdateStep { number: 1, learning_rate: 0.1 };
    let mut wrong = gradients(1);
    wrong[2] = tch::Tensor::zeros([64, 65], (tch::Kind::Float, tch::Device::Cpu));
    let error = optimizer.step(&mut state, &wrong, step, |_, _| ()).unwrap_err();
    assert!(error.to_string().contains("tensor.2"), "{error}");
    wrong[2] = tch::Tensor::zeros([64, 64], (tch::Kind::Double, tch::Device::Cpu));
    assert!(optimizer.step(&mut state, &wrong, step, |_, _| ()).is_err());
    assert!(optimizer.step(&mut state, &wrong[1..], step, |_, _| ()).is_err());
    update(&mut state, &optimizer, &gradients(1));
}
