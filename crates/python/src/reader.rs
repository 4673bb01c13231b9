//! Reading a snapshot, straight into the memory of tensors.
//!
//! Invariant: no byte is left in a tensor without an error whose hash did not match.

use std::path::Path;

use ckptd_core::os::process::processors;
use ckptd_core::progress::NoProgress;
use ckptd_core::store::{SnapshotReader, Store};
use pyo3::prelude::*;

use crate::errors::{CkptdError, raise};
use crate::memory::Memory;

/// An open snapshot, all of it but its chunks checked.
#[pyclass(frozen)]
pub(crate) struct SnapshotFile(SnapshotReader);

#[pymethods]
impl SnapshotFile {
    /// Opens the file at `path`.
    #[new]
    fn new(py: Python<'_>, path: &str) -> PyResult<SnapshotFile> {
        let opened = py.detach(|| SnapshotReader::open_past_cache(Path::new(path)));
        opened.map(SnapshotFile).map_err(|error| raise(&error))
    }

    /// The manifest as JSON.
    fn manifest(&self) -> PyResult<String> {
        serde_json::to_string(self.0.manifest()).map_err(|e| CkptdError::new_err(e.to_string()))
    }

    /// Decodes tensors, by their index in the manifest, to memory of their length: (index, address, bytes).
    fn read_into(&self, py: Python<'_>, wanted: Vec<(usize, usize, usize)>) -> PyResult<()> {
        let targets = wanted.into_iter().map(|(index, address, length)| {
            // SAFETY: the caller holds the tensors, and computes nothing with them meanwhile; each is given once.
            (index, unsafe { Memory { address, length }.bytes_mut() })
        });
        let targets = targets.collect();
        py.detach(|| self.0.read_into(targets, processors())).map_err(|error| raise(&error))
    }

    /// Reads everything, and checks every hash.
    fn verify(&self, py: Python<'_>) -> PyResult<()> {
        py.detach(|| self.0.check_all(processors(), &NoProgress)).map_err(|error| raise(&error))
    }
}

/// The file that a name means in a store: "latest", "best", a step, an id or a path.
#[pyfunction]
pub(crate) fn find_snapshot(py: Python<'_>, store: &str, name: &str) -> PyResult<String> {
    let found = py.detach(|| Store::open(Path::new(store)).and_then(|store| store.find(name)));
    found.map(|entry| entry.path.to_string_lossy().into_owned()).map_err(|error| raise(&error))
}
