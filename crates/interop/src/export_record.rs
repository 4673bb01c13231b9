//! `ckptd.json`: what a model folder cannot say of a training, so that an exported folder or bundle comes back as
//! exactly the snapshot that it was, and proof of it: a hash of every tensor and of every file.
//!
//! Deliberately not here: the tensors (model.safetensors, optimizer.pt) and the order to read them in (import).

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::mapped::{MappedFile, read_small};
use crate::names::RECORD;
use ckptd_core::error::{Error, Result};
use ckptd_core::ids::{RunId, StateRoot};
use ckptd_core::snapshot::{Metrics, Provenance, TrainState};
use ckptd_core::store::Manifest;
use ckptd_core::store::format::{FileRecord, TensorRecord, plain_name};

const FORMAT: u32 = 1;
/// A tensor takes about 200 bytes.
const MAX_BYTES: u64 = 16 << 20;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ExportRecord {
    pub format: u32,
    pub run_id: RunId,
    pub seq: u64,
    pub parent: Option<StateRoot>,
    pub created_at: jiff::Timestamp,
    pub root: StateRoot,
    pub train: TrainState,
    pub metrics: Metrics,
    pub provenance: Provenance,
    /// All tensors of the snapshot, with the BLAKE3 hash of their bytes.
    pub tensors: Vec<TensorRecord>,
    /// The files of the folder that the snapshot carries, in its order.
    pub carried: Vec<String>,
    /// All files of the folder but this one.
    pub files: Vec<FileRecord>,
}

impl ExportRecord {
    /// Of a snapshot; the files are yet to be added.
    pub fn new(manifest: &Manifest) -> ExportRecord {
        ExportRecord {
            format: FORMAT,
            run_id: manifest.run_id.clone(),
            seq: manifest.seq,
            parent: manifest.parent.clone(),
            created_at: manifest.created_at,
            root: manifest.root.clone(),
            train: manifest.train.clone(),
            metrics: manifest.metrics.clone(),
            provenance: manifest.provenance.clone(),
            tensors: manifest.tensors.clone(),
            carried: Vec::new(),
            files: Vec::new(),
        }
    }

    /// Of the folder `dir`; `None` where it has none.
    pub fn read(dir: &Path) -> Result<Option<ExportRecord>> {
        let path = dir.join(RECORD);
        if !path.exists() {
            return Ok(None);
        }
        ExportRecord::parse(&read_small(&path, MAX_BYTES)?, &path).map(Some)
    }

    pub fn parse(bytes: &[u8], path: &Path) -> Result<ExportRecord> {
        let refuse = |reason: String| Err(Error::malformed(path, reason));
        let record: ExportRecord = match serde_json::from_slice(bytes) {
            Ok(record) => record,
            Err(e) => return refuse(format!("not a {RECORD} of this version of ckptd: {e}")),
        };
        if record.format != FORMAT {
            return refuse(format!("of format {}; this ckptd reads format {FORMAT}", record.format));
        }
        let names = record.carried.iter().chain(record.files.iter().map(|file| &file.name));
        match names.into_iter().find(|name| !plain_name(name)) {
            Some(name) => refuse(format!("{name:?} is no plain name of a file")),
            None => Ok(record),
        }
    }

    pub fn to_json(&self) -> Result<Vec<u8>> {
        let json = serde_json::to_vec_pretty(self);
        json.map(|mut json| {
            json.push(b'\n');
            json
        })
        .map_err(|e| Error::Other(format!("writing {RECORD}: {e}")))
    }
}

/// The record of the file `name` in `dir` as it is now.
pub fn file_record(dir: &Path, name: &str) -> Result<FileRecord> {
    let mapped = MappedFile::open(&dir.join(name))?;
    let hash = blake3::hash(mapped.bytes()).to_hex().to_string();
    Ok(FileRecord { name: name.to_owned(), bytes: mapped.len(), hash })
}
