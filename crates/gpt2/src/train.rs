//! The training loop, from the first step that is missing to the last.
//!
//! Invariant: what a step computes is a function of the state and the settings alone: randomness comes from (seed,
//! step, micro-batch), the data order from (seed, epoch, position). A run that was interrupted anywhere ends in the
//! same bits. Deliberately not here: preparing (`setup`), snapshots (`snapshots`), stopping (`main`).

use std::sync::Arc;
use std::time::Instant;

use ckptd_core::protocol::{MessageLevel, WorkerEvent};
use ckptd_core::{Error, Result, schedule};

use crate::data::order::{DataCursor, EvalBatches, TrainBatches};
use crate::evaluations::EvaluationPolicy;
use crate::events::EventSender;
use crate::gpt2::{ModelGradients, TokenBatch};
use crate::optim::UpdateStep;
use crate::rng;
use crate::setup::TrainingSetup;
use crate::snapshots::SnapshotTaker;

/// A training under way.
pub struct TrainingLoop {
    setup: TrainingSetup,
    batches: TrainBatches,
    eval_batches: EvalBatches,
    gradients: ModelGradients,
    inputs: Vec<i64>,
    targets: Vec<i64>,
    events: EventSender,
    snapshots: SnapshotTaker,
    evaluations: Arc<EvaluationPolicy>,
}

impl TrainingLoop {
    pub fn new(setup: TrainingSetup, events: EventSender, snapshots: SnapshotTaker) -> TrainingLoop {
        let train = &setup.config.train;
        let batches = TrainBatches::new(setup.data.train.clone(), train.sequence_length, setup.config.job.seed);
        let eval_batches =
            EvalBatches::new(setup.data.val.clone(), train.sequence_length, train.batch_size, train.eval_batches);
        TrainingLoop {
            setup,
            batches,
            eval_batches,
            gradients: ModelGradients::default(),
            inputs: Vec::new(),
            targets: Vec::new(),
            events,
            snapshots,
            evaluations: Arc::default(),
        }
    }

    /// Lets `evaluations` say when there are some.
    pub fn obeying(self, evaluations: Arc<EvaluationPolicy>) -> TrainingLoop {
        TrainingLoop { evaluations, ..self }
    }

    /// Trains to the last step. Returns how many steps are completed.
    pub fn run(&mut self) -> Result<u64> {
        let steps = self.setup.config.train.steps;
        // A snapshot may have been taken between a step and its evaluation.
        self.evaluate_if_due()?;
        loop {
            let step = self.setup.state.train().0.step;
            if step >= steps {
                return Ok(step);
            }
            self.advance(step)?;
        }
    }

    /// The step after `step`, and what falls due with it: an evaluation, a snapshot.
    pub fn advance(&mut self, step: u64) -> Result<()> {
        self.step(step)?;
        self.evaluate_if_due()?;
        if self.snapshots.is_due(step + 1) && step + 1 < self.setup.config.train.steps {
            self.snapshots.take_between_steps("interval");
        }
        Ok(())
    }

    /// One update, from the mean gradient over its micro-batches.
    fn step(&mut self, step: u64) -> Result<()> {
        let began = Instant::now();
        let TrainingSetup { config, device, model, state, optimizer, .. } = &mut self.setup;
        let train = &config.train;
        let micro_batches = train.grad_accumulation;
        let (saved, _) = state.train();
        let mut cursor = DataCursor { epoch: saved.epoch, position: saved.position };
        let mut loss = 0.0;
        self.gradients.clear();
        for micro_batch in 0..micro_batches {
            self.snapshots.pause_if_ending();
            cursor = self.batches.fill(cursor, train.batch_size, &mut self.inputs, &mut self.targets);
            let batch = TokenBatch::new(&self.inputs, &self.targets, train.batch_size as usize, *device)?;
            tch::manual_seed(rng::seed_for(config.job.seed, step, micro_batch, "dropout"));
            let weight = 1.0 / micro_batches as f64;
            loss += weight * model.loss_and_grads(state.params(), &batch, weight, &mut self.gradients)?;
            if micro_batches > 1 {
                self.events.send(WorkerEvent::Alive { step, micro_batch });
            }
        }
        let learning_rate = schedule::learning_rate(train, step);
        if !loss.is_finite() {
            return Err(self.diverged(step, loss, learning_rate));
        }
        let tokens = micro_batches * train.batch_size * train.sequence_length;
        let figures = UpdateStep { number: step + 1, learning_rate };
        let norm = optimizer.step(state, self.gradients.tensors(), figures, |train, metrics| {
            train.step = step + 1;
            train.tokens_seen += tokens;
            train.epoch = cursor.epoch;
            train.position = cursor.position;
            metrics.train_loss = Some(loss);
        })?;
        let step_ms = began.elapsed().as_secs_f64() * 1e3;
        let grad_norm = Some(norm);
        self.events.send(WorkerEvent::Step { step: step + 1, loss, learning_rate, grad_norm, step_ms, tokens });
        Ok(())
    }

