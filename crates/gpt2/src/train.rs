//! The training loop, from the first step that is missing to the last.
//!
//! Invariant: what a step computes is a function of the state and the settings alone: randomness comes from (seed,
//! step, micro-batch), the data order from (seed, epoch, position). A run that was interrupted anywhere ends in the
//! same bits, on any number of ranks, which all run this loop. Deliberately not here: preparing (`setup`), snapshots
//! (`snapshots`), adding gradients (`reduction`), stopping (`main`).

use std::sync::Arc;
use std::time::Instant;

use ckptd_core::protocol::{MessageLevel, WorkerEvent};
use ckptd_core::store::CommitPace;
use ckptd_core::{Error, Result, schedule};
use tch::{Device, Tensor};

use crate::data::order::{DataCursor, EvalBatches, TrainBatches};
use crate::evaluations::EvaluationPolicy;
use crate::events::EventSender;
use crate::gpt2::TokenBatch;
use crate::optim::UpdateStep;
use crate::ranks::RankGroup;
use crate::reduction::{StepGradient, SumOrder};
use crate::rng;
use crate::setup::TrainingSetup;
use crate::snapshots::SnapshotTaker;
use crate::torch::TorchContext;

/// Steps between comparisons of the parameters that the ranks hold.
const COMPARED_EVERY: u64 = 50;

/// A training under way.
pub struct TrainingLoop {
    setup: TrainingSetup,
    batches: TrainBatches,
    eval_batches: EvalBatches,
    gradient: StepGradient,
    inputs: Vec<i64>,
    targets: Vec<i64>,
    events: EventSender,
    /// On rank 0.
    snapshots: Option<SnapshotTaker>,
    evaluations: Arc<EvaluationPolicy>,
    group: Box<dyn RankGroup>,
}

impl TrainingLoop {
    /// On the ranks of `group`; `snapshots` is rank 0's.
    ///
    /// # Errors
    /// [`Error::Config`] for a training that one rank alone can compute, on more than one.
    pub fn new(
        setup: TrainingSetup,
        events: EventSender,
        snapshots: Option<SnapshotTaker>,
        group: Box<dyn RankGroup>,
    ) -> Result<TrainingLoop> {
        let train = &setup.config.train;
        let batches = TrainBatches::new(setup.data.train.clone(), train.sequence_length, setup.config.job.seed);
        let eval_batches =
            EvalBatches::new(setup.data.val.clone(), train.sequence_length, train.batch_size, train.eval_batches);
        let order = SumOrder::of(setup.state.train().0.arithmetic, train.grad_accumulation);
        let gradient = StepGradient::new(order, train.grad_accumulation, setup.state.params(), group.as_ref())?;
        Ok(TrainingLoop {
            setup,
            batches,
            eval_batches,
            gradient,
            inputs: Vec::new(),
            targets: Vec::new(),
            events,
            snapshots,
            evaluations: Arc::default(),
            group,
        })
    }

    /// Lets `evaluations` say when there are some.
    pub fn obeying(self, evaluations: Arc<EvaluationPolicy>) -> TrainingLoop {
        TrainingLoop { evaluations, ..self }
    }

    /// Trains to the last step. Returns how many steps are completed.
    ///
    /// # Errors
    /// Where a rank was lost, it is named, and rank 0 has saved the newest state.
    pub fn run(&mut self) -> Result<u64> {
        let steps = self.setup.config.train.steps;
        // A snapshot may have been taken between a step and its evaluation.
        let evaluated = self.evaluate_if_due();
        self.saved_unless(evaluated)?;
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
        let done = self.step(step).and_then(|()| self.evaluate_if_due());
        self.saved_unless(done)?;
        if (step + 1).is_multiple_of(COMPARED_EVERY) {
            self.compare_parameters()?;
        }
        if let Some(snapshots) = &self.snapshots
            && snapshots.is_due(step + 1)
            && step + 1 < self.setup.config.train.steps
        {
            snapshots.take_between_steps("interval");
        }
        Ok(())
    }

    /// Saves the newest state before an error ends a training of many ranks: a step is applied as a whole or not at
    /// all, and rank 0 holds all of it.
    fn saved_unless(&self, done: Result<()>) -> Result<()> {
        if let (Err(_), Some(snapshots)) = (&done, &self.snapshots)
            && self.group.size() > 1
        {
            snapshots.pause_if_ending();
            // A failure to save was told as an event; the error that matters is the first.
            let _ = snapshots.take_last("a rank was lost", CommitPace::Alone, None);
        }
        done
    }

