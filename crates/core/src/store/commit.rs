//! Writing a snapshot: encode in parallel, hash, write, sync, publish.
//!
//! Invariant: a name under `snapshots/` appears by rename, after the file's fsync and before the folders'. A step that
//! fails ends the attempt: its file is removed and nothing is retried on it. Deliberately not here: encoding
//! (`encode`), when to take a snapshot, and whether what was written can be read back (verify).

use std::path::PathBuf;
use std::time::Instant;

use super::commit_options::{Approval, CommitOptions};
use super::encode::{ItemBytes, write_chunks};
use super::format::{self, ChunkRecord, FileRecord, HEAD_BYTES, Manifest, TensorRecord};
use super::handle::Store;
use super::layout;
use super::lock::StoreLock;
use super::trailer::Trailer;
use crate::codec::CHUNK_BYTES;
use crate::error::{Error, Result};
use crate::ids::{SnapshotId, StateRoot};
use crate::os::block_writer::BlockWriter;
use crate::os::dir::Dir;
use crate::os::fs::{self, SECTOR};
use crate::snapshot::{DistantTensor, Snapshot, TensorMeta};

/// What a commit made durable.
#[derive(Clone, Debug)]
pub struct Committed {
    /// Its name without the suffix.
    pub id: SnapshotId,
    /// Where the file is.
    pub path: PathBuf,
    /// Size of the file.
    pub bytes: u64,
    /// Bytes of its tensors.
    pub raw_bytes: u64,
    /// The identity of the state.
    pub root: StateRoot,
    /// Every parameter and the loss are finite.
    pub healthy: bool,
    /// From the first chunk to the last folder's sync.
    pub write_ms: f64,
}

/// Writes `snapshot` to the store. When this returns, the snapshot is whole and durable under its final name; on an
/// error it is not there.
///
/// # Errors
/// [`Error::Abandoned`] after [`CommitHandle::cancel`](super::CommitHandle::cancel), [`Error::NoSpace`] on a full
/// disk, [`Error::Mismatch`] where a tensor has not as many bytes as its shape says.
pub fn commit(store: &Store, lock: &StoreLock, snapshot: Snapshot, options: &CommitOptions) -> Result<Committed> {
    commit_with(store, lock, snapshot, Vec::new(), options)
}

/// [`commit`] of a snapshot that has `distant` tensors, too, after its own.
///
/// # Errors
/// As there, and what reading one of them says.
pub fn commit_with(
    store: &Store,
    _lock: &StoreLock,
    snapshot: Snapshot,
    distant: Vec<DistantTensor>,
    options: &CommitOptions,
) -> Result<Committed> {
    let started = Instant::now();
    let staging = store.folder(layout::Folder::Staging)?;
    let part = layout::staging_file(&layout::snapshot_id(snapshot.train.step, Some(options.seq)));
    staging.remove(&part)?;
    let outcome = write_file(&staging, &part, snapshot, distant, options).and_then(|(manifest, bytes)| {
        if let Some(Approval(approve)) = &options.approval {
            approve(&manifest)?;
        }
        let (id, path) = publish(store, &staging, &part, &manifest)?;
        Ok((manifest, bytes, id, path))
    });
    if outcome.is_err() {
        // Report the first error, not the clean-up's; the next start cleans the folder again.
        let _ = staging.remove(&part);
    }
    let (manifest, bytes, id, path) = outcome?;
    Ok(Committed {
        id,
        path,
        bytes,
        raw_bytes: manifest.raw_bytes,
        root: manifest.root,
        healthy: manifest.healthy,
        write_ms: started.elapsed().as_secs_f64() * 1e3,
    })
}

/// Renames the finished file into place and makes that durable: the last step that can fail. Returns its id and path.
pub(super) fn publish(store: &Store, staging: &Dir, part: &str, manifest: &Manifest) -> Result<(SnapshotId, PathBuf)> {
    let snapshots = store.folder(layout::Folder::Snapshots)?;
    let mut id = layout::snapshot_id(manifest.train.step, None);
    // The plain name can be taken, by an unhealthy snapshot of the same step for example: that one is not touched.
    if snapshots.stat(&layout::snapshot_file(&id))?.is_some() {
        id = layout::snapshot_id(manifest.train.step, Some(manifest.seq));
    }
    let name = layout::snapshot_file(&id);
    staging.rename_new(part, &snapshots, &name)?;
    let synced = snapshots.sync().and_then(|()| staging.sync());
    if let Err(e) = synced {
        // Not durable, so it must not be there either.
        let _ = snapshots.remove(&name);
        return Err(e);
    }
    Ok((id, snapshots.join(&name)))
}

