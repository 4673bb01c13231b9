//! The training loop, from the first step that is missing to the last.
//!
//! Invariant: what a step computes is a function of the state and the settings alone: randomness comes from (seed,
//! step, micro-batch), the data order from (seed, epoch, position). A run that was interrupted anywhere ends in the
//! same bits, on any number of ranks, which all run this loop. Deliberately not here: preparing (`setup`), snapshots
//! (`snapshots`), adding gradients (`reduction`), stopping (`main`).

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use ckptd_core::protocol::{MessageLevel, StateDispute, WorkerEvent};
use ckptd_core::snapshot::{Metrics, TrainState};
use ckptd_core::store::CommitPace;
use ckptd_core::{Error, Result, schedule};

use crate::agreement::{self, BitFlip, SpoiltMemory, StateComparison, StepWords};
use crate::capture::UpdateSpan;
use crate::data::order::{DataCursor, EvalBatches, TrainBatches};
use crate::evaluations::EvaluationPolicy;
use crate::events::EventSender;
use crate::gpt2::{ProductCasts, TokenBatch};
use crate::optim::{UpdateShard, UpdateStep};
use crate::ranks::RankGroup;
use crate::reduction::{Gathers, StepGradient, SumOrder};
use crate::rng;
use crate::setup::TrainingSetup;
use crate::snapshots::SnapshotTaker;

/// Steps between comparisons of the states that the ranks hold; more often after snapshots.
const COMPARED_EVERY: u64 = 50;

/// What rank 0 asks for between steps.
const NEW_EVALUATIONS: u64 = 1;
const COMPARISON: u64 = 2;

/// What came of a step without an error.
enum StepEnd {
    Applied,
    /// Some rank's memory does not hold what it should: nothing was applied.
    Spoilt(SpoiltMemory),
}

/// A training under way.
pub struct TrainingLoop {
    setup: TrainingSetup,
    batches: TrainBatches,
    eval_batches: EvalBatches,
    casts: ProductCasts,
    gradient: StepGradient,
    inputs: Vec<i64>,
    targets: Vec<i64>,
    events: EventSender,
    /// On rank 0.
    snapshots: Option<SnapshotTaker>,
    evaluations: Arc<EvaluationPolicy>,
    group: Box<dyn RankGroup>,
    /// What of each parameter this rank updates, where the optimizer is sharded.
    owned: Option<Vec<Range<usize>>>,
    /// Steps after which all ranks were found to hold the same state.
    agreed: u64,
    /// A snapshot was taken since: rank 0 has said so.
    is_to_compare: bool,
    dispute: Option<StateDispute>,
    flip: Option<BitFlip>,
}

impl TrainingLoop {
    /// On the ranks of `group`; `snapshots` is rank 0's.
    ///
    /// # Errors
    /// [`Error::Config`] for a training that one rank alone can compute, on more than one.
    pub fn new(
        mut setup: TrainingSetup,
        events: EventSender,
        snapshots: Option<SnapshotTaker>,
        group: Box<dyn RankGroup>,
    ) -> Result<TrainingLoop> {
        let train = &setup.config.train;
        let batches = TrainBatches::new(setup.data.train.clone(), train.sequence_length, setup.config.job.seed);
        let eval_batches =
            EvalBatches::new(setup.data.val.clone(), train.sequence_length, train.batch_size, train.eval_batches);
        let order = SumOrder::of(setup.state.train().0.arithmetic, train.grad_accumulation);
        let owned = setup.owned_by(group.rank());
        let gathers = if owned.is_some() { Gathers::Parameters } else { Gathers::Gradients };
        let gradient =
            StepGradient::new(order, train.grad_accumulation, setup.state.params(), gathers, group.as_ref())?;
        setup.state.seal()?;
        let (agreed, flip) = (setup.state.train().0.step, BitFlip::of_rank(group.rank()));
        if group.size() > 1 {
            // They were compared when they came together.
            events.send(WorkerEvent::Agreed { step: agreed });
        }
        Ok(TrainingLoop {
            casts: ProductCasts::new(setup.config.train.precision),
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
            owned,
            agreed,
            is_to_compare: false,
            dispute: None,
            flip,
        })
    }

