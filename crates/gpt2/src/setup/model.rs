//! The model that a session trains: its shape, and the small files that belong to it.
//!
//! Invariant: a resume needs the snapshot alone. Deliberately not here: its tensors on a resume (`restore`).

use std::path::Path;

use ckptd_core::config::Config;
use ckptd_core::protocol::MessageLevel;
use ckptd_core::snapshot::CarriedFile;
use ckptd_core::store::SnapshotReader;
use ckptd_core::{Error, Result};
use ckptd_interop::hf::{self, HfFolder};
use ckptd_interop::limits::ReadLimits;
use ckptd_interop::names;

use crate::events::EventSender;
use crate::gpt2::Gpt2Config;

/// Largest companion file of a model folder that travels in snapshots, in bytes.
const MAX_CARRIED_BYTES: u64 = 32 << 20;

/// A model without its state.
pub(super) struct OpenedModel {
    pub(super) shape: Gpt2Config,
    /// Where a training that begins takes its weights from.
    pub(super) folder: Option<HfFolder>,
    /// The snapshot's small files on a resume, else the folder's: config.json and its companions.
    pub(super) files: Vec<CarriedFile>,
}

impl OpenedModel {
    /// Opens what the job names. On a resume a folder need not be there any more.
    pub(super) fn open(
        config: &Config,
        snapshot: Option<&SnapshotReader>,
        events: &EventSender,
    ) -> Result<OpenedModel> {
        let from = config.model.from.as_deref();
        let (folder, files) = match snapshot {
            Some(snapshot) => (None, carried(snapshot)?),
            None => {
                let folder = from.map(|dir| hf::open(dir, &ReadLimits::default())).transpose()?;
                let files = folder.as_ref().map_or(Ok(Vec::new()), companions)?;
                (folder, files)
            }
        };
        let mut shape = match (from, &config.model.preset) {
            (Some(dir), _) => shape_of(dir, folder.as_ref(), snapshot, &files, events)?,
            (None, preset) => Gpt2Config::preset(preset.as_deref().unwrap_or_default())?,
        };
        if let Some(p) = config.model.dropout {
            shape = shape.with_dropout(p);
        }
        if config.train.sequence_length > shape.n_positions as u64 {
            let (asked, has) = (config.train.sequence_length, shape.n_positions);
            return Err(Error::Config(format!(
                "[train] sequence_length: {asked} is more than the model's {has} positions; write `sequence_length = \
                 {has}`"
            )));
        }
        Ok(OpenedModel { shape, folder, files })
    }
}

/// The small files of a snapshot.
fn carried(snapshot: &SnapshotReader) -> Result<Vec<CarriedFile>> {
    let mut files = Vec::new();
    for record in &snapshot.manifest().files {
        let bytes = snapshot.read_file(&record.name)?.unwrap_or_default();
        files.push(CarriedFile { name: record.name.clone(), bytes: bytes.into() });
    }
    Ok(files)
}

/// The small files of a model folder.
fn companions(folder: &HfFolder) -> Result<Vec<CarriedFile>> {
    let mut files = vec![CarriedFile { name: names::CONFIG.into(), bytes: folder.config_json.clone().into() }];
    for path in &folder.files {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if std::fs::metadata(path).is_ok_and(|m| m.len() <= MAX_CARRIED_BYTES) {
            let bytes = std::fs::read(path).map_err(|e| Error::io("reading", path, e))?;
            files.push(CarriedFile { name, bytes: bytes.into() });
        }
    }
    Ok(files)
}

/// The shape in the folder's config.json; in the snapshot's, where a resume finds no folder any more.
fn shape_of(
    dir: &Path,
    folder: Option<&HfFolder>,
    snapshot: Option<&SnapshotReader>,
    carried: &[CarriedFile],
    events: &EventSender,
) -> Result<Gpt2Config> {
    let path = dir.join(names::CONFIG);
    if let Some(folder) = folder {
        return Gpt2Config::from_json(&String::from_utf8_lossy(&folder.config_json), &path.display().to_string());
    }
    if path.is_file() {
        let json = std::fs::read(&path).map_err(|e| Error::io("reading", &path, e))?;
        return Gpt2Config::from_json(&String::from_utf8_lossy(&json), &path.display().to_string());
    }
    let origin = snapshot.map_or(dir, SnapshotReader::path);
    let Some(config) = carried.iter().find(|file| file.name == names::CONFIG) else {
        return Err(Error::Config(format!(
            "[model] from: {} is not there, and {} carries no config.json; put the folder back",
            dir.display(),
            origin.display()
        )));
    };
    let what = format!("{} is no model folder now; the snapshot has all of it that is needed", dir.display());
    events.log(MessageLevel::Info, what);
    let name = format!("{}: {}", origin.display(), names::CONFIG);
    Gpt2Config::from_json(&String::from_utf8_lossy(&config.bytes), &name)
}
