//! What an import is asked for.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crate::limits::ReadLimits;
use ckptd_core::os::process::processors;
use ckptd_core::snapshot::Role;

#[derive(Clone, Debug)]
pub struct ImportOptions {
    /// What the optimiser keeps, for a source without its state.
    pub fresh: FreshOptimizer,
    /// A model folder or config.json, for a source without one.
    pub model: Option<PathBuf>,
    pub level: u8,
    pub threads: usize,
    pub limits: ReadLimits,
    /// Set by a signal to call the import off.
    pub cancel: Arc<AtomicBool>,
}

impl Default for ImportOptions {
    fn default() -> ImportOptions {
        let threads = processors();
        ImportOptions {
            fresh: FreshOptimizer::AdamW,
            model: None,
            level: 1,
            threads,
            limits: ReadLimits::default(),
            cancel: Arc::default(),
        }
    }
}

/// The optimiser that a training without its state starts with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FreshOptimizer {
    AdamW,
    Sgd,
    SgdMomentum,
}

impl FreshOptimizer {
    /// What it keeps beside each parameter.
    pub(super) fn roles(self) -> &'static [Role] {
        match self {
            FreshOptimizer::AdamW => &[Role::ExpAvg, Role::ExpAvgSq],
            FreshOptimizer::Sgd => &[],
            FreshOptimizer::SgdMomentum => &[Role::MomentumBuffer],
        }
    }
}
