//! The optimiser over a training's state: clipping, the rule's figures, and where its blocks are.
//!
//! Invariant: what does not fit is refused before anything changes. Deliberately not here: the arithmetic on elements
//! (`kernel`, `tensors`).

use std::ops::Range;

use ckptd_core::config::{OptimizerKind, TrainSection};
use ckptd_core::snapshot::{Metrics, Role, TrainState};
use ckptd_core::{Error, Result};
use ckptd_interop::gpt2_names;
use tch::{Device, Tensor};

use super::coefficients::UpdateCoefficients;
use super::kernel::{NORM_BLOCK, UpdateBlock, UpdateKernels};
use super::tensors;
use crate::capture::{TrainingState, UpdatePlace, UpdateSpan};

/// What one update does, apart from the step's own figures.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum UpdateRule {
    Sgd { momentum: f64 },
    AdamW { betas: [f64; 2], eps: f64 },
}

pub struct ModelOptimizer {
    rule: UpdateRule,
    weight_decay: f64,
    /// Largest global norm of the gradient; 0: no clipping.
    clip: f64,
    kernels: UpdateKernels,
}

/// A step's own figures.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct UpdateStep {
    /// The number of this step, from 1: the bias correction's t.
    pub number: u64,
    pub learning_rate: f64,
}

/// What of an update this rank computes, and how it gets the rest.
pub struct UpdateShard<'a> {
    /// Elements of each parameter; whole blocks of the update.
    pub owned: &'a [Range<usize>],
    /// Fills the rest of the parameters' targets, when the own ones are computed.
    pub gather: &'a mut dyn FnMut(&[UpdateSpan]) -> Result<()>,
}

impl ModelOptimizer {
    /// From `[train]`, working on `threads` threads.
    pub fn new(train: &TrainSection, threads: usize) -> Result<ModelOptimizer> {
        let rule = match train.optimizer {
            OptimizerKind::Sgd => UpdateRule::Sgd { momentum: train.momentum },
            OptimizerKind::Adamw => UpdateRule::AdamW { betas: train.betas, eps: train.eps },
        };
        let kernels = UpdateKernels::new(threads)?;
        Ok(ModelOptimizer { rule, weight_decay: train.weight_decay, clip: train.grad_clip, kernels })
    }

