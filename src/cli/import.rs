//! `ckptd import`

use std::path::{Path, PathBuf};

use clap::ValueEnum;
use serde::Serialize;

use super::adapter_merge::MergedAdapter;
use super::console::Console;
use super::imported_job::ImportedJob;
use super::remote_bundle::BundleUrl;
use super::{exit_code, init, output};
use ckptd_core::config::Config;
use ckptd_core::error::{Error, Result};
use ckptd_core::os::fs;
use ckptd_core::os::publish::{Existing, publish};
use ckptd_core::store::{Manifest, SnapshotReader, layout};
use ckptd_core::token_cache::{TokenCache, TokenOrigin};
use ckptd_interop::import::{self, FreshOptimizer, ImportOptions, ImportReport};
use ckptd_interop::names;

/// `[model] from` of a model that came from a remote.
const NO_MODEL: &str = "model";

/// Make a new store of a model folder, a Trainer checkpoint, a .pt or safetensors file, a bundle, or an adapter of
/// PEFT; with a job file beside it that goes on, where none is there.
#[derive(clap::Args)]
pub(super) struct ImportArgs {
    /// What to import. A bundle may come from a remote: s3://bucket/folder/name, or gs, az, sftp and file.
    #[arg(long, value_name = "PATH|URL")]
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
    if let Some(url) = BundleUrl::of(&args.from)? {
        return from_remote(args, &place, (&url, &options), console);
    }
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
    // What was imported may be one of the folders in the source.
    let model = if model.is_dir() { model } else { &args.from };
    let source = JobSource { told: &model.to_string_lossy(), model, tokens: None };
    let job = place.write_job(args, &imported, source)?;
    told(args, &imported, job)
}

fn told(args: &ImportArgs, imported: &ImportReport, job: Option<PathBuf>) -> Result<u8> {
    if args.json {
        output::json(&ImportedWithJob { imported, job })?;
        return Ok(exit_code::DONE);
    }
    output::text(&describe(args, imported, job.as_deref()))?;
    Ok(exit_code::DONE)
}

/// Imports the bundle at `url`; data that it holds goes to the store's cache, where the job finds it.
fn from_remote(
    args: &ImportArgs,
    place: &ImportPlace,
    (url, options): (&BundleUrl, &ImportOptions),
    console: Console,
) -> Result<u8> {
    if args.base.is_some() {
        return Err(Error::Config(format!("--base: {} is a bundle, and no adapter of PEFT", url.url)));
    }
    let fetched = url.fetch(&place.store, &console)?;
    let imported = import::import(&fetched.folder, &place.store, options, &console);
    let mut imported = imported.map_err(|error| fetched.about(error))?;
    imported.notes.splice(0..0, fetched.notes.iter().cloned());
    imported.from = PathBuf::from(&url.url);
    let snapshot = SnapshotReader::open(&imported.path)?;
    let tokens = keep_tokens(&fetched.folder, &place.store, snapshot.manifest())?;
    drop(console);
    // A session resumes from the snapshot alone; the model's folder need not be there.
    let model = place.job.with_file_name(NO_MODEL);
    let source = JobSource { told: &url.url, model: &model, tokens: tokens.as_deref() };
    let job = place.write_job(args, &imported, source)?;
    told(args, &imported, job)
}

/// Moves the tokens of an unpacked bundle to the cache of `store`; none where it has none.
fn keep_tokens(folder: &Path, store: &Path, manifest: &Manifest) -> Result<Option<PathBuf>> {
    let from = folder.join(names::TOKENS);
    let content = manifest.train.settings.data_content().filter(|content| TokenCache::is_name(content));
    let (Some(content), true) = (content, from.is_file()) else { return Ok(None) };
    let cache = TokenCache::new(&store.join(layout::CACHE));
    let to = cache.tokens(content);
    std::fs::create_dir_all(cache.folder()).map_err(|e| Error::io("creating", cache.folder(), e))?;
    for (from, to) in [(TokenOrigin::path(&from), TokenOrigin::path(&to)), (from, to.clone())] {
        if from.is_file() {
            publish(&fs::open_path(&from)?, &from, &to, Existing::Replace)?;
        }
    }
    Ok(Some(to))
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

/// What a job file that goes on names.
#[derive(Clone, Copy)]
struct JobSource<'a> {
    /// For people.
    told: &'a str,
    model: &'a Path,
    /// The tokens that came with it, where they are not in the model's folder.
    tokens: Option<&'a Path>,
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

    /// The job file that goes on from `imported`, a state of `source`, written where it is not there yet; `None`: the
    /// snapshot does not say what a job needs, or a job of another store has that name.
    fn write_job(&self, args: &ImportArgs, imported: &ImportReport, source: JobSource<'_>) -> Result<Option<PathBuf>> {
        if !self.writes_job {
            return Ok(Some(self.job.clone()));
        }
        if self.job.exists() {
            return Ok(None);
        }
        let store = self.store.file_name().filter(|_| self.names_store);
        let JobSource { told, model: from, tokens } = source;
        let job = ImportedJob { file: &self.job, store, told, from, tokens, texts: &args.text };
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
