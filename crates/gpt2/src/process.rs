//! What this process is set to before libtorch computes: threads, malloc, OpenMP.
//!
//! Invariant: the number of threads is set once, before the first tensor operation, because it decides how sums are
//! split and thereby the last bits of every result; what libtorch's libraries choose at their first call is chosen on
//! one thread. Deliberately not here: the device (`torch`), priorities of threads (core's `os::process`).

use std::os::unix::process::CommandExt;

use ckptd_core::Result;
use ckptd_core::os::process::processors;
use tch::{Device, Kind, TchError, Tensor};

use crate::torch::TorchContext;

/// Sets libtorch's threads for one operation, and returns how many they are; 0 asks for one per processor. To be
/// called before the first tensor operation that may use more than one.
///
/// # Errors
/// [`ckptd_core::Error::Other`] where libtorch cannot compute at all.
pub fn set_threads(threads: usize) -> Result<usize> {
    settle_vector_math().context("its first operation")?;
    let threads = if threads == 0 { processors() } else { threads };
    tch::set_num_threads(i32::try_from(threads).unwrap_or(i32::MAX));
    Ok(threads)
}

/// Does what libtorch does once per process, at its first operations.
pub fn warm_up() {
    // Where libtorch cannot compute at all, `set_threads` says so.
    let _ = settle_vector_math();
}

/// Makes MKL, which libtorch's exp, log and tanh of whole tensors come from on x86-64, choose its code for this
/// processor while one thread alone is using it.
///
/// It chooses at the first call of any of them, and stores the kind of processor twice: as detected, and then as its
/// tables count it. A second thread that makes its first call between the two reads the wrong row of the table, and
/// computes its share of that one tensor with code of another accuracy: log sum exp off by 3e-5, seen in one of 50
/// processes on two busy cores. That changes the first step after a resume, and so every bit after it.
fn settle_vector_math() -> std::result::Result<(), TchError> {
    // One element is never divided among threads.
    Tensor::f_ones([1], (Kind::Float, Device::Cpu))?.f_exp().map(drop)
}

/// Ends this process at once. Not as `exit` does: its handlers would tear libtorch down under what its threads, and
/// those of gloo, still compute or wait for.
pub fn leave(code: i32) -> ! {
    // SAFETY: _exit has no preconditions.
    unsafe { libc::_exit(code) }
}

/// Makes malloc keep and reuse the memory of tensors. By default glibc maps and unmaps every tensor of more than
/// 128 KiB, which costs a page fault per 4 KiB and step: about 120,000 for GPT-2 with 124 M parameters. To be called
/// first in `main`, before other threads exist. Elsewhere than on glibc it does nothing.
pub fn tune_malloc() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: mallopt only changes malloc's own parameters; an unknown one is refused with 0.
    unsafe {
        // One arena, grown through brk: the per-thread arenas are mappings of 64 MiB that hold no large tensor.
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_MMAP_MAX, 0);
        libc::mallopt(libc::M_TRIM_THRESHOLD, libc::c_int::MAX);
        libc::mallopt(libc::M_TOP_PAD, 64 << 20);
    }
}

/// Makes libtorch's threads sleep, not spin, when they wait for one another. A thread that spins keeps the processor
/// from the one it waits for as soon as anything else runs on the machine, an encoding thread for example: measured
/// with gpt2-mini on two busy cores, a step took 7 times as long. libgomp reads its environment once, when it is
/// loaded, so the program starts itself again; a user's own setting stands, and the agent sets it beforehand.
/// To be called first in `main`. Returns only where that is not needed or not possible.
pub fn settle_openmp() {
    const SETTINGS: [&str; 2] = ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT"];
    if SETTINGS.iter().any(|name| std::env::var_os(name).is_some()) {
        return;
    }
    let mut again = std::process::Command::new("/proc/self/exe");
    let name = std::env::args_os().next().unwrap_or_else(|| "ckptd-gpt2".into());
    // Without /proc the program goes on as it is, only slower on a busy machine.
    let _ = again.arg0(name).args(std::env::args_os().skip(1)).env(SETTINGS[0], "passive").exec();
}
