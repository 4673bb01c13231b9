//! Gradients between ranks: c10d's process group over gloo, of the libtorch that is linked anyway.
//!
//! Invariant: it listens at one named address; a connection to it that is not another rank's is found out before
//! anything is sent over it (see `together`). The memory of a transfer is not touched by anybody else until the
//! transfer has ended. Deliberately not here: which values go where.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::group::{Incoming, Outgoing, Transport};
use crate::torch::last_error;

/// What the process group asks of its store.
pub(super) trait KeyStore: Send + Sync {
    fn set(&self, key: &[u8], value: &[u8]) -> bool;
    /// Waits until some rank has set it.
    fn get(&self, key: &[u8], patience: Duration) -> Option<Vec<u8>>;
}

#[repr(C)]
struct StoreCalls {
    context: *const c_void,
    set: extern "C" fn(*const c_void, *const u8, usize, *const u8, usize) -> c_int,
    get: extern "C" fn(*const c_void, *const u8, usize, u64, *mut c_void) -> c_int,
}

unsafe extern "C" {
    fn ckptd_c10d_libtorch() -> *const c_char;
    fn ckptd_c10d_fill(sink: *mut c_void, value: *const u8, size: usize);
    fn ckptd_c10d_connect(
        calls: *const StoreCalls,
        rank: c_int,
        size: c_int,
        address: *const c_char,
        timeout_ms: u64,
    ) -> *mut c_void;
    fn ckptd_c10d_send(group: *mut c_void, values: *const f32, count: usize, peer: c_int, tag: c_int) -> *mut c_void;
    fn ckptd_c10d_receive(group: *mut c_void, values: *mut f32, count: usize, peer: c_int, tag: c_int) -> *mut c_void;
    fn ckptd_c10d_wait(transfer: *mut c_void, timeout_ms: u64) -> c_int;
    fn ckptd_c10d_end(transfer: *mut c_void);
}

/// The release whose headers the process group was compiled with.
const HEADERS: &str = env!("CKPTD_C10D_HEADERS");

/// How the libtorch that is loaded was built, and which of its kernels it takes on this processor, as it says.
pub(super) fn libtorch_config() -> String {
    // SAFETY: a text that ends with a zero byte and stays.
    unsafe { CStr::from_ptr(ckptd_c10d_libtorch()) }.to_string_lossy().into_owned()
}

/// The connections between all ranks.
pub(super) struct Mesh {
    group: *mut c_void,
    round: u32,
}

// SAFETY: a process group may be used from any thread, one at a time, which `&mut self` sees to.
unsafe impl Send for Mesh {}

/// A transfer that has begun. Its end is waited for, or it is given up, before its memory is used again.
struct Transfer {
    work: *mut c_void,
    peer: usize,
}

impl Drop for Transfer {
    fn drop(&mut self) {
        // SAFETY: made by `send` or `receive`, and not ended before.
        unsafe { ckptd_c10d_end(self.work) }
    }
}

impl Mesh {
    /// Connects all ranks, each of which listens at its own `address`.
    pub(super) fn connect(
        store: Arc<dyn KeyStore>,
        rank: usize,
        size: usize,
        address: IpAddr,
        patience: Duration,
    ) -> Result<Mesh, String> {
        let address = CString::new(address.to_string()).map_err(|e| e.to_string())?;
        let config = libtorch_config();
        if !config.contains(&format!("TORCH_VERSION={HEADERS}")) {
            return Err(format!("this program was built for libtorch {HEADERS}, and another one is loaded: {config}"));
        }
        // The process group, which is never destroyed, may ask for as long as the process lives.
        let context: &'static Arc<dyn KeyStore> = Box::leak(Box::new(store));
        let calls = StoreCalls { context: std::ptr::from_ref(context).cast(), set: store_set, get: store_get };
        let (rank, size) = (rank as c_int, size as c_int);
        // SAFETY: the calls are copied, and their context lives for ever; the address ends with a zero byte.
        let group = unsafe { ckptd_c10d_connect(&calls, rank, size, address.as_ptr(), millis(patience)) };
        if group.is_null() { Err(last_error()) } else { Ok(Mesh { group, round: 0 }) }
    }

