//! The hyper-parameters that PyTorch keeps in an optimiser's groups: from the settings that a snapshot names, else
//! from the job's config, else ckptd's defaults.

use crate::torch_pt::pickler::PtObject;
use ckptd_core::config::Config;
use ckptd_core::schedule;
use ckptd_core::store::Manifest;

pub(super) struct HyperParameters {
    pub learning_rate: f64,
    /// The learning rate of the next update.
    pub rate_now: f64,
    pub weight_decay: f64,
    pub steps: u64,
    pub batch_size: u64,
    /// Steps between evaluations.
    pub eval_steps: u64,
    betas: [f64; 2],
    eps: f64,
    momentum: f64,
}

impl HyperParameters {
    pub(super) fn of(manifest: &Manifest, job: Option<&Config>) -> HyperParameters {
        let train = job.map(|job| job.train.clone()).unwrap_or_default().with_recorded(&manifest.train.settings);
        HyperParameters {
            learning_rate: train.learning_rate,
            rate_now: schedule::learning_rate(&train, manifest.train.step),
            weight_decay: train.weight_decay,
            steps: train.steps,
            batch_size: train.batch_size,
            eval_steps: if train.eval_every == 0 { 500 } else { train.eval_every },
            betas: train.betas,
            eps: train.eps,
            momentum: train.momentum,
        }
    }

    /// A group of `torch.optim.AdamW`, without its parameters.
    pub(super) fn adamw_group(&self, weight_decay: f64) -> Vec<(&'static str, PtObject)> {
        vec![
            ("weight_decay", PtObject::Float(weight_decay)),
            ("lr", PtObject::Float(self.rate_now)),
            ("betas", PtObject::Tuple(self.betas.map(PtObject::Float).into())),
            ("eps", PtObject::Float(self.eps)),
            ("amsgrad", PtObject::Bool(false)),
            ("maximize", PtObject::Bool(false)),
            ("foreach", PtObject::None),
            ("capturable", PtObject::Bool(false)),
            ("differentiable", PtObject::Bool(false)),
            ("fused", PtObject::None),
            ("decoupled_weight_decay", PtObject::Bool(true)),
            ("initial_lr", PtObject::Float(self.learning_rate)),
        ]
    }

    /// A group of `torch.optim.SGD`, without its parameters.
    pub(super) fn sgd_group(&self, weight_decay: f64) -> Vec<(&'static str, PtObject)> {
        vec![
            ("weight_decay", PtObject::Float(weight_decay)),
            ("lr", PtObject::Float(self.rate_now)),
            ("momentum", PtObject::Float(self.momentum)),
            ("dampening", PtObject::Int(0)),
            ("nesterov", PtObject::Bool(false)),
            ("maximize", PtObject::Bool(false)),
            ("foreach", PtObject::None),
            ("differentiable", PtObject::Bool(false)),
            ("fused", PtObject::None),
            ("initial_lr", PtObject::Float(self.learning_rate)),
        ]
    }
}
