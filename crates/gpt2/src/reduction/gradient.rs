//! The gradient of a step: summed up within this rank, exchanged, and handed to the update.
//!
//! Invariant: see the parent; buffers are made once and used again. Deliberately not here: the shape of the tree
//! (`tree`).

use std::ops::Range;

use ckptd_core::snapshot::TensorMeta;
use ckptd_core::{Error, Result};
use tch::{Device, Kind, Tensor};

use super::order::SumOrder;
use super::parts::{GradientLayout, OwnedPart};
use super::tree::{Subtree, TreePlan};
use crate::capture::UpdateSpan;
use crate::gpt2::ModelGradients;
use crate::optim::ModelOptimizer;
use crate::ranks::{Incoming, Outgoing, RankGroup};
use crate::torch::TorchContext;

/// The gradient of the step that is computed.
pub struct StepGradient {
    order: SumOrder,
    /// That of a micro-batch; in sequential order that of all of them so far.
    micro_batch: ModelGradients,
    tree: Option<TreeSum>,
    /// The step's, in the parameters' shapes. Where parameters are gathered, only what this rank owns of them counts.
    views: Vec<Tensor>,
    gathers: Gathers,
}

/// What all ranks get from a value's owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gathers {
    /// The gradient, which each of them applies.
    Gradients,
    /// The parameter, which the owner has updated.
    Parameters,
}

/// The sums of a rank on the way to the tree's.
struct TreeSum {
    layout: GradientLayout,
    shapes: Vec<Vec<i64>>,
    parts: Vec<OwnedPart>,
    plan: TreePlan,
    /// Sums of this rank's subtrees, in order.
    sums: Vec<(Subtree, Tensor)>,
    /// Buffers that are free.
    free: Vec<Tensor>,
    /// For other ranks' sums of what this rank owns, by index of the plan; empty ones for its own.
    arrived: Vec<Tensor>,
    device: Device,
}

impl StepGradient {
    /// In `order`, with `leaves` micro-batches per step, for gradients as the parameters are.
    ///
    /// # Errors
    /// [`Error::Config`] for the sequential order on more than one rank.
    pub fn new(
        order: SumOrder,
        leaves: u64,
        params: &[Tensor],
        gathers: Gathers,
        group: &dyn RankGroup,
    ) -> Result<StepGradient> {
        let is_one = leaves == 1 && group.size() == 1;
        if order == SumOrder::Sequential && group.size() > 1 {
            return Err(Error::Config(
                "this training adds the gradients of its micro-batches one after the other (arithmetic 1), which only \
                 one rank can; go on with one rank, or to another result on many with --accept-changes"
                    .into(),
            ));
        }
        let has_tree = order == SumOrder::Tree && !is_one;
        let tree = has_tree.then(|| TreeSum::new(leaves, params, group)).transpose()?;
        Ok(StepGradient { order, micro_batch: ModelGradients::default(), tree, views: Vec::new(), gathers })
    }

    /// Begins a step.
    pub fn begin(&mut self) {
        self.micro_batch.clear();
        self.views.clear();
        if let Some(tree) = &mut self.tree {
            tree.free.extend(tree.sums.drain(..).map(|(_, buffer)| buffer));
        }
    }

    /// Where the next micro-batch's gradient is computed.
    pub fn micro_batch(&mut self) -> &mut ModelGradients {
        if self.order == SumOrder::Tree {
            self.micro_batch.clear();
        }
        &mut self.micro_batch
    }

    /// Takes in the gradient of the micro-batch with this index.
    pub fn add(&mut self, index: u64) -> Result<()> {
        match &mut self.tree {
            Some(tree) => tree.add(index, self.micro_batch.tensors()).context("adding gradients"),
            None => Ok(()),
        }
    }

