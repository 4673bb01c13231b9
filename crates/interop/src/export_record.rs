//! `ckptd.json`: what a model folder cannot say of a training, so that an exported folder or bundle comes back as
//! exactly the snapshot that it was, and proof of it: a hash of every tensor and of every file.
//!
//! Deliberately not here: the tensors (model.safetensors, optimizer.pt) and the order to read them in (import).

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::mapped::{MappedFile, read_small};
use crate::names::{FILES_RECORD, RECORD};
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

/// The files of a folder, where nothing else is recorded of it: [`FILES_RECORD`].
#[derive(Debug, Serialize, Deserialize)]
struct FilesRecord {
    format: u32,
    files: Vec<FileRecord>,
}

/// The content of [`FILES_RECORD`] for a folder that holds `files`.
pub fn files_json(files: Vec<FileRecord>) -> Result<Vec<u8>> {
    let json = serde_json::to_vec_pretty(&FilesRecord { format: FORMAT, files });
    json.map_err(|e| Error::Other(format!("writing {FILES_RECORD}: {e}")))
}

/// Up to this size a file is held against its hash before it is replaced, beyond that against its size.
const MAX_HASHED_BYTES: u64 = 16 << 20;

/// What is at `target` that no export has written, or that was changed since: names of files. A single file is known
/// by its first bytes, a folder by its record.
pub fn foreign(target: &Path) -> Result<Vec<String>> {
    if !target.is_dir() {
        let name = target.file_name().unwrap_or_default().to_string_lossy().into_owned();
        return Ok(if is_exports_kind(target)? { Vec::new() } else { vec![name] });
    }
    let known = recorded(target)?;
    let mut foreign = Vec::new();
    for entry in std::fs::read_dir(target).map_err(|e| Error::io("reading folder", target, e))? {
        let entry = entry.map_err(|e| Error::io("reading folder", target, e))?;
        let path = entry.path();
        let found = entry.metadata().map_err(|e| Error::io("looking at", &path, e))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if found.is_file() && known.is_some() && [RECORD, FILES_RECORD].contains(&name.as_str()) {
            continue;
        }
        let record = known.iter().flatten().find(|record| record.name == name && found.is_file());
        match record {
            None => foreign.push(name),
            Some(record) if is_as_recorded(target, record, found.len())? => {}
            Some(_) => foreign.push(format!("{name} (changed since the export)")),
        }
    }
    foreign.sort();
    Ok(foreign)
}

fn is_as_recorded(folder: &Path, record: &FileRecord, bytes: u64) -> Result<bool> {
    if record.bytes != bytes || record.hash.is_empty() || bytes > MAX_HASHED_BYTES || bytes == 0 {
        return Ok(record.bytes == bytes);
    }
    Ok(file_record(folder, &record.name)?.hash == record.hash)
}

/// The files that the folder's record names; `None` where it has no record that can be read.
fn recorded(folder: &Path) -> Result<Option<Vec<FileRecord>>> {
    let path = folder.join(FILES_RECORD);
    if path.is_file() {
        let record: Option<FilesRecord> = serde_json::from_slice(&read_small(&path, MAX_BYTES)?).ok();
        return Ok(record.filter(|record| record.format == FORMAT).map(|record| record.files));
    }
    match ExportRecord::read(folder) {
        Ok(record) => Ok(record.map(|record| record.files)),
        Err(Error::Malformed { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether the file begins as one that an export writes: a zip archive (`.pt`, zip), zstd, safetensors, GGUF.
fn is_exports_kind(path: &Path) -> Result<bool> {
    const BEGINNINGS: [&[u8]; 3] = [b"PK\x03\x04", b"\x28\xb5\x2f\xfd", b"GGUF"];
    let mapped = MappedFile::open(path)?;
    let bytes = mapped.bytes();
    Ok(BEGINNINGS.iter().any(|beginning| bytes.starts_with(beginning)) || bytes.get(8) == Some(&b'{'))
}