    /// The roles of the tensors that the rule keeps beside each parameter, in their order in the state.
    pub fn roles(&self) -> &'static [Role] {
        match self.rule {
            UpdateRule::Sgd { momentum: 0.0 } => &[],
            UpdateRule::Sgd { .. } => &[Role::MomentumBuffer],
            UpdateRule::AdamW { .. } => &[Role::ExpAvg, Role::ExpAvgSq],
        }
    }

    /// Updates the state with these gradients (float32, one per parameter, in their order), then lets `advance`
    /// change the train state in the same cut. Returns the gradient's global norm before clipping.
    ///
    /// # Errors
    /// [`Error::Other`] where gradients and state do not fit each other.
    pub fn step(
        &self,
        state: &mut TrainingState,
        gradients: &[Tensor],
        step: UpdateStep,
        advance: impl FnOnce(&mut TrainState, &mut Metrics),
    ) -> Result<f64> {
        self.check(state, gradients)?;
        let norm = self.norm(gradients)?;
        self.update(state, gradients, norm, step, advance)?;
        Ok(norm)
    }

    /// [`ModelOptimizer::step`] where the gradient's norm is known.
    ///
    /// # Errors
    /// As there.
    pub fn update(
        &self,
        state: &mut TrainingState,
        gradients: &[Tensor],
        norm: f64,
        step: UpdateStep,
        advance: impl FnOnce(&mut TrainState, &mut Metrics),
    ) -> Result<()> {
        let whole: Vec<Range<usize>> = gradients.iter().map(|gradient| 0..gradient.numel()).collect();
        let shard = UpdateShard { owned: &whole, gather: &mut |_| Ok(()) };
        self.update_shard(state, gradients, shard, (norm, step), advance)
    }

    /// [`ModelOptimizer::update`] of what this rank owns; the rest is gathered from its owners.
    ///
    /// # Errors
    /// As there, and those of gathering. The state is torn then.
    pub fn update_shard(
        &self,
        state: &mut TrainingState,
        gradients: &[Tensor],
        shard: UpdateShard<'_>,
        (norm, step): (f64, UpdateStep),
        advance: impl FnOnce(&mut TrainState, &mut Metrics),
    ) -> Result<()> {
        self.check(state, gradients)?;
        let params = gradients.len();
        let decays: Vec<bool> = state.metas()[..params].iter().map(gpt2_names::decays).collect();
        let on_host = is_on_host(gradients);
        let scale = self.clip_scale(norm);
        let apply = |places: &[UpdatePlace]| {
            if on_host {
                self.on_host(places, gradients, (shard.owned, &decays), step, scale)?;
                (shard.gather)(&spans(&places[..params])?)
            } else {
                self.on_device(places, gradients, &decays, step, scale)
            }
        };
        state.update(apply, advance)
    }

    /// The global norm of these gradients.
    pub fn norm(&self, gradients: &[Tensor]) -> Result<f64> {
        if !is_on_host(gradients) {
            return tensors::norm(gradients);
        }
        let values = slices(gradients);
        let blocks: Vec<&[f32]> = values.iter().flat_map(|tensor| tensor.chunks(NORM_BLOCK)).collect();
        Ok(ModelOptimizer::norm_of(self.block_norms(&blocks).into_iter()))
    }

    /// What each block of at most [`NORM_BLOCK`] values of one tensor gives to [`ModelOptimizer::norm_of`].
    pub fn block_norms(&self, blocks: &[&[f32]]) -> Vec<f64> {
        self.kernels.squares(blocks)
    }

    /// The norm, from what all blocks give, in the order of the tensors and within them.
    pub fn norm_of(blocks: impl Iterator<Item = f64>) -> f64 {
        blocks.sum::<f64>().sqrt()
    }

    fn check(&self, state: &TrainingState, gradients: &[Tensor]) -> Result<()> {
        let params = state.params().len();
        if gradients.len() != params || state.metas().len() != params * (1 + self.roles().len()) {
            let slots = state.metas().len();
            let n = gradients.len();
            return Err(Error::Other(format!("{n} gradients do not fit {params} parameters in {slots} tensors")));
        }
        for (gradient, meta) in gradients.iter().zip(state.metas()) {
            let fits = meta.elements() == Some(gradient.numel() as u64);
            if !fits || gradient.f_kind().ok() != Some(tch::Kind::Float) || !gradient.is_contiguous() {
                let size = gradient.size();
                return Err(Error::Other(format!(
                    "the gradient of {} is unusable ({size:?}, or not float32)",
                    meta.name
                )));
            }
        }
        Ok(())
    }

    fn clip_scale(&self, norm: f64) -> f64 {
        if self.clip > 0.0 { (self.clip / (norm + 1e-6)).min(1.0) } else { 1.0 }
    }

    /// The rule's figures for a tensor that decays, or does not.
    fn coefficients(&self, step: UpdateStep, scale: f64, decays: bool) -> UpdateCoefficients {
        let (lr, decay) = (step.learning_rate, if decays { self.weight_decay } else { 0.0 });
        match self.rule {
            UpdateRule::Sgd { momentum } => UpdateCoefficients::Sgd {
                lr: lr as f32,
                momentum: momentum as f32,
                decay: decay as f32,
                scale: scale as f32,
            },
            UpdateRule::AdamW { betas: [beta1, beta2], eps } => {
                let t = step.number as f64;
                UpdateCoefficients::AdamW {
                    keep: (1.0 - lr * decay) as f32,
                    beta1: beta1 as f32,
                    beta2: beta2 as f32,
                    step_size: (lr / (1.0 - beta1.powf(t))) as f32,
                    root_scale: (1.0 / (1.0 - beta2.powf(t)).sqrt()) as f32,
                    eps: eps as f32,
                    scale: scale as f32,
                }
            }
        }
    }

    fn on_host(
        &self,
        places: &[UpdatePlace],
        gradients: &[Tensor],
        (owned, decays): (&[Range<usize>], &[bool]),
        step: UpdateStep,
        scale: f64,
    ) -> Result<()> {
        let params = gradients.len();
        let spans = spans(places)?;
        let mut blocks = Vec::new();
        for (index, (gradient, &decays)) in slices(gradients).into_iter().zip(decays).enumerate() {
            let coefficients = self.coefficients(step, scale, decays);
            let owned = owned[index].clone();
            let param = Some(spans[index].part(&owned));
            let state = match self.roles().len() {
                0 => [param, None, None],
                1 => [param, Some(spans[params + index]), None],
                _ => [param, Some(spans[params + index]), Some(spans[2 * params + index])],
            };
            blocks.extend(UpdateBlock::split(state, &gradient[owned], coefficients)?);
        }
        self.kernels.update(&blocks);
        Ok(())
    }

    fn on_device(
        &self,
        places: &[UpdatePlace],
        gradients: &[Tensor],
        decays: &[bool],
        step: UpdateStep,
        scale: f64,
    ) -> Result<()> {
        let tensor = |index: usize| match places.get(index) {
            Some(UpdatePlace::Device(tensor)) => Some(tensor),
            _ => None,
        };
        for (index, (gradient, &decays)) in gradients.iter().zip(decays).enumerate() {
            let coefficients = self.coefficients(step, scale, decays);
            let moments = [tensor(gradients.len() + index), tensor(2 * gradients.len() + index)];
            tensors::update(tensor(index), moments, gradient, coefficients)?;
        }
        Ok(())
    }
}

/// Places in host memory.
fn spans(places: &[UpdatePlace]) -> Result<Vec<UpdateSpan>> {
    let span = |place: &UpdatePlace| match place {
        UpdatePlace::Host(span) => Ok(*span),
        UpdatePlace::Device(_) => {
            Err(Error::Other("a tensor of the state is not in host memory although its gradient is".into()))
        }
    };
    places.iter().map(span).collect()
}

fn is_on_host(tensors: &[Tensor]) -> bool {
    tensors.iter().all(|tensor| tensor.device() == Device::Cpu)
}

/// The values of contiguous float32 tensors in host memory.
fn slices(tensors: &[Tensor]) -> Vec<&[f32]> {
    // SAFETY: the caller has checked kind, layout and device; the tensors are borrowed as long as the slices.
    tensors
        .iter()
        .map(|t| unsafe { std::slice::from_raw_parts(t.data_ptr().cast::<f32>().cast_const(), t.numel()) })
        .collect()
}
