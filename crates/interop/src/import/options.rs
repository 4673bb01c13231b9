//! What an import is asked for.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crate::limits::ReadLimits;
use ckptd_core::error::Error;
use ckptd_core::os::process::processors;
use ckptd_core::snapshot::Role;

/// How a source is read.
#[derive(Clone, Copy, Debug)]
pub struct LoadOptions<'a> {
    /// The store that it goes to; a bundle is unpacked beside it, without one in the folder for temporary files.
    pub target: Option<&'a Path>,
    /// A model folder or a config.json, which goes before the source's own.
    pub model: Option<&'a Path>,
    /// The optimiser that the user says the source has.
    pub optimizer: Option<FreshOptimizer>,
    /// The optimiser's state and the step are left out.
    pub weights_only: bool,
    /// Weights of one step with an optimiser's state of another are taken.
    pub mixed_steps: bool,
    /// How much of a file is read.
    pub limits: &'a ReadLimits,
}

impl<'a> LoadOptions<'a> {
    /// All of a source, as it describes itself.
    pub fn new(limits: &'a ReadLimits) -> LoadOptions<'a> {
        LoadOptions { target: None, model: None, optimizer: None, weights_only: false, mixed_steps: false, limits }
    }

    /// An error about the optimiser's state of `from`, with the command that takes the weights alone.
    pub(super) fn with_way_out(&self, error: Error, from: &Path) -> Error {
        let model = self.model.map_or(String::new(), |model| format!(" --model {}", quoted(model)));
        let store = self.target.map_or("STORE".to_owned(), quoted);
        let from = quoted(from);
        let way = format!("; the weights alone: `ckptd import --from {from} --weights-only{model} {store}`");
        match error {
            Error::Malformed { path, reason } => Error::Malformed { path, reason: reason + &way },
            other => other,
        }
    }
}

/// A path as a shell takes it.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let is_plain = |c: char| c.is_alphanumeric() || "/._-+=:,@%".contains(c);
    if !text.is_empty() && text.chars().all(is_plain) { text } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

#[derive(Clone, Debug)]
pub struct ImportOptions {
    /// What the optimiser keeps, for a source without its state; what it is, for one that does not say it.
    pub optimizer: Option<FreshOptimizer>,
    /// The optimiser's state and the step are left out.
    pub weights_only: bool,
    /// Weights of one step with an optimiser's state of another are taken.
    pub mixed_steps: bool,
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
            optimizer: None,
            weights_only: false,
            mixed_steps: false,
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
