//! The memory of a state: one anonymous mapping per set of buffers, in huge pages once the training runs.
//!
//! Not from the beginning: a fault that has to find and clear a huge page is what a restore would wait for, seconds of
//! it on a machine whose memory is full of cached files or was given back to its host.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};

use ckptd_core::os::process;
use ckptd_core::{Error, Result};
use memmap2::{Advice, MmapMut};

/// Buffers begin at multiples of this, so that vectors and cache lines are aligned.
const ALIGN: usize = 64;
const HUGE_PAGE: usize = 2 << 20;
const PAGE: usize = 4096;

/// One mapping, cut into buffers.
pub(super) struct StateMapping {
    /// Owns the memory; its bytes are accessed through `base`.
    map: MmapMut,
    base: *mut u8,
    bytes: usize,
    /// From the first of these offsets everything below the second is faulted in.
    faulted: [AtomicUsize; 2],
}

// SAFETY: `base` points into the memory that the mapping owns; what lies in it is accessed through buffers.
unsafe impl Send for StateMapping {}
// SAFETY: as above.
unsafe impl Sync for StateMapping {}

/// The memory of one tensor. Who may write it is ruled by its `Arc`: only who holds the sole one, or the update
/// that the module above serialises.
pub(super) struct TensorBuffer {
    mapping: Arc<StateMapping>,
    offset: usize,
    length: usize,
}

impl StateMapping {
    /// Zeroed buffers of these lengths in bytes. Their pages are not faulted in yet.
    // The buffers hold the mapping; it is of no use without them.
    #[allow(clippy::new_ret_no_self)]
    pub(super) fn new(lengths: &[usize]) -> Result<Vec<TensorBuffer>> {
        let mut offsets = Vec::with_capacity(lengths.len());
        let mut bytes = 0usize;
        for &length in lengths {
            offsets.push(bytes);
            bytes = bytes.checked_add(length).and_then(|end| end.checked_next_multiple_of(ALIGN)).unwrap_or(usize::MAX);
        }
        let mapped = MmapMut::map_anon(bytes.saturating_add(HUGE_PAGE));
        let mut map = mapped.map_err(|e| Error::Other(format!("no memory for a state of {bytes} bytes: {e}")))?;
        let start = map.as_mut_ptr();
        let base = start.wrapping_add(start.align_offset(HUGE_PAGE));
        let mapping = Arc::new(StateMapping { map, base, bytes, faulted: Default::default() });
        let buffers = offsets.into_iter().zip(lengths);
        Ok(buffers.map(|(offset, &length)| TensorBuffer { mapping: mapping.clone(), offset, length }).collect())
    }

    /// Faults in `[from, to)` without changing its contents, also while others write there.
    fn fault_in(&self, from: usize, to: usize) {
        let from = from / PAGE * PAGE;
        let start = self.base as usize - self.map.as_ptr() as usize;
        if self.map.advise_range(Advice::PopulateWrite, start + from, to - from).is_ok() {
            return;
        }
        // Kernels before 5.14: replacing a byte by itself takes its page for writing, also while another thread writes
        // beside it.
        for offset in (from..to).step_by(PAGE) {
            // SAFETY: the offset lies in the mapping, and is only accessed atomically here.
            let byte = unsafe { AtomicU8::from_ptr(self.base.add(offset)) };
            let value = byte.load(Ordering::Relaxed);
            let _ = byte.compare_exchange(value, value, Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    /// Where huge pages begin, or would: the one that has `first`, and those behind it.
    fn huge_pages(&self, first: usize) -> impl Iterator<Item = usize> + use<> {
        (first / HUGE_PAGE * HUGE_PAGE..self.bytes).step_by(HUGE_PAGE)
    }

    /// Puts a huge page in the place of small ones, contents and all, also while others read and write there. Where
    /// the kernel has none left, the small ones stay: a few percent slower. `None` where there is nothing more to do:
    /// at the end, and before Linux 6.1.
    fn collapse(&self, from: usize) -> Option<()> {
        if from + HUGE_PAGE > self.bytes {
            return None;
        }
        // SAFETY: the range lies in the mapping; its contents and addresses stay the same.
        let done = unsafe { libc::madvise(self.base.add(from).cast(), HUGE_PAGE, libc::MADV_COLLAPSE) };
        (done == 0 || std::io::Error::last_os_error().raw_os_error() != Some(libc::EINVAL)).then_some(())
    }
}

impl TensorBuffer {
    pub(super) fn mapping(&self) -> Arc<StateMapping> {
        self.mapping.clone()
    }

    /// Where in the mapping it begins, in bytes.
    pub(super) fn offset(&self) -> usize {
        self.offset
    }

    pub(super) fn elements(&self) -> usize {
        self.length / 4
    }

    pub(super) fn floats(&self) -> *mut f32 {
        // Within the mapping, whose base is aligned.
        self.mapping.base.wrapping_add(self.offset).cast()
    }

    pub(super) fn bytes(&self) -> &[u8] {
        // SAFETY: within the mapping, which lives as long as the buffer; a buffer that others hold is not written.
        unsafe { std::slice::from_raw_parts(self.floats().cast(), self.length) }
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: within the mapping; buffers do not overlap, and this one is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.floats().cast(), self.length) }
    }

    /// Takes the page faults now that the background has not come to yet.
    pub(super) fn fault_in(&self) {
        let end = self.offset + self.length;
        let [from, to] = [0, 1].map(|at| self.mapping.faulted[at].load(Ordering::Acquire));
        if self.offset < from || to < end {
            self.mapping.fault_in(self.offset, end);
        }
    }

    /// Gives its pages back to the system, except those that it shares with its neighbours. What it holds is lost.
    pub(super) fn give_back(&mut self) {
        let from = self.offset.next_multiple_of(PAGE);
        let to = (self.offset + self.length) / PAGE * PAGE;
        if from < to {
            // SAFETY: the range lies in the mapping and belongs to this buffer alone, which is borrowed mutably; the
            // pages read as zeros from now on.
            unsafe { libc::madvise(self.mapping.base.add(from).cast(), to - from, libc::MADV_DONTNEED) };
        }
    }
}

/// Faults the pages of `spare` in, from the buffer `first` on, and then makes those of both huge ones, on a thread of
/// lower priority, so that the training thread need not wait for either. Ends early once `unwanted`.
pub(super) fn settle_in_background(
    (spare, first): (Arc<StateMapping>, Option<usize>),
    current: Arc<StateMapping>,
    unwanted: impl Fn() -> bool + Send + 'static,
) {
    let spawned = std::thread::Builder::new().name("ckptd-fault".into()).spawn(move || {
        process::lower_priority(process::YIELDING_NICE);
        let first = first.unwrap_or(spare.bytes);
        spare.faulted[0].store(first, Ordering::Release);
        for from in spare.huge_pages(first).take_while(|_| !unwanted()) {
            let to = (from + HUGE_PAGE).min(spare.bytes);
            spare.fault_in(from.max(first), to);
            spare.faulted[1].store(to, Ordering::Release);
        }
        for (mapping, first) in [(&current, 0), (&spare, first.next_multiple_of(HUGE_PAGE))] {
            mapping.huge_pages(first).take_while(|_| !unwanted()).try_for_each(|from| mapping.collapse(from));
        }
    });
    // Without the thread the faults fall on the first snapshot's update: slower, not wrong.
    drop(spawned);
}