    /// Adds up what all ranks have. Returns the gradient's norm.
    ///
    /// # Errors
    /// That a rank is lost. Nothing of the state has changed then.
    pub fn finish(&mut self, group: &mut dyn RankGroup, optimizer: &ModelOptimizer) -> Result<f64> {
        let Some(tree) = &mut self.tree else { return optimizer.norm(self.micro_batch.tensors()) };
        let own_norms = tree.reduce(group, optimizer)?;
        if self.gathers == Gathers::Gradients {
            tree.all_gather(group)?;
        }
        self.views = tree.views().context("the gradient's tensors")?;
        let Some(own_norms) = own_norms else { return optimizer.norm(&self.views) };
        Ok(ModelOptimizer::norm_of(group.gather_numbers(&own_norms)?.into_iter()))
    }

    /// Gives all ranks the parameters that their owners have updated: `params` are read where this rank owns them, and
    /// filled elsewhere. The step's gradient is gone then.
    ///
    /// # Errors
    /// That a rank is lost; nothing is filled then.
    pub fn gather(&self, group: &mut dyn RankGroup, params: &[UpdateSpan]) -> Result<()> {
        let Some(tree) = self.tree.as_ref().filter(|_| self.gathers == Gathers::Parameters) else { return Ok(()) };
        let (whole, own) = (&tree.sums[0].1, &tree.parts[group.rank()].values);
        tree.copy(own, params, |span, values| {
            // SAFETY: both have as many values, and nobody else writes to either.
            unsafe { std::ptr::copy_nonoverlapping(span.target.cast_const(), place(whole, values), span.elements) }
        });
        tree.all_gather(group)?;
        let others = tree.parts.iter().enumerate().filter(|(peer, _)| *peer != group.rank());
        for (_, part) in others {
            tree.copy(&part.values, params, |span, values| {
                // SAFETY: as above.
                unsafe { std::ptr::copy_nonoverlapping(place(whole, values).cast_const(), span.target, span.elements) }
            });
        }
        Ok(())
    }

    /// The step's gradient, once it is finished.
    pub fn tensors(&self) -> &[Tensor] {
        if self.tree.is_some() { &self.views } else { self.micro_batch.tensors() }
    }
}

/// The elements of each of `params` that `rank` of `size` owns.
pub fn owned_elements(params: &[TensorMeta], rank: usize, size: usize) -> Vec<Range<usize>> {
    let sizes: Vec<usize> = params.iter().map(|meta| meta.elements().unwrap_or(0) as usize).collect();
    let layout = GradientLayout::new(&sizes);
    layout.elements(&layout.parts(size)[rank].values)
}

impl TreeSum {
    fn new(leaves: u64, params: &[Tensor], group: &dyn RankGroup) -> Result<TreeSum> {
        let layout = GradientLayout::new(&params.iter().map(Tensor::numel).collect::<Vec<_>>());
        let (rank, size) = (group.rank(), group.size());
        let parts = layout.parts(size);
        let plan = TreePlan::new(size, leaves);
        let (owned, device) = (parts[rank].values.len(), params.first().map_or(Device::Cpu, Tensor::device));
        let arrived = plan.subtrees.iter().map(|(owner, _)| if *owner == rank { 0 } else { owned });
        let arrived = arrived.map(|values| in_host_memory(values, device));
        Ok(TreeSum {
            shapes: params.iter().map(Tensor::size).collect(),
            parts,
            arrived: arrived.collect::<Result<_, _>>().context("memory for gradients")?,
            plan,
            sums: Vec::new(),
            free: Vec::new(),
            device,
            layout,
        })
    }

    fn buffer(&mut self) -> Result<Tensor, tch::TchError> {
        match self.free.pop() {
            Some(buffer) => Ok(buffer),
            // What travels is in host memory.
            None if self.parts.len() > 1 => in_host_memory(self.layout.len(), self.device),
            None => Tensor::f_empty([self.layout.len() as i64], (Kind::Float, self.device)),
        }
    }