/// Writes and syncs the whole file in staging. Returns its manifest and its length.
fn write_file(
    staging: &Dir,
    part: &str,
    snapshot: Snapshot,
    distant: Vec<DistantTensor>,
    options: &CommitOptions,
) -> Result<(Manifest, u64)> {
    let path = staging.join(part);
    let distant_bytes: u64 = distant.iter().filter_map(|tensor| tensor.meta.bytes()).sum();
    let raw_bytes = check(&snapshot, &path)? + distant_bytes;
    let file = staging.create_file(part)?;
    let mut out = BlockWriter::new(&file, path.clone())?;
    let reserve = if options.expected_bytes > 0 { options.expected_bytes } else { raw_bytes / 4 * 3 };
    fs::preallocate(&file, reserve, &path)?;
    let version =
        format::version_of(snapshot.tensors.iter().map(|tensor| &tensor.meta).chain(distant.iter().map(|t| &t.meta)));
    out.append(&format::head(version))?;

    let Snapshot { tensors, train, metrics, provenance, files } = snapshot;
    let here = tensors.into_iter().map(|t| (t.meta, ItemBytes::Here(t.bytes)));
    let there = distant.into_iter().map(|t| (t.meta, ItemBytes::There(t.bytes)));
    let (metas, mut bytes): (Vec<TensorMeta>, Vec<ItemBytes>) = here.chain(there).unzip();
    bytes.extend(files.iter().map(|f| ItemBytes::Here(f.bytes.clone())));
    let places = format::chunk_places(metas.iter(), files.iter().map(|f| f.bytes.len() as u64));
    let (records, finite) = write_chunks(&mut out, &places, bytes, options)?;

    let hash_of = |item: usize| {
        let first = places.partition_point(|u| u.item < item);
        let count = places[first..].iter().take_while(|u| u.item == item).count();
        let chunks: Vec<format::Hash> = records[first..first + count].iter().map(|r| r.raw_hash).collect();
        format::hex(&format::merge(&chunks))
    };
    let count = metas.len();
    let tensors: Vec<TensorRecord> =
        metas.into_iter().enumerate().map(|(i, meta)| TensorRecord { meta, hash: hash_of(i) }).collect();
    let files = files.iter().enumerate().map(|(i, f)| FileRecord {
        name: f.name.clone(),
        bytes: f.bytes.len() as u64,
        hash: hash_of(count + i),
    });
    let manifest = Manifest {
        format: version,
        run_id: options.run_id.clone(),
        seq: options.seq,
        parent: options.parent.clone(),
        created_at: options.created_at.unwrap_or_else(jiff::Timestamp::now),
        root: format::root(&tensors, &train),
        healthy: finite && metrics.train_loss.is_none_or(f64::is_finite),
        raw_bytes,
        chunk_bytes: CHUNK_BYTES as u64,
        train,
        metrics,
        provenance,
        files: files.collect(),
        tensors,
    };
    let bytes = finish(out, &records, &manifest)?;
    fs::sync_file(&file, &path)?;
    fs::forget_cached(&file);
    Ok((manifest, bytes))
}

/// Chunk table, manifest, trailer. Returns the file's length.
fn finish(mut out: BlockWriter, records: &[ChunkRecord], manifest: &Manifest) -> Result<u64> {
    let table = format::table_bytes(records);
    let json = serde_json::to_vec(manifest)
        .map_err(|e| Error::Other(format!("writing the manifest of {}: {e}", out.path().display())))?;
    let trailer = Trailer::new(manifest.format, out.position(), &table, &json);
    for part in [&table[..], &json, &trailer.to_bytes()] {
        out.append(part)?;
    }
    out.finish()
}

/// The tensors' bytes in all, after checking that each has as many as its shape says.
fn check(snapshot: &Snapshot, path: &std::path::Path) -> Result<u64> {
    let mut total = 0u64;
    for tensor in &snapshot.tensors {
        let have = (*tensor.bytes).as_ref().len() as u64;
        if tensor.meta.bytes() != Some(have) {
            let label = tensor.meta.label();
            return Err(Error::mismatch(path, format!("{label} has {have} bytes, not {:?}", tensor.meta.bytes())));
        }
        total = total.saturating_add(have);
    }
    match snapshot.files.iter().find(|f| !format::plain_name(&f.name)) {
        Some(file) => Err(Error::mismatch(path, format!("{:?} is no name for a carried file", file.name))),
        None => Ok(total),
    }
}

const _: () = assert!(HEAD_BYTES < SECTOR);