    /// Lets `evaluations` say when there are some.
    pub fn obeying(self, evaluations: Arc<EvaluationPolicy>) -> TrainingLoop {
        TrainingLoop { evaluations, ..self }
    }

    /// Names the rank that was wrong in a `dispute`, once its step is computed again.
    pub fn settling(self, dispute: Option<StateDispute>) -> TrainingLoop {
        TrainingLoop { dispute, ..self }
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
                // The last snapshot counts at once.
                return self.compare_states().map(|()| step);
            }
            self.advance(step)?;
        }
    }

    /// The step after `step`, and what falls due with it: an evaluation, a snapshot.
    pub fn advance(&mut self, step: u64) -> Result<()> {
        let stepped = self.step(step);
        self.snapshots.iter().for_each(SnapshotTaker::end_update);
        let done = match stepped {
            // A spoilt state is not saved.
            Ok(StepEnd::Spoilt(spoilt)) => return Err(self.told(&spoilt)),
            Ok(StepEnd::Applied) => self.setup.state.seal().and_then(|()| self.evaluate_if_due()),
            Err(e) => Err(e),
        };
        self.saved_unless(done)?;
        if let Some(flip) = &self.flip {
            flip.strike(step + 1, &mut self.setup.state);
        }
        let is_disputed = self.dispute.as_ref().is_some_and(|dispute| dispute.step == step + 1);
        if self.is_to_compare || is_disputed || (step + 1).is_multiple_of(COMPARED_EVERY) {
            self.compare_states()?;
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
    /// all, and rank 0 holds all of it, or the ranks together do, as long as none is lost.
    fn saved_unless<T>(&self, done: Result<T>) -> Result<T> {
        if let (Err(_), Some(snapshots)) = (&done, &self.snapshots)
            && self.group.size() > 1
        {
            snapshots.pause_if_ending();
            // A failure to save was told as an event; the error that matters is the first.
            let saved = snapshots.take_last("a rank was lost", CommitPace::Alone, None);
            if saved.is_err() && self.owned.is_some() {
                let what = "a lost rank takes its shard of the optimizer's state with it: the steps since the newest \
                            snapshot are computed again";
                self.events.log(MessageLevel::Warn, what);
            }
        }
        done
    }

    /// One update, from the mean gradient over its micro-batches.
    fn step(&mut self, step: u64) -> Result<StepEnd> {
        let began = Instant::now();
        let micro_batches = self.setup.config.train.grad_accumulation;
        let (saved, _) = self.setup.state.train();
        let saved = DataCursor { epoch: saved.epoch, position: saved.position };
        let said = self.micro_batches(step, saved)?;
        if let Some(spoilt) = said.spoilt(step) {
            return Ok(StepEnd::Spoilt(spoilt));
        }
        let weight = 1.0 / micro_batches as f64;
        let loss = said.losses.iter().fold(0.0, |sum, loss| sum + weight * loss);
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
        let advance = |train: &mut TrainState, metrics: &mut Metrics| {
            train.step = step + 1;
            train.tokens_seen += tokens;
            train.epoch = cursor.epoch;
            train.position = cursor.position;
            metrics.train_loss = Some(loss);
        };
        let gradients = self.gradient.tensors();
        match &self.owned {
            Some(owned) => {
                let mut gather = |params: &[UpdateSpan]| self.gradient.gather(self.group.as_mut(), params);
                let shard = UpdateShard { owned, gather: &mut gather };
                optimizer.update_shard(state, gradients, shard, (norm, figures), advance)?;
            }
            None => optimizer.update(state, gradients, norm, figures, advance)?,
        }
        let step_ms = began.elapsed().as_secs_f64() * 1e3;
        let grad_norm = Some(norm);
        self.events.send(WorkerEvent::Step { step: step + 1, loss, learning_rate, grad_norm, step_ms, tokens });
        Ok(StepEnd::Applied)
    }

    /// The passes of this rank's micro-batches, the first of which begins at `start`. Returns what all ranks say of
    /// theirs.
    fn micro_batches(&mut self, step: u64, start: DataCursor) -> Result<StepWords> {
        let TrainingSetup { config, device, model, state, .. } = &mut self.setup;
        let train = &config.train;
        let count = train.grad_accumulation;
        let share = self.group.share(count);
        let mut cursor = self.batches.sampler().advance(start, share.start * train.batch_size);
        let mut losses = Vec::new();
        let weights = self.casts.views(model.config(), state.params())?;
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
            losses.push(model.loss_and_grads(weights, &batch, weight, self.gradient.micro_batch())?);
            self.gradient.add(micro_batch)?;
            if count > 1 {
                self.events.send(WorkerEvent::Alive { step, micro_batch });
            }
        }
        let is_as_left = self.setup.state.is_as_sealed()?;
        let mut pass = || self.snapshots.iter().for_each(SnapshotTaker::begin_update);
        StepWords::exchange(&losses, is_as_left, self.group.as_mut(), &mut pass)
    }

    /// Finds a rank whose memory or processor has changed a bit: all must hold the same state.
    fn compare_states(&mut self) -> Result<()> {
        let step = self.setup.state.train().0.step;
        if self.group.size() == 1 || self.agreed == step {
            return Ok(());
        }
        if self.owned.is_some() {
            let is_as_sealed = self.setup.state.is_as_sealed()?;
            let spoilt = SpoiltMemory::find(step, is_as_sealed, self.group.as_mut());
            if let Some(spoilt) = self.saved_unless(spoilt)? {
                return Err(self.told(&spoilt));
            }
        }
        let comparison = StateComparison::of(&self.setup.state, self.group.as_mut());
        let comparison = self.saved_unless(comparison)?;
        if matches!(comparison, StateComparison::Different { is_rank_zero_right: false, .. }) {
            self.snapshots.iter().for_each(SnapshotTaker::give_up);
        }
        self.events.send(comparison.event(step));
        match comparison {
            StateComparison::Same(hash) => {
                (self.agreed, self.is_to_compare) = (step, false);
                if let Some(dispute) = self.dispute.take_if(|dispute| dispute.step == step) {
                    self.events.log(MessageLevel::Warn, agreement::settled(&dispute, &hash));
                }
                Ok(())
            }
            StateComparison::Different { what, .. } => Err(Error::Other(format!("after step {step} {what}"))),
        }
    }

    /// Tells the daemon of it. Returns what ends the training.
    fn told(&self, spoilt: &SpoiltMemory) -> Error {
        self.snapshots.iter().for_each(SnapshotTaker::give_up);
        self.events.send(spoilt.event());
        spoilt.error()
    }

    /// Keeps the state for a post-mortem; training on would only spoil the weights.
    fn diverged(&mut self, step: u64, loss: f64, learning_rate: f64) -> Error {
        self.setup.state.edit(|_, metrics| metrics.train_loss = Some(loss));
        if let Some(snapshots) = &self.snapshots {
            // There will be no update.
            snapshots.end_update();
            // A failure to save was told as an event; the error that matters is the loss.
            let _ = snapshots.take_post_mortem();
        }
        while self.snapshots.is_none() && self.owned.is_some() {
            // Rank 0 saves this rank's shard, too, and then ends it.
            std::thread::park();
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
        let has_unsure = self.snapshots.as_ref().is_some_and(|snapshots| snapshots.newest_taken() > Some(self.agreed));
        let request = if asked.is_some() { NEW_EVALUATIONS } else { 0 } + if has_unsure { COMPARISON } else { 0 };
        // Rank 0 alone asks for anything.
        let request = self.group.agree(request)?;
        self.is_to_compare |= request & COMPARISON != 0;
        if request & NEW_EVALUATIONS == 0 {
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
        let TrainingSetup { config, device, model, state, .. } = &mut self.setup;
        let weights = self.casts.views(model.config(), state.params())?;
        for (done, index) in share.enumerate() {
            if let Some(snapshots) = &self.snapshots {
                snapshots.pause_if_ending();
            }
            self.eval_batches.fill(index as usize, &mut self.inputs, &mut self.targets);
            let rows = config.train.batch_size as usize;
            let batch = TokenBatch::new(&self.inputs, &self.targets, rows, *device)?;
            losses.push(model.loss(weights, &batch)?);
            let fraction = Some((done + 1) as f64 / count as f64);
            self.events.send(WorkerEvent::Progress { stage: "evaluating".into(), fraction });
        }
        let losses = self.group.gather_numbers(&losses)?;
        Ok(losses.iter().sum::<f64>() / losses.len() as f64)
    }
}
