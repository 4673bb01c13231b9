//! Where an encoded chunk is appended: memory that is there already, so that nothing is zeroed only to be written over.

/// Appends to a slice. What does not fit is a panic; [`max_encode_bytes`](super::chunk::max_encode_bytes)
/// says how much an encoder may need.
pub(super) struct ByteSink<'a> {
    memory: &'a mut [u8],
    len: usize,
}

impl<'a> ByteSink<'a> {
    pub(super) fn new(memory: &'a mut [u8]) -> Self {
        ByteSink { memory, len: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Forgets what was appended after the first `len` bytes.
    pub(super) fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    pub(super) fn push(&mut self, byte: u8) {
        self.grow(1)[0] = byte;
    }

    pub(super) fn extend(&mut self, bytes: &[u8]) {
        self.grow(bytes.len()).copy_from_slice(bytes);
    }

    /// The next `len` bytes, to be written; what they held before is undefined.
    pub(super) fn grow(&mut self, len: usize) -> &mut [u8] {
        let start = self.len;
        self.len += len;
        &mut self.memory[start..self.len]
    }

    /// Everything after what was appended. What is written there counts once [`ByteSink::grow`] has passed it.
    pub(super) fn rest(&mut self) -> &mut [u8] {
        &mut self.memory[self.len..]
    }
}
