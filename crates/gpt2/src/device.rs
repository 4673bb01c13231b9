//! Where the training runs: the device, the number of threads, and the settings of the allocator that go with them.
//!
//! Invariant: the number of threads is set once, before the first tensor operation, because it decides how sums are
//! split and thereby the last bits of every result; what libtorch's libraries choose at their first call is chosen on
//! one thread. Deliberately not here: what is computed.

use std::ffi::CString;

use ckptd_core::os::process::processors;
use ckptd_core::{Error, Result};
use tch::{Device, Kind, TchError, Tensor};

/// Turns libtorch's errors into ckptd's, with the operation that failed.
pub trait TorchContext<T> {
    /// `what` reads on after "libtorch failed in", as "the forward pass".
    fn context(self, what: impl std::fmt::Display) -> Result<T>;
}

impl<T> TorchContext<T> for Result<T, TchError> {
    fn context(self, what: impl std::fmt::Display) -> Result<T> {
        self.map_err(|error| {
            // libtorch appends its C++ stack; the first line says what is wrong.
            let text = error.to_string();
            Error::Other(format!("libtorch failed in {what}: {}", text.lines().next().unwrap_or_default()))
        })
    }
}

/// The device that `[job] device` names ("auto", "cpu", "cuda:N"); "auto" is the first CUDA device, or else the CPU.
///
/// # Errors
/// [`Error::Config`] where the name is unknown, or that device is not there.
pub fn open(name: &str) -> Result<Device> {
    match name {
        "cpu" => Ok(Device::Cpu),
        "auto" => Ok(if load_cuda().is_ok() && tch::Cuda::is_available() { Device::Cuda(0) } else { Device::Cpu }),
        _ => {
            let index = name.strip_prefix("cuda").map(|rest| rest.strip_prefix(':').unwrap_or("0"));
            let Some(index) = index.and_then(|text| text.parse::<usize>().ok()) else {
                return Err(Error::Config(format!("[job] device: {name:?} is not \"auto\", \"cpu\" or \"cuda:N\"")));
            };
            let absent = |why: String| {
                Error::Config(format!("[job] device: {name} cannot be used ({why}); set device = \"cpu\", or \"auto\""))
            };
            load_cuda().map_err(absent)?;
            let devices = tch::Cuda::device_count();
            if index as i64 >= devices {
                return Err(absent(format!("libtorch sees {devices} CUDA devices")));
            }
            Ok(Device::Cuda(index))
        }
    }
}

/// "cpu" or "cuda:N", as the config spells it.
pub fn name(device: Device) -> String {
    match device {
        Device::Cuda(index) => format!("cuda:{index}"),
        Device::Mps => "mps".into(),
        Device::Vulkan => "vulkan".into(),
        Device::Cpu => "cpu".into(),
    }
}

/// Opens libtorch's CUDA half, which registers its operations; the binary itself links the CPU's only.
fn load_cuda() -> Result<(), String> {
    let folder = option_env!("CKPTD_LIBTORCH_LIB").unwrap_or("");
    let path = if folder.is_empty() { "libtorch_cuda.so".into() } else { format!("{folder}/libtorch_cuda.so") };
    if !folder.is_empty() && !std::path::Path::new(&path).exists() {
        return Err(format!("{path} does not exist"));
    }
    let c_path = CString::new(path).map_err(|e| e.to_string())?;
    // SAFETY: a NUL-terminated path; the library's constructors are libtorch's own and it stays loaded.
    let library = unsafe { libc::dlopen(c_path.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
    if !library.is_null() {
        return Ok(());
    }
    // SAFETY: dlerror returns NULL or a NUL-terminated text that is valid until the next call on this thread.
    let text = unsafe {
        let text = libc::dlerror();
        (!text.is_null()).then(|| std::ffi::CStr::from_ptr(text).to_string_lossy().into_owned())
    };
    Err(text.unwrap_or_else(|| "the dynamic loader does not say why".into()))
}

/// Sets libtorch's threads for one operation, and returns how many they are; 0 asks for one per processor. To be
/// called before the first tensor operation that may use more than one.
///
/// # Errors
/// [`Error::Other`] where libtorch cannot compute at all.
pub fn set_threads(threads: usize) -> Result<usize> {
    settle_vector_math().context("its first operation")?;
    let threads = match threads {
        0 => processors(),
        n => n,
    };
    tch::set_num_threads(i32::try_from(threads).unwrap_or(i32::MAX));
    Ok(threads)
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
    use std::os::unix::process::CommandExt;
    const SETTINGS: [&str; 2] = ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT"];
    if SETTINGS.iter().any(|name| std::env::var_os(name).is_some()) {
        return;
    }
    let mut again = std::process::Command::new("/proc/self/exe");
    let name = std::env::args_os().next().unwrap_or_else(|| "ckptd-gpt2".into());
    // Without /proc the program goes on as it is, only slower on a busy machine.
    let _ = again.arg0(name).args(std::env::args_os().skip(1)).env(SETTINGS[0], "passive").exec();
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_is_unknown_is_refused_by_name() {
        assert_eq!(open("cpu").unwrap(), Device::Cpu);
        for bad in ["gpu", "cuda:", "cuda:x", "cudax", ""] {
            let error = open(bad).unwrap_err();
            assert_eq!(error.exit_code(), 78);
            assert!(error.to_string().contains("[job] device"), "{error}");
        }
    }
}
