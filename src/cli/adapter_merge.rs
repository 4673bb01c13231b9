//! An adapter of PEFT on its way into a store: merged into its base model by `ckptd-gpt2 merge`, in a folder beside the
//! store that is gone when the import is done.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use super::worker_task::WorkerTask;
use ckptd_core::error::{Error, Result};
use ckptd_core::progress::ProgressSink;
use ckptd_interop::adapter::{self, LoraAdapter, MergeReport};
use ckptd_interop::import::{SourcePlace, find_adapter};
use ckptd_interop::limits::ReadLimits;
use ckptd_interop::output::ScratchFolder;
use ckptd_interop::{foreign, names};

/// The merged model, as long as this lives.
pub(super) struct MergedAdapter {
    folder: ScratchFolder,
    /// Where the adapter lies.
    pub(super) adapter: PathBuf,
    /// What it was merged into.
    pub(super) base: PathBuf,
    /// What the user should know.
    pub(super) notes: Vec<String>,
}

impl MergedAdapter {
    /// Merges what lies at `from`, if that is an adapter, into `base` or the base model that it names.
    ///
    /// # Errors
    /// Those of reading the adapter and its base, with the command that merges it with PEFT.
    pub(super) fn of(
        from: &Path,
        base: Option<&Path>,
        store: &Path,
        progress: &dyn ProgressSink,
    ) -> Result<Option<MergedAdapter>> {
        let limits = ReadLimits::default();
        let Some(SourcePlace { path, mut notes }) = find_adapter(from, &limits) else {
            return match base {
                Some(_) => Err(Error::Config(format!(
                    "--base: {} is no adapter of PEFT, and is imported without a base model",
                    from.display()
                ))),
                None => Ok(None),
            };
        };
        LoraAdapter::open(&path, &limits).map_err(|why| with_peft(why, &path))?;
        let base = base.map_or_else(|| named_base(&path, store), |base| Ok(base.to_path_buf()))?;
        let folder = ScratchFolder::beside(store)?;
        let arguments =
            ["merge", "--adapter"].map(OsStr::new).into_iter().chain([path.as_os_str(), OsStr::new("--base")]);
        let arguments = arguments.chain([base.as_os_str(), OsStr::new("--out"), folder.path().as_os_str()]);
        let arguments: Vec<&OsStr> = arguments.collect();
        let failed = format!("{} could not be merged into {}", path.display(), base.display());
        let task = WorkerTask { arguments: &arguments, doing: "merging the adapter", failed: &failed };
        let merged: MergeReport = task.run(progress).map_err(|why| with_peft(why, &path))?;
        notes.push(format!("a LoRA on {} modules, merged into {} in float32", merged.layers, base.display()));
        if merged.splits_head {
            notes.push("it has trained embedding and head apart: they are not tied any more".into());
        }
        if path.join(names::OPTIMIZER).exists() {
            notes.push(format!("{} holds the moments of the adapter, and was left out", names::OPTIMIZER));
        }
        Ok(Some(MergedAdapter { folder, adapter: path, base, notes }))
    }

    /// Where the merged model lies.
    pub(super) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// An error about the merged model as one about the adapter, which is what the user knows.
    pub(super) fn about_adapter(&self, error: Error) -> Error {
        let said = error.to_string();
        let merged = self.path().display().to_string();
        if said.contains(&merged) {
            Error::Other(said.replace(&merged, &self.adapter.display().to_string()))
        } else {
            error
        }
    }
}

/// The base model that the adapter names, where that is a folder or a file here.
fn named_base(dir: &Path, store: &Path) -> Result<PathBuf> {
    let named = adapter::base_model(dir)?;
    if let Some(base) = named.as_ref().filter(|base| base.exists()) {
        return Ok(base.clone());
    }
    let config = dir.join(names::ADAPTER_CONFIG);
    let what = named.map_or("names no base model".into(), |base| {
        format!("base_model_name_or_path: {} is not here", base.display())
    });
    Err(Error::NotFound(format!(
        "{}: {what}; give the base model: ckptd import --from {} --base FOLDER {}",
        config.display(),
        foreign::quoted(dir),
        foreign::quoted(store)
    )))
}

/// An error of a merge, with the command that merges without ckptd.
fn with_peft(error: Error, dir: &Path) -> Error {
    let way = foreign::merge_with_peft(dir);
    match error {
        Error::Malformed { path, reason } => Error::Malformed { path, reason: format!("{reason}; {way}") },
        Error::Other(said) => Error::Other(format!("{said}; {way}")),
        other => other,
    }
}
