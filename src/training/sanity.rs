//! Whether the figures of a training make sense: what a person would notice who looked at them.
//!
//! Invariant: pure; each finding is told once a session, and none ends anything: a training that looks wrong may be
//! what was asked for. Deliberately not here: what is done with a finding (job).

use std::collections::{BTreeSet, VecDeque};

use ckptd_core::config::{OptimizerKind, TrainSection};
use ckptd_core::text::{grouped, significant};

/// Steps that the loss is averaged over.
const LOSS_WINDOW: usize = 8;
/// Steps in a row whose gradient was clipped.
const CLIPPED: u64 = 100;
/// Evaluations in a row, each worse than the one before.
const RISING: usize = 3;
/// Times that each token may be read.
const PASSES: u64 = 100;
/// Learning rates that the optimisers bear, from fine-tuning large models to training small ones.
const ADAMW_RATES: std::ops::RangeInclusive<f64> = 1e-7..=0.02;
const SGD_RATES: std::ops::RangeInclusive<f64> = 1e-6..=10.0;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Finding {
    LossAboveChance,
    LossRoseToChance,
    GradientNotFinite,
    AlwaysClipped,
    ValidationRises,
    WarmupTooLong,
    LearningRate,
    FewTokens,
}

/// What a worker says of the training before its first step.
#[derive(Clone, Copy, Debug, Default)]
pub struct TrainingFacts {
    /// Tokens that the model knows.
    pub vocabulary: Option<u64>,
    /// Tokens that are trained on.
    pub train_tokens: Option<u64>,
}

/// What was seen in a session so far.
#[derive(Debug, Default)]
pub struct SanityWatch {
    facts: TrainingFacts,
    told: BTreeSet<Finding>,
    losses: VecDeque<f64>,
    was_below_chance: bool,
    clipped: u64,
    evaluations: Vec<f64>,
}

impl SanityWatch {
    /// What the settings alone say.
    pub fn begin(&mut self, train: &TrainSection, facts: TrainingFacts) -> Vec<String> {
        self.facts = facts;
        let mut found = Vec::new();
        if train.steps == 0 {
            // What a script trains is not in the job file.
            return found;
        }
        if train.warmup_steps >= train.steps {
            let (warmup, steps) = (train.warmup_steps, train.steps);
            found.extend(self.tell(Finding::WarmupTooLong, || {
                format!(
                    "the learning rate rises to the end: [train] warmup_steps = {warmup} of {steps} steps; a tenth is \
                     usual"
                )
            }));
        }
        let (name, rates) = match train.optimizer {
            OptimizerKind::Adamw => ("AdamW", ADAMW_RATES),
            OptimizerKind::Sgd => ("SGD", SGD_RATES),
        };
        if !rates.contains(&train.learning_rate) {
            let rate = significant(train.learning_rate);
            found.extend(self.tell(Finding::LearningRate, || {
                let (least, most) = (significant(*rates.start()), significant(*rates.end()));
                format!("[train] learning_rate = {rate} is not one that {name} bears: from {least} to {most} is usual")
            }));
        }
        let asked = (train.steps).saturating_mul(tokens_per_step(train));
        if let Some(tokens) = facts.train_tokens.filter(|tokens| tokens.saturating_mul(PASSES) < asked) {
            found.extend(self.tell(Finding::FewTokens, || {
                let times = asked / tokens.max(1);
                format!(
                    "there are {} tokens, and the training asks for {}: each is read {} times",
                    grouped(tokens),
                    grouped(asked),
                    grouped(times)
                )
            }));
        }
        found
    }

    /// What a step says.
    pub fn stepped(&mut self, step: u64, loss: f64, grad_norm: Option<f64>, grad_clip: f64) -> Vec<String> {
        let mut found = Vec::new();
        self.losses.push_back(loss);
        if self.losses.len() > LOSS_WINDOW {
            self.losses.pop_front();
        }
        let mean = self.losses.iter().sum::<f64>() / self.losses.len() as f64;
        if let Some(chance) = self.facts.vocabulary.map(|vocabulary| (vocabulary as f64).ln()) {
            if loss > 2.0 * chance {
                found.extend(self.tell(Finding::LossAboveChance, || {
                    format!(
                        "the loss is {loss:.2} in step {step}, more than twice that of guessing ({chance:.2}): the \
                         learning rate may be too high, or the tokens may not be the model's"
                    )
                }));
            }
            if self.losses.len() == LOSS_WINDOW && self.was_below_chance && mean >= chance {
                found.extend(self.tell(Finding::LossRoseToChance, || {
                    format!(
                        "the loss is back at {mean:.2} in step {step}, where guessing is ({chance:.2}): the training \
                         has come apart; go on from an earlier snapshot with a lower learning rate"
                    )
                }));
            }
            self.was_below_chance |= self.losses.len() == LOSS_WINDOW && mean < 0.95 * chance;
        }
        if grad_norm.is_some_and(|norm| !norm.is_finite()) {
            found.extend(self.tell(Finding::GradientNotFinite, || {
                format!("the gradient's norm is not finite in step {step}: the learning rate may be too high")
            }));
        }
        let is_clipped = grad_clip > 0.0 && grad_norm.is_some_and(|norm| norm.is_finite() && norm > grad_clip);
        self.clipped = if is_clipped { self.clipped + 1 } else { 0 };
        if self.clipped >= CLIPPED {
            found.extend(self.tell(Finding::AlwaysClipped, || {
                let clip = significant(grad_clip);
                format!(
                    "the gradient was clipped in each of the last {CLIPPED} steps: [train] grad_clip = {clip} rules \
                     the size of every step"
                )
            }));
        }
        found
    }

