//! Bytes by their address: copied and hashed without the interpreter's lock.
//!
//! Invariant: every address that is given belongs to an object that the caller keeps alive over the call.

use std::sync::atomic::{AtomicUsize, Ordering};

use ckptd_core::config::SnapshotMemory;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

/// "auto" is one part of so many of what is read from the training's memory.
const AUTO_SHARE: u64 = 4;

/// Of `live` bytes that are read from the training's memory, those that an update may have copied instead of waiting,
/// by `[snapshot] memory`.
#[pyfunction]
pub(crate) fn spare_bytes(memory: String, live: u64) -> PyResult<u64> {
    match SnapshotMemory::try_from(memory) {
        Ok(SnapshotMemory::Auto) => Ok(live / AUTO_SHARE),
        Ok(memory) => Ok(memory.bytes(live)),
        Err(what) => Err(PyValueError::new_err(what)),
    }
}

/// `length` bytes at `address`, which nobody writes meanwhile.
#[derive(Clone, Copy)]
pub(crate) struct Memory {
    pub address: usize,
    pub length: usize,
}

impl Memory {
    /// The bytes.
    ///
    /// # Safety
    /// They stay allocated, and nobody writes them, for as long as the slice is used.
    pub(crate) unsafe fn bytes<'a>(self) -> &'a [u8] {
        if self.length == 0 {
            return &[];
        }
        // SAFETY: as the caller promises.
        unsafe { std::slice::from_raw_parts(self.address as *const u8, self.length) }
    }

    /// The bytes, to be written.
    ///
    /// # Safety
    /// They stay allocated, and nobody else reads or writes them, for as long as the slice is used.
    pub(crate) unsafe fn bytes_mut<'a>(self) -> &'a mut [u8] {
        if self.length == 0 {
            return &mut [];
        }
        // SAFETY: as the caller promises.
        unsafe { std::slice::from_raw_parts_mut(self.address as *mut u8, self.length) }
    }
}

/// The `length` bytes at `address`.
#[pyfunction]
pub(crate) fn bytes_at(py: Python<'_>, address: usize, length: usize) -> Bound<'_, PyBytes> {
    // SAFETY: the caller holds the tensor, and the interpreter's lock.
    PyBytes::new(py, unsafe { Memory { address, length }.bytes() })
}

/// Copies each (source, target, length); no two overlap.
#[pyfunction]
pub(crate) fn copy_all(py: Python<'_>, copies: Vec<(usize, usize, usize)>) {
    py.detach(|| {
        for (source, address, length) in copies {
            // SAFETY: the caller holds both tensors for the call, and has just made the targets for this alone.
            let (source, target) =
                unsafe { (Memory { address: source, length }.bytes(), Memory { address, length }.bytes_mut()) };
            target.copy_from_slice(source);
        }
    });
}

/// BLAKE3 of each (address, length), as hex, on `threads` threads.
#[pyfunction]
pub(crate) fn hash_all(py: Python<'_>, items: Vec<(usize, usize)>, threads: usize) -> Vec<String> {
    py.detach(|| {
        let next = AtomicUsize::new(0);
        let work = || {
            let mut made = Vec::new();
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                let Some(&(address, length)) = items.get(index) else { return made };
                // SAFETY: the caller holds the tensors for the call, and no update runs meanwhile.
                made.push((index, blake3::hash(unsafe { Memory { address, length }.bytes() })));
            }
        };
        let mut hashes = vec![String::new(); items.len()];
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..threads.clamp(1, items.len().max(1))).map(|_| scope.spawn(work)).collect();
            for thread in threads {
                for (index, hash) in thread.join().unwrap_or_default() {
                    hashes[index] = hash.to_hex().to_string();
                }
            }
        });
        hashes
    })
}