    fn pause_if_ending(&self) {
        if let Some(snapshots) = &self.snapshots {
            snapshots.pause_if_ending();
        }
    }

    /// One update, from the mean gradient over its micro-batches.
    fn step(&mut self, step: u64) -> Result<()> {
        let began = Instant::now();
        let micro_batches = self.setup.config.train.grad_accumulation;
        let (saved, _) = self.setup.state.train();
        let saved = DataCursor { epoch: saved.epoch, position: saved.position };
        let losses = self.micro_batches(step, saved)?;
        let weight = 1.0 / micro_batches as f64;
        let loss = losses.iter().fold(0.0, |sum, loss| sum + weight * loss);
        let learning_rate = schedule::learning_rate(&self.setup.config.train, step);
        if !loss.is_finite() {
            return Err(self.diverged(step, loss, learning_rate));
        }
        let TrainingSetup { config, state, optimizer, .. } = &mut self.setup;
        let norm = self.gradient.finish(self.group.as_mut(), optimizer)?;
        let train = &config.train;
        let tokens = micro_batches * train.batch_size * train.sequence_length;
        let cursor = self.batches.sampler().advance(saved, micro_batches * train.batch_size);
        let figures = UpdateStep { number: step + 1, learning_rate };
        optimizer.update(state, self.gradient.tensors(), norm, figures, |train, metrics| {
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

    /// The passes of this rank's micro-batches, the first of which begins at `start`. Returns the losses of all of
    /// them, in order.
    fn micro_batches(&mut self, step: u64, start: DataCursor) -> Result<Vec<f64>> {
        let TrainingSetup { config, device, model, state, .. } = &mut self.setup;
        let train = &config.train;
        let count = train.grad_accumulation;
        let share = self.group.share(count);
        let mut cursor = self.batches.sampler().advance(start, share.start * train.batch_size);
        let mut losses = Vec::new();
        self.gradient.begin();
        for micro_batch in share {
            if let Some(snapshots) = &self.snapshots {
                snapshots.pause_if_ending();
            }
            self.group.is_at(step, micro_batch);
            cursor = self.batches.fill(cursor, train.batch_size, &mut self.inputs, &mut self.targets);
            let batch = TokenBatch::new(&self.inputs, &self.targets, train.batch_size as usize, *device)?;
            tch::manual_seed(rng::seed_for(config.job.seed, step, micro_batch, "dropout"));
            let weight = 1.0 / count as f64;
            losses.push(model.loss_and_grads(state.params(), &batch, weight, self.gradient.micro_batch())?);
            self.gradient.add(micro_batch)?;
            if count > 1 {
                self.events.send(WorkerEvent::Alive { step, micro_batch });
            }
        }
        self.gathered(&losses)
    }

    /// What all ranks have, in order.
    fn gathered(&mut self, values: &[f64]) -> Result<Vec<f64>> {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let all = self.group.gather(&bytes)?.concat();
        Ok(all.as_chunks::<8>().0.iter().map(|bytes| f64::from_le_bytes(*bytes)).collect())
    }

    /// Finds a rank whose memory or processor has changed a bit: all must hold the same parameters.
    fn compare_parameters(&mut self) -> Result<()> {
        if self.group.size() == 1 {
            return Ok(());
        }
        let hash = hash_of(self.setup.state.params())?;
        let hashes = self.group.gather(hash.as_bytes())?;
        match different_ranks(&hashes) {
            None => Ok(()),
            Some(ranks) => Err(Error::Other(format!(
                "{ranks} after step {}: a machine computes or remembers wrongly; go on from an earlier snapshot",
                self.setup.state.train().0.step
            ))),
        }
    }

    /// Keeps the state for a post-mortem; training on would only spoil the weights.
    fn diverged(&mut self, step: u64, loss: f64, learning_rate: f64) -> Error {
        self.setup.state.edit(|_, metrics| metrics.train_loss = Some(loss));
        if let Some(snapshots) = &self.snapshots {
            // A failure to save was told as an event; the error that matters is the loss.
            let _ = snapshots.take_post_mortem();
        }
        Error::Other(format!(
            "the loss is {loss} in step {} (learning rate {learning_rate:.3e}); lower [train] learning_rate, \
             or look for bad data near this step",
            step + 1
        ))
    }

    /// Takes over what was asked for meanwhile about evaluations, on all ranks at the same step; the state records it
    /// as the settings it is under.
    fn change_evaluations(&mut self) -> Result<()> {
        let asked = self.evaluations.take();
        if self.group.agree(u64::from(asked.is_some()))? == 0 {
            return Ok(());
        }
        let (every, batches) = asked.unwrap_or_default();
        let said = self.group.broadcast(&[every.to_le_bytes(), batches.to_le_bytes()].concat())?;
        let [every, batches] =
            [0, 1].map(|index| said.as_chunks::<8>().0.get(index).map_or(0, |bytes| u64::from_le_bytes(*bytes)));
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
        Ok(())
    }

    fn evaluate_if_due(&mut self) -> Result<()> {
        self.change_evaluations()?;
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
        if let Some(snapshots) = &self.snapshots
            && best
            && step < self.setup.config.train.steps
        {
            snapshots.take_between_steps("best validation loss");
        }
        Ok(())
    }

    /// Mean loss over the validation batches, in nats per token. Each rank computes its share of them.
    fn evaluate(&mut self) -> Result<f64> {
        let share = self.group.share(self.eval_batches.len() as u64);
        let count = share.end - share.start;
        let mut losses = Vec::new();
        for (done, index) in share.enumerate() {
            self.pause_if_ending();
            self.eval_batches.fill(index as usize, &mut self.inputs, &mut self.targets);
            let rows = self.setup.config.train.batch_size as usize;
            let batch = TokenBatch::new(&self.inputs, &self.targets, rows, self.setup.device)?;
            losses.push(self.setup.model.loss(self.setup.state.params(), &batch)?);
            let fraction = Some((done + 1) as f64 / count as f64);
            self.events.send(WorkerEvent::Progress { stage: "evaluating".into(), fraction });
        }
        let losses = self.gathered(&losses)?;
        Ok(losses.iter().sum::<f64>() / losses.len() as f64)
    }
}

/// One hash of all these tensors' values.
fn hash_of(tensors: &[Tensor]) -> Result<blake3::Hash> {
    let mut hasher = blake3::Hasher::new();
    for tensor in tensors {
        let host = tensor.f_detach().and_then(|tensor| tensor.f_to_device(Device::Cpu)?.f_contiguous());
        let host = host.context("reading the parameters")?;
        // SAFETY: contiguous float32 in host memory, which nothing writes before the next update.
        hasher.update(unsafe { std::slice::from_raw_parts(host.data_ptr().cast::<u8>(), 4 * host.numel()) });
    }
    Ok(hasher.finalize())
}

/// Which ranks hold something else, where not all hold the same: those that are not of the majority, if there is one.
fn different_ranks(hashes: &[Vec<u8>]) -> Option<String> {
    let alike = |hash: &Vec<u8>| hashes.iter().filter(|other| *other == hash).count();
    let most = hashes.iter().max_by_key(|hash| alike(hash))?;
    if alike(most) == hashes.len() {
        return None;
    }
    let list = |ranks: Vec<usize>| ranks.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let odd = list((0..hashes.len()).filter(|&rank| hashes[rank] != *most).collect());
    if 2 * alike(most) > hashes.len() {
        return Some(format!("rank {odd} holds other parameters than the rest"));
    }
    Some(format!("ranks {} do not hold the same parameters", list((0..hashes.len()).collect())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_odd_rank_is_named_where_there_is_a_majority() {
        let hashes = |text: &str| text.bytes().map(|byte| vec![byte]).collect::<Vec<_>>();
        assert_eq!(different_ranks(&hashes("aaa")), None);
        assert_eq!(different_ranks(&hashes("a")), None);
        assert_eq!(different_ranks(&hashes("aab")).as_deref(), Some("rank 2 holds other parameters than the rest"));
        assert_eq!(different_ranks(&hashes("baa")).as_deref(), Some("rank 0 holds other parameters than the rest"));
        assert_eq!(different_ranks(&hashes("ab")).as_deref(), Some("ranks 0, 1 do not hold the same parameters"));
    }
}
