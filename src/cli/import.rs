//! `ckptd import`

use std::path::PathBuf;

use clap::ValueEnum;

use super::adapter_merge::MergedAdapter;
use super::console::Console;
use super::{exit_code, output};
use ckptd_core::config::Config;
use ckptd_core::error::Result;
use ckptd_interop::import::{self, FreshOptimizer, ImportOptions};

/// Make a new store of a model folder, a Trainer checkpoint, a .pt or safetensors file, a bundle, or an adapter of
/// PEFT.
#[derive(clap::Args)]
pub(super) struct ImportArgs {
    /// What to import.
    #[arg(long, value_name = "PATH")]
    from: PathBuf,
    /// The new store's folder, or the job file that names it.
    #[arg(value_name = "STORE|CONFIG")]
    target: PathBuf,
    /// What the optimiser starts with where the source has no state of one (adamw), and what it is where the source
    /// does not say it.
    #[arg(long, value_enum)]
    optimizer: Option<OptimizerArg>,
    /// Leave out the optimiser's state and the step, whatever they are.
    #[arg(long)]
    weights_only: bool,
    /// Take weights of one step with an optimiser's state of another.
    #[arg(long, conflicts_with = "weights_only")]
    mixed_steps: bool,
    /// A model folder or config.json, for a source without one.
    #[arg(long, value_name = "PATH")]
    model: Option<PathBuf>,
    /// The base model of an adapter of PEFT, where the folder that the adapter names is not here.
    #[arg(long, value_name = "PATH", conflicts_with = "model")]
    base: Option<PathBuf>,
    /// How hard to compress, 0 to 19, as [snapshot] level.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(0..=19))]
    level: u8,
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum OptimizerArg {
    Adamw,
    Sgd,
    SgdMomentum,
}

pub(super) fn execute(args: &ImportArgs) -> Result<u8> {
    let store = if args.target.is_file() { Config::load(&args.target)?.job.store } else { args.target.clone() };
    let console = Console::start()?;
    let options = ImportOptions {
        optimizer: args.optimizer.map(|optimizer| match optimizer {
            OptimizerArg::Adamw => FreshOptimizer::AdamW,
            OptimizerArg::Sgd => FreshOptimizer::Sgd,
            OptimizerArg::SgdMomentum => FreshOptimizer::SgdMomentum,
        }),
        weights_only: args.weights_only,
        mixed_steps: args.mixed_steps,
        model: args.model.clone(),
        level: args.level,
        cancel: console.cancelled(),
        ..ImportOptions::default()
    };
    let merged = MergedAdapter::of(&args.from, args.base.as_deref(), &store, &console)?;
    let imported = match &merged {
        None => import::import(&args.from, &store, &options, &console)?,
        Some(merged) => {
            let mut imported = import::import(merged.path(), &store, &options, &console)
                .map_err(|error| merged.about_adapter(error))?;
            imported.notes.splice(0..0, merged.notes.iter().cloned());
            imported
        }
    };
    drop(console);
    if args.json {
        output::json(&imported)?;
        return Ok(exit_code::DONE);
    }
    let (raw, bytes) = (output::size(imported.raw_bytes), output::size(imported.bytes));
    let proof = if imported.exact { "the exported snapshot, bit for bit" } else { "verified" };
    let head = format!(
        "imported {} as {} ({proof}); {raw} in {bytes}, {:.1} s\n",
        args.from.display(),
        imported.id,
        imported.seconds
    );
    let notes: String = imported.notes.iter().map(|note| format!("  note: {note}\n")).collect();
    output::text(&format!("{head}{notes}"))?;
    Ok(exit_code::DONE)
}
