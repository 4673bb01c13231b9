//! Bits to bytes, least significant first.

/// Writes into a slice that must be longer than what is written by [`BitWriter::SLACK_BYTES`]; otherwise it panics.
pub(super) struct BitWriter<'a> {
    pub out: &'a mut [u8],
    /// Whole bytes written.
    pub at: usize,
    /// Bits that do not fill a byte yet, and how many; less than 8 between two calls.
    pub held: u64,
    pub held_bits: u64,
}

impl<'a> BitWriter<'a> {
    /// The closing bit and what it rounds up, and up to 64 bytes that are touched at a time.
    pub(super) const SLACK_BYTES: usize = 72;
    /// Most bits of one call of `put`.
    pub(super) const PUT_BITS: u64 = 56;

    pub(super) fn new(out: &'a mut [u8]) -> Self {
        BitWriter { out, at: 0, held: 0, held_bits: 0 }
    }

    /// Appends the low `bits` bits of `word`, at most [`BitWriter::PUT_BITS`]; the others must be 0.
    #[inline(always)]
    pub(super) fn put(&mut self, word: u64, bits: u64) {
        debug_assert!(bits <= Self::PUT_BITS && word >> bits == 0);
        self.held |= word << self.held_bits;
        self.out[self.at..self.at + 8].copy_from_slice(&self.held.to_le_bytes());
        let held_bits = self.held_bits + bits;
        self.at += (held_bits / 8) as usize;
        self.held >>= held_bits & 56;
        self.held_bits = held_bits % 8;
    }

    /// Appends the 1 bit that ends a zstd bit stream and returns the number of bytes.
    pub(super) fn close(mut self) -> usize {
        self.put(1, 1);
        self.at + usize::from(self.held_bits > 0)
    }
}
