//! `ckptd import`

use std::path::{Path, PathBuf};

use clap::ValueEnum;
use serde::Serialize;

use super::adapter_merge::MergedAdapter;
use super::console::Console;
use super::imported_job::ImportedJob;
use super::{exit_code, init, output};
use ckptd_core::config::Config;
use ckptd_core::error::{Error, Result};
use ckptd_core::store::SnapshotReader;
use ckptd_interop::import::{self, FreshOptimizer, ImportOptions, ImportReport};

/// Make a new store of a model folder, a Trainer checkpoint, a .pt or safetensors file, a bundle, or an adapter of
/// PEFT; with a job file beside it that goes on, where none is there.
#[derive(clap::Args)]
pub(super) struct ImportArgs {
    /// What to import.
    #[arg(long, value_name = "PATH")]
    from: PathBuf,
    /// The new store's folder, or the job file that names it (a name that ends in .toml and is not there: one to
    /// write).
    #[arg(value_name = "STORE|CONFIG")]
    target: PathBuf,
    /// A text file, folder or glob to train on, for the job file that is written; may be given more than once.
    #[arg(long, value_name = "GLOB")]
    text: Vec<String>,
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
    let place = ImportPlace::of(&args.target)?;
    if place.writes_job && place.job.exists() && !args.text.is_empty() {
        let job = place.job.display();
        return Err(Error::Other(format!("{job} is there already, and --text is for a new one; name another store")));
    }
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
    let merged = MergedAdapter::of(&args.from, args.base.as_deref(), &place.store, &console)?;
    let imported = match &merged {
        None => import::import(&args.from, &place.store, &options, &console)?,
        Some(merged) => {
            let mut imported = import::import(merged.path(), &place.store, &options, &console)
                .map_err(|error| merged.about_adapter(error))?;
            imported.notes.splice(0..0, merged.notes.iter().cloned());
            imported.from.clone_from(&merged.adapter);
            imported
        }
    };
    drop(console);
    // The merged model is gone by the time that the job runs.
    let model = merged.as_ref().map_or(&imported.from, |merged| &merged.base);
    let job = place.write_job(args, &imported, model)?;
    if args.json {
        output::json(&ImportedWithJob { imported: &imported, job })?;
        return Ok(exit_code::DONE);
    }
    output::text(&describe(args, &imported, job.as_deref()))?;
    Ok(exit_code::DONE)
}

/// Where an import goes.
struct ImportPlace {
    store: PathBuf,
    /// The job file that is there, or that is to be written.
    job: PathBuf,
    writes_job: bool,
    /// The store is not the one that the job file has by itself.
    names_store: bool,
}

/// An import's document, with the job file that goes on from it.
#[derive(Serialize)]
struct ImportedWithJob<'a> {
    #[serde(flatten)]
    imported: &'a ImportReport,
    job: Option<PathBuf>,
}

impl ImportPlace {
    fn of(target: &Path) -> Result<ImportPlace> {
        if target.is_file() {
            let store = Config::load(target)?.job.store;
            return Ok(ImportPlace { store, job: target.to_owned(), writes_job: false, names_store: false });
        }
        let is_job = target.extension().is_some_and(|extension| extension == "toml") && !target.exists();
        if is_job {
            let store = Config::usual_store(target)?;
            return Ok(ImportPlace { store, job: target.to_owned(), writes_job: true, names_store: false });
        }
        let mut job = target.components().as_path().as_os_str().to_owned();
        job.push(".toml");
        Ok(ImportPlace { store: target.to_owned(), job: job.into(), writes_job: true, names_store: true })
    }

    /// The job file that goes on from `imported`, a state of `model`, written where it is not there yet; `None`: the
    /// snapshot does not say what a job needs, or a job of another store has that name.
    fn write_job(&self, args: &ImportArgs, imported: &ImportReport, model: &Path) -> Result<Option<PathBuf>> {
        if !self.writes_job {
            return Ok(Some(self.job.clone()));
        }
        if self.job.exists() {
            return Ok(None);
        }
        // What was imported may be one of the folders in the source.
        let folder = model.is_dir().then_some(model);
        let store = self.store.file_name().filter(|_| self.names_store);
        let from = folder.unwrap_or(&args.from);
        let job = ImportedJob { file: &self.job, store, from, texts: &args.text };
        let Some(text) = job.text(&SnapshotReader::open(&imported.path)?)? else { return Ok(None) };
        init::write_new(&self.job, &text)?;
        Ok(Some(self.job.clone()))
    }
}

fn describe(args: &ImportArgs, imported: &ImportReport, job: Option<&Path>) -> String {
    let (raw, bytes) = (output::size(imported.raw_bytes), output::size(imported.bytes));
    let proof = if imported.exact { "the exported snapshot, bit for bit" } else { "verified" };
    let head = format!(
        "imported {} as {} ({proof}); {raw} in {bytes}, {:.1} s\n",
        args.from.display(),
        imported.id,
        imported.seconds
    );
    let notes: String = imported.notes.iter().map(|note| format!("  note: {note}\n")).collect();
    let next = job.map_or_else(String::new, |job| {
        let step = imported.step;
        // What is missing is told by the same check that the run makes.
        match Config::load(job) {
            Ok(_) => format!("next: ckptd run {} goes on from step {step}\n", job.display()),
            Err(missing) => {
                let job = job.display();
                let lacks = format!("wrote {job}, which lacks one thing: {missing}");
                format!("{lacks}\nnext: then ckptd run {job} goes on from step {step}\n")
            }
        }
    });
    format!("{head}{notes}{next}")
}