    /// Keeps the state for a post-mortem; training on would only spoil the weights.
    fn diverged(&mut self, step: u64, loss: f64, learning_rate: f64) -> Error {
        self.setup.state.edit(|_, metrics| metrics.train_loss = Some(loss));
        // A failure to save was told as an event; the error that matters is the loss.
        let _ = self.snapshots.take_post_mortem();
        Error::Other(format!(
            "the loss is {loss} in step {} (learning rate {learning_rate:.3e}); lower [train] learning_rate, \
             or look for bad data near this step",
            step + 1
        ))
    }

    /// Takes over what was asked for meanwhile about evaluations; the state records it as the settings it is under.
    fn change_evaluations(&mut self) {
        let Some((every, batches)) = self.evaluations.take() else { return };
        let train = &mut self.setup.config.train;
        (train.eval_every, train.eval_batches) = (every, batches);
        let validation = self.setup.data.val.clone();
        self.eval_batches = EvalBatches::new(validation, train.sequence_length, train.batch_size, batches);
        if every > 0 && self.eval_batches.is_empty() {
            let what = "no evaluations: [data] validation holds back fewer tokens than one batch has";
            self.events.log(MessageLevel::Warn, what);
            train.eval_every = 0;
        }
        let (every, batches) = (train.eval_every, train.eval_batches);
        self.setup.state.edit(|state, _| {
            state.settings.set("train.eval_every", every.to_string());
            state.settings.set("train.eval_batches", batches.to_string());
        });
    }

    fn evaluate_if_due(&mut self) -> Result<()> {
        self.change_evaluations();
        let (saved, _) = self.setup.state.train();
        let (step, train) = (saved.step, &self.setup.config.train);
        let due = train.eval_every > 0 && (step.is_multiple_of(train.eval_every) || step == train.steps);
        if !due || step == 0 || saved.last_eval_step == step {
            return Ok(());
        }
        let val_loss = self.evaluate()?;
        let best = val_loss.is_finite() && saved.best_val_loss.is_none_or(|best| val_loss < best);
        self.setup.state.edit(|train, metrics| {
            train.last_eval_step = step;
            if best {
                train.best_val_loss = Some(val_loss);
            }
            metrics.val_loss = Some(val_loss);
            metrics.val_step = Some(step);
        });
        self.events.send(WorkerEvent::Eval { step, val_loss, best });
        if best && step < self.setup.config.train.steps {
            self.snapshots.take_between_steps("best validation loss");
        }
        Ok(())
    }

    /// Mean loss over the validation batches, in nats per token.
    fn evaluate(&mut self) -> Result<f64> {
        let batches = self.eval_batches.len();
        let mut sum = 0.0;
        for index in 0..batches {
            self.snapshots.pause_if_ending();
            self.eval_batches.fill(index, &mut self.inputs, &mut self.targets);
            let rows = self.setup.config.train.batch_size as usize;
            let batch = TokenBatch::new(&self.inputs, &self.targets, rows, self.setup.device)?;
            sum += self.setup.model.loss(self.setup.state.params(), &batch)?;
            let fraction = Some((index + 1) as f64 / batches as f64);
            self.events.send(WorkerEvent::Progress { stage: "evaluating".into(), fraction });
        }
        Ok(sum / batches as f64)
    }
}