    /// What an evaluation says.
    pub fn evaluated(&mut self, step: u64, val_loss: f64) -> Option<String> {
        if self.evaluations.last().is_some_and(|last| val_loss <= *last) {
            self.evaluations.clear();
        }
        self.evaluations.push(val_loss);
        let first = *self.evaluations.first()?;
        if self.evaluations.len() <= RISING {
            return None;
        }
        self.tell(Finding::ValidationRises, || {
            format!(
                "the validation loss has risen in {RISING} evaluations in a row, from {first:.3} to {val_loss:.3} in \
                 step {step}: the model may learn the training text by heart; `best` is the snapshot before"
            )
        })
    }

    fn tell(&mut self, finding: Finding, words: impl FnOnce() -> String) -> Option<String> {
        self.told.insert(finding).then(words)
    }
}

/// Tokens of one step.
pub fn tokens_per_step(train: &TrainSection) -> u64 {
    train.batch_size.saturating_mul(train.grad_accumulation).saturating_mul(train.sequence_length)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FACTS: TrainingFacts = TrainingFacts { vocabulary: Some(1000), train_tokens: Some(1_000_000) };
    const CHANCE: f64 = 6.907_755;

    fn watch() -> SanityWatch {
        let mut watch = SanityWatch::default();
        assert_eq!(watch.begin(&TrainSection::default(), FACTS), Vec::<String>::new());
        watch
    }

    /// What is told over steps with these losses.
    fn told(losses: impl IntoIterator<Item = f64>) -> Vec<String> {
        let mut watch = watch();
        losses.into_iter().enumerate().flat_map(|(n, loss)| watch.stepped(n as u64, loss, Some(0.5), 1.0)).collect()
    }

    #[test]
    fn a_training_that_learns_is_not_commented_on() {
        assert_eq!(told((0..500).map(|n| CHANCE - 0.01 * f64::from(n).min(400.0))), Vec::<String>::new());
        // One that begins a little above chance neither.
        assert_eq!(told([7.1, 7.3, 7.0, 6.9, 6.8, 6.5]), Vec::<String>::new());
    }

    #[test]
    fn a_loss_above_twice_chance_or_back_at_it_is_told_once() {
        let high = told([7.0, 14.0, 30.0, 5971.0]);
        assert!(high.len() == 1 && high[0].contains("twice that of guessing (6.91)"), "{high:?}");
        let back = told((0..40).map(|n| if n < 20 { 4.0 } else { 7.0 }));
        assert!(back.len() == 1 && back[0].contains("back at"), "{back:?}");
    }

    #[test]
    fn a_gradient_that_is_not_finite_or_always_clipped_is_told_once() {
        let mut watch = watch();
        assert!(watch.stepped(0, 5.0, None, 1.0).is_empty());
        assert!(watch.stepped(1, 5.0, Some(f64::NAN), 1.0)[0].contains("not finite in step 1"));
        assert!(watch.stepped(2, 5.0, Some(f64::INFINITY), 1.0).is_empty());
        let mut clipped = |norm: f64, steps: u64| -> Vec<String> {
            (0..steps).flat_map(|n| watch.stepped(n, 5.0, Some(norm), 1.0)).collect()
        };
        assert!(clipped(2.0, CLIPPED - 1).is_empty() && clipped(0.9, 1).is_empty());
        let said = clipped(2.0, 3 * CLIPPED);
        assert!(said.len() == 1 && said[0].contains("grad_clip = 1 rules"), "{said:?}");
    }

    #[test]
    fn a_validation_loss_that_rises_three_times_is_told_once() {
        let mut watch = watch();
        let said: Vec<String> = [5.0, 4.0, 4.1, 4.2, 4.1, 4.2, 4.3, 4.4, 4.5]
            .into_iter()
            .enumerate()
            .filter_map(|(n, loss)| watch.evaluated(n as u64, loss))
            .collect();
        assert!(said.len() == 1 && said[0].contains("from 4.100 to 4.400 in step 7"), "{said:?}");
    }

    #[test]
    fn settings_that_make_no_sense_are_told_before_the_first_step() {
        let usual = TrainSection::default();
        let all = TrainSection { steps: 20, warmup_steps: 50, learning_rate: 30.0, ..usual.clone() };
        let facts = TrainingFacts { vocabulary: None, train_tokens: Some(100) };
        let said = SanityWatch::default().begin(&all, facts);
        assert_eq!(said.len(), 3, "{said:?}");
        assert!(said[0].contains("warmup_steps = 50 of 20") && said[1].contains("AdamW bears"), "{said:?}");
        assert!(said[2].contains("each is read 409 times"), "{said:?}");
        let sgd = TrainSection { optimizer: OptimizerKind::Sgd, learning_rate: 0.5, ..usual };
        assert!(SanityWatch::default().begin(&sgd, FACTS).is_empty());
        assert!(SanityWatch::default().begin(&TrainSection { learning_rate: 30.0, ..sgd }, FACTS).len() == 1);
    }
}
