//! Tensors that are encoded from the memory in which the training computes.
//!
//! Invariant: between two updates nobody writes them. Before the next update [`LiveTensors::release`] returns only when
//! no thread reads their memory any more, nor will: what is not encoded yet is waited for, or copied, and from then on
//! the copy is read. Deliberately not here: when an update comes (Python).

use std::sync::atomic::{AtomicPtr, Ordering, fence};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError, Weak};
use std::time::Duration;

use ckptd_core::snapshot::TensorBytes;

use crate::memory::Memory;

/// Between two looks whether a thread still reads memory that was copied.
const LOOK: Duration = Duration::from_micros(50);

/// How many tensors are still read from the training's memory.
#[derive(Default)]
struct LiveCount {
    count: Mutex<usize>,
    changed: Condvar,
}

impl LiveCount {
    fn change(&self, change: isize) {
        let mut count = self.count.lock().unwrap_or_else(PoisonError::into_inner);
        *count = count.saturating_add_signed(change);
        self.changed.notify_all();
    }
}

/// One tensor's bytes: the training's own, or from some moment on a copy.
struct LiveBytes {
    at: AtomicPtr<u8>,
    length: usize,
    copy: OnceLock<Box<[u8]>>,
    live: Arc<LiveCount>,
}

impl AsRef<[u8]> for LiveBytes {
    fn as_ref(&self) -> &[u8] {
        // Whoever is here has a reference of its own, counted before this fence; see `copy_out`.
        fence(Ordering::SeqCst);
        let address = self.at.load(Ordering::SeqCst) as usize;
        // SAFETY: the training's memory is kept by the flight and not written before `release` has returned, which
        // waits for every reader of it; a copy lives as long as this does.
        unsafe { Memory { address, length: self.length }.bytes() }
    }
}

impl Drop for LiveBytes {
    fn drop(&mut self) {
        if self.copy.get().is_none() {
            self.live.change(-1);
        }
    }
}

/// The live tensors of a snapshot, in the order in which they are encoded.
#[derive(Default)]
pub(crate) struct LiveTensors {
    tensors: Vec<Weak<LiveBytes>>,
    live: Arc<LiveCount>,
}

impl LiveTensors {
    /// Adds a tensor; what is returned has the only strong reference to it.
    pub(crate) fn add(&mut self, memory: Memory) -> TensorBytes {
        let bytes = Arc::new(LiveBytes {
            at: AtomicPtr::new(memory.address as *mut u8),
            length: memory.length,
            copy: OnceLock::new(),
            live: Arc::clone(&self.live),
        });
        self.live.change(1);
        self.tensors.push(Arc::downgrade(&bytes));
        bytes
    }

    /// Whether none is read from the training's memory any more.
    pub(crate) fn is_released(&self) -> bool {
        *self.live.count.lock().unwrap_or_else(PoisonError::into_inner) == 0
    }

    /// Waits until the training may write: copies what comes last in the order of encoding, up to `most` bytes, and
    /// waits for the rest. Returns the bytes that were copied.
    pub(crate) fn release(&self, most: usize) -> usize {
        let mut copied = 0;
        for tensor in self.tensors.iter().rev() {
            if self.is_released() {
                return copied;
            }
            let Some(bytes) = tensor.upgrade().filter(|bytes| bytes.copy.get().is_none()) else { continue };
            if copied + bytes.length > most {
                break;
            }
            copied += bytes.length;
            copy_out(&bytes);
        }
        let mut count = self.live.count.lock().unwrap_or_else(PoisonError::into_inner);
        while *count > 0 {
            count = self.live.changed.wait(count).unwrap_or_else(PoisonError::into_inner);
        }
        copied
    }
}

/// Has every reader that comes from now on read a copy, and waits for those that are there.
fn copy_out(bytes: &Arc<LiveBytes>) {
    let copy: Box<[u8]> = (**bytes).as_ref().into();
    let copy = bytes.copy.get_or_init(|| copy);
    bytes.at.store(copy.as_ptr().cast_mut(), Ordering::SeqCst);
    // A reader clones its reference, passes the fence in `as_ref` and loads the address; here the address is stored
    // before the fence, and the references are counted after it. So a reader that is not counted loads the copy.
    fence(Ordering::SeqCst);
    // This one and the one from which the readers clone theirs.
    while Arc::strong_count(bytes) > 2 {
        std::thread::sleep(LOOK);
    }
    fence(Ordering::SeqCst);
    bytes.live.change(-1);
}
