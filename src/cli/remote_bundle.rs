//! A bundle at a remote, by its URL: what `ckptd export` writes there, and `ckptd import` takes from there.
//!
//! Invariant: a bundle travels through a file beside the store, which is gone when the command ends; what was written
//! is checked there before that is said. Deliberately not here: jobs at a remote, which have a prefix of their own.

use std::path::{Path, PathBuf};

use super::console::Console;
use super::remote::waited_for;
use ckptd_core::error::{Error, Result};
use ckptd_interop::bundle::{self, kind_of};
use ckptd_interop::limits::ReadLimits;
use ckptd_interop::output::ScratchFolder;
use ckptd_remote::job::single::SingleFile;
use ckptd_remote::job::{self, JobError, RemoteJob};
use ckptd_remote::records::Checked;
use ckptd_remote::{ObjectName, RemoteSettings, RemoteUrl};

/// Enough of a bundle to know it.
const BEGINNING: u64 = 16;
/// In the folder beside the store: what was fetched, unpacked.
const UNPACKED: &str = "unpacked";

/// The address of a bundle: `s3://bucket/folder/name`.
#[derive(Clone, Debug)]
pub(super) struct BundleUrl {
    pub url: String,
    folder: RemoteUrl,
    name: ObjectName,
}

impl BundleUrl {
    /// The address that `path` is; none where it is a path.
    pub(super) fn of(path: &Path) -> Result<Option<BundleUrl>> {
        let Some(text) = path.to_str().filter(|text| text.contains("://")) else { return Ok(None) };
        let url: RemoteUrl = text.parse().map_err(|e| Error::Config(format!("{e}")))?;
        let Some((folder, name)) = url.split_last() else {
            return Err(Error::Config(format!("{url} names no file; add the bundle's name: {url}/gpt2.tar.zst")));
        };
        let name = ObjectName::of_file(name).map_err(|e| Error::Config(format!("{url}: {e}")))?;
        Ok(Some(BundleUrl { url: url.to_string(), folder, name }))
    }

    /// The file's name.
    pub(super) fn name(&self) -> &str {
        self.name.as_str()
    }

    async fn file(&self) -> job::Result<SingleFile> {
        let storage = ckptd_remote::open(&self.folder, &RemoteSettings::of_process()).await?;
        Ok(SingleFile::new(RemoteJob::new(storage), self.name.clone()))
    }

    /// Whether a bundle may be written there; asked before any long work.
    ///
    /// # Errors
    /// [`Error::Other`] where something is there that may not be replaced.
    pub(super) fn check_free(&self, force: bool) -> Result<()> {
        waited_for(async {
            let file = self.file().await?;
            match file.bytes().await? {
                None => Ok(()),
                Some(_) if !force => Err(self.refused("is there already; --force replaces it")),
                Some(_) if kind_of(&file.beginning(BEGINNING).await?).is_none() => {
                    Err(self.refused("is no bundle, and --force replaces only one; choose another name"))
                }
                Some(_) => Ok(()),
            }
        })
    }

    fn refused(&self, what: &str) -> JobError {
        JobError::other(format!("{} {what}", self.url))
    }

    /// Sends the bundle at `path`, and checks it there.
    pub(super) fn send(&self, path: &Path, console: &Console) -> Result<Checked> {
        waited_for(async { self.file().await?.send(path, console).await })
    }

    /// Fetches the bundle to a folder beside `store`, and unpacks it there.
    pub(super) fn fetch(&self, store: &Path, console: &Console) -> Result<FetchedBundle> {
        let scratch = ScratchFolder::beside(store)?;
        let packed = scratch.path().join(self.name());
        waited_for(async {
            let file = self.file().await?;
            if file.bytes().await?.is_none() {
                let what = format!("{} is not there; see what is, or export it first: ckptd export", self.url);
                return Err(Error::NotFound(what).into());
            }
            if kind_of(&file.beginning(BEGINNING).await?).is_none() {
                return Err(self.refused("is neither a zip nor a tar.zst bundle; download it, and import the file"));
            }
            file.fetch(&packed, console).await
        })?;
        let folder = scratch.path().join(UNPACKED);
        std::fs::create_dir(&folder).map_err(|e| Error::io("creating", &folder, e))?;
        let unpacked = bundle::unpack_into(&packed, &folder, &ReadLimits::default(), console);
        let unpacked = unpacked.map_err(|error| self.about(error, &packed))?;
        // Room for the store.
        std::fs::remove_file(&packed).map_err(|e| Error::io("removing", &packed, e))?;
        let notes = bundle::passed_over_note(&unpacked.passed_over).into_iter().collect();
        Ok(FetchedBundle { folder, notes, url: self.url.clone(), _scratch: scratch })
    }

    /// An error about the file here as one about the bundle there.
    fn about(&self, error: Error, here: &Path) -> Error {
        renamed(error, here, &self.url)
    }
}

/// A bundle that was fetched, as long as this lives.
pub(super) struct FetchedBundle {
    /// Its files.
    pub folder: PathBuf,
    pub notes: Vec<String>,
    url: String,
    _scratch: ScratchFolder,
}

impl FetchedBundle {
    /// An error about the unpacked files as one about the bundle.
    pub(super) fn about(&self, error: Error) -> Error {
        renamed(error, &self.folder, &self.url)
    }
}

fn renamed(error: Error, here: &Path, url: &str) -> Error {
    let (said, here) = (error.to_string(), here.display().to_string());
    if said.contains(&here) { Error::Other(said.replace(&here, url)) } else { error }
}