    /// Numbers the transfers between two ranks within a round alike on both sides.
    fn tag(&self, counts: &mut Vec<u32>, peer: usize) -> c_int {
        if counts.len() <= peer {
            counts.resize(peer + 1, 0);
        }
        counts[peer] += 1;
        ((self.round << 12) + counts[peer]) as c_int
    }
}

impl Transport for Mesh {
    fn exchange(
        &mut self,
        sends: &[Outgoing<'_>],
        receives: &mut [Incoming<'_>],
        patience: Duration,
    ) -> Result<(), (usize, String)> {
        let by = Instant::now() + patience;
        self.round = (self.round + 1) % (1 << 16);
        let mut transfers = Vec::with_capacity(sends.len() + receives.len());
        let mut counts = Vec::new();
        for incoming in receives.iter_mut().filter(|incoming| !incoming.values.is_empty()) {
            let tag = self.tag(&mut counts, incoming.peer);
            let (values, count) = (incoming.values.as_mut_ptr(), incoming.values.len());
            // SAFETY: the slice is borrowed mutably for longer than the transfer lives, and by nobody else.
            let work = unsafe { ckptd_c10d_receive(self.group, values, count, incoming.peer as c_int, tag) };
            transfers.push(begun(work, incoming.peer)?);
        }
        counts.clear();
        for outgoing in sends.iter().filter(|outgoing| !outgoing.values.is_empty()) {
            let tag = self.tag(&mut counts, outgoing.peer);
            let (values, count) = (outgoing.values.as_ptr(), outgoing.values.len());
            // SAFETY: the slice is borrowed for longer than the transfer lives, and only read.
            let work = unsafe { ckptd_c10d_send(self.group, values, count, outgoing.peer as c_int, tag) };
            transfers.push(begun(work, outgoing.peer)?);
        }
        for transfer in &transfers {
            let left = by.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
            // SAFETY: it has not ended yet.
            if unsafe { ckptd_c10d_wait(transfer.work, millis(left)) } != 0 {
                return Err((transfer.peer, last_error()));
            }
        }
        Ok(())
    }
}

fn begun(work: *mut c_void, peer: usize) -> Result<Transfer, (usize, String)> {
    if work.is_null() { Err((peer, last_error())) } else { Ok(Transfer { work, peer }) }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

extern "C" fn store_set(
    context: *const c_void,
    key: *const u8,
    key_size: usize,
    value: *const u8,
    size: usize,
) -> c_int {
    // SAFETY: the context that `connect` leaked; key and value are the caller's, for the time of this call.
    let (store, key, value) = unsafe { (store_of(context), bytes(key, key_size), bytes(value, size)) };
    c_int::from(!store.set(key, value))
}

extern "C" fn store_get(
    context: *const c_void,
    key: *const u8,
    key_size: usize,
    patience_ms: u64,
    sink: *mut c_void,
) -> c_int {
    // SAFETY: as above.
    let (store, key) = unsafe { (store_of(context), bytes(key, key_size)) };
    match store.get(key, Duration::from_millis(patience_ms)) {
        Some(value) => {
            // SAFETY: the sink is the caller's, for the time of this call; the value is copied.
            unsafe { ckptd_c10d_fill(sink, value.as_ptr(), value.len()) };
            0
        }
        None => 1,
    }
}

unsafe fn store_of(context: *const c_void) -> &'static Arc<dyn KeyStore> {
    // SAFETY: the caller's promise.
    unsafe { &*context.cast::<Arc<dyn KeyStore>>() }
}

unsafe fn bytes<'a>(start: *const u8, size: usize) -> &'a [u8] {
    if size == 0 {
        return &[];
    }
    // SAFETY: the caller's promise.
    unsafe { std::slice::from_raw_parts(start, size) }
}
