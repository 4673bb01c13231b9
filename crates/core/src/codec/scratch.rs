//! Scratch memory of one thread.

/// The first `len` bytes of a buffer that only ever grows.
#[inline]
pub(super) fn resized(buffer: &mut Vec<u8>, len: usize) -> &mut [u8] {
    if buffer.len() < len {
        buffer.resize(len, 0);
    }
    &mut buffer[..len]
}
