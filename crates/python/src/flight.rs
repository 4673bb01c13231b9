//! A snapshot on its way to the disk, on threads of its own.
//!
//! Invariant: a file gets its name only after the Python half has approved it, since only that knows whether a tensor
//! was written while it was encoded. Deliberately not here: how a commit works (ckptd-core).

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ckptd_core::Error;
use ckptd_core::store::{CommitHandle, Committed, Manifest};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::live::LiveTensors;

/// How a commit ended.
enum FlightEnd {
    Committed(Box<Committed>),
    Failed { what: String, disk_full: bool, abandoned: bool },
}

#[derive(Default)]
struct FlightState {
    /// The file is whole, and waits for the last word.
    encoded: bool,
    /// That word: why the snapshot must not be kept, if it must not.
    verdict: Option<Option<String>>,
    /// Tensors whose bytes in the file are not those that they had at the boundary.
    torn: Vec<String>,
    end: Option<FlightEnd>,
}

/// What the commit's thread and the Python half share.
#[derive(Default)]
pub(crate) struct FlightBoard {
    state: Mutex<FlightState>,
    changed: Condvar,
}

impl FlightBoard {
    fn lock(&self) -> MutexGuard<'_, FlightState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut FlightState)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }

    /// Waits until `what` holds; `None` for as long as that takes.
    fn wait(&self, timeout: Option<Duration>, what: impl Fn(&FlightState) -> bool) -> bool {
        let until = timeout.map(|timeout| Instant::now() + timeout);
        let mut state = self.lock();
        while !what(&state) {
            state = match until.map(|until| until.saturating_duration_since(Instant::now())) {
                Some(Duration::ZERO) => return false,
                Some(left) => self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0,
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
        }
        true
    }

    /// The last word on a file that is whole. `before`: what some tensors hashed to at the boundary, by their index.
    pub(crate) fn approve(&self, manifest: &Manifest, before: &[(usize, String)]) -> ckptd_core::Result<()> {
        let is_torn = |(index, hash): &&(usize, String)| manifest.tensors.get(*index).is_none_or(|t| t.hash != *hash);
        let torn: Vec<String> = before
            .iter()
            .filter(is_torn)
            .filter_map(|(index, _)| manifest.tensors.get(*index).map(|tensor| tensor.meta.label()))
            .collect();
        if !torn.is_empty() {
            let what = format!("{} was written while it was encoded, and nobody announced it", torn.join(", "));
            self.change(|state| state.torn = torn);
            return Err(Error::Other(what));
        }
        self.change(|state| state.encoded = true);
        self.wait(None, |state| state.verdict.is_some());
        match self.lock().verdict.clone().flatten() {
            Some(what) => Err(Error::Other(what)),
            None => Ok(()),
        }
    }

    /// The commit is over.
    pub(crate) fn end(&self, outcome: ckptd_core::Result<Committed>) {
        let end = match outcome {
            Ok(committed) => FlightEnd::Committed(Box::new(committed)),
            Err(error) => FlightEnd::Failed {
                disk_full: matches!(error, Error::NoSpace { .. }),
                abandoned: matches!(error, Error::Abandoned),
                what: error.to_string(),
            },
        };
        self.change(|state| state.end = Some(end));
    }
}

/// A snapshot that is being encoded and written.
#[pyclass(frozen)]
pub(crate) struct SnapshotFlight {
    pub(crate) board: Arc<FlightBoard>,
    pub(crate) live: LiveTensors,
    pub(crate) handle: Arc<CommitHandle>,
    /// Its number in the run.
    #[pyo3(get)]
    pub(crate) seq: u64,
}

#[pymethods]
impl SnapshotFlight {
    /// Whether no tensor is read from the training's memory any more.
    fn is_released(&self) -> bool {
        self.live.is_released()
    }

    /// Waits until the training may write its tensors; at most `most` bytes are copied for that. Returns how many were.
    fn release(&self, py: Python<'_>, most: usize) -> usize {
        py.detach(|| self.live.release(most))
    }

    /// Waits until all is encoded and written, or the commit has failed; false when `seconds` are over before.
    fn wait_encoded(&self, py: Python<'_>, seconds: Option<f64>) -> bool {
        let timeout = seconds.map(Duration::from_secs_f64);
        py.detach(|| self.board.wait(timeout, |state| state.encoded || state.end.is_some()))
    }

    /// The last word: the file gets its name, or it is removed because of `reason`.
    #[pyo3(signature = (reason=None))]
    fn judge(&self, reason: Option<String>) {
        self.board.change(|state| state.verdict = state.verdict.take().or(Some(reason)));
    }

    /// Waits for the end; `None` when `seconds` are over before. Else what became of the snapshot.
    #[pyo3(signature = (seconds=None))]
    fn wait<'py>(&self, py: Python<'py>, seconds: Option<f64>) -> PyResult<Option<Bound<'py, PyDict>>> {
        let timeout = seconds.map(Duration::from_secs_f64);
        if !py.detach(|| self.board.wait(timeout, |state| state.end.is_some())) {
            return Ok(None);
        }
        let state = self.board.lock();
        let said = PyDict::new(py);
        match &state.end {
            Some(FlightEnd::Committed(committed)) => {
                said.set_item("path", committed.path.to_string_lossy())?;
                said.set_item("bytes", committed.bytes)?;
                said.set_item("raw_bytes", committed.raw_bytes)?;
                said.set_item("root", committed.root.to_string())?;
                said.set_item("write_ms", committed.write_ms)?;
            }
            Some(FlightEnd::Failed { what, disk_full, abandoned }) => {
                said.set_item("what", what)?;
                said.set_item("disk_full", *disk_full)?;
                said.set_item("abandoned", *abandoned)?;
                said.set_item("torn", state.torn.clone())?;
            }
            None => {}
        }
        Ok(Some(said))
    }

    /// Gives the commit all processors.
    fn hurry(&self) {
        self.handle.hurry();
    }

    /// Gives it up.
    fn cancel(&self) {
        self.handle.cancel();
        self.board.change(|state| state.verdict = state.verdict.take().or(Some(Some("it was given up".to_owned()))));
    }
}
