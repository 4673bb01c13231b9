//! What carries float32 values between ranks: gloo, or an MPI library.
//!
//! Deliberately not here: small messages, which go over the connections to rank 0 (`together`).

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ckptd_core::config::RankBackend;
use ckptd_core::{Error, Result};

use super::group::Transport;
use super::mesh::{KeyStore, Mesh};

/// Refuses a backend that this program was built without.
///
/// # Errors
/// [`Error::Config`] that says how to build one with it.
pub(super) fn is_built_with(backend: RankBackend) -> Result<()> {
    if backend == RankBackend::Mpi && !cfg!(feature = "mpi") {
        return Err(Error::Config(
            "[ranks] backend = \"mpi\" takes a worker that was built with an MPI library, and this one was not: \
             cargo build --release --workspace --features ckptd-gpt2/mpi, with the packages that docs/ranks.md names"
                .into(),
        ));
    }
    Ok(())
}

/// Takes leave of what connects the ranks, where that wants it. To be called on all ranks, right before they end.
pub fn finish() {
    #[cfg(feature = "mpi")]
    super::mpi::finish();
}

/// Connects all ranks. With gloo each listens at its own `address`.
pub(super) fn connect(
    backend: RankBackend,
    store: Arc<dyn KeyStore>,
    (rank, size): (usize, usize),
    address: IpAddr,
    patience: Duration,
) -> std::result::Result<Box<dyn Transport>, String> {
    match backend {
        RankBackend::Gloo => Ok(Box::new(Mesh::connect(store, rank, size, address, patience)?)),
        #[cfg(feature = "mpi")]
        RankBackend::Mpi => Ok(Box::new(super::mpi::MpiTransport::connect(rank, size)?)),
        #[cfg(not(feature = "mpi"))]
        RankBackend::Mpi => Err(is_built_with(backend).err().map_or_else(String::new, |e| e.to_string())),
    }
}
