//! The store of a training script: its lock, and the snapshots that it begins.
//!
//! Invariant: nothing is committed without the lock that says that this script may. Deliberately not here: which
//! tensors a state has (Python), what is verified and rotated (the daemon).

use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use ckptd_core::dtype::DType;
use ckptd_core::ids::{RunId, StateRoot};
use ckptd_core::os::process::processors;
use ckptd_core::settings::TrainSettings;
use ckptd_core::snapshot::{Metrics, Provenance, Role, Snapshot, Tensor, TensorBytes, TensorMeta, TrainState};
use ckptd_core::store::WorkerLock;
use ckptd_core::store::commit_options::Approval;
use ckptd_core::store::{CommitHandle, CommitOptions, CommitPace, Store, StoreLock, commit};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::errors::{CkptdError, raise};
use crate::flight::{FlightBoard, SnapshotFlight};
use crate::live::LiveTensors;
use crate::memory::Memory;

/// A store to which a training script writes.
#[pyclass(frozen)]
pub(crate) struct SnapshotWriter {
    store: Arc<Store>,
    _lock: WorkerLock,
    run_id: RunId,
    next_seq: AtomicU64,
    level: AtomicUsize,
    threads: AtomicUsize,
    expected_bytes: Arc<AtomicU64>,
    parent: Arc<Mutex<Option<StateRoot>>>,
}

/// A tensor as Python gives it: role, name, type, shape, address, bytes, whether the training writes that memory.
type GivenTensor = (String, String, String, Vec<u64>, usize, usize, bool);

/// Bytes that somebody keeps and nobody writes.
struct KeptBytes(Memory);

impl AsRef<[u8]> for KeptBytes {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: the flight keeps the object that they belong to, which was made for the snapshot.
        unsafe { self.0.bytes() }
    }
}

#[pymethods]
impl SnapshotWriter {
    /// Opens the store for a run. Raises `StoreLocked` while another script still writes to it.
    #[new]
    fn new(store: &str, run_id: &str, next_seq: u64, level: usize, threads: usize) -> PyResult<SnapshotWriter> {
        let store = Store::open(Path::new(store)).map_err(|error| raise(&error))?;
        let lock = store.lock_as_worker().map_err(|error| raise(&error))?;
        Ok(SnapshotWriter {
            store: Arc::new(store),
            _lock: lock,
            run_id: run_id.into(),
            next_seq: next_seq.into(),
            level: level.into(),
            threads: threads.into(),
            expected_bytes: Arc::default(),
            parent: Arc::default(),
        })
    }

    /// Other `[snapshot]` settings from now on; 0 threads: one per processor.
    fn configure(&self, level: usize, threads: usize) {
        self.level.store(level, Ordering::Relaxed);
        self.threads.store(threads, Ordering::Relaxed);
    }

    /// The root of the snapshot that the session goes on from.
    fn follow(&self, root: &str) {
        *self.parent.lock().unwrap_or_else(PoisonError::into_inner) = Some(root.into());
    }

    /// Begins to encode and write a snapshot. `keep` owns the memory of all tensors; `about` has step, epoch, position,
    /// tokens, loss, settings, host, device, torch, reason, hurried and hashes.
    fn begin(&self, tensors: Vec<GivenTensor>, keep: Py<PyAny>, about: &Bound<'_, PyDict>) -> PyResult<SnapshotFlight> {
        let mut live = LiveTensors::default();
        let tensors = tensors.into_iter().map(|given| tensor(given, &mut live)).collect::<PyResult<_>>()?;
        let about = About(about);
        let snapshot = Snapshot { tensors, ..about.snapshot()? };
        let hurried: bool = about.get("hurried")?;
        let before: Vec<(usize, String)> = about.get("hashes")?;
        let (board, handle) = (Arc::new(FlightBoard::default()), Arc::new(CommitHandle::default()));
        let seq = self.next_seq.fetch_add(1, Ordering::Relaxed);
        let judge = Arc::clone(&board);
        let threads = match self.threads.load(Ordering::Relaxed) {
            given if given > 0 && !hurried => given,
            _ => processors(),
        };
        let options = CommitOptions {
            parent: self.parent.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            level: self.level.load(Ordering::Relaxed) as u8,
            threads,
            pace: if hurried { CommitPace::Hurried } else { CommitPace::Background },
            expected_bytes: self.expected_bytes.load(Ordering::Relaxed),
            handle: Arc::clone(&handle),
            approval: Some(Approval::new(move |manifest| judge.approve(manifest, &before))),
            ..CommitOptions::new(&self.run_id, seq)
        };
        let (store, told) = (Arc::clone(&self.store), Arc::clone(&board));
        let (expected, parent) = (Arc::clone(&self.expected_bytes), Arc::clone(&self.parent));
        let commit = move || {
            let outcome = commit(&store, &StoreLock::inherited(), snapshot, &options);
            if let Ok(committed) = &outcome {
                expected.store(committed.bytes, Ordering::Relaxed);
                *parent.lock().unwrap_or_else(PoisonError::into_inner) = Some(committed.root.clone());
            }
            told.end(outcome);
            drop(keep);
        };
        let spawned = std::thread::Builder::new().name("ckptd".into()).spawn(commit);
        spawned.map_err(|e| CkptdError::new_err(format!("starting the thread for a snapshot: {e}")))?;
        Ok(SnapshotFlight { board, live, handle, seq })
    }
}

fn tensor(given: GivenTensor, live: &mut LiveTensors) -> PyResult<Tensor> {
    let (role, name, dtype, shape, address, length, is_live) = given;
    let unknown = |what: &str, value: &str| PyValueError::new_err(format!("{what} {value:?} of {name:?} is not known"));
    let known: Option<Role> = serde_json::from_value(role.clone().into()).ok();
    let role = known.ok_or_else(|| unknown("role", &role))?;
    let known: Option<DType> = serde_json::from_value(dtype.clone().into()).ok();
    let dtype = known.ok_or_else(|| unknown("dtype", &dtype))?;
    let memory = Memory { address, length };
    let bytes = if is_live { live.add(memory) } else { Arc::new(KeptBytes(memory)) as TensorBytes };
    Ok(Tensor { meta: TensorMeta { role, name, dtype, shape }, bytes })
}

/// What is told of a snapshot besides its tensors.
struct About<'a, 'py>(&'a Bound<'py, PyDict>);

impl<'py> About<'_, 'py> {
    fn get<T: for<'a> FromPyObject<'a, 'py>>(&self, key: &str) -> PyResult<T> {
        let value = self.0.get_item(key)?.ok_or_else(|| PyValueError::new_err(format!("{key} is missing")))?;
        value.extract().map_err(Into::into)
    }

    fn snapshot(&self) -> PyResult<Snapshot> {
        let settings: Vec<(String, String)> = self.get("settings")?;
        let train = TrainState {
            step: self.get("step")?,
            tokens_seen: self.get("tokens")?,
            epoch: self.get("epoch")?,
            position: self.get("position")?,
            settings: TrainSettings::from_iter(settings),
            ..TrainState::default()
        };
        let provenance = Provenance {
            ckptd: env!("CARGO_PKG_VERSION").into(),
            libtorch: self.get("torch")?,
            host: self.get("host")?,
            device: self.get("device")?,
            reason: self.get("reason")?,
        };
        let metrics = Metrics { train_loss: self.get("loss")?, ..Metrics::default() };
        Ok(Snapshot { tensors: Vec::new(), train, metrics, provenance, files: Vec::new() })
    }
}
