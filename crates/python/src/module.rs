//! The module `ckptd._native`.
//!
//! Invariant: it is private to the package; `_native.pyi` has its types. Deliberately not here: definitions.

use pyo3::prelude::*;

/// Private to the package `ckptd`.
#[pymodule(name = "_native")]
mod native {
    #[pymodule_export]
    use crate::errors::{CkptdError, SnapshotDamaged, SnapshotMismatch, StoreLocked};
    #[pymodule_export]
    use crate::flight::SnapshotFlight;
    #[pymodule_export]
    use crate::memory::{bytes_at, copy_all, hash_all, spare_bytes};
    #[pymodule_export]
    use crate::order::epoch_order;
    #[pymodule_export]
    use crate::reader::{SnapshotFile, find_snapshot};
    #[pymodule_export]
    use crate::writer::SnapshotWriter;
    #[pymodule_export]
    const VERSION: &str = env!("CARGO_PKG_VERSION");
}
