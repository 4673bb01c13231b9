//! `ckpt.pt` as nanoGPT's train.py saves it and resumes from it: weights of linear layers as `nn.Linear` keeps them,
//! the head under its own name, AdamW's state in its two groups.

use std::fs::File;
use std::path::Path;

use super::hyper::HyperParameters;
use super::options::ExportOptions;
use super::shape::ExportShape;
use super::source::ExportSource;
use super::torch::{self, PtStorages};
use crate::torch_pt::pickler::PtObject;
use ckptd_core::error::{Error, Result};
use ckptd_core::progress::ProgressSink;
use ckptd_core::snapshot::Role;

/// What nanoGPT begins with, before its first evaluation.
const NO_LOSS_YET: f64 = 1e9;

pub(super) fn write(
    source: &ExportSource,
    file: &mut File,
    path: &Path,
    options: &ExportOptions,
    progress: &dyn ProgressSink,
) -> Result<u64> {
    let shape = ExportShape::of(source, "nanoGPT")?;
    check(source, &shape)?;
    let hyper = HyperParameters::of(source.manifest(), options.job.as_ref());
    let mut storages = PtStorages { linear: true, ..PtStorages::default() };
    let train = &source.manifest().train;
    let arguments = model_arguments(&shape);
    let mut config = arguments.clone();
    config.extend([
        ("batch_size", PtObject::Int(hyper.batch_size as i64)),
        ("learning_rate", PtObject::Float(hyper.learning_rate)),
        ("max_iters", PtObject::Int(hyper.steps as i64)),
        ("weight_decay", PtObject::Float(hyper.weight_decay)),
    ]);
    let loss = train.best_val_loss.filter(|loss| loss.is_finite()).unwrap_or(NO_LOSS_YET);
    let object = PtObject::dict([
        ("model", torch::state_dict(source, options.dtype, &mut storages)),
        ("optimizer", torch::optimizer(source, &hyper, None, &mut storages)),
        ("model_args", PtObject::dict(arguments)),
        ("iter_num", PtObject::Int(train.step as i64)),
        ("best_val_loss", PtObject::Float(loss)),
        ("config", PtObject::dict(config)),
    ]);
    storages.write(source, file, path, &object, progress)
}

fn model_arguments(shape: &ExportShape) -> Vec<(&'static str, PtObject)> {
    let number = |number: u64| PtObject::Int(number as i64);
    vec![
        ("n_layer", number(shape.layers)),
        ("n_head", number(shape.heads)),
        ("n_embd", number(shape.width)),
        ("block_size", number(shape.positions)),
        ("bias", PtObject::Bool(true)),
        ("vocab_size", number(shape.vocabulary)),
        ("dropout", PtObject::Float(shape.dropout)),
    ]
}

/// What nanoGPT's model has no setting for.
fn check(source: &ExportSource, shape: &ExportShape) -> Result<()> {
    let refuse = |what: &str| Err(Error::mismatch(source.path(), format!("{what}; export it as hf or pt")));
    if !source.is_tied() {
        return refuse("its head is not tied to the embedding, as nanoGPT's is");
    }
    if shape.inner != 4 * shape.width {
        return refuse("its inner layers are not four times as wide as the others, as nanoGPT's are");
    }
    if shape.epsilon != 1e-5 {
        return refuse("its layer_norm_epsilon is not 1e-5, as nanoGPT's is");
    }
    if !source.moments().contains(&Role::ExpAvg) {
        return refuse("it has no AdamW state, which nanoGPT's ckpt.pt holds");
    }
    Ok(())
}