    /// Merges a leaf with what is there, as a binary counter counts.
    fn add(&mut self, index: u64, gradients: &[Tensor]) -> Result<(), tch::TchError> {
        let _no_grad = tch::no_grad_guard();
        let mut node = Subtree::leaf(index);
        if let Some((left, buffer)) = self.sums.pop_if(|(left, _)| left.is_left_of(node)) {
            for (range, gradient) in self.layout.tensors.windows(2).zip(gradients) {
                let mut into = view(&buffer, range[0]..range[1])?;
                let _ = into.f_add_(&gradient.f_reshape(-1)?.f_to_device(buffer.device())?)?;
            }
            node = left.parent();
            self.sums.push((node, buffer));
        } else {
            let buffer = self.buffer()?;
            for (range, gradient) in self.layout.tensors.windows(2).zip(gradients) {
                view(&buffer, range[0]..range[1])?.f_copy_(&gradient.f_reshape(-1)?)?;
            }
            self.sums.push((node, buffer));
        }
        while let [.., (left, _), (right, _)] = self.sums.as_slice()
            && left.is_left_of(*right)
        {
            let (left, right) = (self.sums.len() - 2, self.sums.len() - 1);
            let parent = self.sums[left].0.parent();
            let from = self.sums.remove(right).1;
            let _ = self.sums[left].1.f_add_(&from)?;
            self.sums[left].0 = parent;
            self.free.push(from);
        }
        Ok(())
    }

    /// Makes the first sum the step's gradient where this rank owns it. Returns the norms of the blocks that this rank
    /// owns, where the gradient is in host memory.
    fn reduce(&mut self, group: &mut dyn RankGroup, optimizer: &ModelOptimizer) -> Result<Option<Vec<f64>>> {
        let _no_grad = tch::no_grad_guard();
        let rank = group.rank();
        let indices = self.plan.of_rank(rank);
        let expected: Vec<Subtree> = indices.iter().map(|&index| self.plan.subtrees[index].1).collect();
        if self.sums.iter().map(|(subtree, _)| *subtree).collect::<Vec<_>>() != expected {
            return Err(Error::Other("the micro-batches of a rank are not those of its share".into()));
        }
        if self.sums.is_empty() {
            let buffer = self.buffer().context("memory for gradients")?;
            self.sums.push((Subtree::leaf(0), buffer));
        }
        self.send_to_owners(group, indices.len())?;
        let own = self.parts[rank].clone();
        self.add_up(rank, &own.values).context("adding gradients")?;
        let result = &self.sums[0].1;
        let norms = (self.device == Device::Cpu).then(|| {
            let blocks = self.layout.blocks[own.blocks.clone()].iter();
            // SAFETY: nothing writes to it before the next exchange.
            let blocks: Vec<&[f32]> = blocks.map(|block| unsafe { values(result, block) }).collect();
            optimizer.block_norms(&blocks)
        });
        Ok(norms)
    }

    /// Gives all ranks what this one owns of the first sum, and takes what they own.
    fn all_gather(&self, group: &mut dyn RankGroup) -> Result<()> {
        let (rank, result) = (group.rank(), &self.sums[0].1);
        let others = self.parts.iter().enumerate().filter(|(peer, _)| *peer != rank);
        // SAFETY: the parts do not overlap; this rank's is read, the others' are written.
        let own_values = unsafe { values(result, &self.parts[rank].values) };
        let sends: Vec<Outgoing<'_>> = others.clone().map(|(peer, _)| Outgoing { peer, values: own_values }).collect();
        let receive = |(peer, part): (usize, &OwnedPart)| {
            let (at, length) = (place(result, &part.values), part.values.len());
            // SAFETY: as above.
            Incoming { peer, values: unsafe { std::slice::from_raw_parts_mut(at, length) } }
        };
        let mut receives: Vec<Incoming<'_>> = others.map(receive).collect();
        group.exchange(&sends, &mut receives)
    }

    /// Calls `each` with the places of `params` within `part`, and where their values are in a sum.
    fn copy(&self, part: &Range<usize>, params: &[UpdateSpan], each: impl Fn(UpdateSpan, &Range<usize>)) {
        let tensors = self.layout.tensors.windows(2).zip(self.layout.elements(part)).zip(params);
        for ((tensor, elements), span) in tensors.filter(|((_, elements), _)| !elements.is_empty()) {
            each(span.part(&elements), &(tensor[0] + elements.start..tensor[0] + elements.end));
        }
    }

