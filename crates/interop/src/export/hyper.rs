//! The hyper-parameters that PyTorch keeps in an optimiser's groups: from the settings that a snapshot names, else
//! from the job's config, else ckptd's defaults.

use crate::torch_pt::pickler::Object;
use ckptd_core::config::Config;
use ckptd_core::schedule;
use ckptd_core::store::Manifest;

pub struct Hyper {
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

impl Hyper {
    pub fn of(manifest: &Manifest, job: Option<&Config>) -> Hyper {
        let train = job.map(|job| job.train.clone()).unwrap_or_default().with_recorded(&manifest.train.settings);
        Hyper {
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
    pub fn adamw_group(&self, weight_decay: f64) -> Vec<(&'static str, Object)> {
        vec![
            ("weight_decay", Object::Float(weight_decay)),
            ("lr", Object::Float(self.rate_now)),
            ("betas", Object::Tuple(self.betas.map(Object::Float).into())),
            ("eps", Object::Float(self.eps)),
            ("amsgrad", Object::Bool(false)),
            ("maximize", Object::Bool(false)),
            ("foreach", Object::None),
            ("capturable", Object::Bool(false)),
            ("differentiable", Object::Bool(false)),
            ("fused", Object::None),
            ("decoupled_weight_decay", Object::Bool(true)),
            ("initial_lr", Object::Float(self.learning_rate)),
        ]
    }

    /// A group of `torch.optim.SGD`, without its parameters.
    pub fn sgd_group(&self, weight_decay: f64) -> Vec<(&'static str, Object)> {
        vec![
            ("weight_decay", Object::Float(weight_decay)),
            ("lr", Object::Float(self.rate_now)),
            ("momentum", Object::Float(self.momentum)),
            ("dampening", Object::Int(0)),
            ("nesterov", Object::Bool(false)),
            ("maximize", Object::Bool(false)),
            ("foreach", Object::None),
            ("differentiable", Object::Bool(false)),
            ("fused", Object::None),
            ("initial_lr", Object::Float(self.learning_rate)),
        ]
    }
}
