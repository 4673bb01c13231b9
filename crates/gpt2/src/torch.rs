//! libtorch's errors as ckptd's, and the device that it computes on.
//!
//! Invariant: no error of libtorch leaves without the operation that failed. Deliberately not here: threads and memory
//! (`process`), what is computed.

use std::ffi::{CStr, CString, c_char, c_void};

use ckptd_core::{Error, Result};
use tch::{Device, TchError};

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

unsafe extern "C" {
    fn ckptd_last_error() -> *const c_char;
}

/// What libtorch said on this thread when a call of our own C++ over it failed (`kernels/guard.h`).
pub(crate) fn last_error() -> String {
    // SAFETY: a text that ends with a zero byte and stays until the next call on this thread.
    let text = unsafe { CStr::from_ptr(ckptd_last_error()) }.to_string_lossy().into_owned();
    text.lines().next().unwrap_or_default().to_owned()
}

/// What such a call has returned, or why it failed.
pub(crate) fn checked(made: *mut c_void) -> Result<*mut c_void, TchError> {
    if made.is_null() { Err(TchError::Torch(last_error())) } else { Ok(made) }
}

/// The device that `[job] device` names ("auto", "cpu", "cuda:N"); "auto" is the first CUDA device, or else the CPU.
///
/// # Errors
/// [`Error::Config`] where the name is unknown, or that device is not there.
pub fn open_device(name: &str) -> Result<Device> {
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
pub fn device_name(device: Device) -> String {
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_is_unknown_is_refused_by_name() {
        assert_eq!(open_device("cpu").unwrap(), Device::Cpu);
        for bad in ["gpu", "cuda:", "cuda:x", "cudax", ""] {
            let error = open_device(bad).unwrap_err();
            assert_eq!(error.exit_code(), 78);
            assert!(error.to_string().contains("[job] device"), "{error}");
        }
    }
}
