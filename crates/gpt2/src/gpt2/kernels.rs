//! What calls of our own C++ over libtorch have in common (`kernels/guard.h`).

use std::ffi::{CStr, c_char, c_void};

use tch::TchError;

unsafe extern "C" {
    fn ckptd_kernel_error() -> *const c_char;
}

/// What a call has returned, or why it failed.
pub(super) fn checked(made: *mut c_void) -> Result<*mut c_void, TchError> {
    if !made.is_null() {
        return Ok(made);
    }
    // SAFETY: a text that ends with a zero byte and stays until the next call on this thread.
    let text = unsafe { CStr::from_ptr(ckptd_kernel_error()) }.to_string_lossy().into_owned();
    Err(TchError::Torch(text))
}