    /// Gives each owner this rank's sums of what it owns, and takes the others' sums of what this rank owns.
    fn send_to_owners(&self, group: &mut dyn RankGroup, sums: usize) -> Result<()> {
        let rank = group.rank();
        let mut sends = Vec::new();
        for (_, sum) in &self.sums[..sums] {
            let others = self.parts.iter().enumerate().filter(|(peer, _)| *peer != rank);
            // SAFETY: sums are only read until the exchange is over.
            sends.extend(others.map(|(peer, part)| Outgoing { peer, values: unsafe { values(sum, &part.values) } }));
        }
        let mut receives = Vec::new();
        for ((owner, _), arrived) in self.plan.subtrees.iter().zip(&self.arrived) {
            if *owner != rank {
                let length = arrived.numel();
                // SAFETY: a buffer of its own.
                let values = unsafe { std::slice::from_raw_parts_mut(place(arrived, &(0..length)), length) };
                receives.push(Incoming { peer: *owner, values });
            }
        }
        group.exchange(&sends, &mut receives)
    }

    /// Adds up what this rank owns, into its first sum.
    fn add_up(&self, rank: usize, own: &Range<usize>) -> Result<(), tch::TchError> {
        let mut sums = self.sums.iter();
        let places = self.plan.subtrees.iter().zip(&self.arrived).map(|((owner, _), arrived)| {
            if *owner != rank {
                return Ok(arrived.shallow_clone());
            }
            let sum = sums.next().map(|(_, sum)| view(sum, own.clone()));
            sum.unwrap_or_else(|| Ok(arrived.shallow_clone()))
        });
        let mut places: Vec<Tensor> = places.collect::<Result<_, _>>()?;
        for &(into, from) in &self.plan.additions {
            let from = places[from].shallow_clone();
            let _ = places[into].f_add_(&from)?;
        }
        if self.plan.subtrees.first().is_some_and(|(owner, _)| *owner != rank) {
            view(&self.sums[0].1, own.clone())?.f_copy_(&places[0])?;
        }
        Ok(())
    }

    /// The step's gradient in the parameters' shapes, on the model's device.
    fn views(&self) -> Result<Vec<Tensor>, tch::TchError> {
        let _no_grad = tch::no_grad_guard();
        let whole = self.sums[0].1.f_to_device(self.device)?;
        let tensors = self.layout.tensors.windows(2).zip(&self.shapes);
        tensors.map(|(range, shape)| view(&whole, range[0]..range[1])?.f_view(shape.as_slice())).collect()
    }
}

/// Room for values in host memory, which a GPU reads and writes without help of the processor where `device` is one.
fn in_host_memory(values: usize, device: Device) -> Result<Tensor, tch::TchError> {
    let buffer = Tensor::f_empty([values as i64], (Kind::Float, Device::Cpu))?;
    if device.is_cuda() && values > 0 { buffer.f_pin_memory(device) } else { Ok(buffer) }
}

fn view(buffer: &Tensor, range: Range<usize>) -> Result<Tensor, tch::TchError> {
    buffer.f_narrow(0, range.start as i64, range.len() as i64)
}

/// The values of a contiguous float32 tensor in host memory.
///
/// # Safety
/// Nothing writes to them as long as the slice lives.
unsafe fn values<'a>(buffer: &Tensor, range: &Range<usize>) -> &'a [f32] {
    // SAFETY: within the tensor, and the caller's promise.
    unsafe { std::slice::from_raw_parts(place(buffer, range).cast_const(), range.len()) }
}

/// Where these values of a float32 tensor lie in host memory.
fn place(buffer: &Tensor, range: &Range<usize>) -> *mut f32 {
    assert!(range.end <= buffer.numel() && buffer.device() == Device::Cpu && buffer.is_contiguous());
    buffer.data_ptr().cast::<f32>().wrapping_add(range.start)
}
