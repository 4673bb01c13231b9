//! Gradients between ranks over an MPI library, for fabrics that it knows.
//!
//! Invariant: every wait ends, since transfers are tested and never waited for: MPI itself waits for ever for a rank
//! that has stopped. One thread is in the library at a time. Deliberately not here: which values go where.

use std::mem::forget;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use mpi::Threading;
use mpi::ffi::{
    MPI_Comm_set_errhandler, MPI_Finalize, MPI_Irecv, MPI_Isend, MPI_Request, MPI_SUCCESS, MPI_Test, RSMPI_COMM_WORLD,
    RSMPI_ERRORS_RETURN, RSMPI_FLOAT, RSMPI_STATUS_IGNORE,
};
use mpi::traits::Communicator;

use super::group::{Incoming, Outgoing, Transport};

/// Float32 values of one message: MPI counts in 32 bits.
const PIECE: usize = 1 << 30;
/// Messages between two ranks arrive in the order in which they were sent.
const TAG: i32 = 0;
/// How long the processor is only offered to others while nothing comes, before this thread sleeps in between.
const SPIN: Duration = Duration::from_millis(5);
const NAP: Duration = Duration::from_micros(50);
/// How long the end of MPI may wait for other ranks.
const PARTING: Duration = Duration::from_secs(3);

/// Held by the thread that is in the library.
static LIBRARY: Mutex<()> = Mutex::new(());
/// It has begun, and no transfer has failed. After that it would use memory that is given back, were it called again.
static IS_SOUND: AtomicBool = AtomicBool::new(false);

fn library() -> MutexGuard<'static, ()> {
    LIBRARY.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Ends MPI, without which its launcher tells of a failure. To be called when this process is about to end, on all
/// ranks; whatever still exchanges stays where it is.
pub(super) fn finish() {
    if !IS_SOUND.load(Ordering::Relaxed) {
        return;
    }
    forget(library());
    // It waits for all ranks, of which one may be gone.
    let end = || {
        std::thread::sleep(PARTING);
        // SAFETY: _exit has no preconditions.
        unsafe { libc::_exit(0) }
    };
    if std::thread::Builder::new().spawn(end).is_ok() {
        // SAFETY: MPI has begun, and no other thread is in it or will be.
        unsafe { MPI_Finalize() };
    }
}

/// All ranks of the MPI job that this process is one of.
pub(super) struct MpiTransport(());

/// A transfer that has begun, and the rank at its other end.
struct Transfer {
    request: MPI_Request,
    peer: usize,
}

impl MpiTransport {
    /// To be called once, by all ranks of the training and by nobody else.
    pub(super) fn connect(rank: usize, size: usize) -> Result<MpiTransport, String> {
        // Any thread calls it, one at a time.
        let begun = mpi::initialize_with_threading(Threading::Serialized);
        let (universe, threading) = begun.ok_or("MPI was begun before")?;
        let (own, count) = (universe.world().rank(), universe.world().size());
        forget(universe);
        IS_SOUND.store(true, Ordering::Relaxed);
        if threading < Threading::Serialized {
            return Err("this MPI library serves one thread only".into());
        }
        if (own, count) != (rank as i32, size as i32) {
            return Err(format!(
                "MPI says that this process is rank {own} of {count}, and its environment rank {rank} of {size}; was \
                 it started by the mpirun or srun of the same MPI? (srun: --mpi=pmix, or SLURM_MPI_TYPE=pmix)"
            ));
        }
        // SAFETY: MPI has begun.
        match unsafe { MPI_Comm_set_errhandler(RSMPI_COMM_WORLD, RSMPI_ERRORS_RETURN) } as u32 {
            MPI_SUCCESS => Ok(MpiTransport(())),
            code => Err(format!("MPI's error {code}")),
        }
    }
}

impl Transport for MpiTransport {
    fn exchange(
        &mut self,
        sends: &[Outgoing<'_>],
        receives: &mut [Incoming<'_>],
        patience: Duration,
    ) -> Result<(), (usize, String)> {
        if !IS_SOUND.load(Ordering::Relaxed) {
            return Err((0, "an exchange has failed before".into()));
        }
        let exchanged = begin(sends, receives).and_then(|transfers| end(transfers, patience));
        exchanged.inspect_err(|_| IS_SOUND.store(false, Ordering::Relaxed))
    }
}

/// Begins all transfers.
fn begin(sends: &[Outgoing<'_>], receives: &mut [Incoming<'_>]) -> Result<Vec<Transfer>, (usize, String)> {
    let (mut transfers, _within) = (Vec::new(), library());
    for incoming in receives {
        for piece in incoming.values.chunks_mut(PIECE) {
            transfers.push(receive(piece, incoming.peer)?);
        }
    }
    for outgoing in sends {
        for piece in outgoing.values.chunks(PIECE) {
            transfers.push(send(piece, outgoing.peer)?);
        }
    }
    Ok(transfers)
}

fn receive(values: &mut [f32], peer: usize) -> Result<Transfer, (usize, String)> {
    // SAFETY: plain data, which MPI fills.
    let mut request: MPI_Request = unsafe { std::mem::zeroed() };
    let (place, count) = (values.as_mut_ptr().cast(), values.len() as i32);
    // SAFETY: the values are borrowed mutably until the transfer has ended; after a failure MPI is not called again,
    // and it moves values only when it is.
    let code = unsafe { MPI_Irecv(place, count, RSMPI_FLOAT, peer as i32, TAG, RSMPI_COMM_WORLD, &raw mut request) };
    begun(code, Transfer { request, peer })
}

fn send(values: &[f32], peer: usize) -> Result<Transfer, (usize, String)> {
    // SAFETY: plain data, which MPI fills.
    let mut request: MPI_Request = unsafe { std::mem::zeroed() };
    let (place, count) = (values.as_ptr().cast(), values.len() as i32);
    // SAFETY: as above, and they are only read.
    let code = unsafe { MPI_Isend(place, count, RSMPI_FLOAT, peer as i32, TAG, RSMPI_COMM_WORLD, &raw mut request) };
    begun(code, Transfer { request, peer })
}

fn begun(code: i32, transfer: Transfer) -> Result<Transfer, (usize, String)> {
    if code as u32 == MPI_SUCCESS { Ok(transfer) } else { Err((transfer.peer, format!("MPI's error {code}"))) }
}

/// Drives all of them to their ends. MPI moves values only while it is called.
fn end(mut transfers: Vec<Transfer>, patience: Duration) -> Result<(), (usize, String)> {
    let by = Instant::now() + patience;
    let mut moved = Instant::now();
    while !transfers.is_empty() {
        let before = transfers.len();
        let (mut failed, within) = (None, library());
        transfers.retain_mut(|transfer| {
            let mut is_over = 0;
            // SAFETY: a request that has begun and not ended.
            let code = unsafe { MPI_Test(&raw mut transfer.request, &raw mut is_over, RSMPI_STATUS_IGNORE) };
            if code as u32 != MPI_SUCCESS {
                failed = failed.take().or(Some((transfer.peer, format!("MPI's error {code}"))));
            }
            is_over == 0
        });
        drop(within);
        let now = Instant::now();
        match failed {
            Some(failed) => return Err(failed),
            None if transfers.len() < before => moved = now,
            None if now > by => return Err((transfers[0].peer, "it did not take part in time".into())),
            None if now - moved < SPIN => std::thread::yield_now(),
            None => std::thread::sleep(NAP),
        }
    }
    Ok(())
}
