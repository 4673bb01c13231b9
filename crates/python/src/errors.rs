//! ckptd's errors as Python's exceptions, by what a caller does about them.

use ckptd_core::Error;
use pyo3::create_exception;
use pyo3::exceptions::PyException;
use pyo3::prelude::*;

create_exception!(ckptd, CkptdError, PyException, "Anything that ckptd could not do; the text says what to do.");
create_exception!(ckptd, SnapshotDamaged, CkptdError, "A snapshot's bytes are not what was written.");
create_exception!(
    ckptd,
    SnapshotMismatch,
    CkptdError,
    "A snapshot is whole, and of another training or other settings."
);
create_exception!(ckptd, StoreLocked, CkptdError, "Another process writes to the store.");

/// The exception for `error`.
pub(crate) fn raise(error: &Error) -> PyErr {
    let text = error.to_string();
    match error {
        Error::Damaged { .. } => SnapshotDamaged::new_err(text),
        Error::Mismatch { .. } | Error::Newer { .. } => SnapshotMismatch::new_err(text),
        Error::Locked { .. } => StoreLocked::new_err(text),
        _ => CkptdError::new_err(text),
    }
}
